"""The DAX window as the control process keeps it: between workers that ask, dax.Manager that knows what is mapped, and
the back-end channel through which the front-end maps.

Rule 1. The window outlives workers, and programs (vfsd/taker.py). What a dead worker asked for is begun or it is not;
        the next one asks again.
Rule 2. Nothing is sent while no worker runs: QEMU crashes over a mapping that comes while the device is stopped.
Rule 3. QEMU accepts a mapping before it is in force (it answers first, and commits its memory map then): what the guest
        stored meanwhile would be lost, about one write in a thousand. It does one request at a time, so a mapping is
        done when another request, after it, was answered. That the configuration space has changed is one that costs
        nothing: Linux's driver does not listen.
Rule 4. A file's descriptor is kept as long as the file has a mapping, since a mapping that is cut is made again.
Rule 5. A file is known by a number of ours: after a reset of the device a nodeid may name another one, while mappings
        of the old one are still to be undone.
"""

import errno
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from typing import Any

from dax.manager import Change, Drop, Empty, Fill, Manager, Remove, Setup
from dax.policy import Churn
from dax.window import Map, Mapping, Range, Step
from dax.window import Window as Ranges
from vfsd import window_state
from vfsd._fuse import ffi, lib
from vfsd.padded import PROBE_SIZE, Padded
from vfsd.placing import Placing
from vhost.backend import Backend
from vhost.channel import BackendChannel
from vhost.memory import GuestMemory
from vhost.message import MemoryRegion, ProtocolFeature
from vhost.saved import Packed, StateError, Unpacked, field, items, number, rows

log = logging.getLogger("vfsd.window")

#: The shared memory region of a virtio file-system device that is its window (virtio 1.3, section 5.11.5).
REGION = 0
#: What a front-end with a window has agreed to.
FEATURES = ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG | ProtocolFeature.SHMEM
#: Bytes of the largest window that leaves QEMU's 512 memory slots enough for half as much again, and for memory: Linux
#: maps ranges of 2 MiB. With more regions, QEMU ends itself where a device uses slots (hw/virtio/vhost-user.c,
#: vhost_user_add_remove_regions).
SLOTS_SIZE = 512 << 20
#: The number of the file that is mapped for a moment so that the front-end tells where the window lies.
PROBE = 0
#: Nodeids at most (vfsd/device.py, INODES_SIZE).
NODEIDS_MAX = 1 << 24
QUESTION = ffi.sizeof("struct window_question")
#: Bytes of a question at most: one, and all the ranges that a request can hold (vfsd/fuse/internal.h, REQUEST_MAX).
QUESTION_MAX = QUESTION + (1 << 17)


class Window:
    """One for the daemon's life; `padded` opens files so that they can be mapped whole."""

    def __init__(self, size: int, padded: Padded) -> None:
        self.size, self.padded = size, padded
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        self._socket, self._theirs = socket.socketpair(socket.AF_UNIX, kind)
        #: Numbers of files by nodeid, descriptors by these numbers, and nodeids by the tokens of open questions.
        self._numbers: dict[int, int] = {}
        self._files: dict[int, int] = {}
        self._asked: dict[int, int] = {}
        self._count = count(1)
        self._memory: GuestMemory | None = None
        self._running = False
        #: The front-end was asked where the window lies.
        self._probed = False
        #: It was said that the front-end has none.
        self._told = False
        #: How often rings had been stopped when the last worker began.
        self._stops = 0
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

    def work(self, channel: BackendChannel | None) -> None:
        """Takes the questions there are, and goes on with what is to be done. None: the front-end has closed the
        channel, and does nothing any more."""
        for message in self._messages():
            self._take(message)
        self._go_on(channel)

    def statistics(self) -> str:
        """For people."""
        return str(self._manager.statistics)

    def learn(self, region: MemoryRegion, fd: int) -> None:
        """The front-end tells of a mapping in the file `fd`: one of ours, or of another device."""
        under_way = [self._manager.mapping] if self._manager.mapping else []
        mappings, known = self._manager.window.mappings, self._placing.known
        self._placing.learn(region, fd, [*mappings, *under_way], self._running)
        if not known:
            self._touched.update(mapping.offset for mapping in mappings)

    def begin(self, backend: Backend) -> bool:
        """A worker is about to start. Returns whether there is a window for it: the front-end may have none."""
        stops = sum(ring.stops for ring in backend.vrings)
        channel = backend.channel
        has_one = backend.protocol_features & FEATURES == FEATURES and channel is not None
        if channel and has_one:
            channel.resume()
            self.resume(backend.memory, paused=stops != self._stops)
        else:
            self.forget()
            self._tell_none()
        self._stops = stops
        return has_one

    def _tell_none(self) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "there is no DAX window: this front-end has no shared memory for it (QEMU 11.1 has, with "
                "-device vhost-user-test-device-pci); the share works without"
            )

    def resume(self, memory: GuestMemory, paused: bool) -> None:
        """A worker starts on `memory`. `paused`: rings were stopped meanwhile; a reset of the guest looks like that,
        too."""
        if paused:
            self._manager.doubt()
        self._memory, self._running = memory, True
        self._placing.start(memory, self._manager.window.mappings, paused)
        # At a boot no other device has mapped anything: its mapping could be the only one that is told.
        if (paused or not self._probed) and not self._placing.known:
            self._probed = True
            self._keep(PROBE, os.dup(self.padded.probe))
            self._manager.ask(None, Fill(Mapping(0, PROBE_SIZE, PROBE, 0, writable=True)))
            self._manager.ask(None, Drop(PROBE))
        self._manager.resume()

    def suspend(self) -> None:
        """No worker runs. Its questions go with it: those that are not begun, and the answers nobody reads. What it
        only told us of is not told again."""
        self._running = False
        self._manager.suspend()
        for message in self._messages():
            if not ffi.from_buffer("struct window_question *", message).token:
                self._take(message)
        self._manager.flush()
        self.padded.flush()
        self._asked.clear()
        with suppress(BlockingIOError):
            while self._theirs.recv(QUESTION_MAX):
                pass
        self._close_unused()

    def save(self, packed: Packed) -> dict[str, Any]:
        """All that another process needs to go on (vfsd/taker.py), while suspended. How near files are to thrashing is
        not part of it."""
        return {
            "size": self.size,
            "manager": window_state.save(self._manager),
            "files": [{"file": file, "fd": packed.put(fd)} for file, fd in self._files.items()],
            "numbers": [*self._numbers.items()],
            "next": next(self._count),
            "thrashing": [[nodeid] for nodeid in self._thrashing],
            "placing": self._placing.save(),
            "probed": self._probed,
            "stops": self._stops,
            "told": self._told,
        }

    def restore(self, data: Any, unpacked: Unpacked) -> None:
        """Goes on with what was saved. To the front-end nothing has happened: what was sure still is. Raises
        StateError."""
        if number(data, "size") != self.size:
            raise StateError(f"its DAX window has {data['size']} bytes, and this one's {self.size}")
        window_state.restore(self._manager, field(data, "manager", dict))
        for saved in items(data, "files", 2 * self.size // self._manager.window.page):
            file, fd = number(saved, "file"), unpacked.take(saved, "fd")
            if fd < 0 or file in self._files:
                raise StateError("a mapped file is not there, or twice")
            self._files[file] = fd
        if missing := self._manager.files() - self._files.keys():
            raise StateError(f"{len(missing)} mapped files did not come along")
        for nodeid, file in rows(data, "numbers", NODEIDS_MAX, 2):
            self._numbers[nodeid] = file
        coming = number(data, "next", 1)
        if any(file >= coming for file in (*self._files, *self._numbers.values())):
            raise StateError("a file has a number that another one will have")
        self._count = count(coming)
        self._thrashing.update(nodeid for (nodeid,) in rows(data, "thrashing", NODEIDS_MAX, 1))
        self._placing.restore(field(data, "placing", dict))
        self._probed, self._told = field(data, "probed", bool), field(data, "told", bool)
        self._stops = number(data, "stops")

    def forget(self) -> None:
        """The guest is served without a window from now on: what nodeids it maps is not followed any more."""
        self._numbers.clear()
        self._churn.clear()
        self._thrashing.clear()

    def clear(self) -> None:
        """The front-end is gone, and all it had mapped."""
        self._memory = None
        statistics = self._manager.statistics
        if statistics.maps:
            log.debug("the window's end: %s", statistics)
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        self._reset()

    def _reset(self) -> None:
        self._manager = Manager(Ranges(self.size))
        self._manager.suspend()
        self._churn = Churn(self.size)
        self._thrashing: set[int] = set()
        self._numbers.clear()
        self._asked.clear()
        self._placing = Placing(self.size, self._files)
        self._probed = self._told = False
        self._stops = 0
        #: Offsets at which something was mapped or unmapped.
        self._touched: set[int] = set()

    def _messages(self) -> Iterator[bytes]:
        """What workers have sent."""
        with suppress(BlockingIOError):
            while message := self._socket.recv(QUESTION_MAX):
                yield message

    def _take(self, message: bytes) -> None:
        question = ffi.from_buffer("struct window_question *", message)
        change: Change
        match question.kind:
            case lib.WINDOW_SETUP:
                file = self._numbers.setdefault(question.nodeid, next(self._count))
                self._keep(file, question.fd)
                # Writable in any case: QEMU knows no other, and then an upgrade is no step.
                change = Setup(Mapping(question.offset, question.length, file, question.file_offset, writable=True))
                self._note(change, question.nodeid)
            case lib.WINDOW_REMOVE:
                ones = ffi.from_buffer("struct fuse_removemapping_one[]", message[QUESTION:])
                change = Remove(tuple((one.moffset, one.len) for one in ones))
                self._note_removed(change.ranges)
            case lib.WINDOW_FORGET:
                file = self._numbers.pop(question.nodeid, 0)
                change = Drop(file)
                self._churn.forget(file)
                self._thrashing.discard(question.nodeid)
            case _:
                change = Empty()
                self.forget()
        if question.token:
            self._asked[question.token] = question.nodeid
        self._manager.ask(question.token or None, change)

    def _note(self, setup: Setup, nodeid: int) -> None:
        """Watches which files thrash."""
        wanted = setup.mapping
        others = self._manager.window.overlapping(wanted.offset, wanted.length)
        if any(mapping.serves(wanted) for mapping in others):
            return
        self._note_removed([(wanted.offset, wanted.length)])
        if self._churn.note_setup(wanted.file, wanted.file_offset):
            log.debug("file %d is offered for the window no more: it thrashes", nodeid)
            self._thrashing.add(nodeid)

    def _note_removed(self, ranges: Iterable[Range]) -> None:
        for offset, length in ranges:
            for mapping in self._manager.window.overlapping(offset, length):
                self._churn.note_removed(mapping.file, mapping.file_offset)

    def _keep(self, file: int, fd: int) -> None:
        if file in self._files:
            os.close(fd)
        else:
            self._files[file] = fd

    def _go_on(self, channel: BackendChannel | None) -> None:
        """Sends the next step, and the answers that are due."""
        while step := self._manager.next():
            if channel:
                self._send(channel, step)
                break
            self._answered(step, False)
        self._place()
        for done in self._manager.finished():
            self._answer(done.token, done.error)
        self._close_unused()

    def _send(self, channel: BackendChannel, step: Step) -> None:
        def done(accepted: bool) -> None:
            self._answered(step, accepted)
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

    def _answered(self, step: Step, accepted: bool) -> None:
        self._manager.answered(accepted)
        self._touched.add(step.offset)

    def _place(self) -> None:
        """Has what changed in the window change in the guest's memory, before anybody is told that it is done. If the
        worker ends by this, nobody is told: what it asked for is asked again."""
        touched, self._touched = self._touched, set()
        for offset in touched:
            if self._memory:
                self._placing.update(self._memory, offset, self._manager.window.at(offset))

    def _answer(self, token: int, error: int) -> None:
        nodeid = self._asked.pop(token)
        answer = ffi.new("struct window_answer *", {"token": token, "nodeid": nodeid, "error": -error})
        answer.thrashes = nodeid in self._thrashing
        try:
            self._socket.send(ffi.buffer(answer))
        except BlockingIOError:
            # It has asked more than it is to have open; the request stays in flight, and the next worker's.
            log.warning("a worker does not read what it is told of the window (%s)", os.strerror(errno.EAGAIN))

    def _close_unused(self) -> None:
        used = self._manager.files()
        for file in self._files.keys() - used:
            os.close(self._files.pop(file))
