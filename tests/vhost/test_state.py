"""SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE: when a device's state may move, and when the answer is due."""

import os
from collections.abc import Iterator

import pytest

from tests.vhost.connection import Connection, descriptors
from vhost.message import NO_FD, STATE_FAILED, STATE_LOAD, STATE_SAVE, U64, ProtocolFeature, Request, StateTransfer


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("direction", [STATE_SAVE, STATE_LOAD])
def test_the_device_gets_the_pipe(connection: Connection, pipe: tuple[int, int], direction: int) -> None:
    fe = connection.fe
    fe.negotiate()
    before = descriptors()
    answer = fe.ask(Request.SET_DEVICE_STATE_FD, StateTransfer(direction, 0), [pipe[0]])
    assert answer == U64(NO_FD)
    assert connection.device.transfers == [(direction == STATE_LOAD, os.fstat(pipe[0]).st_ino)]
    assert descriptors() == before, "what the device kept it has a copy of"


@pytest.mark.parametrize("transfer", [StateTransfer(2, 0), StateTransfer(0, 1), StateTransfer(1, 0xFFFFFFFF)])
def test_other_directions_and_phases_are_refused(
    connection: Connection, pipe: tuple[int, int], transfer: StateTransfer
) -> None:
    fe = connection.fe
    fe.negotiate()
    assert fe.ask(Request.SET_DEVICE_STATE_FD, transfer, [pipe[0]]) == U64(NO_FD | STATE_FAILED)
    assert connection.device.transfers == []
    fe.start()


def test_state_moves_while_the_rings_are_stopped(connection: Connection, pipe: tuple[int, int]) -> None:
    fe = connection.fe
    fe.negotiate()
    fe.start()
    assert fe.ask(Request.SET_DEVICE_STATE_FD, StateTransfer(0, 0), [pipe[1]]) == U64(NO_FD | STATE_FAILED)
    assert connection.device.transfers == []
    fe.stop()
    assert fe.ask(Request.SET_DEVICE_STATE_FD, StateTransfer(0, 0), [pipe[1]]) == U64(NO_FD)


@pytest.mark.parametrize("outcome", [True, False])
def test_the_end_is_told(connection: Connection, outcome: bool) -> None:
    connection.fe.negotiate()
    connection.device.outcome = outcome
    assert connection.fe.ask(Request.CHECK_DEVICE_STATE) == U64(0 if outcome else STATE_FAILED)


@pytest.mark.parametrize("outcome", [True, False])
def test_the_answer_waits_for_the_end(connection: Connection, outcome: bool) -> None:
    """And so does whatever comes behind it."""
    fe, backend = connection.fe, connection.backend
    fe.negotiate()
    connection.device.outcome = None
    fe.send(Request.CHECK_DEVICE_STATE)
    fe.send(Request.GET_FEATURES)
    backend.handle()
    assert backend.waits
    fe.sock.settimeout(0)
    fe.pump = lambda: None
    with pytest.raises(BlockingIOError):
        fe.receive()
    connection.device.outcome = outcome
    backend.transferred()
    assert not backend.waits
    assert U64.unpack(fe.receive().payload) == U64(0 if outcome else STATE_FAILED)
    backend.handle()
    assert fe.receive().request == Request.GET_FEATURES


def test_an_end_nobody_asked_for(connection: Connection) -> None:
    connection.fe.negotiate()
    connection.backend.transferred()
    assert not connection.backend.waits


def test_not_negotiated(connection: Connection) -> None:
    connection.fe.negotiate(protocol_features=~ProtocolFeature.DEVICE_STATE)
    assert "DEVICE_STATE, which was not negotiated" in connection.refused(Request.CHECK_DEVICE_STATE)


def test_what_was_left_in_flight_outlives_another_setup(connection: Connection) -> None:
    """State that a device has loaded is there before the ring is told where it lies."""
    fe, vring = connection.fe, connection.backend.vrings[1]
    fe.negotiate()
    vring.state.started = vring.state.suspended = 1
    vring.state.last_avail_idx = fe.rings[1].base = 7
    fe.start()
    assert vring.state.suspended and not vring.abandoned
    fe.stop()
    assert fe.rings[1].base == 7 and vring.state.suspended
    fe.rings[1].base = 8
    fe.start()
    assert not vring.state.suspended and vring.state.last_avail_idx == 8
