"""A Backend behind a socketpair, served as a good front-end does."""

import os

import pytest

from tests.frontend import FEATURES, MIB
from tests.vhost.connection import CONFIG, QUEUES, Connection, changed, descriptors
from tests.vhost.examples import ALL_FEATURES, open_fds
from vhost._virtq import ffi, lib
from vhost.memory import MAX_SLOTS
from vhost.message import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    ROWS,
    U64,
    VERSION,
    Config,
    Feature,
    Log,
    ProtocolFeature,
    Request,
    VringFile,
    VringState,
)
from vhost.protocol import close_all
from vhost.vring import RingState


def test_a_whole_session(connection: Connection) -> None:
    fe, backend = connection.fe, connection.backend
    fe.negotiate()
    assert backend.runnable() == []
    fe.start()
    assert [vring.index for vring in backend.runnable()] == [0, 1]
    assert backend.features == FEATURES and backend.protocol_features == ALL_FEATURES
    vring = backend.vrings[1]
    assert (vring.num, vring.addr) == (128, fe.addresses(fe.rings[1]))
    backend.vrings[1].state.last_avail_idx = 41
    fe.stop()
    assert fe.rings[1].base == 41 and backend.runnable() == []
    fe.start()
    fe.stop()
    assert fe.rings[1].base == 41
    fe.reset()
    fe.start()
    assert fe.rings[1].base == 0 and connection.device.calls[-1] == "quiesce"
    assert "reset" in connection.device.calls


def test_descriptors_are_all_known(connection: Connection) -> None:
    """What `descriptors` does not name, the daemon closes."""
    fe, backend = connection.fe, connection.backend
    before = descriptors()
    assert backend.descriptors() == {backend.fileno()}
    fe.negotiate()
    fe.get_inflight()
    fe.start()
    fe.log_start()
    fe.tell(Request.SET_LOG_FD, fds=[fe.rings[0].err])
    assert fe.channel and fe.inflight
    theirs = {fe.channel.fileno(), fe.inflight[1]}
    new = descriptors() - before - theirs
    own = backend.descriptors() - {backend.fileno()}
    assert own == new & own and len(new - own) == 1, "the front-end's map of the log has one"
    assert len(own) == 2 + 2 + 2 * 3 + 1 + 2
    backend.close()
    assert not own & descriptors()


def test_descriptors_are_not_inherited(connection: Connection) -> None:
    connection.fe.negotiate()
    connection.fe.get_inflight()
    connection.fe.start()
    assert not [fd for fd in connection.backend.descriptors() if os.get_inheritable(fd)]


def test_without_protocol_features_rings_start_enabled(connection: Connection) -> None:
    fe, backend = connection.fe, connection.backend
    fe.negotiate(features=int(Feature.VERSION_1))
    fe.start()
    assert [vring.index for vring in backend.runnable()] == [0, 1]
    assert connection.refused(Request.SET_VRING_ENABLE, VringState(0, 1)).endswith("negotiated by SET_FEATURES")


def test_states_follow_the_messages(connection: Connection) -> None:
    fe, backend = connection.fe, connection.backend
    fe.negotiate()
    fe.start()
    for enabled, state in ((0, RingState.DISABLED), (1, RingState.ENABLED)):
        fe.tell(Request.SET_VRING_ENABLE, VringState(1, enabled))
        assert backend.vrings[1].ring_state(backend.features) is state
    fe.tell(Request.RESET_OWNER)
    assert backend.runnable() == [] and backend.vrings[1].started
    fe.tell(Request.SET_VRING_ENABLE, VringState(1, 1))
    backend.vrings[1].state.broken = 71
    assert backend.runnable() == []


# What must not happen under a running worker, as the rows say it.
@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_quiesces_as_its_row_says(connection: Connection, row) -> None:
    fe = connection.fe
    fe.negotiate()
    fe.start()
    if row.request in (Request.SET_VRING_NUM, Request.SET_VRING_BASE):
        fe.stop()
    payload, fds = changed(fe, row.request)
    connection.device.calls.clear()
    fe.send(row.request, payload, fds)
    connection.backend.handle()
    assert ("quiesce" in connection.device.calls) == row.quiesces
    close_all(fds)


def test_interrupts_are_replaced_without_a_new_worker(connection: Connection) -> None:
    fe, vring = connection.fe, connection.backend.vrings[1]
    fe.negotiate()
    fe.start()
    number, identity = vring.call, os.fstat(vring.call).st_ino
    connection.device.calls.clear()
    (fd,) = open_fds(1)
    fe.tell(Request.SET_VRING_CALL, VringFile(1, True), [fd])
    assert vring.call == number and os.fstat(number).st_ino == os.fstat(fd).st_ino != identity
    assert connection.device.calls == []
    fe.tell(Request.SET_VRING_CALL, VringFile(1, False))
    assert vring.call == -1 and connection.device.calls == ["quiesce"]
    fe.tell(Request.SET_VRING_CALL, VringFile(1, False))
    assert connection.device.calls == ["quiesce"]
    os.close(fd)


def test_status(connection: Connection) -> None:
    fe, backend = connection.fe, connection.backend
    fe.negotiate()
    fe.start()
    fe.tell(Request.SET_STATUS, U64(15))
    assert fe.ask(Request.GET_STATUS).value == 15 and len(backend.runnable()) == 2
    fe.tell(Request.SET_STATUS, U64(0))
    assert fe.ask(Request.GET_STATUS).value == 0 and backend.runnable() == []
    assert "reset" not in connection.device.calls, "QEMU sends status 0 when a guest is paused"
    assert "SET_STATUS" in connection.refused(Request.SET_STATUS, U64(256))


def test_configuration_space(connection: Connection) -> None:
    fe = connection.fe
    fe.negotiate()
    assert fe.config(0, 40) == CONFIG and fe.config(36, 4) == CONFIG[36:]
    for offset, size in ((36, 8), (4096, 1)):
        fe.send(Request.GET_CONFIG, Config(offset, 0, bytes(size)))
        assert fe.receive().payload == b"", "an empty payload says that it failed"
    with pytest.raises(OSError, match="SET_CONFIG failed"):
        fe.tell(Request.SET_CONFIG, Config(0, 0, b"other"))
    assert fe.config(0, 3) == b"tag", "the connection goes on"


def test_answers(connection: Connection) -> None:
    fe = connection.fe
    fe.negotiate()
    assert fe.ask(Request.GET_QUEUE_NUM).value == QUEUES
    assert fe.ask(Request.GET_MAX_MEM_SLOTS).value == MAX_SLOTS
    assert fe.ask(Request.GET_VRING_BASE, VringState(2, 0)) == VringState(2, 0)


@pytest.mark.parametrize("slots", [True, False])
def test_memory_comes_and_goes(connection: Connection, slots: bool) -> None:
    fe, backend = connection.fe, connection.backend
    fe.negotiate(protocol_features=~0 if slots else ~ProtocolFeature.CONFIGURE_MEM_SLOTS)
    fe.start()
    connection.device.calls.clear()
    region = fe.plug(1 << 32, MIB)
    assert [r.wire for r in backend.memory.regions] == [r.wire for r in fe.regions] and len(fe.regions) == 3
    backend.memory.table.regions[2].used = 1
    fe.unplug(region)
    assert [r.wire for r in backend.memory.regions] == [r.wire for r in fe.regions] and len(fe.regions) == 2
    assert connection.device.calls == ["quiesce"]


def test_dirty_log(connection: Connection) -> None:
    fe, backend = connection.fe, connection.backend
    fe.negotiate()
    fe.start()
    lib.memory_free(backend.memory_view())
    fe.log_start()
    view = backend.memory_view()
    lib.memory_dirty(view, 0x5000, 0x1001)
    lib.memory_free(view)
    assert fe.dirty() == {0x5000, 0x6000}
    assert backend.vrings[0].addr and backend.vrings[0].addr.flags == 1
    fe.log_stop()
    view = backend.memory_view()
    lib.memory_dirty(view, 0x5000, 1)
    lib.memory_free(view)
    assert fe.dirty() == set()


def test_a_log_with_an_offset(connection: Connection) -> None:
    fe, backend = connection.fe, connection.backend
    fe.negotiate()
    fe.start()
    (fd,) = open_fds(1)
    os.ftruncate(fd, 8192)
    fe.ask(Request.SET_LOG_BASE, Log(1000, 4100), [fd])
    fe.tell(Request.SET_FEATURES, U64(fe.features | Feature.LOG_ALL))
    view = backend.memory_view()
    lib.memory_dirty(view, 3 * 4096, 1)
    lib.memory_dirty(view, 1000 * 8 * 4096, 1)
    lib.memory_free(view)
    assert os.pread(fd, 8192, 0) == bytes(4100) + b"\x08" + bytes(8192 - 4101)
    for log in (Log(0, 0), Log(8193, 0), Log(8192, 1)):
        other = Connection()
        other.fe.negotiate()
        assert "dirty log" in other.refused(Request.SET_LOG_BASE, log, [fd])
        other.close()
    os.close(fd)


def test_inflight_region_over_two_connections(connection: Connection) -> None:
    fe, backend = connection.fe, connection.backend
    fe.negotiate()
    fe.get_inflight()
    fe.start()
    assert [vring.state.started for vring in backend.vrings] == [0, 0, 0]
    region = backend.inflight.map(1)
    region.version = 1
    assert fe.inflight
    second = Connection()
    second.fe.negotiate()
    second.fe.inflight = fe.inflight[0], os.dup(fe.inflight[1])
    second.fe.start()
    assert [vring.state.started for vring in second.backend.vrings] == [0, 1, 0], "ring 1 has a past"
    second.close()


def test_messages_in_one_piece_and_in_many(connection: Connection) -> None:
    fe, backend = connection.fe, connection.backend
    fe.negotiate()
    data = b"".join(HEADER.pack(8, VERSION | FLAG_NEED_REPLY, 8) + VringState(i, 1 << i).pack() for i in range(3))
    fe.send_raw(data)
    backend.handle()
    assert [vring.num for vring in backend.vrings] == [1, 2, 4]
    for value in data:
        fe.send_raw(bytes([value]))
        backend.handle()
    fe.pump = lambda: None
    assert [fe.receive().request for _ in range(6)] == [8] * 6


def test_descriptors_stay_with_their_message(connection: Connection) -> None:
    """A message without descriptors and one with some, in the socket at once."""
    fe, backend = connection.fe, connection.backend
    fe.negotiate()
    (fd,) = open_fds(1)
    fe.send(Request.SET_VRING_NUM, VringState(0, 8))
    fe.send(Request.SET_VRING_CALL, VringFile(0, True), [fd])
    fe.send(Request.SET_VRING_CALL, VringFile(1, False))
    backend.handle()
    assert os.fstat(backend.vrings[0].call).st_ino == os.fstat(fd).st_ino and backend.vrings[1].call == -1
    os.close(fd)


def test_close_forgets_everything(connection: Connection) -> None:
    fe, backend = connection.fe, connection.backend
    fe.negotiate()
    fe.start()
    backend.vrings[1].state.popped = 9
    connection.device.calls.clear()
    backend.close()
    assert connection.device.calls == ["quiesce", "reset"]
    assert bytes(ffi.buffer(backend.vrings[1].state)) == bytes(ffi.sizeof("struct virtq_state"))
    assert backend.memory.table.count == 0 and backend.descriptors() == set()


def test_replies_have_the_reply_flag(connection: Connection) -> None:
    connection.fe.send(Request.GET_FEATURES)
    connection.backend.handle()
    answer = connection.fe.sock.recv(100)
    assert HEADER.unpack_from(answer) == (Request.GET_FEATURES, VERSION | FLAG_REPLY, 8)
