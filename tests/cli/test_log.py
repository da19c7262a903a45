"""The form of the log, and that nobody who reads it can stop the daemon."""

import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfsd import log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging is the process's own: put back what `setup` changes."""
    root = logging.getLogger()
    before = root.handlers, root.level, logging.raiseExceptions
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    yield
    root.handlers, root.level, logging.raiseExceptions = before
    sys.excepthook, sys.unraisablehook, threading.excepthook = hooks


def record(level: int, message: str, name: str = "vfsd") -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, message, None, None)


def drain(fd: int) -> bytes:
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (logging.CRITICAL, "ERROR"),
        (logging.ERROR, "ERROR"),
        (logging.WARNING, "WARN "),
        (logging.INFO, "INFO "),
        (logging.DEBUG, "DEBUG"),
        (log.LEVELS["trace"], "TRACE"),
    ],
)
def test_lines_look_like_virtiofsds(level: int, name: str) -> None:
    line = log.Formatter().format(record(level, "Client connected, servicing requests", "vfsd.control"))
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(rf"\[{time} {name} vfsd\.control\] Client connected, servicing requests", line)


def test_the_time_is_universal() -> None:
    made = record(logging.INFO, "x")
    made.created = 0.0
    assert log.Formatter().format(made).startswith("[1970-01-01T00:00:00Z ")


@pytest.mark.parametrize("level", log.LEVELS)
def test_levels(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(log.StandardError, "__init__", _writing_to(writer))
    log.setup(level)
    for number in log.LEVELS.values():
        logging.getLogger("vfsd.test").log(number, "line") if number <= logging.CRITICAL else None
    shown = drain(reader).decode().count("line")
    assert shown == {"error": 1, "warn": 2, "info": 3, "debug": 4, "trace": 5, "off": 0}[level]


def _writing_to(fd: int) -> object:
    original = log.StandardError.__init__
    return lambda self: original(self, fd)


def test_a_pipe_that_nobody_empties_loses_lines_and_says_how_many() -> None:
    reader, writer = os.pipe()
    handler = log.StandardError(writer)
    for _ in range(1000):
        handler.emit(record(logging.INFO, "x" * 200))
    held = drain(reader)
    kept = held.count(b"\n")
    assert 0 < kept < 1000
    assert held.endswith(b"\n")
    handler.emit(record(logging.INFO, "the next"))
    lost, following = drain(reader).decode().splitlines()
    assert lost == f"({1000 - kept} lines lost: nobody read them)"
    assert following.endswith("] the next")
    # The inherited description is other processes' too.
    assert os.get_blocking(writer)


def test_a_pipe_that_cannot_be_opened_anew_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_unblocked", lambda fd: fd)
    reader, writer = os.pipe()
    handler = log.StandardError(writer)
    for _ in range(1000):
        handler.emit(record(logging.INFO, "x" * 200))
    assert drain(reader).count(b"\n") > 0


def test_a_pipe_without_a_reader_is_no_error() -> None:
    reader, writer = os.pipe()
    handler = log.StandardError(writer)
    os.close(reader)
    handler.emit(record(logging.INFO, "nobody"))


def test_a_closed_descriptor_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    log.StandardError(writer).emit(record(logging.INFO, "nobody"))


def test_a_regular_file_is_written_where_it_was(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file:
        file.write(b"before\n")
        log.StandardError(file.fileno()).emit(record(logging.INFO, "line"))
        file.write(b"after\n")
    before, line, after = (tmp_path / "log").read_text().splitlines()
    assert (before, after) == ("before", "after")
    assert line.endswith("] line")


def test_a_long_message_is_whole() -> None:
    reader, writer = os.pipe()
    log.StandardError(writer).emit(record(logging.INFO, "x" * 20_000))
    assert drain(reader).count(b"x") == 20_000


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        yield server, path


def test_syslog(syslog: tuple[socket.socket, str]) -> None:
    server, path = syslog
    handler = log.Syslog(path)
    for level, severity in ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (5, 7)):
        handler.emit(record(level, "message"))
        assert server.recv(1000) == f"<{3 * 8 + severity}>vfsd[{os.getpid()}]: message".encode()


def test_a_syslog_that_stands_still_or_leaves_is_no_error(syslog: tuple[socket.socket, str]) -> None:
    server, path = syslog
    handler = log.Syslog(path)
    for _ in range(1000):
        handler.emit(record(logging.INFO, "x" * 2000))
    server.close()
    handler.emit(record(logging.INFO, "nobody"))


def test_without_a_syslog_the_log_stays_on_standard_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(log.StandardError, "__init__", _writing_to(writer))
    monkeypatch.setattr(log.Syslog.__init__, "__defaults__", (str(tmp_path / "nothing"),))
    log.setup("info", syslog=True)
    assert "WARN  vfsd] no syslog at /dev/log (No such file or directory)" in drain(reader).decode()
    assert isinstance(logging.getLogger().handlers[0], log.StandardError)


def test_what_nobody_catches_is_logged() -> None:
    program = """
import sys, threading
from vfsd import log
log.setup("info")
class Noisy:
    def __del__(self): raise KeyError("unraisable")
Noisy()
def fail(): raise IndexError("in a thread")
thread = threading.Thread(target=fail, name="one")
thread.start(); thread.join()
raise ValueError("at the top")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    lines = re.findall(r"^\[\S+ ERROR vfsd\] .*", done.stderr, flags=re.M)
    assert len(lines) == 3
    for text in ("KeyError: 'unraisable'", "IndexError: in a thread", "ValueError: at the top"):
        assert text in done.stderr
