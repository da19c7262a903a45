"""What is left in flight on a ring moves to another back-end."""

from tests.vhost.connection import Connection
from vhost import suspended
from vhost._virtq import ffi
from vhost.suspended import Suspended

RING = Suspended(1, 128, 0xFFFF, 0xFFFC, (90, 0, 7))


def test_it_is_found_where_it_was_put(connection: Connection) -> None:
    backend = connection.backend
    vring = backend.vrings[1]
    assert suspended.look(vring, backend.inflight) is None
    suspended.put(RING, vring, backend.inflight)
    connection.fe.rings[1].base = RING.last_avail_idx
    connection.fe.negotiate()
    connection.fe.start()
    assert suspended.look(vring, backend.inflight) == RING
    region = backend.inflight.map(1)
    assert (region.version, region.desc_num) == (1, 128)


def test_the_order_is_that_of_the_requests(connection: Connection) -> None:
    backend = connection.backend
    vring = backend.vrings[1]
    connection.fe.negotiate()
    connection.fe.start()
    suspended.put(RING, vring, backend.inflight)
    region = backend.inflight.map(1)
    descs = ffi.cast("struct virtq_inflight_desc *", ffi.addressof(region[0], "desc"))
    descs[90].counter = 1 << 40
    found = suspended.look(vring, backend.inflight)
    assert found and found.heads == (0, 7, 90)


def test_a_region_of_the_front_end_is_its_own(connection: Connection) -> None:
    connection.fe.negotiate()
    connection.fe.get_inflight()
    connection.fe.start()
    vring = connection.backend.vrings[1]
    vring.state.started = vring.state.suspended = 1
    assert suspended.look(vring, connection.backend.inflight) is None
