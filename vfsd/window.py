"""The DAX window as the control process keeps it: between workers that ask, dax.Manager that knows what is mapped, and
the back-end channel through which the front-end maps.

Rule 1. The window outlives workers. What a dead one asked for is begun or it is not; its next one asks again.
Rule 2. Nothing is sent while no worker runs: QEMU crashes over a mapping that comes while the device is stopped.
Rule 3. QEMU accepts a mapping before it is in force (it answers first, and commits its memory map then): what the guest
        stored meanwhile would be lost, about one write in a thousand. It does one request at a time, so a mapping is
        done when another request, after it, was answered. That the configuration space has changed is one that costs
        nothing: Linux's driver does not listen.
Rule 4. A file's descriptor is kept as long as the file has a mapping, since a mapping that is cut is made again.
"""

import errno
import logging
import os
import socket
from collections.abc import Iterable
from contextlib import suppress

from dax.manager import Change, Drop, Empty, Manager, Remove, Setup
from dax.policy import Churn
from dax.window import Map, Mapping, Range, Step
from dax.window import Window as Ranges
from vfsd._fuse import ffi, lib
from vfsd.padded import Padded
from vhost.channel import BackendChannel

log = logging.getLogger("vfsd.window")

#: The shared memory region of a virtio file-system device that is its window (virtio 1.3, section 5.11.5).
REGION = 0
#: Bytes of a question at most.
QUESTION_MAX = 1 << 17
QUESTION = ffi.sizeof("struct window_question")


class Window:
    """One for the daemon's life; `padded` opens files so that they can be mapped whole."""

    def __init__(self, size: int, padded: Padded) -> None:
        self.size, self.padded = size, padded
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        self._socket, self._theirs = socket.socketpair(socket.AF_UNIX, kind)
        self._files: dict[int, int] = {}
        self._nodeids: dict[int, int] = {}
        self._reset()

    @property
    def worker_socket(self) -> int:
        """A worker's end, a descriptor."""
        return self._theirs.fileno()

    def fileno(self) -> int:
        """Readable when a worker asks."""
        return self._socket.fileno()

    def descriptors(self) -> set[int]:
        """Those of the mapped files."""
        return set(self._files.values())

    def work(self, channel: BackendChannel) -> None:
        """Takes the questions there are, and goes on with what is to be done."""
        with suppress(BlockingIOError):
            while message := self._socket.recv(QUESTION_MAX):
                self._take(message)
        self._go_on(channel)

    def statistics(self) -> str:
        """For people."""
        return str(self._manager.statistics)

    def resume(self, paused: bool) -> None:
        """A worker starts. `paused`: rings were stopped meanwhile; a reset of the guest looks like that, too."""
        if paused:
            self._manager.doubt()
        self._manager.resume()

    def suspend(self) -> None:
        """No worker runs. Its questions go with it: those that are not begun, and the answers nobody reads."""
        self._manager.suspend()
        self._manager.flush()
        self._nodeids.clear()
        for end in (self._socket, self._theirs):
            with suppress(BlockingIOError):
                while end.recv(QUESTION_MAX):
                    pass
        self._close_unused()

    def clear(self) -> None:
        """The front-end is gone, and all it had mapped."""
        statistics = self._manager.statistics
        if statistics.maps:
            log.debug("the window's end: %s", statistics)
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        self._reset()
        self.suspend()

    def _reset(self) -> None:
        self._manager = Manager(Ranges(self.size))
        self._manager.suspend()
        self._churn = Churn(self.size)
        self._thrashing: set[int] = set()

    def _take(self, message: bytes) -> None:
        question = ffi.from_buffer("struct window_question *", message)
        change: Change
        match question.kind:
            case lib.WINDOW_SETUP:
                self._keep(question.nodeid, question.fd)
                # Writable in any case: QEMU knows no other, and then an upgrade is no step.
                change = Setup(
                    Mapping(question.offset, question.length, question.nodeid, question.file_offset, writable=True)
                )
                self._note(change)
            case lib.WINDOW_REMOVE:
                ones = ffi.from_buffer("struct fuse_removemapping_one[]", message[QUESTION:])
                change = Remove(tuple((one.moffset, one.len) for one in ones))
                self._note_removed(change.ranges)
            case lib.WINDOW_FORGET:
                change = Drop(question.nodeid)
                self._churn.forget(question.nodeid)
                self._thrashing.discard(question.nodeid)
            case _:
                change = Empty()
        self._nodeids[question.token] = question.nodeid
        self._manager.ask(question.token, change)

    def _note(self, setup: Setup) -> None:
        """Watches which files thrash."""
        wanted = setup.mapping
        others = self._manager.window.overlapping(wanted.offset, wanted.length)
        if any(mapping.serves(wanted) for mapping in others):
            return
        self._note_removed([(wanted.offset, wanted.length)])
        if self._churn.note_setup(wanted.file, wanted.file_offset):
            log.debug("file %d is offered for the window no more: it thrashes", wanted.file)
            self._thrashing.add(wanted.file)

    def _note_removed(self, ranges: Iterable[Range]) -> None:
        for offset, length in ranges:
            for mapping in self._manager.window.overlapping(offset, length):
                self._churn.note_removed(mapping.file, mapping.file_offset)

    def _keep(self, nodeid: int, fd: int) -> None:
        if nodeid in self._files:
            os.close(fd)
        else:
            self._files[nodeid] = fd

    def _go_on(self, channel: BackendChannel) -> None:
        """Sends the next step, and the answers that are due."""
        if step := self._manager.next():
            self._send(channel, step)
        finished = self._manager.finished()
        for done in finished:
            if done.token:
                self._answer(done.token, done.error)
        if finished:
            self._close_unused()

    def _send(self, channel: BackendChannel, step: Step) -> None:
        def done(accepted: bool) -> None:
            self._manager.answered(accepted)
            self._go_on(channel)

        def settle(accepted: bool) -> None:
            if accepted:
                channel.config_changed(lambda _: done(True))
            else:
                done(False)

        if isinstance(step, Map):
            fd, mapping = self._files[step.mapping.file], step.mapping
            channel.shmem_map(REGION, fd, mapping.file_offset, step.offset, step.length, mapping.writable, settle)
        else:
            channel.shmem_unmap(REGION, step.offset, step.length, done)

    def _answer(self, token: int, error: int) -> None:
        nodeid = self._nodeids.pop(token, 0)
        answer = ffi.new("struct window_answer *", {"token": token, "nodeid": nodeid, "error": -error})
        answer.thrashes = nodeid in self._thrashing
        try:
            self._socket.send(ffi.buffer(answer))
        except BlockingIOError:
            # It reads none of hundreds; the request stays in flight, and the next worker's.
            log.warning("a worker does not read what it is told of the window (%s)", os.strerror(errno.EAGAIN))

    def _close_unused(self) -> None:
        used = self._manager.files()
        for nodeid in [nodeid for nodeid in self._files if nodeid not in used]:
            os.close(self._files.pop(nodeid))
