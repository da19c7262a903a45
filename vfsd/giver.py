"""An upgrade as the control process sees it that is to be replaced (vfsd/handover.py).

Rule 1. While the new program starts, everything is served as ever. What is asked of it then is asked by way of the one
        loop, and nobody waits.
Rule 2. Whatever fails, this process goes on.
"""

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from vfsd import handover, legible
from vfsd._process import lib as process
from vfsd.errors import internal
from vfsd.handover import HandoverError
from vfsd.signals import Wakeups
from vfsd.upgrade import Attempt, Child, hold
from vhost.arena import Arena

log = logging.getLogger("vfsd.upgrade")

#: Seconds for the new program to start.
STARTING = 30.0
#: Seconds for it to take what it is given; nobody serves meanwhile.
TAKING = 5.0
NAMESPACES = ("user", "mnt", "net", "pid")


class HandedOver(Exception):  # noqa: N818 (no error)
    """Another process serves from now on."""


class LauncherGone(Exception):  # noqa: N818 (no error)
    """There is nobody whose control process this is."""


class Estate(NamedTuple):
    """What a control process hands over at last."""

    state: dict[str, Any]
    #: Descriptors that keep their numbers, sorted, and the others.
    recorded: list[int]
    others: list[int]


class Givings(NamedTuple):
    """What a control process can give from the start on."""

    root_fd: int
    proc_fd: int
    #: Padded.parts, or none.
    padded: tuple[int, ...]
    arenas: Mapping[str, Arena]
    #: It lives in namespaces of its own.
    namespaces: bool


class Giver:
    """Upgrades of one control process, one at a time.

    `leash` leads to its launcher; None: there is none, and `begin` is told by a signal, with `attempt`. `estate` stops
    the worker.
    """

    def __init__(
        self,
        leash: socket.socket | None,
        givings: Givings,
        estate: Callable[[], Estate],
        attempt: Callable[[], Attempt],
    ) -> None:
        self._leash, self._givings, self._estate, self._new_attempt = leash, givings, estate, attempt
        self._attempt: Attempt | None = None
        self._transfer: socket.socket | None = None
        #: The new program is ready to take what it is given.
        self.prepared = False
        self._deadline = 0.0

    def sources(self) -> list[int]:
        """What is to be watched."""
        return [sock.fileno() for sock in (self._leash, self._transfer) if sock]

    def descriptors(self) -> set[int]:
        """Of an upgrade under way."""
        own = {self._transfer.fileno()} if self._transfer else set()
        return own | (self._attempt.descriptors() if self._attempt else set())

    def timeout(self, other: float | None) -> float | None:
        """Seconds until something is due, `other` being those of something else."""
        if not self._transfer:
            return other
        left = max(0.0, self._deadline - time.monotonic())
        return left if other is None else min(left, other)

    def begin(self) -> None:
        """A signal has come. Only where there is no launcher."""
        if self._leash or self._transfer:
            return
        try:
            self._attempt = self._new_attempt()
        except HandoverError as error:
            log.error("no upgrade: %s", error)
            return
        self._start(self._attempt.transfer)

    def work(self, readable: set[int], free: bool) -> None:
        """Goes on with an upgrade. `free`: neither is the front-end's connection within a message nor does it owe an
        answer. Raises HandedOver."""
        if self._leash and self._leash.fileno() in readable:
            # What it brings was not watched yet, and a number in `readable` may be that of what was closed since.
            self._hear(self._leash)
            return
        if not self._transfer:
            return
        try:
            if self._transfer.fileno() in readable:
                handover.expect(self._transfer, "prepared", 0)
                self.prepared = True
                log.debug("the new program is ready")
            if self.prepared and free:
                self._hand_over(self._transfer)
            elif time.monotonic() >= self._deadline:
                late = "the front-end still owes an answer" if self.prepared else "the new program is not ready"
                raise HandoverError(f"{late} after {STARTING:g} s")
        except HandoverError as error:
            self._fail(str(error))

    def leave(self, wakeups: Wakeups) -> Child | None:
        """After HandedOver: this process is of no more use. Where it is the one the user started, it becomes the
        launcher; returns the new control process when it must do so as it is. `wakeups`: signals that came."""
        if self._attempt:
            hold(wakeups.unread())
            return self._attempt.succeeded(None, kept=False)
        assert self._leash
        # The first process of a PID namespace takes all others with it.
        kept = os.getpid() == 1
        handover.send(self._leash, "done", {"kept": kept, "signals": wakeups.unread()})
        if kept:
            _keep()
        return None

    def _hear(self, leash: socket.socket) -> None:
        try:
            note = handover.expect(leash, "hand over", 0)
        except HandoverError:
            raise LauncherGone from None
        (fd,) = note.fds
        if self._transfer:
            os.close(fd)
        else:
            self._start(socket.socket(fileno=fd))

    def _start(self, transfer: socket.socket) -> None:
        log.info("an upgrade was asked for; the new program starts")
        self._transfer, self.prepared, self._deadline = transfer, False, time.monotonic() + STARTING
        try:
            self._greet(transfer)
        except (HandoverError, OSError) as error:
            with contextlib.suppress(HandoverError):
                handover.send(transfer, "failed", str(error))
            self._fail(str(error))

    def _greet(self, transfer: socket.socket) -> None:
        givings = self._givings
        fds = [givings.root_fd, givings.proc_fd, *givings.padded, *(arena.fd for arena in givings.arenas.values())]
        opened: list[int] = []
        try:
            for name in NAMESPACES if givings.namespaces else ():
                opened.append(os.open(f"self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=givings.proc_fd))
            counts = {"padded": len(givings.padded), "namespaces": len(opened)}
            hello = {**legible.hello(), "arenas": [*givings.arenas], **counts}
            handover.send(transfer, "hello", hello, [*fds, *opened])
        finally:
            for fd in opened:
                os.close(fd)

    def _hand_over(self, transfer: socket.socket) -> None:
        """Raises HandedOver; HandoverError, and then the other one does not serve."""
        begun = time.monotonic()
        try:
            estate = self._estate()
            handover.send_state(transfer, {**estate.state, "since": begun}, estate.recorded, estate.others)
            ready = handover.expect(transfer, "ready", TAKING)
        except OSError as error:
            raise HandoverError(internal(error)) from error
        (pidfd,) = ready.fds
        try:
            handover.send(transfer, "go")
            try:
                handover.expect(transfer, "serving", TAKING)
            except HandoverError:
                # Whether it has begun is for it to say, and it says nothing any more.
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                handover.expect(transfer, "serving", None)
        finally:
            os.close(pidfd)
        raise HandedOver

    def _fail(self, reason: str) -> None:
        log.error("no upgrade: %s; this program goes on", reason)
        if self._attempt:
            self._attempt.failed(reason)
            self._attempt = None
        elif self._leash:
            with contextlib.suppress(HandoverError):
                handover.send(self._leash, "failed", reason)
        if self._transfer:
            self._transfer.close()
        self._transfer, self.prepared = None, False


def _keep() -> NoReturn:
    """What is left of the first process of a PID namespace: it waits for the others to end, which the namespace needs
    it for, and has nothing."""
    process.process_set_name(b"vfsd-init")
    signal.set_wakeup_fd(-1)
    os.closerange(0, os.sysconf("SC_OPEN_MAX"))
    process.process_set_capabilities(0, 0, 0)
    # Nobody here is waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        signal.pause()
