"""Front-ends that break the protocol, cheat, or leave: one sentence each, and nothing stays behind."""

import os
import resource
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.frontend import FEATURES
from tests.vhost.connection import Connection, changed, descriptors
from tests.vhost.examples import BAD, REGION, SECOND, Wire, name, open_fds
from vhost.connection import Disconnected
from vhost.message import (
    HEADER,
    NOT_SHARED,
    ROWS,
    U64,
    VERSION,
    Feature,
    Inflight,
    MemoryTable,
    Request,
    VringAddr,
    VringFile,
    VringState,
)
from vhost.protocol import RemoteProtocolError, close_all


def test_private_memory_is_named(connection: Connection) -> None:
    before = Connection(private=True)
    before.fe.negotiate()
    before.fe.start()
    before.backend.check_rings()
    before.fe.memory.write(0x400, b"firmware")
    before.backend.vrings[1].state.kicks = 1
    with pytest.raises(RemoteProtocolError, match="guest memory is private: add share=on"):
        before.backend.check_rings()
    before.close()
    fe, backend = connection.fe, connection.backend
    fe.negotiate()
    fe.start()
    fe.memory.write(0x400, b"firmware")
    backend.vrings[1].state.kicks = 1
    backend.check_rings()


@pytest.mark.parametrize("features", [FEATURES, Feature.VERSION_1], ids=["enabled", "kicked"])
def test_rings_in_no_memory_name_the_option(connection: Connection, features: int) -> None:
    """What QEMU 7.2 sends with memory slots and -m alone: no region at all, and then rings."""
    fe, backend = connection.fe, connection.backend
    fe.negotiate(features=int(features))
    shared, fe.regions = fe.regions, []
    fe.share_memory = lambda: None
    with pytest.raises(RemoteProtocolError, match="guest memory is not shared: add share=on"):
        fe.start()
    fe.regions = shared
    assert backend.runnable() == []


@pytest.mark.parametrize(
    ("request_", "payload", "sentence"),
    [
        (Request.SET_FEATURES, U64(1 << 34), "SET_FEATURES asks for 0x400000000, which was not offered"),
        (Request.SET_PROTOCOL_FEATURES, U64(1 << 14), "SET_PROTOCOL_FEATURES asks for 0x4000"),
        (Request.SET_VRING_NUM, VringState(3, 128), "ring 3 does not exist: this device has 3"),
        (Request.SET_VRING_NUM, VringState(2, 100), "power of two"),
        (Request.SET_VRING_NUM, VringState(0, 128), "which is started"),
        (Request.SET_VRING_BASE, VringState(0, 1), "which is started"),
        (Request.SET_VRING_ENABLE, VringState(0, 2), "neither 0 nor 1"),
        (Request.SET_VRING_ADDR, VringAddr(0, 0, 1, 2, 3, 4), "misaligned"),
        (Request.SET_VRING_ADDR, VringAddr(0, 0, 16, 16, 16, 0), "guest memory is not shared"),
        (Request.SET_VRING_KICK, VringFile(2, False), "ring 2 is started before"),
        (Request.GET_INFLIGHT_FD, Inflight(0, 0, 4, 128), "at most 3 of 1024"),
        (Request.GET_VRING_BASE, VringState(255, 0), "ring 255"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_broken_rule_is_one_sentence(connection: Connection, request_: Request, payload, sentence: str) -> None:
    connection.fe.negotiate()
    connection.fe.start()
    assert sentence in connection.refused(request_, payload)


def test_a_channel_that_is_no_socket(connection: Connection) -> None:
    connection.fe.negotiate()
    assert "no socket" in connection.refused(Request.SET_BACKEND_REQ_FD, None, [connection.fe.rings[0].kick])


@pytest.mark.parametrize("request_", [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR])
def test_an_eventfd_that_is_none(connection: Connection, request_: Request) -> None:
    connection.fe.negotiate()
    connection.fe.start()
    fd = os.open("/", os.O_PATH)
    assert f"{request_.name} failed" in connection.refused(request_, VringFile(1, True), [fd])
    os.close(fd)


def test_rings_that_can_not_be_parked(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    """No base is better than a wrong one. To close is possible all the same."""
    fe = connection.fe
    fe.negotiate()
    fe.start()

    def quiesce() -> None:
        raise RemoteProtocolError("the rings are lost")

    connection.device.quiesce = quiesce  # type: ignore[method-assign]
    assert connection.refused(Request.GET_VRING_BASE, VringState(1, 0)) == "the rings are lost"
    connection.backend.close()
    assert connection.device.calls[-1] == "reset" and connection.backend.descriptors() == set()
    assert caplog.messages == ["the rings are lost"]


def test_a_failed_request_is_acknowledged_as_failed(connection: Connection) -> None:
    fe = connection.fe
    fe.negotiate()
    fe.send(Request.SET_FEATURES, U64(1), need_reply=True)
    connection.sentence()
    fe.pump = lambda: None
    reply = fe.receive()
    assert reply.request == Request.SET_FEATURES and U64.unpack(reply.payload).value == 1


@pytest.mark.parametrize("wire", BAD, ids=name)
def test_bad_messages_over_a_socket(connection: Connection, wire: Wire) -> None:
    """The generated negatives again, with real descriptors: one sentence, and the fixture finds no leak."""
    fe, backend = connection.fe, connection.backend
    fe.send(Request.SET_PROTOCOL_FEATURES, U64(wire.features))
    backend.handle()
    fds = open_fds(wire.fds)
    fe.send_raw(wire.data, fds)
    close_all(fds)
    sentence = connection.sentence()
    assert ROWS[wire.request].name in sentence or sentence == NOT_SHARED


def test_no_descriptor_left_for_a_message(connection: Connection) -> None:
    fds = open_fds(2)
    connection.fe.send(Request.SET_MEM_TABLE, MemoryTable((REGION, SECOND)), fds)
    close_all(fds)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limit[1]))
        assert "raise --rlimit-nofile" in connection.sentence()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        os.close(free)


@pytest.mark.parametrize("rest", [b"", b"\1", HEADER.pack(2, VERSION, 8) + b"\0"])
def test_disconnect(connection: Connection, rest: bytes) -> None:
    connection.fe.send_raw(rest)
    connection.fe.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(Disconnected, match="in mid-message" if rest else "left$"):
        connection.backend.handle()


def test_a_front_end_that_vanishes_before_its_reply(connection: Connection) -> None:
    connection.fe.send(Request.GET_FEATURES)
    connection.fe.sock.close()
    with pytest.raises(Disconnected):
        connection.backend.handle()


def test_a_front_end_that_reads_no_replies(connection: Connection) -> None:
    connection.fe.sock.setblocking(False)
    with pytest.raises(RemoteProtocolError, match="does not read its replies"):
        for _ in range(10_000):
            connection.fe.send(Request.GET_FEATURES)
            connection.backend.handle()


def test_a_flood_leaves_room_for_others(connection: Connection, monkeypatch) -> None:
    monkeypatch.setattr("vhost.backend.BURST", 10)
    for _ in range(25):
        connection.fe.send(Request.GET_FEATURES)
    for served in (10, 10, 5):
        connection.backend.handle()
        assert len(connection.fe.sock.recv(4096)) == 20 * served


@settings(max_examples=150)
@given(data=st.data())
def test_any_conversation(data: st.DataObject) -> None:
    """Well-formed requests in any order with any numbers: served, or one sentence; what is open stays known."""
    small = st.sampled_from([0, 1, 2, 3, 64, 128, 4096, 1 << 20, (1 << 64) - 1])
    connection = Connection()
    fe, backend = connection.fe, connection.backend
    if data.draw(st.booleans()):
        fe.negotiate()
        fe.start()
    try:
        for _ in range(data.draw(st.integers(1, 8))):
            row = data.draw(st.sampled_from(list(ROWS.values())))
            payload, fds = changed(fe, row.request)
            content = bytearray(payload.pack() if payload else b"")
            if content and data.draw(st.booleans()):
                at = data.draw(st.integers(0, len(content) // 4 - 1)) * 4
                content[at : at + 4] = (data.draw(small) & 0xFFFFFFFF).to_bytes(4, "little")
            fe.send_raw(HEADER.pack(row.request, VERSION, len(content)) + content, fds)
            close_all(fds)
            backend.handle()
            assert set(backend.descriptors()) <= descriptors()
    except RemoteProtocolError as error:
        assert "\n" not in str(error)
    connection.close()
    assert backend.descriptors() == set()
