"""The launcher: the started process when the daemon itself lives behind walls.

It stays outside, forwards signals, ends with the status of the process inside, and can clean up: the path of the socket
means something else inside.
"""

import contextlib
import errno
import logging
import os
import select
import signal
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from vfsd import capabilities, handover, idmap
from vfsd._process import ffi, lib
from vfsd.config import Config
from vfsd.errors import Failure
from vfsd.handover import HandoverError
from vfsd.listen import Listener
from vfsd.log import report
from vfsd.signals import Wakeups
from vfsd.upgrade import Attempt, Child, Command, hold
from vfsd.values import IdMap

log = logging.getLogger("vfsd")

#: What the process inside is to get.
FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)
#: And what the launcher takes, besides: an upgrade.
OURS = (*FORWARDED, signal.SIGUSR2)


class Watching(NamedTuple):
    """What an upgrade takes."""

    command: Command
    listener: Listener


@dataclass(frozen=True)
class Namespaces:
    """What the process inside is cloned with."""

    #: PROCESS_NEW_* flags.
    flags: int = 0
    #: Maps of the user namespace; empty: none is made.
    uids: tuple[IdMap, ...] = ()
    gids: tuple[IdMap, ...] = ()
    #: A map is the user's choice (--uid-map, --gid-map).
    chosen: bool = False
    #: setuid and setgid are held outside: any map may be written without newuidmap.
    privileged: bool = False

    @property
    def identities(self) -> bool:
        """More than one user exists inside."""
        return not self.uids or sum(ids.count for ids in self.uids) > 1


def namespaces(config: Config) -> Namespaces:
    """What --sandbox asks for. A user namespace only where privilege is lacking or a map is given."""
    if config.sandbox != "namespace":
        return Namespaces()
    flags = lib.PROCESS_NEW_MOUNT | lib.PROCESS_NEW_PID | lib.PROCESS_NEW_NET
    held = capabilities.effective()
    uids, gids = config.uid_map, config.gid_map
    chosen = bool(uids or gids)
    if held & capabilities.mask("sys_admin") and not chosen:
        return Namespaces(flags)
    setids = capabilities.mask("setuid", "setgid")
    privileged = held & setids == setids
    if not (uids and gids):
        automatic = idmap.automatic(privileged=privileged)
        uids, gids = uids or automatic[0], gids or automatic[1]
    return Namespaces(flags | lib.PROCESS_NEW_USER, uids, gids, chosen, privileged)


Inside = Callable[[Callable[[], None], socket.socket], int]


def launch(spaces: Namespaces, inside: Inside, watching: Watching) -> int:
    """Runs `inside` in a new process and returns its status; 1 when a signal killed it. Raises Failure.

    `inside` gets a function to call when it needs no file of the host any more, and the way to this process, which
    asks for upgrades there. The new process never returns: nothing of the caller's runs twice.
    """
    ready, go = os.pipe2(os.O_CLOEXEC)
    parent = os.pidfd_open(os.getpid())
    pidfd = ffi.new("int *")
    # A signal that came before the handlers below would end this process and not the other.
    signal.pthread_sigmask(signal.SIG_BLOCK, OURS)
    leash, theirs = handover.pair()
    pid = lib.process_fork(spaces.flags, pidfd)
    if pid < 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)
        raise Failure(_no_namespace(-pid))
    if pid == 0:
        os.close(go)
        leash.close()
        _live_inside(spaces, ready, parent, lambda settle: inside(settle, theirs))
    os.close(ready)
    os.close(parent)
    theirs.close()
    try:
        if spaces.uids:
            idmap.write(pid, spaces.uids, spaces.gids, chosen=spaces.chosen, privileged=spaces.privileged)
        os.write(go, b"!")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(go)
    return watch(Child(pid, pidfd[0], leash), watching)


def watch(child: Child, watching: Watching, ready: Callable[[], None] = lambda: None) -> int:
    """Forwards signals to the control process, and has it upgraded; `ready` is called when it does. Returns its exit
    status."""
    with closing(_Watch(child, watching)) as watching_it:
        ready()
        status = watching_it.run()
    if status < 0:
        # It had no time to say so itself. The kernel's OOM killer sends SIGKILL.
        log.error("the daemon was killed by %s", signal.Signals(-status).name)
        return 1
    return status


class _Watch:
    """The launcher, once the control process lives."""

    def __init__(self, child: Child, watching: Watching) -> None:
        self._child, self._watching = child, watching
        self._wakeups = Wakeups(OURS)

    def close(self) -> None:
        self._wakeups.close()

    def run(self) -> int:
        """Returns when the control process has ended: its status, as os.waitstatus_to_exitcode."""
        while self._child.pidfd not in self._wait():
            if signal.SIGUSR2 in self._signals():
                self._upgrade()
        return os.waitstatus_to_exitcode(os.waitpid(self._child.pid, 0)[1])

    def _wait(self, *fds: int) -> set[int]:
        poll = select.poll()
        for fd in (self._wakeups.fileno(), self._child.pidfd, *fds):
            poll.register(fd, select.POLLIN)
        return {fd for fd, _ in poll.poll()}

    def _signals(self) -> set[int]:
        """Those that came, of which some were forwarded."""
        came = set(self._wakeups.unread())
        for number in came.intersection(FORWARDED):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._child.pidfd, number)
        return came

    def _upgrade(self) -> None:
        leash = self._child.leash
        try:
            attempt = Attempt(*self._watching)
        except HandoverError as error:
            log.error("no upgrade: %s", error)
            return
        try:
            handover.send(leash, "hand over", None, [attempt.transfer.fileno()])
            attempt.transfer.close()
            while leash.fileno() not in (ready := self._wait(leash.fileno())):
                self._signals()
                if self._child.pidfd in ready:
                    raise HandoverError("the old control process has ended")
            done = handover.expect(leash, "done").data
        except HandoverError as error:
            attempt.failed(str(error))
            return
        # Those that it had no time for are for the new one.
        hold([*self._wakeups.unread(), *done["signals"]])
        self._child = attempt.succeeded(self._child, done["kept"])


def _live_inside(spaces: Namespaces, ready: int, parent: int, inside: Callable[[Callable[[], None]], int]) -> None:
    """The whole life of the new process; does not return."""
    status = 1
    try:
        if os.read(ready, 1):
            os.close(ready)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, OURS)
            status = inside(partial(_settle, spaces, parent))
    except Failure as failure:
        log.error("%s", failure)
        status = failure.exit_status
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        report(error)
    finally:
        # Not sys.exit: the caller's clean-up is the launcher's to do, and its paths mean something else here.
        os._exit(status)


def _settle(spaces: Namespaces, parent: int) -> None:
    """For the process inside, once it needs no file of the host any more: its ids, and its end with the launcher's.

    The ids are 0 in a user namespace that has it; else they stay what they are.
    """
    take_ids(spaces)
    # The signal comes only if the launcher dies after this call, so look once whether it already has. A change of ids
    # would clear it.
    lib.process_set_death_signal(signal.SIGKILL)
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    if poll.poll(0):
        raise Failure("the launcher is gone")
    os.close(parent)


def take_ids(spaces: Namespaces) -> None:
    """Has the ids 0 in a user namespace that has it."""
    if any(ids.inside == 0 for ids in spaces.gids):
        os.setresgid(0, 0, 0)
    if any(ids.inside == 0 for ids in spaces.uids):
        os.setresuid(0, 0, 0)


def _no_namespace(number: int) -> str:
    if number in (errno.EPERM, errno.ENOSPC, errno.EUSERS):
        return (
            f"no permission to make namespaces ({os.strerror(number)}): start as root, allow user namespaces "
            "(sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), or use --sandbox=none"
        )
    return f"the kernel makes no namespaces ({os.strerror(number)}): use --sandbox=chroot or --sandbox=none"
