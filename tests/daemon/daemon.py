"""A real daemon as a child process, and a guest on it: front-end, rings and FUSE client of this test suite."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.frontend import FrontEnd
from tests.fuseclient import FuseClient

REPOSITORY = Path(__file__).resolve().parents[2]

#: Seconds: long enough for a loaded machine, short enough that a hang is reported.
PATIENCE = 20.0
#: Of a worker with two rings, at least: its main one, one for each ring, and those for what blocks.
THREADS = 1 + 2 + 4

#: vfsd that takes a twentieth of a second for silence of the front-end, after which it forks the next worker, and not a
#: second: for tests that wait for that again and again.
FORESIGHTED = """
import sys, vfsd.supervisor, vfsd.__main__
vfsd.supervisor.SILENCE = 0.05
sys.exit(vfsd.__main__.main())
"""


def until(what: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Asks again and again until the answer is true; TimeoutError."""
    deadline = time.monotonic() + patience
    while not (answer := what()):
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come to pass")
        time.sleep(0.002)
    return answer


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name(pid: int) -> str:
    """As ps shows it; "" when the process has ended, though its parent may not know yet."""
    try:
        name, state = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rsplit(") ", 1)
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state[0] in "ZX" else name


def open_files(pid: int) -> dict[int, str]:
    """Descriptors of a process, and what they are."""
    found = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            found[int(entry.name)] = os.readlink(entry.path)
    return found


def workers(control: int) -> list[int]:
    """Those of a control process, by pid."""
    # A worker has its name set first thing; what has another one is the check of the network namespace.
    return [pid for pid in children(control) if name(pid) == "vfsd-worker"]


def spares(control: int) -> list[int]:
    """The worker that waits to be the next one, if it is there: its pid."""
    return [pid for pid in children(control) if name(pid) == "vfsd-spare"]


def kill_worker(control: int) -> int:
    """Kills the worker, which is waited for; returns its pid."""
    while True:
        pid: int = until(lambda: workers(control))[0]
        # One that has just been told to leave may be gone before we get to it.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return pid


def at_rest(worker: int) -> bool:
    """Whether it has all its threads, each has begun what it does, and nothing goes on."""
    return _asleep(worker) and not time.sleep(0.002) and _asleep(worker)


def _asleep(worker: int) -> bool:
    states = [Path(f"/proc/{worker}/task/{tid}/stat").read_text() for tid in os.listdir(f"/proc/{worker}/task")]
    return len(states) >= THREADS and all(state.rpartition(")")[2].split()[0] == "S" for state in states)


def kinds(files: dict[int, str]) -> list[str]:
    """What is open, whatever numbers it has."""
    return [re.sub(r"\d+", "N", what) for what in files.values()]


class Daemon:
    """`vfsd` with these options, from its start to its end. Its log is in `log`.

    `prefix` runs it: a command that ends in the program to run. `program` replaces `-m vfsd`.
    """

    def __init__(
        self, share: Path, socket_path: Path, *options: str, prefix: Sequence[str] = (), program: Sequence[str] = ()
    ) -> None:
        self.share = share
        self.socket_path = socket_path
        self.log_path = socket_path.with_suffix(".log")
        arguments = ["--shared-dir", str(share), "--socket-path", str(socket_path), *options]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, *(program or ["-m", "vfsd"]), *arguments], stderr=log, env=environment
            )

    def __enter__(self) -> Self:
        until(lambda: self.socket_path.with_suffix(".sock.pid").exists() or self.process.poll() is not None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if kind:
            print(self.log)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def logged(self, text: str, times: int = 1) -> None:
        """Waits until the log says so, so many times."""
        until(lambda: self.log.count(text) >= times)

    @property
    def control(self) -> int:
        """The pid of the control process: the one started, or what its launcher started."""
        return self.process.pid if "--sandbox=none" in self.process.args else children(self.process.pid)[0]  # type: ignore[operator]

    @property
    def workers(self) -> list[int]:
        return workers(self.control)

    @property
    def spare(self) -> int:
        """The pid of the worker that waits to be the next one, which is waited for."""
        return until(lambda: spares(self.control))[0]  # type: ignore[no-any-return]

    @property
    def worker(self) -> int:
        """The pid of the worker, which is waited for."""
        return until(lambda: self.workers)[0]  # type: ignore[no-any-return]

    def kill_worker(self) -> int:
        """Kills it; returns its pid."""
        return kill_worker(self.control)

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(self.socket_path))
        return connection


def prepared(daemon: Daemon) -> int:
    """The pid of the spare, once it waits: it polls, and has no descriptor of its own."""
    spare = daemon.spare
    until(lambda: polls(spare))
    return spare


def polls(pid: int) -> bool:
    """Whether a process waits for descriptors to become readable."""
    return re.search("select|poll", Path(f"/proc/{pid}/wchan").read_text()) is not None


def settled_files(daemon: Daemon) -> dict[int, str]:
    """What control process and worker have open, while a worker runs: once the next one waits."""
    prepared(daemon)
    return open_files(daemon.control)


@contextmanager
def guest(daemon: Daemon, init: bool = True, **options: Any) -> Iterator[tuple[FrontEnd, FuseClient]]:
    """A guest that has mounted the share."""
    with FrontEnd(daemon.socket_path, **options) as frontend:
        frontend.negotiate()
        frontend.start()
        client = FuseClient(lambda request, room: frontend.request(1, request, room))
        if init:
            client.init()
        yield frontend, client
