"""The new program, started beside a control process whose place it takes (vfsd/handover.py).

Rule 1. It has two processes, like the launcher and what it launches: the first reads all that lies outside the walls,
        and starts the other one behind them, as a child of the process that started the old one.
Rule 2. The walls are those that stand: it joins the namespaces of the old program, and gets its root from there.
Rule 3. What it is given is checked before it says that it is ready.
"""

import contextlib
import logging
import os
import signal
import socket
import time

from vfsd import descriptors, handover, legible, sandbox
from vfsd._process import ffi, lib
from vfsd.config import Config
from vfsd.control import Control
from vfsd.errors import Failure
from vfsd.giver import NAMESPACES, TAKING
from vfsd.handover import HandoverError
from vfsd.information import VERSION
from vfsd.launcher import Namespaces, namespaces, take_ids
from vfsd.listen import Listener
from vfsd.log import report
from vfsd.padded import PARTS, Padded
from vhost.arena import Arena
from vhost.saved import StateError, Unpacked, field, items, number

log = logging.getLogger("vfsd.upgrade")


def take_over(config: Config, leash: socket.socket, transfer: socket.socket, listener: Listener) -> int:
    """The life of the first process; its exit status. Raises Failure."""
    try:
        hello = handover.expect(transfer, "hello")
    except HandoverError as error:
        raise Failure(f"there is nothing to take over: {error}") from None
    try:
        theirs = legible.check_hello(hello.data)
        joined = number(hello.data, "namespaces", 0, 4)
        spaces = namespaces(config)
        sandbox.forbid_sources()
        _join(hello.fds[len(hello.fds) - joined :] if joined else [])
        pidfd, told = ffi.new("int *"), os.pipe2(os.O_CLOEXEC)
        pid = lib.process_fork(lib.PROCESS_SIBLING, pidfd)
        if pid < 0:
            raise Failure(f"no process can be started: {os.strerror(-pid)}")
    except (StateError, Failure) as error:
        sentence = f"the old program's state is no use to this one: {error}"
        _tell(transfer, str(error) if isinstance(error, Failure) else sentence)
        raise Failure(sentence) from None
    if pid == 0:
        os.close(told[1])
        # It does nothing before it is known to whom it is a child.
        if not os.read(told[0], 1):
            os._exit(1)
        os.close(told[0])
        _live(config, spaces, leash, transfer, listener, theirs, hello)
    handover.send(leash, "born", pid)
    os.write(told[1], b"!")
    return 0


def _join(fds: list[int]) -> None:
    """Has the namespaces that these are, but for those it has. Raises Failure."""
    own = {os.stat(f"/proc/self/ns/{name}").st_ino for name in NAMESPACES}
    for fd in fds:
        if os.fstat(fd).st_ino not in own and (result := lib.process_join(fd)) < 0:
            raise Failure(f"a namespace of the old program can't be joined: {os.strerror(-result)}")
        os.close(fd)


def _tell(transfer: socket.socket, sentence: str) -> None:
    with contextlib.suppress(HandoverError):
        handover.send(transfer, "failed", sentence)


def _live(
    config: Config,
    spaces: Namespaces,
    leash: socket.socket,
    transfer: socket.socket,
    listener: Listener,
    theirs: str,
    hello: handover.Note,
) -> None:
    """The whole life of the process that takes over; does not return."""
    status = 1
    try:
        control = _prepare(config, spaces, leash, listener, hello)
        _take(control, transfer, theirs)
        status = control.run()
    except (Failure, StateError, HandoverError) as error:
        _tell(transfer, str(error))
        log.error("%s", error)
    except BaseException as error:
        _tell(transfer, f"the new program failed: {error!r}")
        report(error)
    finally:
        os._exit(status)


def _prepare(
    config: Config, spaces: Namespaces, leash: socket.socket, listener: Listener, hello: handover.Note
) -> Control:
    """A control process as after a start, but on the arenas of the other one."""
    # Version 1 has none, and does not say so.
    parts = number(hello.data, "padded", 0, PARTS) if "padded" in hello.data else 0
    (root_fd, proc_fd), given, fds = hello.fds[:2], hello.fds[2 : 2 + parts], hello.fds[2 + parts :]
    if parts not in (0, PARTS):
        raise StateError(f"what opens files for the DAX window has {parts} parts")
    padded = Padded.of(*given) if given else None
    arenas = dict(zip(items(hello.data, "arenas", 16), fds, strict=False))

    def find(name: str, size: int) -> Arena:
        if name not in arenas:
            raise StateError(f"there is no arena {name}")
        return Arena.of(arenas.pop(name), name, size)

    os.fchdir(root_fd)
    if config.sandbox == "chroot":
        os.chroot(".")
    os.chdir("/")
    take_ids(spaces)
    share = sandbox.share(config, spaces, root_fd, proc_fd, padded)
    return Control(config, listener, share, leash, find)


def _take(control: Control, transfer: socket.socket, theirs: str) -> None:
    """Returns when this process serves. Raises HandoverError, StateError; Failure."""
    if max(control.own) >= descriptors.PLACES:
        raise Failure(f"this program holds descriptor {max(control.own)}, which a guest may have")
    handover.send(transfer, "prepared")
    saved, others = handover.receive_state(transfer, TAKING)
    control.resume(saved, Unpacked(others))
    handover.send(transfer, "ready", None, [pidfd := os.pidfd_open(os.getpid())])
    os.close(pidfd)
    handover.expect(transfer, "go", TAKING)
    lib.process_set_death_signal(signal.SIGKILL)
    handover.send(transfer, "serving")
    waited = time.monotonic() - float(field(saved, "since", float))
    log.info("this is vfsd %s in the place of %s; nobody served for %.0f ms", VERSION, theirs, 1000 * waited)
    descriptors.blank(transfer.detach())
