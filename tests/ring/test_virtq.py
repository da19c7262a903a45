"""The ring engine at work: what an honest driver sees."""

import itertools
import os
import threading
from collections.abc import Callable

import pytest

from tests.driver import NEXT, WRITE, Buffer
from tests.ring.ring import DEFERRED, PAGE, Chain, Reply, Ring, echo, stream, wait_for
from vhost._virtq import lib

Make = Callable[..., Ring]


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("num", [1, 2, 8, 1024])
def test_echo(ring: Make, num: int, indirect: bool, event_idx: bool) -> None:
    r = ring(num, event_idx=event_idx)
    r.driver.indirect = indirect
    r.start()
    if num == 1 and not indirect:
        head = r.driver.add([b"question"], [])
        r.driver.kick()
        assert r.driver.wait(head).length == 0
    else:
        for i in range(3):
            assert r.driver.request([b"question %d" % i], [100]) == b"question %d" % i
    assert r.stop() == [0]


@pytest.mark.parametrize("event_idx", [False, True])
def test_indexes_wrap(ring: Make, event_idx: bool) -> None:
    r = ring(4, index=65530, event_idx=event_idx)
    r.start()
    for i in range(40):
        assert r.driver.request([b"%d" % i], [10]) == b"%d" % i
    r.park()
    assert r.state.last_avail_idx == r.driver.index == (65530 + 40) & 0xFFFF
    assert r.state.popped == r.state.completed == 40


def test_full_ring_many_rounds(ring: Make) -> None:
    r = ring(8, event_idx=True, index=65000)
    r.start()
    for _ in range(100):
        heads = [r.driver.add([b"%d" % i], [4], indirect=True) for i in range(8)]
        r.driver.kick()
        assert [r.driver.wait(head).data for head in heads] == [b"%d" % i for i in range(8)]


@pytest.mark.parametrize(
    "readable",
    [
        [b"whole"],
        [b"w", b"h", b"o", b"l", b"e"],
        [b"", b"wh", b"", b"", b"ole", b""],
    ],
)
@pytest.mark.parametrize("writable", [[5], [1, 1, 1, 1, 1], [0, 2, 0, 3, 0], [4096]])
@pytest.mark.parametrize("direct", [None, 0, 1])
def test_any_layout(ring: Make, readable: list[bytes], writable: list[int], direct: int | None) -> None:
    r = ring(16)
    r.start()
    head = r.driver.add(readable, writable, indirect=direct is not None, direct=direct or 0)
    r.driver.kick()
    assert r.driver.wait(head).data == b"whole"


def test_handler_sees_lengths(ring: Make) -> None:
    seen = []

    def handler(chain: Chain) -> bytes:
        raw = chain.chain
        seen.append((raw.in_count, raw.in_len, raw.out_count, raw.out_len, raw.replay))
        return b""

    r = ring(16)
    r.start(handler)
    assert r.driver.request([b"ab", b"", b"c"], [0, 15]) == b""
    assert r.driver.request([], [3]) == b""
    assert r.driver.request([b""], [0]) == b""
    assert seen == [(2, 3, 1, 15, 0), (0, 0, 1, 3, 0), (0, 0, 0, 0, 0)]


def test_longest_chain(ring: Make) -> None:
    r = ring(1024, regions=((0, 1 << 20),))
    r.start()
    head = r.driver.add([b"x"] * 512, [1] * 512, indirect=False)
    r.driver.kick()
    assert r.driver.wait(head).data == b"x" * 512
    head = r.driver.add([b"x"] * 512, [1] * 512, indirect=True)
    r.driver.kick()
    assert r.driver.wait(head).data == b"x" * 512


def test_used_length_never_exceeds_room(ring: Make) -> None:
    r = ring()
    waiting: list[Chain] = []
    r.start(lambda chain: waiting.append(chain))
    head = r.driver.add([b"x"], [4])
    r.driver.kick()
    wait_for(lambda: bool(waiting))
    lib.virtq_complete(waiting[0].chain, 4000)
    assert r.driver.wait(head).length == 4


def test_chain_over_regions(ring: Make) -> None:
    """Buffers and an indirect table, with one of its descriptors, cross from one region to the next."""
    r = ring(regions=((0, 0x10000), (0x10000, 0x3000), (0x13000, 0x10000), (0x8000_0000, 0x10000)))
    r.start()
    message = os.urandom(0x5000)
    r.memory.write(0xF800, message)
    out = [Buffer(0x8000_0000, 0x3000), Buffer(0x13008, 0x2000)]
    table = 0x10000 - 24
    r.memory.write(0xF800, message)
    r.driver.write_table(table, [(0xF800, 0x5000, 0), (out[0].addr, 0x3000, WRITE), (out[1].addr, 0x2000, WRITE)])
    message = r.memory.read(0xF800, 0x5000)
    head = r.driver.add_buffers([Buffer(table, 48)], out, indirect=False)
    r.driver.descriptor(head, table, 48, 4, 0)
    r.driver.kick()
    assert r.driver.wait(head).data == message


def test_regions_are_mapped_at_first_use(ring: Make) -> None:
    r = ring(regions=((0, 0x10000), (0x4000_0000, 0x10000)))
    r.start()
    r.driver.request([b"x"], [1])
    assert [r.table.regions[i].used for i in range(2)] == [1, 0]
    head = r.driver.add_buffers([Buffer(0x4000_0000, 8)], [Buffer(0x4000_8000, 8)])
    r.driver.kick()
    r.driver.wait(head)
    assert [r.table.regions[i].used for i in range(2)] == [1, 1]


def test_region_appended_while_running(ring: Make) -> None:
    r = ring(regions=((0, 0x10000),))
    r.start()
    r.driver.request([b"x"], [1])
    assert r.append(0x10000, PAGE, 0x1000) == 0  # the pattern before the first region
    head = r.driver.add_buffers([Buffer(0x10000, PAGE)], [Buffer(0x8000, PAGE)])
    r.driver.kick()
    assert r.driver.wait(head).data == b"\xa5" * PAGE


def test_without_a_kick_eventfd_the_ring_is_polled(ring: Make) -> None:
    r = ring(kick=False)
    r.driver.kick_fd = -1
    r.start()
    assert r.driver.request([b"polled"], [10]) == b"polled"
    assert r.driver.request([b"again"], [10]) == b"again"
    assert r.stop() == [0]


@pytest.mark.parametrize("threads", [1, 3])
def test_stop_while_idle(ring: Make, threads: int) -> None:
    r = ring()
    r.start(threads=threads)
    r.driver.request([b"x"], [1])
    assert r.stop() == [0] * threads
    assert lib.virtq_pending(r.queue) == 0


def test_stop_while_idle_from_the_start(ring: Make) -> None:
    r = ring()
    r.start()
    assert r.stop() == [0]


def test_stop_leaves_available_chains_for_the_next_worker(ring: Make) -> None:
    r = ring()
    head = r.driver.add([b"later"], [10])
    r.driver.kick()
    os.eventfd_write(r.stop_fd, 1)
    r.start()
    assert r.join() == [0]
    os.eventfd_read(r.stop_fd)
    r.park()
    assert (r.state.last_avail_idx, r.state.started, r.state.popped) == (0, 0, 0)
    os.eventfd_read(r.kick)  # a kick another worker took
    r.start()
    assert r.driver.wait(head).data == b"later"


def test_stop_is_seen_on_a_ring_that_never_runs_dry(ring: Make) -> None:
    r = ring()

    def handler(chain: Chain) -> bytes:
        r.driver.poll()
        r.driver.add([b"more"], [4])
        return b""

    r.driver.add([b"first"], [4])
    r.driver.add([b"second"], [4])
    r.driver.kick()
    r.start(handler)
    wait_for(lambda: r.state.popped > 10)
    assert r.stop() == [0]
    assert r.driver.index != r.state.popped & 0xFFFF, "there is still work on the ring"


def test_stop_with_pending(ring: Make) -> None:
    r = ring()
    waiting: list[Chain] = []
    r.start(lambda chain: waiting.append(chain))
    head = r.driver.add([b"slow"], [10])
    r.driver.kick()
    wait_for(lambda: bool(waiting))
    assert r.stop() == [0]
    assert lib.virtq_pending(r.queue) == 1
    waiting[0].complete(b"done")
    assert lib.virtq_pending(r.queue) == 0
    assert r.driver.wait(head).data == b"done"
    r.park()
    assert r.state.last_avail_idx == 1


def test_deferred_from_another_thread_notifies(ring: Make) -> None:
    r = ring(event_idx=True)

    def handler(chain: Chain) -> Reply:
        if chain.input == b"quick":
            return b"quick"
        threading.Timer(0.02, chain.complete, [b"slow"]).start()
        return DEFERRED

    r.start(handler)
    slow = r.driver.add([b"slow"], [10])
    quick = r.driver.add([b"quick"], [10])
    r.driver.kick()
    assert r.driver.wait(quick).data == b"quick"
    assert r.driver.wait(slow).data == b"slow"
    # Its reply is there a moment before the other thread is done with the queue.
    wait_for(lambda: lib.virtq_pending(r.queue) == 0)


def test_several_threads_serve_at_once(ring: Make) -> None:
    """The pop lock is not held while serving: three handlers meet."""
    meeting = threading.Barrier(3, timeout=20)

    def handler(chain: Chain) -> bytes:
        meeting.wait()
        return chain.input

    r = ring(16)
    r.start(handler, threads=3)
    for _ in range(5):
        heads = [r.driver.add([b"%d" % i], [1]) for i in range(3)]
        r.driver.kick()
        assert [r.driver.wait(head).data for head in heads] == [b"0", b"1", b"2"]
    assert r.stop() == [0, 0, 0]


@pytest.mark.parametrize("event_idx", [False, True])
def test_load_on_several_threads(ring: Make, event_idx: bool) -> None:
    """Heads are given back at once, so that taking one races with the end of its completion."""
    r = ring(4, event_idx=event_idx)
    r.start(threads=4)
    stream(r, (b"%d" % i for i in range(3000)), 2, itertools.cycle([False, True]))
    assert r.stop() == [0] * 4
    assert r.marks() == []
    r.park()
    assert r.state.last_avail_idx == 3000


# What a worker cannot start with.


def test_bad_configurations(ring: Make) -> None:
    r = ring()
    good = {name: getattr(r.config, name) for name in ("num", "desc_addr", "avail_addr", "used_addr")}
    for name, value, error in [
        ("num", 0, 22),
        ("num", 3, 22),
        ("num", 2048, 22),
        ("desc_addr", good["desc_addr"] + 8, 22),
        ("avail_addr", good["avail_addr"] + 1, 22),
        ("used_addr", good["used_addr"] + 2, 22),
        ("desc_addr", 0x1000, 14),
        ("avail_addr", good["desc_addr"] + (1 << 18) - 8, 14),
        ("used_addr", 0xFFFF_FFFF_FFFF_FFF0, 14),
    ]:
        setattr(r.config, name, value)
        assert r.open() == -error, (name, value)
        assert not r.queue
        lib.memory_free(r.view)
        setattr(r.config, name, good[name])
    assert r.open() == 0


def test_ring_parts_anywhere(ring: Make) -> None:
    """The parts end where the memory ends, when there are no event words."""
    r = ring(regions=((0, 0x10000), (0x20000, 0x1000)))
    used = 0x21000 - (4 + 8 * 8)
    r.config.used_addr += used - r.driver.where.used
    assert r.open() == 0
    r.driver.used = r.memory.view(used, 4).cast("H")
    r.driver.used_ring = r.memory.view(used + 4, 64).cast("I")
    r.start()
    assert r.driver.request([b"x"], [1]) == b"x"


def test_raw_chain_of_one_descriptor(ring: Make) -> None:
    r = ring()
    r.driver.descriptor(5, 0x8000, 3, NEXT, 7)
    r.driver.descriptor(7, 0x9000, 3, WRITE, 0)
    r.memory.write(0x8000, b"raw")
    r.start(echo)
    r.driver.publish(5)
    r.driver.kick()
    wait_for(lambda: r.driver.used[1] == 1)
    assert (r.driver.used_ring[0], r.driver.used_ring[1]) == (5, 3)
    assert r.memory.read(0x9000, 3) == b"raw"
