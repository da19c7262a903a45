"""Locks between two guests, each with a daemon of its own on one directory, and a process of the host."""

import os
import queue
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.guest.conftest import DAEMON, KERNEL, QEMU
from vfsd.guest import Guest, GuestError, Settings, Share

# Programs are handed over as text: a guest has a /tmp of its own, and does not see a checkout in the host's.
LOCKER = Path(__file__).with_name("locker.py").read_text()
WRITER = Path(__file__).with_name("sqlite_writer.py").read_text()

pytestmark = pytest.mark.skipif(bool(DAEMON), reason="other daemons leave locks to the guest")


class Program:
    """tests/guest/locker.py somewhere. `tell` does not wait for the answer."""

    def __init__(self) -> None:
        read, self.input = os.pipe()
        self.answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.partial = b""
        self.thread = threading.Thread(target=self.run, args=(read,), daemon=True)
        self.thread.start()

    def run(self, stdin: int) -> None:
        raise NotImplementedError

    def hear(self, data: bytes) -> None:
        *lines, self.partial = (self.partial + data).split(b"\n")
        for line in lines:
            self.answers.put(line.decode())

    def tell(self, line: str) -> None:
        os.write(self.input, line.encode() + b"\n")

    def answer(self) -> str:
        return self.answers.get(timeout=60)

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.answer()

    def end(self) -> None:
        os.close(self.input)
        self.thread.join(20)


class InGuest(Program):
    def __init__(self, guest: Guest, name: str) -> None:
        self.guest, self.name = guest, name
        super().__init__()

    def run(self, stdin: int) -> None:
        command = self.guest.start(["python3", "-c", LOCKER, self.name], stdin=stdin, stdout=self.hear)
        with suppress(GuestError):  # the guest is killed
            self.guest.wait(command)
        os.close(stdin)


class OnHost(Program):
    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__()

    def run(self, stdin: int) -> None:
        command = [sys.executable, "-c", LOCKER, str(self.path)]
        with subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE) as process:
            os.close(stdin)
            assert process.stdout
            for line in process.stdout:
                self.hear(line)


def first_to_answer(*programs: Program) -> Program:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for program in programs:
            if not program.answers.empty():
                return program
        time.sleep(0.01)
    raise TimeoutError("nobody answers")


def test_processes_of_one_guest(guest: Guest, shared: Path) -> None:
    """They know each other by their process ids, and a killed one frees what it has."""
    (shared / "locked").write_bytes(bytes(100))
    with ExitStack() as stack:
        one, other = InGuest(guest, "locked"), InGuest(guest, "locked")
        stack.callback(other.end)
        stack.callback(one.end)
        pid = one.ask("pid")
        assert one.ask("fcntl exclusive 0 10") == "ok"
        assert other.ask("holder shared 5 0") == f"1 0 10 {pid}"
        # Two that wait for each other: whoever comes second is told.
        assert other.ask("fcntl exclusive 20 10") == "ok"
        other.tell("fcntl exclusive 0 10 wait")
        one.tell("fcntl exclusive 20 10 wait")
        told = first_to_answer(one, other)
        assert told.answer() == "EDEADLK"
        assert told.ask("fcntl none") == "ok"
        assert (one if told is other else other).answer() == "ok"
        # Killed with all kinds.
        assert other.ask("fcntl none") == "ok"
        assert one.ask("fcntl none") == "ok"
        for words in ("fcntl exclusive 0 10", "ofd exclusive 50 10", "flock exclusive"):
            assert one.ask(words) == "ok"
        other.tell("fcntl exclusive 0 10 wait")
        guest.request(f"kill -9 {pid}")
        assert other.answer() == "ok"
        assert other.ask("flock exclusive wait") == "ok"
        assert other.ask("ofd exclusive 50 10 wait") == "ok"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("locks")


@pytest.fixture(scope="module")
def guests(directory: Path) -> Iterator[list[Guest]]:
    """Two guests on one directory. A lock makes a writer wait for another; that it then sees what the other has
    written takes --cache=never."""
    share, settings = Share(directory, daemon_options=("--cache=never",)), Settings(qemu=QEMU)
    with (
        Guest(share, settings=settings, kernel_name=KERNEL) as one,
        Guest(share, settings=settings, kernel_name=KERNEL) as other,
    ):
        yield [one, other]


def test_one_database_of_two_guests_and_the_host(guests: list[Guest], directory: Path) -> None:
    """SQLite in its default mode, which relies on fcntl(2) locks of byte ranges: nothing is lost, nothing damaged,
    while all three write at once."""
    database = sqlite3.connect(directory / "data.db")
    database.executescript("CREATE TABLE counter (n); INSERT INTO counter VALUES (0); CREATE TABLE log (n, who, x);")
    database.close()
    arguments = ("20", "3")
    host_command = [sys.executable, "-c", WRITER, str(directory / "data.db"), "host", *arguments]
    command = ["python3", "-c", WRITER, "data.db"]
    with subprocess.Popen(host_command, stdout=subprocess.PIPE, text=True) as host:
        try:
            writers = [guest.start([*command, f"guest {number}", *arguments]) for number, guest in enumerate(guests)]
            results = [guest.wait(writer, 240).check().text for guest, writer in zip(guests, writers, strict=True)]
            results.append(host.communicate(timeout=60)[0])
        finally:
            host.kill()  # when a guest gives up: it would write on and on
    assert host.returncode == 0
    assert all(int(busy) > 0 for busy in results), f"not every writer met another: {results}"
    database = sqlite3.connect(directory / "data.db")
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    rows = database.execute("SELECT n, who FROM log ORDER BY n").fetchall()
    database.close()
    assert [n for n, _ in rows] == list(range(1, len(rows) + 1))
    for who in ("host", "guest 0", "guest 1"):
        turns = [n for n, writer in rows if writer == who]
        assert len(turns) >= 20
        # Others wrote between its first transaction and its last.
        assert {writer for n, writer in rows if turns[0] < n < turns[-1]} == {"host", "guest 0", "guest 1"}
    print(results, len(rows))


def test_two_guests_and_the_host(guests: list[Guest], directory: Path) -> None:
    """The last test of these guests: it kills one."""
    (directory / "locked").write_bytes(bytes(100))
    with ExitStack() as stack:
        everyone = [InGuest(guests[0], "locked"), InGuest(guests[1], "locked"), OnHost(directory / "locked")]
        for one in everyone:
            stack.callback(one.end)
        for call in ("fcntl", "ofd", "flock"):
            for one in everyone:
                others = [other for other in everyone if other is not one]
                assert one.ask(f"{call} exclusive") == "ok"
                for kind in ("shared", "exclusive"):
                    assert [other.ask(f"{call} {kind}") for other in others] == ["EAGAIN"] * 2
                assert one.ask(f"{call} shared") == "ok"
                assert [other.ask(f"{call} shared") for other in others] == ["ok"] * 2
                assert one.ask(f"{call} exclusive") == "EAGAIN"
                # What waits gets it when the last of the others lets go.
                one.tell(f"{call} exclusive wait")
                assert others[0].ask(f"{call} none") == "ok"
                assert others[1].ask(f"{call} none") == "ok"
                assert one.answer() == "ok"
                assert one.ask(f"{call} none") == "ok"
        # Ranges apart from each other, and who is in the way.
        for number, one in enumerate(everyone):
            assert one.ask(f"fcntl exclusive {10 * number} 10") == "ok"
        assert everyone[0].ask("holder exclusive 5 10") == "1 10 10 0"
        assert everyone[1].ask("holder shared 25 1") == "1 20 10 0"
        assert everyone[2].ask("holder shared 0 0").startswith("1 0 10 ")
        # A guest that is killed frees what it has: for who waits, and for who asks.
        killed = everyone[1]
        assert killed.ask("flock exclusive") == "ok"
        everyone[0].tell("fcntl exclusive 10 10 wait")
        assert everyone[2].ask("flock shared") == "EAGAIN"
        machine = guests[1].machine
        assert machine and machine.process
        machine.process.kill()
        assert everyone[0].answer() == "ok"
        assert everyone[2].ask("flock shared wait") == "ok"
