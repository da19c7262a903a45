"""The work of work.py in a guest."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from tests.chaos.runs import ENDLESS, PARTS, WORK, look, work
from tests.chaos.storm import Killer, Outcome, tree
from tests.guest.complaints import complaints, kernel_log
from vfsd.guest import Guest, Settings, Share

PYTHON = "/usr/bin/python3"
#: Commands at a time: the parts and the reads.
SLOTS = len(PARTS) + 1
#: Seconds a part may take.
LIMIT = 1800
#: Says what time it is in the guest, 100 times.
CLOCK = "import time\nfor _ in range(100):\n    print(time.monotonic(), flush=True)\n    time.sleep(0.01)"


def in_a_guest(guest: Guest, index: int, kills: int, seed: int, rounds: Mapping[str, int] = ENDLESS) -> Outcome:
    """On the share number `index` of a guest with SLOTS slots, which is empty. With 0 kills all rounds are gone."""
    daemon, mount = guest.daemons[index], guest.shares[index].mount_point
    share = Path(guest.shares[index].directory)
    control = parent(daemon.worker)
    before, logged = len(kernel_log(guest)), daemon.log.stat().st_size

    def there(arguments: list[str]) -> tuple[int, str]:
        result = guest.run([PYTHON, "-", *arguments], LIMIT, cwd="/", stdin=WORK.read_bytes())
        return result.status, (result.stderr.decode() if result.status else result.text)

    def touch(path: Path) -> None:
        guest.request(f"touch {path}")

    stop, ended = Path(f"/tmp/stop{index}"), Path(f"/tmp/ended{index}")
    killer = Killer(control, share, kills, lambda: touch(stop), seed)
    began = clock(guest)
    with killer if kills else nullcontext():
        outcome = work(there, mount, seed, rounds, stop, ended, touch)
    outcome.kills = killer.moments
    outcome.reads = translated(outcome.reads, began, clock(guest))
    # That forgets every name, and with it every inode.
    guest.run(f"mount -o remount,rw {mount} && sync && echo 3 >/proc/sys/vm/drop_caches", 60, cwd="/").check()
    look(outcome, control, guest.shares[index].tag)
    outcome.tree = tree(share)
    outcome.log = daemon.log.read_bytes()[logged:].decode()
    outcome.complaints = complaints(guest, before)
    return outcome


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def clock(guest: Guest) -> tuple[float, float]:
    """What the guest's time.monotonic() was when ours was how much, late by the least time it took to say so."""
    pairs: list[tuple[float, float]] = []
    held = b""

    def heard(data: bytes) -> None:
        nonlocal held
        *lines, held = (held + data).split(b"\n")
        pairs.extend((float(line), time.monotonic()) for line in lines)

    guest.run([PYTHON, "-c", CLOCK], 60, cwd="/", stdout=heard).check()
    return min(pairs, key=lambda pair: pair[1] - pair[0])


def translated(
    reads: list[tuple[float, float]], first: tuple[float, float], last: tuple[float, float]
) -> list[tuple[float, float]]:
    """Reads by our clock: those of a guest whose clock went at a rate of its own between two moments."""
    rate = (last[1] - first[1]) / (last[0] - first[0])
    return [(first[1] + (end - first[0]) * rate, took) for end, took in reads]


@contextmanager
def booted(place: Path) -> Iterator[Guest]:
    """A guest with two empty shares, in `place`; the environment chooses QEMU and kernel (docs/testing.md)."""
    shares = []
    for name in ("stormy", "calm"):
        (place / name).mkdir()
        shares.append(Share(place / name, name, daemon_options=["--xattr"]))
    settings = Settings(qemu=os.environ.get("VFSD_TEST_QEMU", Settings.qemu), memory=1536)
    with Guest(*shares, settings=settings, kernel_name=os.environ.get("VFSD_TEST_KERNEL"), slots=SLOTS) as guest:
        yield guest
