"""The control process: one thread, one loop over what may become readable.

Rule 1. It never touches guest memory, and nothing a front-end or a guest sends can end it.
Rule 2. All it uses is imported before it runs: behind the sandbox's walls nothing can be.
"""

import ast  # noqa: F401  (traceback imports it at its first use)
import fcntl
import gc
import logging
import os
import select
import signal
import socket
import time
from typing import Any

import vfsd.ops  # noqa: F401  (registers the ops that Python serves)
from vfsd import descriptors, transfer, worker
from vfsd.config import Config
from vfsd.device import QUEUES, FsDevice
from vfsd.giver import Estate, Giver, Givings, HandedOver, LauncherGone
from vfsd.launcher import Watching, watch
from vfsd.listen import Listener
from vfsd.sandbox import Share
from vfsd.signals import Ended, Signals
from vfsd.supervisor import Supervisor, Work
from vfsd.upgrade import Attempt, Command
from vfsd.window import Window
from vhost.arena import Arena, Maker
from vhost.backend import Backend
from vhost.blame import blame
from vhost.connection import Disconnected
from vhost.device import Refused
from vhost.inflight import inflight_arena
from vhost.memory import table_arena
from vhost.protocol import RemoteProtocolError
from vhost.resume import between_messages, resume, save
from vhost.saved import Packed, Unpacked, field
from vhost.vring import state_arena

log = logging.getLogger("vfsd.control")

#: A front-end that has been silent for so long has said what it had to say: the rings may run, seconds.
SETTLED = 0.001
#: How often to look whether a kicked ring lies in private memory, seconds.
GLANCE = 1.0
#: Workers that may die at the rings of one that died, before these are given up: by their own doing, with nothing done
#: and no request to blame.
PARK_ATTEMPTS = 4


class Control:
    """Serves front-ends, one at a time."""

    def __init__(
        self,
        config: Config,
        listener: Listener,
        share: Share,
        leash: socket.socket | None = None,
        make: Maker = Arena,
        command: Command | None = None,
    ) -> None:
        """`leash` leads to the launcher; without one, `command` is how this process was started. `make` makes or finds
        arenas."""
        self._config, self._listener, self._share = config, listener, share
        self._signals = Signals({signal.SIGUSR1: self._report, signal.SIGUSR2: lambda: self._giver.begin()})
        self._supervisor = Supervisor(self._signals.fileno(), self._signals.check, share.proc_fd)
        self._window = Window(config.dax_window, share.padded) if share.padded else None
        self._transfer = transfer.Transfer(self._signals.fileno(), self._signals.check)
        self._device = FsDevice(
            config, share, self._park, self._move, lambda: self._transfer.outcome, self._window, make
        )
        self._table, self._states = table_arena(), state_arena(QUEUES, make)
        self._inflight = inflight_arena(QUEUES, make)
        self._command = command
        self._giver = self._new_giver(leash)
        self._broken = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._reported: set[int] = set()
        self._backend: Backend | None = None
        #: Workers died of the rings, which can't be parked any more; the connection ends.
        self._lost = False
        self._glance = 0.0
        #: The worker that is to start takes over where another was: nothing has changed.
        self._settled = False
        #: Readable when the process that opens files for the window has ended.
        self._padding = share.padded.pidfd if share.padded else -1
        descriptors.reserve()
        descriptors.fill()
        gc.freeze()
        #: What is open for the whole life of this process.
        self.own = descriptors.opened(share.proc_fd)

    def run(self) -> int:
        """The exit status: 0 when the front-end has left, 1 when serving it failed or a signal came."""
        try:
            while True:
                status = self._serve(self._backend or self._accept())
                if not self._config.keep_listening:
                    return status
        except HandedOver:
            child = self._giver.leave(self._signals)
            return watch(child, self._watching()) if child else 0
        except LauncherGone:
            log.error("the process that was started has ended: shutting down")
            return 1
        except Ended as signal_name:
            log.info("%s: shutting down", signal_name)
            return 1
        finally:
            self._supervisor.kill()

    def resume(self, state: Any, unpacked: Unpacked) -> None:
        """Goes on where another control process stood, which `state` describes; then `run`. Raises StateError."""
        front_end = field(state, "front_end", dict)
        if front_end:
            self._backend = resume(front_end, unpacked, self._device, self._table, self._states, self._inflight)
            if not self._config.keep_listening:
                self._listener.refuse_others()
            # What it is to say it has said.
            self._settled = True
        if self._window:
            self._window.restore(field(state, "window", dict), unpacked)

    def _new_giver(self, leash: socket.socket | None) -> Giver:
        arenas = {arena.name: arena for arena in (*self._device.arenas, self._states, self._inflight)}
        share = self._share
        padded = share.padded.parts if share.padded else ()
        givings = Givings(share.root_fd, share.proc_fd, padded, arenas, self._config.sandbox == "namespace")
        return Giver(leash, givings, self._estate, lambda: Attempt(*self._watching()))

    def _watching(self) -> Watching:
        assert self._command
        return Watching(self._command, self._listener)

    def _estate(self) -> Estate:
        """All that another process needs to go on. No worker runs after this."""
        self._supervisor.stop()
        self._suspend_window()
        packed = Packed()
        state = {
            "front_end": save(self._backend, packed) if self._backend else {},
            "window": self._window.save(packed) if self._window else {},
        }
        return Estate(state, sorted(self._device.descriptors()), packed.fds)

    def _accept(self) -> Backend:
        """The next front-end's connection."""
        log.info("Waiting for vhost-user socket connection...")
        listener, giver = self._listener.socket, self._giver
        while listener.fileno() not in (
            readable := self._readable([listener.fileno(), *giver.sources()], giver.timeout(None))
        ):
            giver.work(readable, free=True)
        connection, _ = listener.accept()
        if not self._config.keep_listening:
            self._listener.refuse_others()
        log.info("Client connected, servicing requests")
        return Backend(connection, self._device, self._table, self._states, self._inflight)

    def _serve(self, backend: Backend) -> int:
        """One front-end, until it leaves."""
        self._backend = backend
        self._lost = False
        status = 0
        try:
            while True:
                self._turn(backend)
        except Disconnected:
            pass
        except RemoteProtocolError as error:
            log.error("%s", error)
            status = 1
        except (Ended, HandedOver, LauncherGone):
            raise
        except Exception:
            log.exception("serving the front-end failed in a way nobody foresaw")
            status = 1
        backend.close()
        self._backend = None
        self._transfer.given.forget()
        if self._window:
            self._window.clear()
        self._sweep()
        then = "waiting for the next one" if self._config.keep_listening else "shutting down"
        log.info("Client disconnected, %s", then)
        return status

    def _turn(self, backend: Backend) -> None:
        """Waits for what comes next, and does it."""
        supervisor = self._supervisor
        idle = not supervisor.running and not self._transfer.running
        if (supervisor.left_strays or self._device.left_strays) and idle:
            self._sweep()
        waiting = idle and bool(backend.runnable())
        frontend = -1 if backend.waits else backend.fileno()
        sources = [frontend, supervisor.pidfd, self._transfer.pidfd, self._broken, *self._window_sources(backend)]
        readable = self._readable(
            [*sources, *self._giver.sources()], self._giver.timeout(self._timeout(backend, waiting))
        )
        # First, so that the front-end never waits for an answer while we wait for one of its.
        if backend.fileno() in readable:
            supervisor.change()
            backend.handle()
            self._settled = False
        if self._transfer.running and self._transfer.pidfd in readable:
            self._transfer.collect()
            self._end_transfer()
            backend.transferred()
        if backend.channel and backend.channel.fileno() in readable:
            backend.handle_channel()
        if backend.channel and backend.channel.taken in readable:
            backend.channel.go_on()
        if supervisor.pidfd in readable and supervisor.running:
            supervisor.collect()
            self._suspend_window()
            # The front-end has said nothing since.
            self._settled = True
        if self._window and self._window.fileno() in readable and supervisor.running:
            self._window.work(backend.channel)
        if self._padding in readable:
            self._end_padding()
        if self._broken in readable:
            self._report_broken(backend)
        self._giver.work(readable, between_messages(backend) and not self._lost and not self._transfer.busy)
        if waiting and not readable and not supervisor.wait:
            self._start(backend)
            # What nobody waits for is still to be done. Not where rings are parked: there nothing may be sent.
            if self._window:
                self._window.work(backend.channel)
        if supervisor.running and time.monotonic() >= self._glance:
            self._glance = time.monotonic() + GLANCE
            backend.check_rings()
        supervisor.prepare()

    def _window_sources(self, backend: Backend) -> list[int]:
        """What the DAX window has to watch."""
        sources = [backend.channel.fileno(), backend.channel.taken] if backend.channel else []
        # What is asked while the new program is ready, its own first worker asks again.
        if self._window and self._supervisor.running and not self._giver.prepared:
            sources.append(self._window.fileno())
        return [*sources, self._padding]

    def _suspend_window(self) -> None:
        """No worker runs."""
        if self._window:
            self._window.suspend()
            if self._backend and self._backend.channel:
                self._backend.channel.suspend()

    def _end_padding(self) -> None:
        """The process that opens files for the window has ended."""
        log.error("files can't be mapped any more: the process that opens them has ended; restart vfsd")
        self._padding = -1

    def _timeout(self, backend: Backend, waiting: bool) -> float | None:
        """Seconds until there is something to do though nothing came."""
        if waiting:
            return max(0.0 if self._settled else SETTLED, self._supervisor.wait)
        times = [self._supervisor.until_spare()]
        # Whatever came from one ring shows that memory is shared; until then, look.
        if self._supervisor.running and not any(ring.state.popped for ring in backend.vrings):
            times.append(max(0.0, self._glance - time.monotonic()))
        return min((each for each in times if each is not None), default=None)

    def _start(self, backend: Backend) -> None:
        backend.memory.settle()
        self._device.mapping = self._window is not None and self._window.begin(backend)
        if lost := self._transfer.given.take_again():
            log.error("%d locks of the guest were lost to others while it was not moved after all", lost)
        spec = worker.Spec(
            self._share,
            self._device,
            backend,
            self._window,
            self._device.mapping,
            self._config.threads,
            self._config.poll,
            self._supervisor.stop_fd,
            self._broken,
            os.getpid(),
        )
        self._glance = time.monotonic() + GLANCE
        self._reported = {ring.index for ring in backend.vrings if ring.state.broken}
        self._supervisor.start(
            Work(
                run=worker.run,
                spec=spec,
                room=descriptors.room(len(self.own | backend.descriptors())),
                progress=lambda: sum(ring.state.completed for ring in backend.vrings),
                blame=lambda weight: blame(backend.vrings, backend.inflight, weight),
            )
        )

    def _park(self) -> None:
        """Returns when no worker runs and every ring is parked. One that died instead of parking left a mark in the
        rings it ran: another one takes them over, serves what was in flight and no more, and parks them.

        Requests that wait for a lock stay in flight, for the next worker.

        Raises RemoteProtocolError when they all die at their start: where the rings are is not known, and a wrong base
        would have the guest's requests served twice or never.
        """
        if self._transfer.running:
            self._transfer.cancel()
            self._end_transfer()
        self._supervisor.stop()
        self._suspend_window()
        backend, attempts = self._backend, 0
        while backend and not self._lost and any(ring.abandoned for ring in backend.runnable()):
            if attempts == PARK_ATTEMPTS:
                self._lost = True
                raise RemoteProtocolError(f"requests in flight are lost: {attempts} workers in a row died of them")
            self._readable([], self._supervisor.wait)
            self._start(backend)
            self._supervisor.stop()
            self._suspend_window()
            attempts += self._supervisor.futile or backend.left

    def _move(self, load: bool, fd: int) -> None:
        """Begins to move the guest's state through `fd`. Raises Refused."""
        self._park()
        backend, device = self._backend, self._device
        assert backend
        if self._window:
            raise Refused("a guest with a DAX window can't be moved")
        if load:
            device.reset()
        room = descriptors.room(len(self.own | backend.descriptors()))
        pipe = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        settings = device.settings(1, room)
        spec = transfer.Spec(
            self._config, self._share, settings, device.arenas, backend, load, pipe, self._transfer.given
        )
        try:
            self._transfer.start(spec)
        except OSError as error:
            os.close(pipe)
            raise Refused(f"no process can be started: {error.strerror}") from None

    def _end_transfer(self) -> None:
        """What a transfer has opened and nobody owns is swept; what it has loaded in vain is dropped."""
        self._supervisor.left_strays = True
        if self._transfer.load and not self._transfer.outcome:
            self._device.reset()

    def _report(self) -> None:
        """Says what was served for this front-end."""
        log.info("requests served: %s", self._device.served() or "none")
        for ring in self._backend.vrings if self._backend else ():
            if ring.state.popped:
                log.info("ring %d: %s", ring.index, ring.statistics())
        if self._window:
            log.info("DAX window: %s", self._window.statistics())

    def _report_broken(self, backend: Backend) -> None:
        os.eventfd_read(self._broken)
        broken = {ring.index for ring in backend.vrings if ring.state.broken}
        for index in broken - self._reported:
            reason = os.strerror(backend.vrings[index].state.broken)
            log.error("ring %d is broken (%s): the guest's driver has to reset the device", index, reason)
        self._reported = broken

    def _sweep(self) -> None:
        """Closes what a worker left and nobody owns. Not while a message is served: what it brought is nobody's yet."""
        owned = self.own | self._device.descriptors() | self._giver.descriptors() | self._supervisor.descriptors()
        if self._window:
            owned |= self._window.descriptors()
        if self._backend:
            owned |= self._backend.descriptors()
        descriptors.sweep(owned)
        self._supervisor.left_strays = self._device.left_strays = False

    def _readable(self, fds: list[int], timeout: float | None) -> set[int]:
        """Which of `fds` became readable, within `timeout` seconds. Raises Ended."""
        poll = select.poll()
        for fd in (*fds, self._signals.fileno()):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)}
        self._signals.check()
        return ready
