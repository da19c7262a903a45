"""A front-end and a back-end with rings that run: what a guest sees of the conversation is that nothing happens."""

from collections.abc import Iterator

import pytest

from tests.driver import Allocator
from tests.frontend import FEATURES, MIB, FrontEnd
from tests.vhost.echo import EchoDevice
from vhost.message import Feature, ProtocolFeature, Request, VringFile, VringState


@pytest.fixture
def device() -> Iterator[EchoDevice]:
    device = EchoDevice()
    yield device
    device.close()


def exchange(fe: FrontEnd, count: int = 3) -> None:
    for ring in fe.rings:
        for i in range(count):
            data = f"request {i} on ring {ring.index}".encode() * (1 + 50 * i)
            assert fe.request(ring.index, data, 4096) == data.upper()[:4096]


@pytest.mark.parametrize("sizes", [(64 * MIB,), (MIB, 63 * MIB), (MIB,) * 8], ids=str)
@pytest.mark.parametrize("features", [FEATURES, Feature.VERSION_1, FEATURES & ~Feature.INDIRECT_DESC], ids=hex)
def test_requests(device: EchoDevice, sizes: tuple[int, ...], features: int) -> None:
    with FrontEnd(device.connect(), queues=3, sizes=sizes) as fe:
        fe.negotiate(features=int(features))
        fe.start()
        exchange(fe)
    device.join()
    assert device.sentences == ["the front-end left"]


def test_pause_and_go_on(device: EchoDevice) -> None:
    with FrontEnd(device.connect(), num=8) as fe:
        fe.negotiate()
        for turn in range(5):
            fe.start()
            exchange(fe, 7)
            fe.stop()
            assert [ring.base for ring in fe.rings] == [7 * (turn + 1)] * 2


def test_requests_of_a_paused_guest_are_served_later(device: EchoDevice) -> None:
    with FrontEnd(device.connect()) as fe:
        fe.negotiate()
        fe.start()
        exchange(fe)
        fe.stop()
        queue = fe.queue(1)
        heads = [queue.add([b"later"], [16]) for _ in range(4)]
        fe.start()
        queue.kick()
        assert [queue.wait(head).data for head in heads] == [b"LATER"] * 4


def test_reboot(device: EchoDevice) -> None:
    with FrontEnd(device.connect()) as fe:
        fe.negotiate()
        for _ in range(3):
            fe.start()
            exchange(fe)
            fe.reset()
        fe.start()
        assert fe.rings[1].base == 0
        exchange(fe)


def test_one_front_end_after_the_other(device: EchoDevice) -> None:
    for _ in range(3):
        with FrontEnd(device.connect()) as fe:
            fe.negotiate()
            fe.start()
            exchange(fe)
    device.join()
    assert device.sentences == ["the front-end left"] * 3


def test_a_disabled_ring_waits(device: EchoDevice) -> None:
    with FrontEnd(device.connect()) as fe:
        fe.negotiate()
        fe.start()
        fe.tell(Request.SET_VRING_ENABLE, VringState(1, 0))
        head = fe.queue(1).add([b"wait"], [16])
        fe.queue(1).kick()
        assert fe.request(0, b"meanwhile", 16) == b"MEANWHILE"
        assert fe.queue(1).poll() == []
        fe.tell(Request.SET_VRING_ENABLE, VringState(1, 1))
        assert fe.queue(1).wait(head).data == b"WAIT"


def test_a_new_interrupt_while_the_ring_runs(device: EchoDevice) -> None:
    """Masking and unmasking, as QEMU tells of it: no worker ends, and none of them writes to the old eventfd."""
    with FrontEnd(device.connect()) as fe:
        fe.negotiate()
        fe.start()
        exchange(fe)
        workers, ring = device.workers, fe.rings[1]
        fe.tell(Request.SET_VRING_CALL, VringFile(1, True), [ring.err])
        fe.queue(1).call_fd = ring.err
        exchange(fe)
        assert device.workers == workers


@pytest.mark.parametrize("slots", [True, False], ids=["slots", "tables"])
def test_memory_changes_under_running_rings(device: EchoDevice, slots: bool) -> None:
    with FrontEnd(device.connect()) as fe:
        fe.negotiate(protocol_features=~0 if slots else ~ProtocolFeature.CONFIGURE_MEM_SLOTS)
        fe.start()
        exchange(fe)
        workers = device.workers
        unused = fe.plug(1 << 32, MIB)
        exchange(fe)
        fe.unplug(unused)
        assert device.workers == workers, "memory no ring used costs no worker"
        used = fe.plug(1 << 32, MIB)
        fe.queue(1).allocator = Allocator(1 << 32, MIB)
        assert fe.request(1, b"over there", 16) == b"OVER THERE"
        fe.queue(1).allocator = fe.rings[1].allocator
        fe.unplug(used)
        exchange(fe)
        assert device.workers == workers + 1


def test_dirty_log(device: EchoDevice) -> None:
    with FrontEnd(device.connect()) as fe:
        fe.negotiate()
        fe.start()
        exchange(fe)
        fe.log_start()
        fe.dirty()
        queue = fe.queue(1)
        head = queue.add([b"x" * 9000], [9000])
        start = queue.chains[head].writable[-1].addr
        queue.kick()
        assert queue.wait(head).length == 9000
        pages = {page * 4096 for page in range(start // 4096, (start + 8999) // 4096 + 1)}
        # A ring that begins to wait says so in its used ring, whenever its thread gets there.
        idle, served = (ring.where.used // 4096 * 4096 for ring in fe.rings)
        assert fe.dirty() - {idle} == {*pages, served}
        fe.log_stop()
        fe.dirty()
        exchange(fe)
        assert fe.dirty() == set()


def test_inflight_region_is_the_front_ends(device: EchoDevice) -> None:
    """A connection is lost and comes back with its in-flight region: the rings go on."""
    with FrontEnd(device.connect()) as fe:
        fe.negotiate()
        fe.get_inflight()
        fe.start()
        exchange(fe)
        assert fe.inflight
        fe.reconnect(device.connect)
        fe.negotiate()
        head = fe.queue(1).add([b"again"], [16])
        fe.start()
        fe.queue(1).kick()
        assert fe.queue(1).wait(head).data == b"AGAIN"
        exchange(fe)
