"""The steps of tests.conformance.locks as system calls: processes that a case forks, and that lock as they are told.

An actor has the files that were open when it was forked. The one named "" is this process.
"""

import fcntl
import json
import os
import select
import socket
import struct
import time
from pathlib import Path
from typing import Any

KINDS = {"r": fcntl.F_RDLCK, "w": fcntl.F_WRLCK, "u": fcntl.F_UNLCK}
NAMES = {number: name for name, number in KINDS.items()}
FLOCKS = {"r": fcntl.LOCK_SH, "w": fcntl.LOCK_EX, "u": fcntl.LOCK_UN}
#: Number of the system call.
FCNTL = {"x86_64": 72}.get(os.uname().machine, 25)
#: struct flock
LOCK = struct.Struct("hhqqi4x")


def lock(command: int, fd: int, kind: str, start: int, length: int) -> tuple[Any, ...]:
    """fcntl(2) on a lock; what struct flock says afterwards: type, start, length, process."""
    told = fcntl.fcntl(fd, command, LOCK.pack(KINDS[kind], os.SEEK_SET, start, length, 0))
    number, _, start, length, pid = LOCK.unpack(told)
    return NAMES[number], start, length, pid


def serve(call: str, args: list[Any]) -> Any:
    """What an actor does."""
    if call == "close":
        os.close(args[0])
    elif call == "flock":
        fcntl.flock(args[0], args[1])
    else:
        return lock(int(call), *args)
    return None


class Actor:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            self._live(theirs)
        theirs.close()
        self._socket = ours
        self._stream = ours.makefile("rw")

    def _live(self, orders: socket.socket) -> None:
        try:
            with orders.makefile("rw") as stream:
                for line in stream:
                    call, args = json.loads(line)
                    try:
                        answer: dict[str, Any] = {"gives": serve(call, args)}
                    except OSError as error:
                        answer = {"errno": error.errno}
                    print(json.dumps(answer), file=stream, flush=True)
        finally:
            os._exit(0)

    def tell(self, call: str, args: list[Any]) -> None:
        print(json.dumps([call, args]), file=self._stream, flush=True)

    def answer(self) -> Any:
        answer = json.loads(self._stream.readline())
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return answer["gives"]

    def waits_or_has_answered(self) -> bool:
        """After an order that is a call of fcntl(2)."""
        if select.select([self._socket], [], [], 0)[0]:
            return True
        # "running", or the number of the system call that it sleeps in.
        return Path(f"/proc/{self.pid}/syscall").read_text().split()[0] == str(FCNTL)

    def end(self) -> None:
        self._stream.close()
        self._socket.close()
        os.waitpid(self.pid, 0)


class Actors:
    """Part of syscalls.Syscalls."""

    open_files: dict[str, int]
    actors: dict[str, Actor]

    def fork(self, who: str) -> None:
        self.actors[who] = Actor()

    def end(self, who: str) -> None:
        self.actors.pop(who).end()

    def _do(self, who: str, call: str, *args: Any) -> Any:
        if not who:
            return serve(call, list(args))
        self.actors[who].tell(call, list(args))
        return self.actors[who].answer()

    def lock(self, who: str, file: str, kind: str, start: int, length: int) -> None:
        self._do(who, str(fcntl.F_SETLK), self.open_files[file], kind, start, length)

    def wait_lock(self, who: str, file: str, kind: str, start: int, length: int) -> None:
        self._do(who, str(fcntl.F_SETLKW), self.open_files[file], kind, start, length)

    def begin_lock(self, who: str, file: str, kind: str, start: int, length: int) -> None:
        """A lock that is waited for by finish_lock. On return the actor has it, or waits in the kernel."""
        self.actors[who].tell(str(fcntl.F_SETLKW), [self.open_files[file], kind, start, length])
        while not self.actors[who].waits_or_has_answered():
            time.sleep(0.01)

    def finish_lock(self, who: str) -> None:
        self.actors[who].answer()

    def ofd_lock(self, who: str, file: str, kind: str, start: int, length: int) -> None:
        self._do(who, str(fcntl.F_OFD_SETLK), self.open_files[file], kind, start, length)

    def holder(self, who: str, file: str, kind: str, start: int, length: int) -> tuple[str, int, int, str]:
        """What is in the way: kind, start, length, and whose it is."""
        kind, *found, pid = self._do(who, str(fcntl.F_GETLK), self.open_files[file], kind, start, length)
        if kind == "u":
            return "u", 0, 0, ""
        return kind, *found, next((name for name, actor in self.actors.items() if actor.pid == pid), str(pid))

    def flock(self, who: str, file: str, kind: str) -> None:
        self._do(who, "flock", self.open_files[file], FLOCKS[kind] | fcntl.LOCK_NB)

    def shut(self, who: str, file: str) -> None:
        """An actor closes its descriptor of a file that this process keeps open."""
        self._do(who, "close", self.open_files[file])
