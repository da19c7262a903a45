"""Workers killed at random, and what is left of a run in which they were: to compare with an undisturbed one."""

import hashlib
import os
import random
import signal
import threading
import time
from bisect import bisect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_IFMT, S_ISREG
from typing import Any

from tests.core.served import FIELDS, HEADER, RECORD
from tests.daemon.daemon import spares, workers

#: Between two kills, seconds.
LEAST, MOST = 0.02, 0.2
#: Seconds after a kill in which an answer is still one of the worker that was killed: less than another takes to start.
STALE = 0.002


class Killer:
    """Kills workers as long as it is entered and there is something in `share`; calls `enough` once there have been
    `kills`. One in four dies with the one that waits to be the next."""

    def __init__(self, control: int, share: Path, kills: int, enough: Callable[[], object], seed: int) -> None:
        #: When there was a kill, by time.monotonic.
        self.moments: list[float] = []
        self._control, self._share, self._kills, self._enough = control, share, kills, enough
        self._dice = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        killed, told = 0, False
        while not self._over.wait(self._dice.uniform(LEAST, MOST)):
            if self._dice.random() < 0.25:
                for pid in spares(self._control):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            for pid in workers(self._control):
                # One that was killed may still be there, on its way out.
                if pid != killed and any(self._share.iterdir()):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        self.moments.append(time.monotonic())
                        killed = pid
            if not told and len(self.moments) >= self._kills:
                self._enough()
                told = True


@dataclass
class Outcome:
    """What a run has left."""

    #: When a worker was killed, by time.monotonic.
    kills: list[float] = field(default_factory=list)
    #: By part: the rounds it went, and the steps of all.
    rounds: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    requests: int = 0
    seconds: float = 0.0
    #: By path: what it is.
    tree: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    #: Once the kernel has forgotten all it knew: (inodes, lookups held), the root apart, and the daemon's descriptors.
    known: tuple[int, int] = (0, 0)
    descriptors: list[str] = field(default_factory=list)
    #: Reads one after the other: when each had its answer, by time.monotonic, and how long it took, ms.
    reads: list[tuple[float, float]] = field(default_factory=list)
    log: str = ""
    #: What the kernel of a guest has complained of.
    complaints: list[str] = field(default_factory=list)

    @property
    def hit(self) -> list[float]:
        """How long the reads took that kills hit, ms: of each kill the first whose answer can't be from before."""
        ends = [end for end, _ in self.reads]
        indices = {bisect(ends, moment + STALE) for moment in self.kills}
        return [self.reads[index][1] for index in indices if index < len(ends)]

    def differences(self, control: "Outcome") -> list[str]:
        """Sentences about what is not as in an undisturbed run."""
        pairs = [(path, self.tree.get(path), control.tree.get(path)) for path in self.tree.keys() | control.tree.keys()]
        pairs += [("inodes and lookups known in the end", self.known, control.known)]
        pairs += [("descriptors", self.descriptors, control.descriptors)]
        pairs += [("complaints of the guest's kernel", self.complaints, control.complaints)]
        return sorted(f"{what}: {found} and not {wanted}" for what, found, wanted in pairs if found != wanted)


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """All that is below a directory, but for times and what git notes of them."""
    found: dict[str, tuple[Any, ...]] = {}
    for directory, names, files in os.walk(root):
        for path in (Path(directory, entry) for entry in (*names, *files)):
            stat = path.lstat()
            body = ""
            if S_ISREG(stat.st_mode) and path.name != "index":
                body = hashlib.sha256(path.read_bytes()).hexdigest()
            elif path.is_symlink():
                body = os.readlink(path)
            keys = os.listxattr(path, follow_symlinks=False)
            attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in keys}
            links = 0 if S_IFMT(stat.st_mode) == 0o040000 else stat.st_nlink
            found[str(path.relative_to(root))] = (oct(stat.st_mode), stat.st_uid, stat.st_gid, links, body, attributes)
    return found


def known(pid: int) -> tuple[int, int]:
    """Inodes that a daemon's guest knows besides the root, and how many lookups of them it owes: from the arena."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    start = next(int(line.split("-")[0], 16) for line in maps if "memfd:vfsd-inodes" in line)
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(start)
        _, size, _, high, _ = HEADER.unpack(memory.read(HEADER.size))
        assert size == RECORD.size
        memory.seek(start)
        data = memory.read(high * size)
    records = (dict(zip(FIELDS, RECORD.unpack_from(data, slot * size), strict=True)) for slot in range(2, high))
    lookups = [record["nlookup"] for record in records if record["valid"] == 1 and record["type"]]
    return len(lookups), sum(lookups)


def settled(ask: Callable[[], Any]) -> Any:
    """An answer that stays the same for a while."""
    last, since = ask(), time.monotonic()
    deadline = since + 20
    while time.monotonic() < min(since + 0.5, deadline):
        time.sleep(0.05)
        if (now := ask()) != last:
            last, since = now, time.monotonic()
    return last
