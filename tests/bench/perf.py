"""perf (Debian's linux-perf) on the threads of a daemon: samples of where its CPU time goes, and a count of its system
calls. As root.

A session looks at a daemon only while it is switched on, and at the threads and processes it makes meanwhile, too.
"""

import os
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.bench.daemons import PATIENCE, Daemon, processes

#: Samples in a second of CPU time: several hundred for each row, and no great load.
FREQUENCY = 4000
#: By the clock, which a virtual machine has, too; with the calls that led there.
RECORD = ["record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY), "-k", "CLOCK_MONOTONIC", "-g", "-B", "-N"]
STAT = ["stat", "-x,", "-e", "raw_syscalls:sys_enter"]

#: A thread of a pool may end just as perf comes for it.
TRIES = 5

STARTS = re.compile(r" *(\d+\.\d+): *$")
FRAME = re.compile(r"\s+[0-9a-f]+ (.*) \((.*)\)$")


class Frame(NamedTuple):
    symbol: str
    #: The file that has it, without its directory; "[kernel.kallsyms]", "[vdso]".
    place: str


class Sample(NamedTuple):
    #: Of CLOCK_MONOTONIC, seconds.
    time: float
    #: The function that ran, and what called it.
    frames: Sequence[Frame]


def require() -> None:
    """Raises RuntimeError when there is no perf."""
    if not shutil.which("perf"):
        raise RuntimeError("perf is not installed: apt-get install linux-perf (Debian)")


class Perf:
    """A run of perf, from `with` to its end. Raises RuntimeError when perf complains."""

    def __init__(self, arguments: Sequence[str], daemon: Daemon, output: Path) -> None:
        self.daemon, self.output, self.log = daemon, output, output.with_suffix(".log")
        self.arguments = [*arguments, "-o", str(output)]

    def __enter__(self) -> Self:
        for left in reversed(range(TRIES)):
            self._start()
            try:
                self._say(b"disable\n")
                return self
            except RuntimeError:
                self._end()
                if not left:
                    raise
        raise AssertionError

    def _start(self) -> None:
        theirs, self.control = os.pipe()
        self.answers, answer = os.pipe()
        # By process: of single threads perf does not follow those that they make.
        pids = ",".join(map(str, processes(self.daemon.process.pid)))
        options = ["-D", "-1", f"--control=fd:{theirs},{answer}", "-p", pids]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["perf", *self.arguments, *options], stdout=log, stderr=log, pass_fds=(theirs, answer)
            )
        for fd in (theirs, answer):
            os.close(fd)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for fd in (self.control, self.answers):
            os.close(fd)

    @contextmanager
    def on(self) -> Iterator[None]:
        self._say(b"enable\n")
        try:
            yield
        finally:
            self._say(b"disable\n")

    def _say(self, command: bytes) -> None:
        with suppress(BrokenPipeError):
            os.write(self.control, command)
            if select.select([self.answers], [], [], PATIENCE)[0] and os.read(self.answers, 16).startswith(b"ack"):
                return
        raise RuntimeError(f"perf can't look at {self.daemon.name}: {self.log.read_text().strip()}")


def recorder(daemon: Daemon, output: Path) -> Perf:
    return Perf(RECORD, daemon, output)


def counter(daemon: Daemon, output: Path) -> Perf:
    return Perf(STAT, daemon, output)


def counted(output: Path) -> int | None:
    """The system calls that a counter saw. None: this kernel does not let them be counted."""
    for line in output.read_text().splitlines():
        fields = line.split(",")
        if "raw_syscalls:sys_enter" in fields and fields[0].isdigit():
            return int(fields[0])
    return None


def recorded(output: Path) -> Iterator[Sample]:
    """What a recorder saw. The daemon must have ended: until then perf looks for its symbols in its mount namespace."""
    argv = ["perf", "script", "-i", str(output), "-F", "time,ip,sym,dso"]
    log = output.with_suffix(".log")
    with log.open("wb") as said, subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=said, text=True) as script:
        assert script.stdout
        yield from samples(script.stdout)
    if script.returncode:
        raise RuntimeError(f"perf script: {log.read_text().strip()}")


def samples(lines: Iterable[str]) -> Iterator[Sample]:
    """Of what perf script prints with the fields time, ip, sym and dso."""
    time, frames = 0.0, []
    for line in lines:
        if starts := STARTS.match(line):
            time, frames = float(starts[1]), []
        elif found := FRAME.match(line.rstrip("\n")):
            frames.append(Frame(found[1], found[2].rpartition("/")[2]))
        elif frames:
            yield Sample(time, frames)
            frames = []
    if frames:
        yield Sample(time, frames)
