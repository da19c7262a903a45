"""One connection of a front-end: read a message, do it, answer. One method per request, named after it.

Rule 1. A method is found by its row's name, and gets the payload if the row has one and the list of descriptors if any
        may come. It pops the descriptors it keeps; the rest are closed.
Rule 2. Nothing a running worker was forked with changes: a row that `quiesces` does so first, other methods themselves.
Rule 3. A front-end that breaks the protocol costs its connection and nothing else: RemoteProtocolError.
"""

import logging
import os
import socket
import stat
from typing import Any

from ._virtq import ffi, lib
from .arena import Arena
from .channel import BackendChannel, ChannelClosed
from .connection import Connection, ReplyWithFd
from .device import Device, Refused
from .inflight import InflightRegions
from .log import DirtyLog
from .memory import MAX_SLOTS, PRIVATE, GuestMemory
from .message import (
    NO_FD,
    NOT_SHARED,
    SHARED_REGIONS,
    STATE_FAILED,
    STATE_LOAD,
    STATE_SAVE,
    STATE_STOPPED,
    U64,
    Config,
    Fds,
    Feature,
    Inflight,
    Log,
    MemoryTable,
    ProtocolFeature,
    Request,
    SharedMemory,
    SingleRegion,
    StateTransfer,
    VringAddr,
    VringFile,
    VringState,
)
from .protocol import Message, RemoteProtocolError, close_all
from .vring import RingState, Vring

logger = logging.getLogger(__name__)

BURST = 256  # messages served in one call of handle


class Backend:
    """Serves the front-end at the other end of `sock`, a connected stream socket, which it owns.

    The arenas are those of memory.table_arena, vring.state_arena and inflight.inflight_arena, the latter two for
    `device.queues` rings: fresh, as `close` leaves them, or about to be resumed (resume.py).
    """

    def __init__(self, sock: socket.socket, device: Device, table: Arena, states: Arena, inflight: Arena) -> None:
        self.device = device
        self.features = 0  #: virtio features negotiated
        self.memory = GuestMemory(table, device.quiesce, device.is_mapping)
        self.vrings = [Vring(index, states) for index in range(device.queues)]
        self.inflight = InflightRegions(inflight, device.queues)
        self.log = DirtyLog()
        self.channel: BackendChannel | None = None
        self.connection = Connection(sock)
        self.status = 0
        self._check: Message | None = None

    def fileno(self) -> int:
        return self.connection.fileno()

    @property
    def left(self) -> bool:
        """The front-end has closed its end, though there may be messages of it yet."""
        return self.connection.left

    @property
    def protocol_features(self) -> int:
        """Protocol features negotiated."""
        return self.connection.features

    def handle(self) -> None:
        """Serves what the socket holds, without waiting. Call when it is readable, unless `waits`.

        Raises Disconnected; RemoteProtocolError. Either way, what remains is to close().
        """
        for _ in range(BURST):
            message = None if self.waits else self.connection.receive()
            if message is None:
                return
            try:
                self._serve(message)
            finally:
                close_all(message.fds)

    @property
    def waits(self) -> bool:
        """The front-end waits to hear how a transfer of state ends: `transferred` tells it."""
        return self._check is not None

    def transferred(self) -> None:
        """Call when a transfer of state has ended. Raises Disconnected; RemoteProtocolError."""
        if self._check:
            message, self._check = self._check, None
            self._serve(message)

    def handle_channel(self) -> None:
        """Serves what the back-end channel holds, without waiting. Call when it is readable, and after `handle`: a
        front-end that stops the rings is not to be asked anything more.

        Raises RemoteProtocolError.
        """
        if self.channel:
            try:
                self.channel.handle()
            except ChannelClosed:
                # QEMU closes it before the connection, and an orderly end is no error.
                self.channel.close()
                self.channel = None

    def runnable(self) -> list[Vring]:
        """The rings a worker has to run."""
        return [vring for vring in self.vrings if vring.runnable(self.features)] if self.memory.regions else []

    def check_rings(self) -> None:
        """Raises RemoteProtocolError for a ring in private memory: it was kicked, and nothing ever came.

        Call some time after a worker was forked; at worst it reads 2 MiB.
        """
        for vring in self.vrings:
            kicked = vring.started and vring.state.kicks and not vring.state.popped
            if kicked and vring.addr and self.memory.looks_private(vring.addr.avail):
                raise RemoteProtocolError(PRIVATE)

    def memory_view(self) -> Any:
        """A `struct memory *` with the dirty log in force. For a worker; its mappings stay for the worker's life.

        Raises OSError or ValueError when the front-end made its log unusable, MemoryError.
        """
        # Kept, since C keeps only the address.
        self._log_area, size = self.log.map() if self.features & Feature.LOG_ALL else (ffi.NULL, 0)
        view = lib.memory_new(self.memory.table, self._log_area, size)
        if not view:
            raise MemoryError
        return view

    def descriptors(self) -> set[int]:
        """Every descriptor the connection has."""
        fds = self.connection.descriptors()
        fds |= self.memory.descriptors() | self.inflight.descriptors() | self.log.descriptors()
        if self.channel:
            fds |= self.channel.descriptors()
        return fds.union(*(vring.descriptors() for vring in self.vrings)) - {-1}

    def close(self) -> None:
        """Ends the connection: nothing of it is left, and the device is reset."""
        try:
            self.device.quiesce()
        except RemoteProtocolError as error:
            # It would cost the connection.
            logger.error("%s", str(error))
        for vring in self.vrings:
            vring.reset()
        self._check = None
        self.memory.clear()
        self.inflight.clear()
        self.log.clear()
        if self.channel:
            self.channel.close()
        self.channel = None
        self.connection.close()
        self.device.reset()

    # The conversation.

    def _serve(self, message: Message) -> None:
        row = message.row
        logger.debug("%s", message)
        arguments: list[Any] = [] if message.payload is None else [message.payload]
        if row.fds is not Fds.NONE:
            arguments.append(message.fds)
        try:
            if row.request is Request.CHECK_DEVICE_STATE and self.device.transferred() is None:
                # What was sent, or read, to its end is not yet done.
                self._check = message
                return
            if row.quiesces:
                self.device.quiesce()
            result = getattr(self, row.method)(*arguments)
        except Refused as refusal:
            logger.log(logging.DEBUG if refusal.routine else logging.WARNING, "%s refused: %s", row.name, str(refusal))
            self.connection.refuse(message)
        except RemoteProtocolError:
            self.connection.answer(message, failed=True)
            raise
        except OSError as error:
            # The host's fault rather than the front-end's, but this conversation can't go on.
            self.connection.answer(message, failed=True)
            raise RemoteProtocolError(f"{row.name} failed: {error.strerror}") from error
        else:
            self.connection.answer(message, result)

    def _vring(self, index: int) -> Vring:
        if index >= len(self.vrings):
            raise RemoteProtocolError(f"ring {index} does not exist: this device has {len(self.vrings)}")
        return self.vrings[index]

    # Features and the device as a whole.

    def get_features(self) -> U64:
        return U64(self.device.features)

    def set_features(self, features: U64) -> None:
        if unknown := features.value & ~self.device.features:
            raise RemoteProtocolError(f"SET_FEATURES asks for {unknown:#x}, which was not offered")
        self.features = features.value

    def get_protocol_features(self) -> U64:
        return U64(self.device.protocol_features)

    def set_protocol_features(self, features: U64) -> None:
        if unknown := features.value & ~self.device.protocol_features:
            raise RemoteProtocolError(f"SET_PROTOCOL_FEATURES asks for {unknown:#x}, which was not offered")
        self.connection.features = features.value

    def get_queue_num(self) -> U64:
        return U64(self.device.queues)

    def set_owner(self) -> None:
        """A session starts: there is nothing to do."""

    def reset_owner(self) -> None:
        """Deprecated. The specification recommends to disable the rings, and to discard nothing."""
        for vring in self.vrings:
            vring.enabled = False

    def reset_device(self) -> None:
        for vring in self.vrings:
            vring.stop()
            vring.discard()
            vring.enabled = False
        self.features = self.status = 0
        self.device.reset()

    def get_status(self) -> U64:
        return U64(self.status)

    def set_status(self, status: U64) -> None:
        """Status 0 stops the rings and no more: QEMU also sends it when a guest is paused (vhost_dev_stop), and what
        the guest knows of the device must survive that."""
        if status.value > 0xFF:
            raise RemoteProtocolError(f"SET_STATUS: {status.value:#x} is no device status")
        self.status = status.value
        if not status.value:
            self.device.quiesce()
            for vring in self.vrings:
                vring.stop()

    def get_config(self, config: Config) -> Config:
        data = self.device.read_config(config.offset, len(config.data))
        if len(data) != len(config.data):
            raise Refused(f"{len(config.data)} bytes at {config.offset} are not all in the configuration space")
        return Config(config.offset, config.flags, data)

    def set_config(self, config: Config) -> None:
        self.device.write_config(config.offset, config.data)

    def set_backend_req_fd(self, fds: list[int]) -> None:
        if not stat.S_ISSOCK(os.fstat(fds[0]).st_mode):
            raise RemoteProtocolError("SET_BACKEND_REQ_FD came with a descriptor that is no socket")
        if self.channel and self.channel.owed:
            # It would come on a socket that nobody reads any more, and who waits for it would wait for ever.
            raise RemoteProtocolError("SET_BACKEND_REQ_FD came while an answer is owed on the channel there is")
        if self.channel:
            self.channel.close()
        self.channel = BackendChannel(fds.pop(), bool(self.protocol_features & ProtocolFeature.REPLY_ACK))

    def get_shmem_config(self) -> SharedMemory:
        return SharedMemory(tuple(self.device.shared_memory.get(region, 0) for region in range(SHARED_REGIONS)))

    def set_device_state_fd(self, transfer: StateTransfer, fds: list[int]) -> U64:
        """The reply's bit 8 says that no descriptor of ours takes the place of the one that came."""
        try:
            if transfer.direction not in (STATE_SAVE, STATE_LOAD) or transfer.phase != STATE_STOPPED:
                raise Refused(f"there is no direction {transfer.direction} in a phase {transfer.phase}")
            if started := [vring.index for vring in self.vrings if vring.started]:
                raise Refused(f"ring {started[0]} runs: a device's state is moved while its rings are stopped")
            self.device.transfer(transfer.direction == STATE_LOAD, fds[0])
        except Refused as refusal:
            logger.error("SET_DEVICE_STATE_FD refused: %s", str(refusal))
            return U64(NO_FD | STATE_FAILED)
        return U64(NO_FD)

    def check_device_state(self) -> U64:
        return U64(0 if self.device.transferred() else STATE_FAILED)

    # Memory.

    def set_mem_table(self, table: MemoryTable, fds: list[int]) -> None:
        self.memory.set_table(table.regions, fds)

    def get_max_mem_slots(self) -> U64:
        return U64(MAX_SLOTS)

    def add_mem_reg(self, single: SingleRegion, fds: list[int]) -> None:
        self.memory.add(single.region, fds, any(vring.started for vring in self.vrings))

    def rem_mem_reg(self, single: SingleRegion, fds: list[int]) -> None:
        self.memory.remove(single.region)

    def set_log_base(self, log: Log, fds: list[int]) -> U64:
        self.log.set_base(log, fds)
        return U64(0)

    def set_log_fd(self, fds: list[int]) -> None:
        self.log.set_eventfd(fds)

    def get_inflight_fd(self, wire: Inflight) -> ReplyWithFd:
        return ReplyWithFd(*self.inflight.create(wire))

    def set_inflight_fd(self, wire: Inflight, fds: list[int]) -> None:
        self.inflight.adopt(wire, fds)

    # Rings.

    def set_vring_num(self, state: VringState) -> None:
        self._vring(state.index).set_num(state.num)

    def set_vring_addr(self, addr: VringAddr) -> None:
        vring = self._vring(addr.index)
        vring.set_addr(addr)
        self._check_memory(vring)

    def set_vring_base(self, state: VringState) -> None:
        self._vring(state.index).set_base(state.num)

    def get_vring_base(self, state: VringState) -> VringState:
        return VringState(state.index, self._vring(state.index).stop())

    def set_vring_kick(self, file: VringFile, fds: list[int]) -> None:
        vring = self._vring(file.index)
        recovers = self.inflight.recovers(vring.index, vring.num)
        vring.start(fds[0] if fds else -1, recovers)
        fds.clear()
        self._check_memory(vring)

    def set_vring_call(self, file: VringFile, fds: list[int]) -> None:
        self._replace("call", file, fds)

    def set_vring_err(self, file: VringFile, fds: list[int]) -> None:
        self._replace("err", file, fds)

    def _replace(self, name: str, file: VringFile, fds: list[int]) -> None:
        """QEMU changes `call` whenever a guest masks its interrupt: one for another needs no new worker."""
        vring = self._vring(file.index)
        if (getattr(vring, name) < 0) != (not fds):
            self.device.quiesce()
        vring.replace(name, fds[0] if fds else -1)
        fds.clear()

    def set_vring_enable(self, state: VringState) -> None:
        if not self.features & Feature.PROTOCOL_FEATURES:
            raise RemoteProtocolError("SET_VRING_ENABLE came, but PROTOCOL_FEATURES was not negotiated by SET_FEATURES")
        if state.num > 1:
            raise RemoteProtocolError(f"SET_VRING_ENABLE of ring {state.index}: {state.num} is neither 0 nor 1")
        vring = self._vring(state.index)
        vring.enabled = bool(state.num)
        self._check_memory(vring)

    def _check_memory(self, vring: Vring) -> None:
        """QEMU sends no word of memory without a descriptor when it adds regions one by one, and starts the rings."""
        if vring.addr and vring.ring_state(self.features) is RingState.ENABLED:
            parts = (vring.addr.desc, vring.addr.avail, vring.addr.used)
            if not all(self.memory.holds(part) for part in parts):
                raise RemoteProtocolError(NOT_SHARED)
