"""What scripts/performance says of the rows below the goal: whose time is whose, and what stands in the way."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import causes, daemons, perf, saved
from tests.bench.cause import ACROSS, DISK, DRIVER, LIMIT, VFSD, Cause
from tests.bench.daemons import ALONE, BARE
from tests.bench.measure import Figure, Figures, Plan, Results, Setting
from tests.bench.parts import Part, call, part
from tests.bench.perf import Frame, samples
from tests.bench.profile import Profile, Profiles, Stretch, Wanted, function, profile_all, sorted_out

OURS = "vfsd, no sandbox"
ONE, TWO = Setting(1, "one"), Setting(32, "two")

#: Of perf script, Linux 6.18 and perf 6.1.
RECORDED = """\
 54123.100001: \n\
\tffffffff82201a51 _copy_to_iter ([kernel.kallsyms])
\tffffffff815b0c33 shmem_file_read_iter ([kernel.kallsyms])
\tffffffff816b8f1a do_preadv ([kernel.kallsyms])
\tffffffff821ed511 do_syscall_64 ([kernel.kallsyms])
\tffffffff81000130 entry_SYSCALL_64_after_hwframe ([kernel.kallsyms])
\t          108f36 preadv64v2 (/usr/lib/x86_64-linux-gnu/libc.so.6)
\t               0 [unknown] ([unknown])

 54123.100251: \n\
\t            7b9e run_alone (/srv/vhost/_virtq.abi3.so)

 54123.200001: \n\
\t           12345 <T as core::ops::Fn<(A, B)>>::call (inlined) (/usr/libexec/virtiofsd)

"""


def kernel(*symbols: str) -> list[Frame]:
    return [Frame(symbol, "[kernel.kallsyms]") for symbol in symbols]


CALLED = ["do_syscall_64", "entry_SYSCALL_64_after_hwframe"]


def test_samples_are_read() -> None:
    found = list(samples(RECORDED.splitlines(keepends=True)))
    assert [sample.time for sample in found] == [54123.100001, 54123.100251, 54123.200001]
    assert found[0].frames[1] == Frame("shmem_file_read_iter", "[kernel.kallsyms]")
    assert found[0].frames[-2] == Frame("preadv64v2", "libc.so.6")
    assert found[1].frames == [Frame("run_alone", "_virtq.abi3.so")]
    assert found[2].frames == [Frame("<T as core::ops::Fn<(A, B)>>::call (inlined)", "virtiofsd")]
    assert [function(sample) for sample in found[:2]] == ["_copy_to_iter (preadv)", "run_alone"]
    nameless = found[1]._replace(frames=[Frame("[unknown]", "virtiofsd")])
    assert function(nameless) == "virtiofsd"


@pytest.mark.parametrize(
    "symbols, expected",
    [
        (["_copy_to_iter", "shmem_file_read_iter", "do_preadv", *CALLED], Part.COPY),
        (["rep_movs_alternative", "copy_page_from_iter_atomic", "__x64_sys_pwritev2", *CALLED], Part.COPY),
        (["clear_page_erms", "asm_exc_page_fault", "fault_in_readable", "do_pwritev", *CALLED], Part.COPY),
        (["_copy_to_user", "cp_statx", "__x64_sys_statx", *CALLED], Part.FILES),
        (["ext4_append", "ext4_mkdir", "__x64_sys_mkdirat", *CALLED], Part.FILES),
        (["ext4_evict_inode", "__fput", "task_work_run", "exit_to_user_mode_loop", *CALLED], Part.FILES),
        (["schedule", "io_schedule", "__x64_sys_fsync", *CALLED], Part.FILES),
        (["_raw_spin_unlock_irq", "eventfd_write", "vfs_write", "ksys_write", *CALLED], Part.WAKE),
        (["_copy_to_iter", "eventfd_read", "vfs_read", "ksys_read", *CALLED], Part.WAKE),
        (["vfs_write", "ksys_write", *CALLED], Part.WAKE),
        (["schedule", "do_epoll_wait", "__x64_sys_epoll_wait", *CALLED], Part.WAKE),
        (["futex_wake", "do_futex", "__x64_sys_futex", *CALLED], Part.WAKE),
        (["fdget", "do_sys_poll", "__x64_sys_ppoll", *CALLED], Part.WAKE),
        (["finish_task_switch.isra.0", "schedule", "exit_to_user_mode_loop", *CALLED], Part.WAKE),
        (["io_wqe_enqueue", "__x64_sys_io_uring_enter", *CALLED], Part.WAKE),
        (["ext4_file_read_iter", "io_issue_sqe", "__x64_sys_io_uring_enter", *CALLED], Part.FILES),
        (["ext4_sync_file", "io_issue_sqe", "io_wq_worker", "ret_from_fork"], Part.FILES),
        (["schedule", "io_wq_worker", "ret_from_fork"], Part.WAKE),
        (CALLED, Part.KERNEL),
        (CALLED[1:], Part.KERNEL),
        (["handle_softirqs", "sysvec_apic_timer_interrupt", "asm_sysvec_apic_timer_interrupt"], Part.KERNEL),
        (["do_user_addr_fault", "asm_exc_page_fault"], Part.KERNEL),
    ],
)
def test_the_kernel_s_time_is_its_call_s(symbols: list[str], expected: Part) -> None:
    assert part([*kernel(*symbols), Frame("write", "libc.so.6")]) == expected


def test_calls_by_name() -> None:
    assert call(["vfs_statx", "__x64_sys_statx", *CALLED]) == "statx"
    assert call(["vfs_statx", "__arm64_sys_statx", "invoke_syscall", "el0_svc"]) == "statx"
    assert call(CALLED) == call(["schedule", "exit_to_user_mode_loop", *CALLED]) == ""
    assert call(["io_wq_worker", "ret_from_fork"]) is None


@pytest.mark.parametrize(
    "place, symbol, expected",
    [
        ("_virtq.abi3.so", "run_alone", Part.RING),
        ("_virtq.abi3.so", "virtq_wait", Part.WATCH),
        ("_virtq.abi3.so", "avail_ready", Part.WATCH),
        ("_virtq.abi3.so", "watch.lto_priv.0", Part.WATCH),
        ("_fuse.abi3.so", "avail_ready", Part.CORE),
        ("libc.so.6", "[unknown]", Part.LIBC),
        ("[vdso]", "__vdso_clock_gettime", Part.LIBC),
        ("python3.11", "_PyEval_EvalFrameDefault", Part.PYTHON),
        ("_cffi_backend.cpython-311-x86_64-linux-gnu.so", "[unknown]", Part.PYTHON),
        ("virtiofsd", "[unknown]", Part.OTHER),
        ("[unknown]", "[unknown]", Part.OTHER),
    ],
)
def test_own_time_is_the_file_s(place: str, symbol: str, expected: Part) -> None:
    # What lies below may be anything: nothing of it has frame pointers.
    assert part([Frame(symbol, place), Frame("preadv64v2", "libc.so.6")]) == expected


def test_samples_belong_to_the_row_of_their_time() -> None:
    rows = [("getattr", ONE), ("read-64k", ONE), ("getattr", ONE)]
    stretches = [Stretch(row, 10.0 * at, 10.0 * at + 5, 1, 1.0, 1.0, 1.0) for at, row in enumerate(rows)]
    [copied, *_] = samples(RECORDED.splitlines())
    times = (-1.0, 0.0, 4.9, 6.0, 12.0, 24.0, 26.0)
    found = sorted_out(stretches, [copied._replace(time=time) for time in times])
    assert {row: tally.parts for row, tally in found.items()} == {rows[0]: {Part.COPY: 3}, rows[1]: {Part.COPY: 1}}
    assert found[rows[1]].functions == {"_copy_to_iter (preadv)": 1}


def spent(seconds: float, driver: float = 0.0, **parts: float) -> Profile:
    return Profile(seconds, sum(parts.values()), driver, 2.0, parts, [("f", 0.5)], 100)


def cause(ratio: float, ours: Profile, theirs: Profile | None = None, **more: object) -> Cause:
    found = Cause("ext4", "getattr", TWO, "C", ratio, None, ours, theirs)
    return found._replace(**more)  # type: ignore[arg-type]


def test_verdicts() -> None:
    """To be 1.5 times as fast, a row at 1.2 may take 80 % of what it does."""
    ours, theirs = spent(10, COPY=2, FILES=5, CORE=3), spent(12, COPY=1, FILES=4, OTHER=7)
    # The copy is shared, and as much of the file system as the peer has: 6 of 10.
    own = cause(1.2, ours, theirs)
    assert own.verdict == VFSD and own.best == pytest.approx(2.0)
    assert own.told == "vfsd's own: FUSE core 30%, file system 10%, ring 0%; 20% would have to go"
    assert cause(1.2, ours, theirs, bound=1.4).told == f"{LIMIT}; file system 40%, copy 20%"
    assert cause(1.2, ours, theirs, bound=1.6).verdict == VFSD
    # Nothing is beyond a peer's that there are no figures of: 7 of 10.
    assert cause(1.2, ours).best == pytest.approx(1.2 / 0.7)
    assert cause(0.9, ours, theirs).verdict == VFSD
    assert cause(0.8, ours, theirs).told == "file system 40%, copy 20%"
    waits = spent(10, FILES=3, WATCH=2)
    assert waits.waiting == 7 and cause(1.2, waits, waits).best == pytest.approx(1.2)
    assert cause(1.2, waits, waits).told == f"{ACROSS} 70%, file system 30%"


def test_whom_it_waits_for() -> None:
    def waits(driver: float, **more: object) -> str:
        return cause(1.2, spent(10, driver, CORE=4), **{"setting": ONE, **more}).waits_for

    assert waits(5.9, setting=TWO) == ACROSS and waits(6.1, setting=TWO) == DRIVER
    assert waits(9.5) == waits(3.1) == DRIVER and waits(2.9) == ACROSS
    assert waits(2.9, workload="fsync") == waits(2.9, workload="recorded-sqlite") == DISK
    assert waits(2.9, workload="fsync", file_system="tmpfs") == ACROSS
    # It watches the ring because the driver is busy, or runs on more cores than one.
    assert cause(1.2, spent(10, 9.5, CORE=1, WATCH=9)).waits_for == DRIVER
    assert spent(10, CORE=25).waiting == 0


def test_times_are_those_of_the_tables() -> None:
    found = spent(10, 2, COPY=3, WATCH=1).scaled(Figure(50_000.0, 8.0))
    assert (found.seconds, found.cpu, found.driver) == (pytest.approx(20), 8.0, 2)
    assert found.parts == {"COPY": 6.0, "WATCH": 2.0} and found.waiting == pytest.approx(14)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> saved.Measured:
    """A row at the goal, and two below, of which one has a limit below it. The ring alone poses as a peer."""
    monkeypatch.setattr(causes, "OURS", OURS)
    monkeypatch.setitem(daemons.KINDS, ALONE, daemons.KINDS[ALONE]._replace(peer=True))
    figures: Figures = {
        (name, ONE): {OURS: [Figure(ours, 1e6 / ours)], ALONE: [Figure(1000.0, 900.0)], **bare}
        for name, ours, bare in (
            ("getattr", 1600.0, {}), ("statfs", 1400.0, {}), ("rename", 1200.0, {BARE: [Figure(2000.0, 500.0)]})
        )
    }  # fmt: skip
    plan = Plan([OURS, ALONE], ["getattr", "statfs", "rename"], [ONE], 1, 0.1, tmp_path)
    return saved.Measured(plan, Results(figures, {}, []), "tmpfs")


#: Speaks as perf does, and has seen a statx in each millisecond that it was switched on.
FAKE = """
import os, signal, sys, time
_, what, *options = sys.argv
value = dict(zip(options, options[1:]))
if what == "script":
    print(open(value["-i"]).read())
    sys.exit()
[control] = [each for each in options if each.startswith("--control=fd:")]
read, answer = map(int, control.removeprefix("--control=fd:").split(","))
assert all(os.path.exists(f"/proc/{pid}") for pid in value["-p"].split(","))
with open(value["-o"], "w", buffering=1) as output:
    signal.signal(signal.SIGINT, lambda *_: sys.exit())
    begin = time.monotonic()
    for command in open(read):
        if command == "enable\\n":
            begin = time.monotonic()
        elif command == "disable\\n" and what == "record":
            for number in range(int((time.monotonic() - begin) * 1000)):
                print(f" {begin + number / 1000:.6f}: ", *SAMPLE, "", sep="\\n", file=output)
        elif command == "disable\\n":
            print("6000,,raw_syscalls:sys_enter,1,100.00,,", file=output)
        os.write(answer, b"ack\\n\\0")
"""
STATX = [f"\tffff {name} ([kernel.kallsyms])" for name in ("vfs_statx", "__x64_sys_statx", *CALLED)]


def install(script: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = directory / "bin/perf"
    path.parent.mkdir()
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")


def test_rows_below_the_goal_are_looked_into(
    tmp_path: Path, measured: saved.Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(f"#!{sys.executable}\nSAMPLE = {STATX}\n{FAKE}", tmp_path, monkeypatch)
    assert causes.wanted(measured) == [Wanted("statfs", ONE, [OURS, ALONE]), Wanted("rename", ONE, [OURS, ALONE])]
    found = causes.look_into(measured, 2, 0.05)
    statfs, rename = found
    assert (statfs.workload, statfs.peer, statfs.ratio, statfs.bound) == ("statfs", ALONE, 1.4, None)
    for each in (statfs.ours, statfs.theirs, rename.ours, rename.theirs):
        assert each and each.samples > 20 and each.calls and each.driver > 0
        assert each.functions == [("vfs_statx (statx)", 1.0)]
    assert statfs.ours.parts == {"FILES": pytest.approx(1e6 / 1400)}
    assert statfs.verdict == Part.FILES.value and rename.verdict == LIMIT
    saved.save_causes(tmp_path / "causes.json", found)
    assert saved.load_causes(tmp_path / "causes.json")[0] == found
    text = causes.table(*saved.load_causes(tmp_path / "causes.json"))
    assert "| tmpfs, depth 1, driver and daemon on one core | 2 | 1 | 1 |" in text
    assert re.search(
        r"\| statfs \| ring alone: 1.40 \|  \| 714 / 1k \|.*`vfs_statx \(statx\)` 100% \| file system", text
    )
    told = causes.profile_table({("statfs", ONE): {OURS: statfs.ours}}).splitlines()[-1]
    assert told.startswith(f"| statfs, depth 1, driver and daemon on one core | {OURS} | 714 | 0 | 0 | 714 | 0 |")
    assert all(len(row.split(" | ")) == len(causes.COLUMNS) for row in text.splitlines() if row.startswith("| statfs"))


def test_a_peer_that_fails_has_no_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that knows no files, posing as a peer: nothing is read, but the next row can be looked into."""
    install(f"#!{sys.executable}\nSAMPLE = {STATX}\n{FAKE}", tmp_path, monkeypatch)
    monkeypatch.setitem(daemons.KINDS, ALONE, daemons.KINDS[ALONE]._replace(alone=False, peer=True))
    profiles: Profiles = {}
    wanted = [Wanted(name, ONE, [OURS, ALONE]) for name in ("read-4k", "statfs")]
    profile_all(wanted, Plan([], [], [], 1, 0.05, tmp_path), profiles)
    assert {name: set(row) for (name, _), row in profiles.items()} == {"read-4k": {OURS}, "statfs": {OURS, ALONE}}


def test_a_perf_that_is_not_there_or_refuses_is_told_of(
    tmp_path: Path, measured: saved.Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"apt-get install linux-perf"):
        causes.look_into(measured, 1, 0.01)
    monkeypatch.undo()
    install("#!/bin/sh\necho Access to performance monitoring is limited >&2\n", tmp_path, monkeypatch)
    plan = Plan([], [], [], 1, 0.01, tmp_path)
    with pytest.raises(RuntimeError, match="vfsd, no sandbox: Access to performance"):
        profile_all([Wanted("statfs", ONE, [OURS])], plan, {})


def perf_works(directory: Path) -> bool:
    argv = ["perf", *perf.RECORD, "-o", str(directory / "data"), "true"]
    try:
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def test_perf_sees_whose_time_it_is(tmp_path: Path) -> None:
    """READs of 1 MiB are a copy, whoever looks."""
    if not perf_works(tmp_path):
        pytest.skip("perf (linux-perf) is not installed, or must not look at processes here")
    profiles: Profiles = {}
    plan = Plan([], [], [], 2, 0.3, tmp_path)
    profile_all([Wanted("read-1m", ONE, [OURS]), Wanted("statfs", ONE, [OURS])], plan, profiles)
    read, statfs = (profiles[name, ONE][OURS] for name in ("read-1m", "statfs"))
    assert read.samples > 20 and sum(read.parts.values()) == pytest.approx(read.cpu)
    assert max(read.parts, key=lambda name: read.parts[name]) == Part.COPY.name
    # The daemon may be at something else for a moment: it forks its next worker.
    assert statfs.of(Part.COPY) < statfs.cpu / 10
    assert statfs.of(Part.RING, Part.CORE, Part.LIBC) > 0
    assert statfs.seconds < read.seconds and statfs.calls != 0
    assert not list(tmp_path.glob("bench-*"))
