"""The virtio file-system device (virtio 1.3, section 5.11) as the transport sees it, and the state it keeps.

Rule 1. All that a guest's mount consists of lies in the arenas here, and in the descriptors they record.
"""

import errno
import logging
import os
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any

from vfsd import padded
from vfsd._fuse import ffi, lib
from vfsd.advice import warnings
from vfsd.config import Config
from vfsd.core import Arenas, core_config, descriptors
from vfsd.sandbox import Share
from vfsd.settings import Settings
from vfsd.window import REGION, SLOTS_SIZE, Window
from vhost._virtq import lib as virtq
from vhost.arena import Arena, Maker
from vhost.device import Refused
from vhost.message import Feature, MemoryRegion, ProtocolFeature

log = logging.getLogger("vfsd.device")

#: Has FORGETs (virtio 1.3, section 5.11.2).
HIPRIO = 0
#: The hiprio queue, and request queues as many as a front-end may ask for (QEMU: num-request-queues).
QUEUES = 1 + 64

#: struct virtio_fs_config: the tag, padded with NUL, and num_request_queues.
CONFIG_SPACE = Struct("<36sI")

#: Bytes of address space; a page costs memory once it is written. 128 bytes an inode, 32 a handle (vfsd/fuse).
INODES_SIZE = 1 << 31
HANDLES_SIZE = 1 << 26
LOCKS_SIZE = 1 << 26
#: A record for each head of each ring, and a page.
MEMO_SIZE = ffi.sizeof("struct memo")
MEMOS = QUEUES * virtq.VIRTQ_MAX_SIZE
MEMOS_SIZE = MEMOS * (MEMO_SIZE + 4 * lib.MEMO_PAGE)

FEATURES = Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC | Feature.PROTOCOL_FEATURES | Feature.LOG_ALL
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
    | ProtocolFeature.DEVICE_STATE
)


class FsDevice:
    """Implements vhost.backend.Device. One for the daemon's life. `park` is what quiesce does, `move` and `moved` what
    transfer and transferred do; `make` makes arenas."""

    def __init__(
        self,
        config: Config,
        share: Share,
        park: Callable[[], None],
        move: Callable[[bool, int], None],
        moved: Callable[[], bool | None],
        window: Window | None = None,
        make: Maker = Arena,
    ) -> None:
        self.features: int = FEATURES
        # Without a tag there is no configuration space of ours. QEMU 7.1 to 8.0 fail when a device offers one.
        self.protocol_features: int = PROTOCOL_FEATURES | (ProtocolFeature.CONFIG if config.tag else 0)
        #: Bytes of each region of shared memory.
        self.shared_memory: Mapping[int, int] = {REGION: window.size} if window else {}
        if window:
            self.protocol_features |= ProtocolFeature.SHMEM
            if window.size > SLOTS_SIZE:
                self.protocol_features &= ~ProtocolFeature.CONFIGURE_MEM_SLOTS
            # What is mapped can't be moved, and no front-end with a window moves a guest.
            self.protocol_features &= ~ProtocolFeature.DEVICE_STATE
        self.queues = QUEUES
        self.arenas = Arenas(
            make("vfsd-session", 4096),
            make("vfsd-inodes", INODES_SIZE),
            make("vfsd-handles", HANDLES_SIZE),
            make("vfsd-locks", LOCKS_SIZE),
            make("vfsd-memos", MEMOS_SIZE),
        )
        #: The front-end has agreed to map files into the window.
        self.mapping = False
        #: A reset has left descriptors that no arena records any more: the next sweep closes them, and says so here.
        self.left_strays = False
        self._config, self._share, self._park, self._window = config, share, park, window
        self._move, self._moved = move, moved
        for sentence in warnings(config, share.facts):
            log.warning("%s", sentence)

    def settings(self, queue_size: int, room: int) -> Settings:
        """For a core whose largest ring has `queue_size` descriptors, and whose guest may hold `room` of the host's."""
        share = self._share
        settings = Settings.of(self._config, share.privileged, queue_size, share.facts)._replace(descriptors=room)
        if not self._window or not self.mapping:
            return settings
        return settings._replace(window=self._window.worker_socket)

    def scratch(self) -> Arenas:
        """Arenas like ours, with nothing in them."""
        return Arenas(*(Arena(arena.name, arena.size) for arena in self.arenas))

    def memo(self, ring: int) -> Any:
        """The struct memo * of the first head of a ring."""
        return self.arenas.memos.pointer(ffi, "struct memo *", ring * virtq.VIRTQ_MAX_SIZE * MEMO_SIZE)

    def descriptors(self) -> set[int]:
        """Those of the guest's inodes, handles and locks. Asked while no worker runs."""
        return descriptors(self._core_config())

    def served(self) -> str:
        """How many requests of each kind were answered since the front-end came."""
        session = self._core_config().session
        rows = ((count, lib.fuse_row_name(opcode)) for opcode, count in enumerate(session.served) if count)
        counts = ", ".join(f"{count} {ffi.string(name).decode()}" for count, name in rows)
        return f"{counts}; {session.aside} of them had to wait for a disk" if session.aside else counts

    def read_config(self, offset: int, size: int) -> bytes:
        # The number of request queues is the front-end's to choose. Those that ask here, rather than answer the guest
        # themselves, put their own number in its place.
        space = CONFIG_SPACE.pack(self._config.tag.encode(errors="surrogateescape"), 1)
        return space[offset : offset + size]

    def write_config(self, offset: int, data: bytes) -> None:
        raise Refused("the configuration space of a file-system device is read-only")

    def is_mapping(self, region: MemoryRegion, fd: int) -> bool:
        """Every vfsd maps files that seem to have no end."""
        try:
            mapping = os.fstat(fd).st_size >= padded.SIZE
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            # The process that opened it has ended.
            return True
        if mapping and self._window:
            self._window.learn(region, fd)
        return mapping

    def quiesce(self) -> None:
        self._park()

    def transfer(self, load: bool, fd: int) -> None:
        self._move(load, fd)

    def transferred(self) -> bool | None:
        return self._moved()

    def reset(self) -> None:
        for arena in self.arenas:
            arena.clear()
        self.left_strays = True

    def _core_config(self) -> Any:
        share = self._share
        return core_config(self.settings(1, 0), share.root_fd, share.proc_fd, self.arenas)
