"""The endpoint alone: no sockets. The negative tests are generated from the rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vhost.examples import ALL_FEATURES, BAD, GOOD, PAYLOADS, Wire, is_open, name, open_fds
from vhost.message import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    NOT_SHARED,
    ROWS,
    U64,
    VERSION,
    Config,
    Request,
    VringFile,
)
from vhost.protocol import Endpoint, LocalProtocolError, Message, RemoteProtocolError, close_all


def feed(endpoint: Endpoint, data: bytes, fds: list[int], step: int = 1 << 20) -> list[Message]:
    """Gives an endpoint what a socket would: at most `wants` bytes, the descriptors with the first."""
    messages = []
    while data:
        size = min(step, endpoint.wants)
        if message := endpoint.receive(data[:size], fds):
            messages.append(message)
        data, fds = data[size:], []
    return messages


def endpoint_for(wire: Wire) -> Endpoint:
    endpoint = Endpoint()
    endpoint.features = wire.features
    return endpoint


@pytest.mark.parametrize("step", [1, 5, 1 << 20])
@pytest.mark.parametrize("wire", GOOD, ids=name)
def test_a_good_message_arrives(wire: Wire, step: int) -> None:
    endpoint, fds = endpoint_for(wire), open_fds(wire.fds)
    (message,) = feed(endpoint, wire.data, fds, step)
    row = ROWS[wire.request]
    assert (message.row, message.payload, message.fds) == (row, PAYLOADS[row.payload], fds)
    assert endpoint.idle and not endpoint.fds and not message.need_reply
    close_all(message.fds)


@pytest.mark.parametrize("wire", BAD, ids=name)
def test_a_bad_message_is_one_sentence(wire: Wire) -> None:
    fds = open_fds(wire.fds)
    with pytest.raises(RemoteProtocolError) as caught:
        feed(endpoint_for(wire), wire.data, list(fds))
    sentence = str(caught.value)
    assert "\n" not in sentence and (ROWS[wire.request].name in sentence or sentence == NOT_SHARED)
    assert not any(map(is_open, fds))


@pytest.mark.parametrize("number", [0, 19, 20, 22, 23, 26, 33, 35, 41, 1 << 31])
def test_a_request_without_row(number: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"request {number} "):
        Endpoint().receive(HEADER.pack(number, VERSION, 0))


@pytest.mark.parametrize("request_", [Request.SET_MEM_TABLE, Request.ADD_MEM_REG], ids=lambda r: r.name)
def test_memory_without_descriptors_names_the_option(request_: Request) -> None:
    wire = next(wire for wire in BAD if wire.request == request_ and wire.spoiled == "0 descriptors")
    with pytest.raises(RemoteProtocolError, match="share=on"):
        feed(endpoint_for(wire), wire.data, [])


def test_no_descriptor_where_bit_8_says_so() -> None:
    (message,) = feed(Endpoint(), HEADER.pack(12, VERSION, 8) + VringFile(3, False).pack(), [])
    assert message.payload == VringFile(3, False)


def test_trace() -> None:
    """What --log-level debug shows of a conversation."""
    endpoint = Endpoint()
    (plain,) = feed(endpoint, HEADER.pack(Request.GET_FEATURES, VERSION, 0), [])
    (full,) = feed(endpoint, HEADER.pack(Request.SET_VRING_CALL, VERSION, 8) + VringFile(3, True).pack(), [900])
    assert str(plain) == "GET_FEATURES"
    assert str(full) == "SET_VRING_CALL VringFile(index=3, has_fd=True) with descriptors [900]"


def test_messages_follow_each_other() -> None:
    endpoint = Endpoint()
    endpoint.features = ALL_FEATURES
    messages = feed(endpoint, b"".join(wire.data for wire in GOOD if not wire.fds), [])
    assert [message.row.request for message in messages] == [wire.request for wire in GOOD if not wire.fds]


def test_more_bytes_than_wanted_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        Endpoint().receive(bytes(13))


def test_close_takes_what_is_half_read() -> None:
    endpoint, fds = Endpoint(), open_fds(2)
    endpoint.receive(b"\5", fds)
    assert endpoint.fds == set(fds) and not endpoint.idle
    endpoint.close()
    assert not any(map(is_open, fds))


def test_replies() -> None:
    endpoint = Endpoint()
    (message,) = feed(endpoint, HEADER.pack(Request.GET_FEATURES, VERSION, 0), [])
    assert endpoint.reply(message, U64(7)) == HEADER.pack(1, VERSION | FLAG_REPLY, 8) + U64(7).pack()
    with pytest.raises(LocalProtocolError):
        endpoint.reply(message, Config(0, 0, b""))
    assert endpoint.acknowledge(message) == b""


@pytest.mark.parametrize("wire", GOOD, ids=name)
def test_acknowledgement(wire: Wire) -> None:
    """A need_reply is answered by a u64, unless the request has a reply of its own."""
    endpoint = endpoint_for(wire)
    data = bytearray(wire.data)
    data[4] |= FLAG_NEED_REPLY
    (message,) = feed(endpoint, bytes(data), open_fds(wire.fds))
    assert message.need_reply
    for failed in (False, True):
        due = HEADER.pack(wire.request, VERSION | FLAG_REPLY, 8) + U64(failed).pack()
        assert endpoint.acknowledge(message, failed) == (b"" if message.row.reply else due)
    close_all(message.fds)


@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_bytes(data: bytes, step: int) -> None:
    endpoint = Endpoint()
    endpoint.features = ALL_FEATURES
    try:
        for message in feed(endpoint, data, [], step):
            assert message.row in ROWS.values()
    except RemoteProtocolError as error:
        assert "\n" not in str(error)


@given(st.sampled_from(GOOD), st.data())
def test_mutated_messages(wire: Wire, data: st.DataObject) -> None:
    """A few bytes changed, and any number of descriptors: a checked message or one sentence, and no leak."""
    content = bytearray(wire.data)
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    endpoint, fds = endpoint_for(wire), open_fds(data.draw(st.integers(0, 3)))
    try:
        for message in feed(endpoint, bytes(content), list(fds)):
            assert len(message.fds) in message.row.fds.allowed(message.payload)
            close_all(message.fds)
    except RemoteProtocolError as error:
        assert "\n" not in str(error)
    endpoint.close()
    assert not any(map(is_open, fds))


def test_close_all_forgets() -> None:
    fds = open_fds(3)
    copy = list(fds)
    close_all(fds)
    assert fds == [] and not any(map(is_open, copy))
