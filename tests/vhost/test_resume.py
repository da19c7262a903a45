"""A connection goes on in another process, or what came is refused. Here both processes are this one."""

import contextlib
import copy
import json
import os
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.frontend import MIB
from tests.vhost.connection import QUEUES, Connection
from vhost.arena import Arena
from vhost.backend import Backend
from vhost.inflight import inflight_arena
from vhost.memory import table_arena
from vhost.message import Request, VringState
from vhost.resume import between_messages, resume, save
from vhost.saved import Packed, StateError, Unpacked
from vhost.vring import state_arena


class Arenas:
    """Those of a first process, and of one that goes on."""

    def __init__(self, backend: Backend) -> None:
        self.table = table_arena()
        records = [vring.state for vring in backend.vrings]
        self.states = state_arena(QUEUES)
        for vring, record in zip(backend.vrings, records, strict=True):
            size = len(memoryview(_buffer(record)))
            _buffer(self.states.pointer(_ffi(), "struct virtq_state *", vring.index * size))[:] = _buffer(record)[:]
        self.inflight = inflight_arena(QUEUES)


def _ffi() -> Any:
    from vhost._virtq import ffi

    return ffi


def _buffer(record: Any) -> Any:
    return _ffi().buffer(record)


@pytest.fixture
def running(connection: Connection) -> Connection:
    """With all there can be."""
    fe = connection.fe
    fe.negotiate()
    fe.get_inflight()
    fe.start()
    fe.log_start()
    return connection


def carried(backend: Backend) -> tuple[Any, list[int]]:
    """What arrives in another process."""
    packed = Packed()
    data = json.loads(json.dumps(save(backend, packed)))
    return data, [os.dup(fd) for fd in packed.fds]


def go_on(connection: Connection, data: Any, fds: list[int]) -> Backend:
    arenas = Arenas(connection.backend)
    return resume(data, Unpacked(fds), connection.device, arenas.table, arenas.states, arenas.inflight)


def plain(data: Any) -> Any:
    """Without the numbers of descriptors' places, which follow the order in which they are told."""
    return json.dumps(data, sort_keys=True)


def test_it_is_the_same(running: Connection) -> None:
    running.backend.vrings[1].state.popped = 77
    data, fds = carried(running.backend)
    other = go_on(running, data, fds)
    again, more = carried(other)
    assert plain(again) == plain(data)
    for fd in more:
        os.close(fd)
    assert other.vrings[1].state.popped == 77
    ours, theirs = ([region.wire for region in one.memory.regions] for one in (other, running.backend))
    assert ours == theirs
    assert {os.fstat(fd).st_ino for fd in other.descriptors()} == {
        os.fstat(fd).st_ino for fd in running.backend.descriptors()
    }
    running.backend.close()
    running.backend = other


def test_the_front_end_notices_nothing(running: Connection) -> None:
    fe = running.fe
    for number in range(3):
        running.backend.vrings[1].state.last_avail_idx = 40 + number
        data, fds = carried(running.backend)
        other = go_on(running, data, fds)
        # Its descriptors are others than ours, and the front-end's socket lives on.
        for fd in running.backend.descriptors():
            os.close(fd)
        running.backend.connection._socket.detach()
        if running.backend.channel:
            running.backend.channel._socket.detach()
            # Closing it closes nothing but what is closed.
            running.backend.channel._taken = type("Closed", (), {"close": lambda self: None})()
        running.backend, fe.pump = other, other.handle
        assert fe.ask(Request.GET_VRING_BASE, VringState(1, 0)).num == 40 + number
        fe.start_ring(fe.rings[1])
        region = fe.plug(64 * MIB, MIB)
        fe.unplug(region)


def test_between_messages(running: Connection) -> None:
    backend = running.backend
    assert between_messages(backend)
    running.fe.send_raw(b"\x0b\0\0\0")
    backend.handle()
    assert not between_messages(backend)
    running.fe.send_raw(b"\1\0\0\0" + bytes([8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]))
    backend.handle()
    running.fe.receive()
    assert between_messages(backend)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in the data."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))][not path :]


VALUES = [None, -1, 0, 1, 3, 17, 1 << 31, (1 << 64) - 1, 1 << 64, 1.5, "x", True, [], {}, [0], {"fd": 0}]


def nonsense(data: Any, values: int) -> Iterator[Any]:
    """The data with anything in the place of anything: so many values in each place."""
    chance = random.Random(5)
    for place in places(data):
        for value in chance.sample(VALUES, values):
            changed = copy.deepcopy(data)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            yield changed


def test_nonsense_is_refused(running: Connection) -> None:
    """Anything in the place of anything: it is taken for what it is, or refused in one phrase, and nothing else."""
    data, fds = carried(running.backend)
    for fd in fds:
        os.close(fd)
    refused = 0
    for changed in nonsense(data, 3):
        _, fds = carried(running.backend)
        try:
            other = go_on(running, changed, fds)
        except StateError as error:
            assert str(error)
            assert "\n" not in str(error)
            refused += 1
        else:
            other.close()
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)
    assert refused > 50


def test_an_arena_of_another_size() -> None:
    arena = Arena("one", 8192)
    with pytest.raises(StateError, match="arena two has 8192 bytes, not 4096"):
        Arena.of(os.dup(arena.fd), "two", 4096)
    other = Arena.of(os.dup(arena.fd), "one", 8192)
    other._map[5] = 9
    assert arena._map[5] == 9


def test_a_descriptor_is_taken_once() -> None:
    one, other = socket.socketpair()
    unpacked = Unpacked([one.fileno()])
    assert unpacked.take({"fd": 0}, "fd") == one.fileno()
    with pytest.raises(StateError, match="named twice"):
        unpacked.take({"fd": 0}, "fd")
    with pytest.raises(StateError, match="not from -1 to 0"):
        unpacked.take({"fd": 1}, "fd")
    one.close()
    other.close()
