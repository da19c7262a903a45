"""Guests that move between two QEMUs while they work on a share, and guests that may not."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.guest.waiting import until
from vfsd.guest import Guest, GuestError, Moved

#: Migrations there and back.
MOVES = 10


class Work:
    """traveller.c at work in the guest."""

    def __init__(self, guest: Guest, share: Path) -> None:
        self._work, self._output = share / "work", share / "output"
        guest.run("cd work; ../traveller >../output 2>&1 &", 60).check()
        until((self._work / "begun").exists)

    def end(self) -> None:
        """It has read what it wrote all the time, and the host has what it believes to have written."""
        (self._work / "end").touch()
        until(lambda: "turn" in self._output.read_text())
        *sums, turns = self._output.read_text().splitlines()
        assert turns.startswith("turns "), turns
        assert int(turns.split()[1]) > 500
        assert sums == [fnv((self._work / f"file{number}").read_bytes()) for number in range(len(sums))]


def fnv(data: bytes) -> str:
    """FNV-1a of 32 bits."""
    value = 2166136261
    for byte in data:
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return f"{value:08x}"


class Relay:
    """Lies between source and destination, and may change what goes over: by `tamper`, which is given everything that
    has come since the state of the share began."""

    def __init__(self, tamper: Callable[[bytearray], None]) -> None:
        self._tamper = tamper

    def __call__(self, path: Path) -> Path:
        between = path.with_suffix(".relay")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(between))
        self._listener.listen()
        threading.Thread(target=self._run, args=(path,), daemon=True).start()
        return between

    def _run(self, path: Path) -> None:
        source, _ = self._listener.accept()
        target = socket.socket(socket.AF_UNIX)
        target.connect(str(path))
        back = threading.Thread(target=self._pass, args=(target, source), daemon=True)
        back.start()
        held = bytearray()
        with suppress(OSError):
            while data := source.recv(1 << 20):
                held += data
                at = held.find(b"vfsstate")
                if at >= 0:
                    # The state is small, and what follows it in QEMU's stream is, too.
                    held += source.recv(1 << 20)
                    state = held[at:]
                    self._tamper(state)
                    target.sendall(held[:at] + state)
                    held.clear()
                    break
                target.sendall(held[:-8])
                del held[:-8]
            self._pass(source, target)

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 20):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def test_ten_times(guest: Guest, share: Path) -> None:
    work = Work(guest, share)
    moves: list[Moved] = [guest.migrate() for _ in range(MOVES)]
    assert guest.run("cat work/file3 | wc -c; ls work/many | wc -l", 60).text.split() == [str(256 << 10), "300"]
    work.end()
    print("downtime, seconds:", *(move.downtime for move in moves))
    assert "ERROR" not in guest.daemon.log.read_text() and "WARNING" not in guest.daemon.log.read_text()


def test_a_state_that_was_tampered_with(guest: Guest, share: Path) -> None:
    def tamper(state: bytearray) -> None:
        state[200] ^= 0x40

    work = Work(guest, share)
    with pytest.raises(GuestError) as caught:
        guest.migrate(relay=Relay(tamper))
    assert "the guest's state can't be loaded: it is damaged" in caught.value.report
    assert guest.qmp("query-status")["running"]
    assert guest.run("echo still here", 60).text == "still here"
    # What lies between is not to blame.
    guest.migrate(relay=Relay(lambda state: None))
    work.end()


def test_a_file_that_is_not_found(guest: Guest, share: Path) -> None:
    """And a guest that is let go without it."""
    work = Work(guest, share)
    script = "exec 5<>passing; echo content >&5; rm passing; while [ ! -e go ]; do sleep 0.1; done; echo more >&5"
    guest.run(f"({script}; echo $? >status) >/dev/null 2>error &", 60).check()
    until(lambda: (share / "work").exists() and not (share / "passing").exists())
    with pytest.raises(GuestError) as caught:
        guest.migrate()
    assert "passing (deleted) (No such file or directory)" in caught.value.report
    assert "some of what the guest uses is not found here" in caught.value.report
    assert guest.qmp("query-status")["running"]
    guest.migrate(daemon_options=["--migration-on-error=guest-error"])
    (share / "go").touch()
    until(lambda: (share / "status").exists() and (share / "status").read_text())
    assert (share / "status").read_text() == "1\n"
    assert "Stale file handle" in (share / "error").read_text() or "Bad file" in (share / "error").read_text()
    work.end()
