"""One vring as the front-end set it up, and the record of it that outlives workers.

Rule 1. A ring is stopped until SET_VRING_KICK and after GET_VRING_BASE. It runs in a worker while it is started,
        enabled and not broken.
Rule 2. The `struct virtq_state` record is written here only while no worker runs.
Rule 3. Every descriptor of a ring is non-blocking from its receipt: a worker that waits on one could not be stopped.
"""

import os
from enum import Enum
from typing import Any

from ._virtq import ffi, lib
from .arena import Arena, Maker
from .message import VRING_F_LOG, Feature, VringAddr
from .protocol import RemoteProtocolError
from .saved import Packed, StateError, Unpacked, field, number, numbers


def state_arena(queues: int, make: Maker = Arena) -> Arena:
    """An arena for the records of `queues` rings."""
    return make("vhost-vrings", queues * ffi.sizeof("struct virtq_state"))


class RingState(Enum):
    """The states of the vhost-user specification, "Ring states"."""

    STOPPED = "stopped"
    DISABLED = "started but disabled"
    ENABLED = "started and enabled"


class Vring:
    """Ring `index`. Descriptors are -1 when there is none; a started ring without kick is polled."""

    def __init__(self, index: int, arena: Arena) -> None:
        self.index = index
        self.num = 0  #: descriptors, 0 before SET_VRING_NUM
        self.addr: VringAddr | None = None
        self.kick = -1
        self.call = -1
        self.err = -1
        self.started = False
        self.stops = 0  #: how often it was stopped
        self.enabled = False  #: as SET_VRING_ENABLE said
        self.state: Any = arena.pointer(ffi, "struct virtq_state *", index * ffi.sizeof("struct virtq_state"))

    def ring_state(self, features: int) -> RingState:
        """`features` are the negotiated ones: without PROTOCOL_FEATURES a started ring is enabled."""
        if not self.started:
            return RingState.STOPPED
        enabled = self.enabled or not features & Feature.PROTOCOL_FEATURES
        return RingState.ENABLED if enabled else RingState.DISABLED

    def runnable(self, features: int) -> bool:
        return self.ring_state(features) is RingState.ENABLED and not self.state.broken

    @property
    def abandoned(self) -> bool:
        """While no worker runs: one died, and another has to find out where the ring is. Not so with what one left
        in flight on purpose."""
        return bool(self.state.started and not self.state.suspended)

    def descriptors(self) -> set[int]:
        return {self.kick, self.call, self.err} - {-1}

    def set_num(self, num: int) -> None:
        self._require_stopped("SET_VRING_NUM")
        self._check_num(num)
        if self.num and num != self.num:
            self.discard()
        self.num = num

    def set_base(self, base: int) -> None:
        self._require_stopped("SET_VRING_BASE")
        if base > 0xFFFF:
            raise RemoteProtocolError(f"SET_VRING_BASE of ring {self.index}: {base} is no index of a split ring")
        if not self.state.suspended or base != self.state.last_avail_idx:
            self.discard()
        self.state.last_avail_idx = base

    def set_addr(self, addr: VringAddr) -> None:
        """Allowed on a started ring: so the front-end switches the logging of the used ring."""
        self._check_addr(addr)
        if self.addr and _parts(addr) != _parts(self.addr):
            self.discard()
        self.addr = addr

    def start(self, kick: int, recovers: bool) -> None:
        """SET_VRING_KICK. `recovers`: the in-flight region, not last_avail_idx, says where to go on.

        After an exception `kick` is still the caller's.
        """
        if not self.num or not self.addr:
            raise RemoteProtocolError(f"ring {self.index} is started before SET_VRING_NUM and SET_VRING_ADDR")
        _unblock(kick)
        self._close("kick")
        self.kick = kick
        if not self.started:
            self.state.broken = 0
            if not self.state.suspended:
                self.state.started = int(recovers)
        self.started = True

    def stop(self) -> int:
        """GET_VRING_BASE: returns the available index to go on with. Call and err stay: QEMU sends err only once.

        What a worker left in flight on purpose stays so: if the ring goes on from here, another one finds it there.
        """
        self._close("kick")
        self.started = False
        self.stops += 1
        if self.state.broken or not self.state.suspended:
            self.discard()
        self.state.broken = 0
        return int(self.state.last_avail_idx)

    def discard(self) -> None:
        """Forgets what is in flight: the ring begins at last_avail_idx."""
        self.state.started = self.state.suspended = 0

    def replace(self, name: str, fd: int) -> None:
        """SET_VRING_CALL and SET_VRING_ERR: `fd` takes the place of the descriptor `name`; -1 is none.

        The number stays where there was one, so that a running worker, which shares our descriptors, goes on with it.
        After an exception `fd` is still the caller's.
        """
        _unblock(fd)
        old = getattr(self, name)
        if old >= 0 and fd >= 0:
            os.dup2(fd, old, inheritable=False)
            os.close(fd)
        else:
            self._close(name)
            setattr(self, name, fd)

    def reset(self) -> None:
        """Back to how it was before the front-end came. No worker may run."""
        self.stop()
        for name in ("call", "err"):
            self._close(name)
        self.num, self.addr, self.enabled = 0, None, False
        ffi.buffer(self.state)[:] = bytes(ffi.sizeof("struct virtq_state"))

    def statistics(self) -> str:
        """How often it woke a thread, told the front-end, and was watched for the next request."""
        state = self.state
        counts = f"{state.popped} requests, {state.kicks} wake-ups, {state.interrupts} interrupts"
        return f"{counts}; watched {state.polls_paid + state.polls_failed} times, {state.polls_failed} in vain"

    @property
    def used(self) -> bool:
        """The front-end has said anything of it."""
        return bool(self.num or self.addr or self.descriptors() or self.enabled or self.stops)

    def save(self, packed: Packed) -> dict[str, Any]:
        """All but the record in the arena (vhost/resume.py)."""
        addr = self.addr
        return {
            "index": self.index,
            "num": self.num,
            "addr": [addr.flags, addr.desc, addr.used, addr.avail, addr.log] if addr else None,
            **{name: packed.put(getattr(self, name)) for name in ("kick", "call", "err")},
            "started": self.started,
            "stops": self.stops,
            "enabled": self.enabled,
        }

    def resume(self, data: Any, unpacked: Unpacked) -> None:
        """Goes on with what was saved. Raises StateError, RemoteProtocolError."""
        for name in ("kick", "call", "err"):
            setattr(self, name, unpacked.take(data, name))
        self.num = number(data, "num", 0, lib.VIRTQ_MAX_SIZE)
        if data.get("addr") is not None:
            self.addr = VringAddr(self.index, *numbers(data, "addr", 5))
            self._check_addr(self.addr)
        self.started, self.enabled = field(data, "started", bool), field(data, "enabled", bool)
        self.stops = number(data, "stops")
        if self.started and not self.addr:
            raise StateError(f"ring {self.index} is started without addresses")
        if self.num or self.started:
            self._check_num(self.num)

    def _check_num(self, num: int) -> None:
        if not 1 <= num <= lib.VIRTQ_MAX_SIZE or num & (num - 1):
            raise RemoteProtocolError(
                f"ring {self.index} has size {num}: give the device a queue-size that is a power of two "
                f"up to {lib.VIRTQ_MAX_SIZE}"
            )

    def _check_addr(self, addr: VringAddr) -> None:
        if addr.flags & ~VRING_F_LOG:
            raise RemoteProtocolError(f"SET_VRING_ADDR of ring {self.index} has unknown flags {addr.flags:#x}")
        # virtio 1.3, section 2.7: alignment of the descriptor table, the available and the used ring.
        if addr.desc % 16 or addr.avail % 2 or addr.used % 4:
            raise RemoteProtocolError(f"SET_VRING_ADDR of ring {self.index}: an address is misaligned")

    def config(self, memory: Any, inflight: Any, features: int, stop: int) -> Any:
        """The `struct virtq_config *` of a worker: all that is fixed at its start. `stop` is its eventfd."""
        assert self.addr
        config = ffi.new("struct virtq_config *")
        config.memory, config.state, config.inflight = memory, self.state, inflight
        config.features = features
        config.desc_addr, config.avail_addr, config.used_addr = self.addr.desc, self.addr.avail, self.addr.used
        config.log_addr, config.log_used = self.addr.log, self.addr.flags & VRING_F_LOG
        config.num = self.num
        config.event_idx = bool(features & Feature.EVENT_IDX)
        config.indirect = bool(features & Feature.INDIRECT_DESC)
        config.kick, config.call, config.err, config.stop = self.kick, self.call, self.err, stop
        return config

    def _require_stopped(self, request: str) -> None:
        if self.started:
            raise RemoteProtocolError(f"{request} of ring {self.index}, which is started: send GET_VRING_BASE first")

    def _close(self, name: str) -> None:
        if getattr(self, name) >= 0:
            os.close(getattr(self, name))
        setattr(self, name, -1)


def _parts(addr: VringAddr) -> tuple[int, int, int]:
    return addr.desc, addr.avail, addr.used


def _unblock(fd: int) -> None:
    """QEMU's eventfds are so from the start; another front-end's, or what else it sends, may not be."""
    if fd >= 0:
        os.set_blocking(fd, False)
