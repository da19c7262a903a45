"""One vring's life."""

import os
from dataclasses import replace

import pytest

from tests.vhost.examples import is_open, open_fds
from vhost._virtq import ffi
from vhost.message import Feature, VringAddr
from vhost.protocol import RemoteProtocolError
from vhost.vring import RingState, Vring, state_arena

ADDR = VringAddr(1, 0, 0x1000, 0x3000, 0x2000, 0x3000)
PF = int(Feature.PROTOCOL_FEATURES)


@pytest.fixture
def vring():
    arena = state_arena(2)
    Vring(0, arena).state.last_avail_idx = 77
    vring = Vring(1, arena)
    vring.set_num(64)
    vring.set_addr(ADDR)
    yield vring
    vring.reset()
    assert Vring(0, arena).state.last_avail_idx == 77, "records of two rings overlap"


def test_states(vring: Vring) -> None:
    assert vring.ring_state(PF) is vring.ring_state(0) is RingState.STOPPED
    vring.start(-1, False)
    assert vring.ring_state(PF) is RingState.DISABLED and not vring.runnable(PF)
    assert vring.ring_state(0) is RingState.ENABLED, "without PROTOCOL_FEATURES a ring starts enabled"
    vring.enabled = True
    assert vring.ring_state(PF) is RingState.ENABLED and vring.runnable(PF)
    vring.state.broken = 71
    assert not vring.runnable(PF)
    vring.stop()
    vring.start(-1, False)
    assert vring.runnable(PF), "a stopped ring is whole again"


@pytest.mark.parametrize("num", [0, 3, 127, 2048, 1 << 31])
def test_sizes(vring: Vring, num: int) -> None:
    with pytest.raises(RemoteProtocolError, match="power of two up to 1024"):
        vring.set_num(num)
    assert vring.num == 64


@pytest.mark.parametrize("addr", [{"desc": 8}, {"avail": 1}, {"used": 2}, {"flags": 2}], ids=str)
def test_addresses(vring: Vring, addr: dict[str, int]) -> None:
    fields = {name: getattr(ADDR, name) for name in ADDR.__slots__} | addr
    with pytest.raises(RemoteProtocolError, match="SET_VRING_ADDR of ring 1"):
        vring.set_addr(VringAddr(**fields))


def test_a_started_ring_keeps_num_and_base(vring: Vring) -> None:
    vring.start(-1, False)
    for change in (lambda: vring.set_num(128), lambda: vring.set_base(5)):
        with pytest.raises(RemoteProtocolError, match="started"):
            change()
    vring.set_addr(VringAddr(1, 1, 0x1000, 0x3000, 0x2000, 0x3000))
    assert vring.addr and vring.addr.flags == 1


def test_base(vring: Vring) -> None:
    vring.set_base(0xFFFF)
    assert vring.stop() == 0xFFFF
    with pytest.raises(RemoteProtocolError, match="no index of a split ring"):
        vring.set_base(0x10000)


def test_start_wants_num_and_addr() -> None:
    vring = Vring(0, state_arena(1))
    with pytest.raises(RemoteProtocolError, match="before SET_VRING_NUM and SET_VRING_ADDR"):
        vring.start(-1, False)


def test_a_recovering_ring(vring: Vring) -> None:
    vring.start(-1, True)
    assert vring.state.started == 1
    vring.start(-1, False)
    assert vring.state.started == 1, "a new kick descriptor does not begin the ring anew"
    vring.stop()
    assert vring.state.started == 0


def test_what_is_left_in_flight(vring: Vring) -> None:
    """It stays for as long as the ring goes on where it stopped; whatever else the front-end says ends it."""
    addr = vring.addr
    assert addr

    def left() -> None:
        vring.start(-1, False)
        vring.state.started, vring.state.last_avail_idx = 1, 7
        assert vring.abandoned, "a worker that died"
        vring.state.suspended = 1
        assert not vring.abandoned
        assert vring.stop() == 7
        assert (vring.state.started, vring.state.suspended) == (1, 1)

    def same() -> None:
        vring.set_num(vring.num)
        vring.set_base(7)
        vring.set_addr(replace(addr, flags=1, log=0x8000))

    left()
    same()
    vring.start(-1, False)
    assert (vring.state.started, vring.state.suspended) == (1, 1)
    other = [
        lambda: vring.set_num(32),
        lambda: vring.set_base(6),
        lambda: vring.set_addr(replace(addr, desc=addr.desc + 16)),
        lambda: vring.set_addr(replace(addr, avail=addr.avail + 2)),
        lambda: vring.set_addr(replace(addr, used=addr.used + 4)),
        vring.discard,
        vring.reset,
    ]
    for change in other:
        vring.reset()
        vring.set_num(64)
        vring.set_addr(addr)
        left()
        same()
        change()
        assert (vring.state.started, vring.state.suspended) == (0, 0)
    vring.set_num(64)
    vring.set_addr(addr)
    left()
    vring.start(-1, False)
    vring.state.broken = 71
    vring.stop()
    assert (vring.state.started, vring.state.suspended) == (0, 0)


def test_descriptors(vring: Vring) -> None:
    kick, call, err, other = fds = open_fds(4)
    vring.start(kick, False)
    vring.replace("call", call)
    vring.replace("err", err)
    assert vring.descriptors() == {kick, call, err}
    identity = os.fstat(other).st_ino
    vring.replace("call", other)
    assert vring.call == call and os.fstat(call).st_ino == identity and not is_open(other)
    assert not os.get_inheritable(call)
    vring.stop()
    assert vring.descriptors() == {call, err}
    vring.replace("call", -1)
    assert vring.call == -1
    vring.reset()
    assert not any(map(is_open, fds)) and vring.num == 0 and vring.addr is None


def test_nothing_blocks(vring: Vring) -> None:
    """Whoever waits on a descriptor of the front-end's can't be stopped: an empty kick, a full call."""
    pipes = [os.pipe() for _ in range(4)]
    (kick, _), (_, call), (_, err), (_, other) = pipes
    vring.start(kick, False)
    vring.replace("call", call)
    vring.replace("err", err)
    assert not any(os.get_blocking(fd) for fd in (kick, call, err))
    vring.replace("call", other)
    assert not os.get_blocking(vring.call)
    vring.reset()
    for fd in {fd for pipe in pipes for fd in pipe} - {kick, call, err, other}:
        os.close(fd)


def test_a_descriptor_that_can_not_be_one_stays_the_caller_s(vring: Vring) -> None:
    fd = os.open("/", os.O_PATH)
    for take in (lambda: vring.start(fd, False), lambda: vring.replace("call", fd)):
        with pytest.raises(OSError, match="Bad file descriptor"):
            take()
    assert is_open(fd) and not vring.descriptors() and not vring.started
    os.close(fd)


def test_config_of_a_worker(vring: Vring) -> None:
    vring.set_addr(VringAddr(1, 1, 0x1000, 0x3000, 0x2000, 0x9000))
    vring.start(-1, False)
    features = int(Feature.EVENT_IDX | Feature.VERSION_1)
    config = vring.config(ffi.NULL, ffi.NULL, features, 9)
    assert (config.desc_addr, config.avail_addr, config.used_addr) == (0x1000, 0x2000, 0x3000)
    assert (config.log_addr, config.log_used, config.num) == (0x9000, 1, 64)
    assert (config.event_idx, config.indirect, config.features) == (1, 0, features)
    assert (config.kick, config.call, config.err, config.stop) == (-1, -1, -1, 9)
    assert config.state == vring.state
