"""The daemons that are compared: how each is started, where it runs, and what it costs."""

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

ROOT = Path(__file__).resolve().parents[2]
RUST = ROOT / ".cache/newer/virtiofsd"
C = Path("/usr/lib/qemu/virtiofsd")
#: Seconds a start or an end may take before something is wrong.
PATIENCE = 20.0


class Kind(NamedTuple):
    """A column of the table."""

    #: Command for a socket and a share.
    command: Callable[[str, str], list[str]]
    #: What has to be there, and how it gets there.
    needs: Path = Path(sys.executable)
    source: str = ""
    #: What it answers has no content: the limit, and no peer.
    alone: bool = False
    #: It hands requests to threads: that makes what blocks faster when there are several, other things rarely.
    pool: bool = False
    #: Request queues that its guest has.
    queues: int = 1
    #: Somebody else's.
    peer: bool = False


def _vfsd(*options: str) -> Callable[[str, str], list[str]]:
    return lambda path, share: [
        sys.executable, "-m", "vfsd", f"--socket-path={path}", f"--shared-dir={share}", *options
    ]  # fmt: skip


def _alone(queues: int = 1) -> Callable[[str, str], list[str]]:
    return lambda path, share: [sys.executable, "-m", "tests.bench.alone", path, str(queues)]


def _rust(*options: str) -> Callable[[str, str], list[str]]:
    return lambda path, share: [str(RUST), f"--socket-path={path}", f"--shared-dir={share}", *options]


def _c(*options: str) -> Callable[[str, str], list[str]]:
    return lambda path, share: [str(C), f"--socket-path={path}", "-o", f"source={share}", *options]


RUST_SOURCE = "scripts/fetch-newer"
C_SOURCE = "apt-get install qemu-system-common (Debian 12)"
#: Of a thread pool: more threads were not faster on two cores.
POOL = "--thread-pool-size=4"

VFSD = "vfsd"
ALONE = "ring alone"
#: No daemon: the system calls alone (bare.c).
BARE = "bare calls"
KINDS = {
    VFSD: Kind(_vfsd()),
    "vfsd, no sandbox": Kind(_vfsd("--sandbox=none")),
    "Rust": Kind(_rust(), RUST, RUST_SOURCE, peer=True),
    "Rust, no handles": Kind(_rust("--inode-file-handles=never"), RUST, RUST_SOURCE, peer=True),
    "Rust, no handles, pool": Kind(_rust("--inode-file-handles=never", POOL), RUST, RUST_SOURCE, pool=True, peer=True),
    "C": Kind(_c(), C, C_SOURCE, peer=True),
    "C, pool": Kind(_c(POOL), C, C_SOURCE, pool=True, peer=True),
    ALONE: Kind(_alone(), alone=True),
    #: Peers offer one request queue.
    **{f"vfsd, {queues} queues": Kind(_vfsd(), queues=queues) for queues in (2, 3, 4)},
    **{f"ring alone, {queues} queues": Kind(_alone(queues), alone=True, queues=queues) for queues in (2, 3, 4)},
}
#: What is compared unless something else is asked for.
DEFAULT = [name for name, kind in KINDS.items() if name != "vfsd, no sandbox" and kind.queues == 1]


def compile_all() -> None:
    """Byte-code as pip leaves it. A tree that never wrote its own, or a copied .venv, compiles at each start."""
    keeps = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    places = (str(ROOT / "vfsd"), str(ROOT / "vhost"), sysconfig.get_path("purelib"))
    # What a package carries for other versions of Python does not compile: that is no failure here.
    subprocess.run([sys.executable, "-m", "compileall", "-qq", *places], env=keeps, check=False)


def cpu_time(pid: int) -> float:
    """Seconds of CPU time, user and system, that a process has used: the kernel's own count, which is finer than the
    clock ticks of /proc (clock_getcpuclockid(3)). Raises OSError when it has ended."""
    return time.clock_gettime(~pid << 3 | 2)


def processes(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from processes(int(child))


class Daemon:
    """One that runs, from `with` to its end; the front-end's connection to it is `connection`."""

    def __init__(self, name: str, share: Path, path: Path) -> None:
        """Raises FileNotFoundError when it is not installed."""
        self.name, self.kind, self.share, self.path = name, KINDS[name], share, path
        if not self.kind.needs.exists():
            raise FileNotFoundError(f"{name}: there is no {self.kind.needs}: {self.kind.source}")
        self.log = path.with_suffix(".log")

    def __enter__(self) -> Self:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = self.kind.command(str(self.path), str(self.share))
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
        try:
            self.connection = self._connect()
        except BaseException:
            self._end()
            raise
        return self

    def _connect(self) -> socket.socket:
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.path))
                return connection
            except OSError:
                connection.close()
                time.sleep(0.001)
        raise RuntimeError(f"{self.name} does not listen: {self.log.read_text()}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        """A daemon leaves with its front-end, which has gone; one that does not is told to."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(sign)
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(PATIENCE)

    def tasks(self) -> list[int]:
        """Its threads."""
        return [int(task) for pid in processes(self.process.pid) for task in os.listdir(f"/proc/{pid}/task")]

    def pin(self, cpus: Iterable[int]) -> None:
        """Lets all threads it has run there only, and those they make."""
        for task in self.tasks():
            os.sched_setaffinity(task, cpus)

    def cpu(self) -> dict[int, float]:
        """What each of its processes has used."""
        used = {}
        for pid in processes(self.process.pid):
            with suppress(OSError):
                used[pid] = cpu_time(pid)
        return used

    def cpu_since(self, before: dict[int, float]) -> float:
        """Seconds of CPU time that all of them have used since cpu() gave this; those that have ended since do not
        count."""
        return sum(used - before.get(pid, 0.0) for pid, used in self.cpu().items())

    def memory(self) -> float:
        """MiB of all its processes, without the guest's memory; shared pages count once (PSS)."""
        total = 0
        for pid in processes(self.process.pid):
            guest = False
            for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
                if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                    guest = "/memfd:guest" in line
                elif line.startswith("Pss:") and not guest:
                    total += int(line.split()[1])
        return total / 1024
