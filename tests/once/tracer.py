"""Kills a process at a given stop, at the entry or the exit of a system call, or so many instructions later.

It is ptrace(2), asked for by a thread of its own, since the kernel takes a tracer's requests from one thread only.
"""

import ctypes
import errno
import os
import platform
import signal
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

SEIZE, INTERRUPT, SYSCALL, SINGLESTEP, DETACH, SYSCALL_INFO = 0x4206, 0x4207, 24, 9, 17, 0x420E
PEEKUSER, RIP = 3, 128  # in struct user (<sys/user.h>, x86-64)
TRACESYSGOOD = 1
#: struct ptrace_syscall_info: op; the number, at an entry.
INFO, ENTRY = struct.Struct("=B23xQ56x"), 1
#: futex(2) changes nothing but who runs, and how often it is called is chance. Who waits for whom: Python's GIL.
FUTEX = {"x86_64": 202}.get(platform.machine(), 98)
#: What a stop at a system call is, with that option.
SYSCALL_STOP = signal.SIGTRAP | 0x80
WALL, NOTHREAD = 0x40000000, 0x20000000  # <linux/wait.h>: any child, but of this thread only
PATIENCE = 10.0
#: Between two looks for a stop, seconds.
GLANCE = 0.00005

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long] * 4


def _ptrace(request: int, tid: int, data: int = 0) -> None:
    if _libc.ptrace(request, tid, 0, data) < 0:
        number = ctypes.get_errno()
        if number != errno.ESRCH:  # killed meanwhile
            raise OSError(number, f"ptrace({request:#x}): {os.strerror(number)}")


class Stop(NamedTuple):
    """Where a process was stopped."""

    #: "entry" or "exit"
    kind: str
    #: Number of the system call.
    call: int
    #: How often it was stopped there before. Which thread comes first is chance; what each of them does is not.
    nth: int


class Tracer:
    """One process and its threads, all of which sleep in system calls when it is attached."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        #: Where it was stopped during the request.
        self.stops: list[Stop] = []
        self.killed = False
        #: Instructions it executed from `count_from` to its next system call.
        self.counted = 0
        self._calls: dict[int, int] = {}
        self._tids: list[int] = []
        self._ready, self._over = threading.Event(), threading.Event()

    def run(
        self, request: Callable[[], Any], kill_at: Stop | None = None, steps: int = 0, count_from: Stop | None = None
    ) -> Any:
        """What `request` returns, during which the process is killed at this stop, if it comes there: at once, or when
        that thread has executed `steps` more instructions."""
        with ThreadPoolExecutor(1) as pool:
            trace = pool.submit(self._trace, kill_at, steps, count_from)
            while not self._ready.wait(0.01):
                if trace.done():
                    trace.result()
            try:
                return request()
            finally:
                self._over.set()
                trace.result(PATIENCE)

    def _trace(self, kill_at: Stop | None, steps: int, count_from: Stop | None) -> None:
        self._tids = [int(entry.name) for entry in os.scandir(f"/proc/{self._pid}/task")]
        for tid in self._tids:
            _ptrace(SEIZE, tid, TRACESYSGOOD)
            _ptrace(INTERRUPT, tid)
        for tid in self._tids:
            self._await(tid)
            # The system call that it sleeps in is begun again.
            _ptrace(SYSCALL, tid)
        for tid in self._tids:
            self._await(tid)
            _ptrace(SYSCALL, tid)
        self._settle()
        self._ready.set()
        while True:
            tid, status = self._next()
            if tid == 0:
                break
            if not os.WIFSTOPPED(status):
                continue
            if os.WSTOPSIG(status) != SYSCALL_STOP:
                _ptrace(SYSCALL, tid)
                continue
            stop = self._stop(tid)
            if stop.call != FUTEX:
                self.stops.append(stop)
                if stop == kill_at:
                    self._step(tid, steps)
                    self._kill()
                    return
                if stop == count_from:
                    self._count(tid)
            _ptrace(SYSCALL, tid)
        self._detach()

    def _stop(self, tid: int) -> Stop:
        info = ctypes.create_string_buffer(INFO.size)
        if _libc.ptrace(SYSCALL_INFO, tid, INFO.size, ctypes.addressof(info)) < 0:
            raise OSError(ctypes.get_errno(), "PTRACE_GET_SYSCALL_INFO")
        kind, number = INFO.unpack(info.raw)
        if kind == ENTRY:
            self._calls[tid] = number
        where = "entry" if kind == ENTRY else "exit", self._calls.get(tid, -1)
        return Stop(*where, sum(stop[:2] == where for stop in self.stops))

    def _settle(self) -> None:
        """A thread may not sleep again at once: then there are more stops."""
        quiet = time.monotonic() + 0.003
        while time.monotonic() < quiet:
            tid, _ = os.waitpid(-1, WALL | NOTHREAD | os.WNOHANG)
            if tid:
                _ptrace(SYSCALL, tid)
                quiet = time.monotonic() + 0.003
            time.sleep(GLANCE)

    def _await(self, tid: int) -> None:
        _, status = os.waitpid(tid, WALL)
        assert os.WIFSTOPPED(status), "the process has ended"

    def _next(self) -> tuple[int, int]:
        """The next stop; 0 when the request is over, and what follows its reply, too."""
        quiet = 0.0
        while True:
            tid, status = os.waitpid(-1, WALL | NOTHREAD | os.WNOHANG)
            if tid or (quiet and time.monotonic() > quiet):
                return tid, status
            if not quiet and self._over.is_set():
                quiet = time.monotonic() + 0.003
            time.sleep(GLANCE)

    def _step(self, tid: int, steps: int) -> None:
        for _ in range(steps):
            _ptrace(SINGLESTEP, tid)
            self._await(tid)

    def _count(self, tid: int) -> None:
        """x86-64 only: a system call is the instruction 0f 05."""
        with open(f"/proc/{self._pid}/mem", "rb", 0) as memory:
            while os.pread(memory.fileno(), 2, _libc.ptrace(PEEKUSER, tid, RIP, 0)) != b"\x0f\x05":
                self._step(tid, 1)
                self.counted += 1

    def _kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        self.killed = True
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, WALL | NOTHREAD)

    def _detach(self) -> None:
        for tid in self._tids:
            _ptrace(INTERRUPT, tid)
            self._await(tid)
            _ptrace(DETACH, tid)
