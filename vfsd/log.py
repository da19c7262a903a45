"""The daemon's log: lines on standard error in the form of virtiofsd's, or syslog.

Rule 1. Nothing that reads the log can stop the daemon. Standard error may be a pipe that is full, or that its reader
        has left: then lines are dropped, and counted.
Rule 2. Everything is opened by `setup`, before the sandbox; nothing is opened again.
"""

import contextlib
import logging
import os
import select
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from vfsd.errors import Failure, internal

#: Of --log-level. "off" is above every level in use.
LEVELS = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": 5,
    "off": logging.CRITICAL + 1,
}

#: The least level, its name as virtiofsd writes it, and its syslog severity (<syslog.h>).
NAMES = (
    (logging.ERROR, "ERROR", 3),
    (logging.WARNING, "WARN", 4),
    (logging.INFO, "INFO", 6),
    (logging.DEBUG, "DEBUG", 7),
    (0, "TRACE", 7),
)
LOG_DAEMON = 3 << 3

#: A pipe takes this many bytes at once, or none (PIPE_BUF, pipe(7)).
PIECE = select.PIPE_BUF


class Formatter(logging.Formatter):
    """`[2026-11-22T07:00:00Z INFO  vfsd.control] message`."""

    def __init__(self) -> None:
        super().__init__("[%(asctime)s %(level)-5s %(name)s] %(message)s", "%Y-%m-%dT%H:%M:%SZ")

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        record.level = next(name for least, name, _ in NAMES if record.levelno >= least)
        return super().format(record)


class StandardError(logging.Handler):
    """Writes to standard error what it takes at once, and drops the rest."""

    def __init__(self, fd: int = 2) -> None:
        super().__init__()
        self.setFormatter(Formatter())
        self._fd = _unblocked(fd)
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if self._dropped:
            text = f"({self._dropped} lines lost: nobody read them)\n{text}"
        if self._write(f"{text}\n".encode(errors="surrogateescape")):
            self._dropped = 0
        else:
            self._dropped += 1

    def _write(self, data: bytes) -> bool:
        with contextlib.suppress(OSError):
            for start in range(0, len(data), PIECE):
                # A pipe we could not open anew may still block: ask before each piece.
                if not _writable(self._fd):
                    return False
                os.write(self._fd, data[start : start + PIECE])
            return True
        return False


def _writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(0))


def _unblocked(fd: int) -> int:
    """A pipe's own non-blocking description, if it can be had: the inherited one is shared with other processes."""
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return fd


class Syslog(logging.Handler):
    """Sends to the local syslog what it takes at once (the protocol of RFC 3164, as syslog(3) speaks it).

    Not logging.handlers.SysLogHandler: that one blocks, and on an error it closes its socket, for every process that
    shares our descriptors, and connects anew, which a sandbox forbids.
    """

    def __init__(self, path: str = "/dev/log") -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.connect(path)
        # The pid a user can find: inside a PID namespace getpid is another one.
        self._tag = f"vfsd[{os.getpid()}]"
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        severity = next(severity for least, _, severity in NAMES if record.levelno >= least)
        line = f"<{LOG_DAEMON | severity}>{self._tag}: {self.format(record)}"
        with contextlib.suppress(OSError):
            self._socket.send(line.encode(errors="surrogateescape"))


def setup(level: str, syslog: bool = False) -> None:
    """Sends all logging, and every exception nobody catches, to standard error or to syslog.

    `level` is one of LEVELS.
    """
    logging.raiseExceptions = False
    root = logging.getLogger()
    root.setLevel(LEVELS[level])
    try:
        root.handlers = [Syslog() if syslog else StandardError()]
    except OSError as error:
        root.handlers = [StandardError()]
        logging.getLogger("vfsd").warning("no syslog at /dev/log (%s): logging to standard error", error.strerror)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _uncaught_in_thread


def report(error: BaseException) -> None:
    """Logs an exception nobody foresaw, as one sentence; where it came from at level debug."""
    log = logging.getLogger("vfsd")
    log.error("%s (--log-level=debug shows where)", internal(error))
    log.debug("it came from", exc_info=error)


def status_of(log: logging.Logger, work: Callable[[], int]) -> int:
    """The exit status of `work`. What it raises is logged."""
    try:
        return work()
    except Failure as error:
        log.error("%s", error)
        return error.exit_status
    except Exception as error:
        report(error)
        return 1


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("vfsd").error("uncaught exception", exc_info=(kind, error, trace))


def _unraisable(what: Any) -> None:
    logging.getLogger("vfsd").error("ignored exception in %r", what.object, exc_info=what.exc_value)


def _uncaught_in_thread(what: threading.ExceptHookArgs) -> None:
    logging.getLogger("vfsd").error("uncaught exception in %s", what.thread, exc_info=what.exc_value)
