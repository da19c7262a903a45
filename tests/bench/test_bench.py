"""scripts/bench can't rot: each workload is done against this tree's vfsd, and bad replies are found."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench import daemons, idle, stall
from tests.bench.bare import repeat
from tests.bench.build import lib
from tests.bench.daemons import ALONE, BARE, Kind
from tests.bench.guest import BadReply, Guest, Run, Script
from tests.bench.layout import Lane, Step
from tests.bench.measure import Figure, Plan, Results, Setting, measure_all
from tests.bench.measure import mounted as mount
from tests.bench.row import LIMIT, Row
from tests.bench.share import Files, content, places, prepare
from tests.bench.syscalls import count as count_calls
from tests.bench.table import compared, count, table
from tests.bench.workloads import WORKLOADS, verify
from tests.frontend import FEATURES
from tests.fuseclient import HEADER
from tests.fusestructs import pack, unpack
from tests.vhost.echo import EchoDevice
from vfsd._fuse import lib as fuse
from vhost._virtq import ffi
from vhost.message import Feature

OURS = "vfsd, no sandbox"
#: What a reply is about, its error, its entries, its data; and of the share what was written, and what was made.
CHECKED = ["getattr", "missing", "readdirplus", "read-4k", "write-4k", "create"]


@pytest.fixture(scope="module")
def files() -> Files:
    return Files(content())


@contextmanager
def mounted(name: str, directory: Path, depth: int, files: Files, features: int = FEATURES) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield mount(stack, name, directory, depth, files, features)


def lanes(guest: Guest, name: str, depth: int) -> list[Lane]:
    guest.clear()
    return [WORKLOADS[name].lane(guest, place) for place in places(guest, depth)]


def test_every_workload_is_measured(tmp_path: Path) -> None:
    settings = [Setting(1, "one"), Setting(4, "two")]
    plan = Plan([OURS, ALONE], list(WORKLOADS), settings, rounds=1, seconds=0.01, where=tmp_path)
    results = Results({}, {}, [])
    measure_all(plan, results)
    assert set(results.figures) == {(name, setting) for name in WORKLOADS for setting in settings}
    for (name, _), row in results.figures.items():
        assert set(row) == {OURS, ALONE, *([BARE] if WORKLOADS[name].bare else [])}
        assert all(figure.rate > 0 and figure.cpu > 0 for figures in row.values() for figure in figures)
    assert all(memory > 1 for rounds in results.memory.values() for memory in rounds)
    text = table(plan, results)
    assert all(text.count(f"| {each.title} |") == 2 for each in WORKLOADS.values())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("random", [False, True])
def test_each_block_comes_once(random: bool) -> None:
    offsets, offset = [], 8192
    for _ in range(64):
        offsets.append(offset)
        offset = lib.driver_next(8192, 8192 + 64 * 4096, offset, 4096, random)
    assert offset == 8192 and sorted(offsets) == list(range(8192, 8192 + 64 * 4096, 4096))
    assert (offsets == sorted(offsets)) != random


def test_bare_calls_that_fail_are_told_of(tmp_path: Path, files: Files) -> None:
    prepare(tmp_path / "share", 2, files)
    done = repeat(tmp_path / "share", WORKLOADS["rename"], 2, 0.001)
    assert done.units > 0 and 0 < done.used <= done.seconds * 1.5
    (tmp_path / "share/lane-1/missing").touch()
    with pytest.raises(OSError, match="lookup, missing name: EEXIST"):
        repeat(tmp_path / "share", WORKLOADS["missing"], 2, 0.001)


@pytest.mark.parametrize(
    "without, spin", [(Feature.INDIRECT_DESC, False), (Feature.EVENT_IDX, False), (Feature.EVENT_IDX, True)], ids=str
)
def test_other_rings(tmp_path: Path, files: Files, without: Feature, spin: bool) -> None:
    depth = 3
    with mounted(OURS, tmp_path, depth, files, FEATURES & ~without) as guest:
        for name in ("read-1m", "create"):
            guest.clear()
            where = places(guest, depth)
            script = Script(guest, lanes(guest, name, depth))
            verify(guest, WORKLOADS[name], script, where, files.content)
            assert guest.run(script, seconds=0.02, spin=spin).units >= depth


@pytest.mark.parametrize("name", CHECKED)
def test_a_device_that_knows_no_files_is_found_out(
    tmp_path: Path, files: Files, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(daemons.KINDS, ALONE, daemons.KINDS[ALONE]._replace(alone=False))
    with mounted(ALONE, tmp_path, 1, files) as guest:
        where = places(guest, 1)
        script = Script(guest, lanes(guest, name, 1))
        with pytest.raises((BadReply, AssertionError)):
            verify(guest, WORKLOADS[name], script, where, files.content)
            guest.run(script, seconds=0.02)


@pytest.mark.parametrize(
    "field, less, used, said",
    [
        ("unique", 2, 120, "answers"),
        ("error", 5, 120, "error -5, not 0"),
        ("len", 8, 112, "112 bytes, not 120"),
        ("len", 8, 120, "the used length is 120, the header's 112"),
        ("len", 0, 112, "the used length is 112, the header's 120"),
    ],
)
def test_a_header_that_lies(field: str, less: int, used: int, said: str) -> None:
    """A GETATTR has a reply of 120 bytes."""

    def lie(opaque: Any, chain: Any) -> int:
        request = unpack("fuse_in_header", ffi.buffer(chain.__getattribute__("in")[0].iov_base, HEADER)[:])
        true = {"len": chain.out_len, "error": 0, "unique": request.unique}
        init = request.opcode == fuse.FUSE_INIT
        header = pack("fuse_out_header", **(true if init else true | {field: true[field] - less}))
        ffi.memmove(chain.out[0].iov_base, header, len(header))
        return int(chain.out_len if init else used)

    handler = ffi.callback("virtq_handler", lie)
    device = EchoDevice(2, handler)
    stand_in = SimpleNamespace(
        name="liar",
        connection=device.connect(),
        kind=Kind(lambda path, share: []),
        process=SimpleNamespace(poll=lambda: None),
    )
    try:
        with Guest(stand_in) as guest, pytest.raises(BadReply, match=said):
            step = Step(fuse.FUSE_GETATTR, 1, pack("fuse_getattr_in"), 104, units=1)
            guest.run(Script(guest, [Lane([step])]), limit=1)
    finally:
        device.close()


def test_system_calls(tmp_path: Path, files: Files) -> None:
    with mounted(OURS, tmp_path, 1, files) as guest:
        reading, unlinking = count_calls(guest, WORKLOADS["read-4k"]), count_calls(guest, WORKLOADS["create"])
    assert reading["preadv2"] == 1
    assert unlinking["unlinkat"] == unlinking["pwritev2"] == 1


def test_a_daemon_that_ends_is_told_of(tmp_path: Path, files: Files) -> None:
    with mounted(ALONE, tmp_path, 1, files) as guest:
        script = Script(guest, lanes(guest, "getattr", 1))
        guest.daemon.process.kill()
        with pytest.raises(ConnectionError, match="has ended"):
            guest.run(script, seconds=0.1)


def test_what_vfsd_is_compared_with() -> None:
    ours, alone = [Figure(9.0, 2.0)], [Figure(20.0, 0.5)]
    row = Row({
        "vfsd": ours, "vfsd, no sandbox": [Figure(8.0, 2.0)], "Rust": [Figure(2.0, 4.0)], "C": [Figure(3.0, 4.0)],
        ALONE: alone, BARE: [Figure(60.0, 0.5)],
    })  # fmt: skip
    assert row.fastest_peer == "C"
    assert Row({"vfsd": ours, ALONE: alone}).fastest_peer is None
    assert row[LIMIT].rate == pytest.approx(15.0) and row[LIMIT].cpu == 1.0
    assert LIMIT in row and LIMIT not in [*row] and LIMIT not in Row({ALONE: alone})
    assert compared("getattr", row) == "| getattr | 9; 2 | C: 3; 4 | 3.00 | 0.50 | 15; 1 | 0.60 | 2.00 |"


def test_daemons_are_compared_within_each_round() -> None:
    """The machine is slow in one round, and quick in another."""
    ours = [Figure(4.0, 6.0), Figure(40.0, 2.0), Figure(9.0, 4.0)]
    theirs = [Figure(2.0, 12.0), Figure(20.0, 4.0), Figure(12.0, 1.0)]
    row = Row({"vfsd": ours, "C": theirs, "Rust": theirs[:2]})
    assert row["vfsd"] == Figure(9.0, 4.0)
    assert row.ratio("vfsd", "C") == (2.0, 0.5)
    assert row.ratio("vfsd", "Rust") == (9 / 11, 0.5), "not in all rounds: of the medians"


def test_numbers_are_short() -> None:
    assert [count(value) for value in (3.14159, 999.0, 12345.0, 250_000.0, 2_500_000.0)] == [
        "3.14", "999", "12.3k", "250k", "2.5M"
    ]  # fmt: skip


def test_a_peer_that_fails_is_told_of_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that knows no files, posing as a peer: nothing is read, but the next workload can be tried."""
    posing = daemons.KINDS[ALONE]._replace(alone=False, peer=True)
    monkeypatch.setitem(daemons.KINDS, "Rust", posing)
    setting = Setting(1, "one")
    plan = Plan(["Rust"], ["read-4k", "statfs"], [setting], rounds=1, seconds=0.001, where=tmp_path)
    results = Results({}, {}, [])
    measure_all(plan, results)
    assert [failure.partition(": ")[0] for failure in results.failures] == ["Rust, read-4k, depth 1"]
    assert list(results.figures) == [("statfs", setting)]
    assert "- Rust, read-4k, depth 1: Rust, READ in lane 0: a page holds" in table(plan, results)


def test_times_are_counted_where_they_belong() -> None:
    assert [lib.driver_range(time) for time in (0, 15, 16, 17, 32, 33, 34)] == [0, 15, 16, 17, 32, 32, 33]
    assert lib.driver_range(1 << 62) == lib.DRIVER_LATENCIES - 1
    for time in (100, 12_345, 1_000_000, 2_000_000_000):
        latencies = [0] * lib.DRIVER_LATENCIES
        latencies[lib.driver_range(time)] = 99
        latencies[lib.driver_range(time * 10)] = 1
        run = Run(0, 0.0, latencies)
        assert run.latency(50) == run.latency(99) == pytest.approx(time / 1000, rel=0.035)
        assert run.latency(99.5) == pytest.approx(time / 100, rel=0.035)


def test_several_queues(tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(daemons.KINDS, OURS, daemons.KINDS[OURS]._replace(queues=3))
    with mounted(OURS, tmp_path, 4, files) as guest:
        where = places(guest, 4)
        script = Script(guest, lanes(guest, "create", 4))
        before = [queue.index for queue in guest.queues]
        verify(guest, WORKLOADS["create"], script, where, files.content)
        run = guest.run(script, seconds=0.02, timed=True)
        sent = [queue.index - index for queue, index in zip(guest.queues, before, strict=True)]
    assert sum(run.latencies) <= sum(sent) and run.latency(50) <= run.latency(99)
    # Lanes 0 and 3 have the first one. FORGETs go to hiprio.
    assert all(number > 5 for number in sent)


def test_slow_fsync(tmp_path: Path) -> None:
    plan = Plan([OURS], [], [], rounds=1, seconds=0.02, where=tmp_path)
    stalls: stall.Stalls = {}
    stall.measure_all(plan, stalls)
    assert list(stalls) == [OURS, stall.HOST.format(OURS)]
    for [(without, beside)] in stalls.values():
        assert without.fsyncs == 0 and beside.fsyncs > 0
        assert all(0 < each.p50 <= each.p99 for each in (without, beside))
    assert stall.table(stalls).splitlines()[-2].startswith(f"| {OURS} | ")


def test_idle_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "SETTLED", 0.2)
    measured = idle.measure(OURS, 2, 0.1, tmp_path)
    assert measured.cpu >= 0 and measured.memory > 1
    assert 0 < measured.connected < measured.answered
    assert "| memory of each, MiB | " in idle.table({OURS: measured}, 2)
