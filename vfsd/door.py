"""The door: one FUSE request that C does not serve enters Python here, on the ring's own thread.

Rule 1. An op's OSError is a reply. Whatever else it raises is our fault: logged once per op, and EIO for the guest. But
        one that runs short of memory is the end of this worker: the next one serves the request again.
Rule 2. An op sees bytes that were copied once and returns bytes; guest memory is never in sight.
Rule 3. The ring waits while an op runs. What may wait for a disk is `blocking`: a pool runs it, the ring goes on. What
        may have to wait for another request `waits`: EAGAIN is its "not yet", and it is parked. What is not ours to
        do is a `Question` to the control process.
"""

import errno
import logging
import os
import threading
import tokenize  # noqa: F401  (what a traceback needs is imported now: in the sandbox there is nothing to import from)
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, NamedTuple, NoReturn, Protocol

from vfsd._fuse import ffi, lib
from vfsd.core import Core
from vfsd.threads import begin

log = logging.getLogger("vfsd.door")


class Request(NamedTuple):
    """What an op sees of a request besides its arguments: fields of struct fuse_in_header, and ours."""

    nodeid: int
    unique: int
    #: The guest's caller. All ones when unknown, on idmapped mounts.
    uid: int
    gid: int
    #: struct memo *: what is kept of it for a worker that finds it in flight. NULL where nothing is (vfsd/fuse/once.c).
    memo: Any
    #: Bytes the guest has room for.
    room: int

    @property
    def begun(self) -> bool:
        """Whether `before` was called for it by a worker that died. It may have done the rest, too."""
        return bool(self.memo and self.memo.has_fact)

    def before(self, look: Callable[[], int]) -> int:
        """What `look` said before anything was done, though it may have been in another worker's life."""
        memo = self.memo
        if not memo:
            return look()
        if not memo.has_fact:
            memo.fact = look()
            memo.has_fact = 1
        return memo.fact  # type: ignore[no-any-return]


class Question(bytes):
    """What an op returns that is not ours to do: a question to the owner of the DAX window. When it is done, the guest
    gets `reply`."""

    reply: bytes = b""


#: Called with (Core, Request), the arguments, and (Request, arguments) of all that is parked: whether to wait would be
#: for ever. It is answered EDEADLK then.
Deadlock = Callable[[Core, Request, Any, Sequence[tuple[Request, Any]]], bool]


@dataclass(frozen=True, slots=True)
class Op:
    """One row of OPS."""

    name: str
    opcode: int
    #: Called with (Core, Request), then the struct, then the names or the tail; returns the reply without its header.
    function: Callable[..., bytes]
    #: struct in <linux/fuse.h> that the arguments start with, as a pointer type; None: none.
    argument: Any
    size: int
    #: NUL-terminated strings after the struct.
    names: int
    #: Pass the bytes after the struct instead of names.
    tail: bool
    blocking: bool
    #: EAGAIN is no answer: the request is parked, unless this says not to.
    waits: Deadlock | None

    def unpack(self, body: bytes) -> list[Any]:
        """The arguments as the function takes them. EINVAL for a body too short, or a string without its end."""
        arguments: list[Any] = []
        if self.argument is not None:
            if len(body) < self.size:
                raise OSError(errno.EINVAL, "arguments too short")
            arguments.append(ffi.from_buffer(self.argument, body))
        if self.tail:
            arguments.append(body[self.size :])
        elif self.names:
            # Extensions may follow the names, so what is behind the last NUL is not looked at.
            names = body[self.size :].split(b"\0", self.names)
            if len(names) <= self.names:
                raise OSError(errno.EINVAL, "a name does not end")
            arguments += names[: self.names]
        return arguments

    def run(self, core: Core, request: Request, body: bytes) -> tuple[int, bytes]:
        """The length of the reply and the reply, or -errno and nothing."""
        try:
            reply = self.function(core, request, *self.unpack(body))
            if len(reply.reply if isinstance(reply, Question) else reply) > request.room:
                raise OSError(errno.EINVAL, "no room for the reply")
            return len(reply), reply
        except OSError as error:
            # The guest's kernel takes 1 to 511 for an errno and ends the connection over others (fuse_dev_do_write).
            return -error.errno if error.errno and 0 < error.errno < 512 else -errno.EIO, b""
        except MemoryError:
            end_short_of_memory()
        except Exception:
            if self.name not in _failed:
                _failed.add(self.name)
                log.exception("%s failed in a way nobody foresaw; the guest gets EIO", self.name)
            return -errno.EIO, b""


#: Every op that Python serves, by opcode: exactly the rows of the table in C that have no function.
OPS: dict[int, Op] = {}

#: Ops that have logged a traceback.
_failed: set[str] = set()


def op(
    name: str,
    argument: str | None = None,
    names: int = 0,
    tail: bool = False,
    blocking: bool = False,
    waits: Deadlock | None = None,
) -> Callable[[Callable[..., bytes]], Callable[..., bytes]]:
    """Registers the function that serves FUSE_<name>. `argument` is a struct's name; see `Op`."""

    def register(function: Callable[..., bytes]) -> Callable[..., bytes]:
        opcode = getattr(lib, f"OP_{name}", None) or getattr(lib, f"FUSE_{name}")
        kind = ffi.typeof(f"struct {argument} *") if argument else None
        size = ffi.sizeof(kind.item) if kind else 0
        OPS[opcode] = Op(name, opcode, function, kind, size, names, tail, blocking, waits)
        return function

    return register


class Pool:
    """Threads for blocking ops, and those that are lent to C. Made in a worker before its rings run, closed after they
    stopped. What is submitted before it has started waits for that.

    `threads` of them at first. One more comes, and stays, whenever all are busy, up to `most`: they are held up for as
    long as a disk or a server is slow.
    """

    def __init__(self, threads: int = 4, most: int = 32) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._count, self._most = threads, most
        self._threads, self._lent = list[threading.Thread](), list[threading.Thread]()
        self._lock = threading.Lock()
        #: Threads less tasks, begun or not.
        self._free = 0

    def start(self) -> None:
        with self._lock:
            self._add(self._count)

    def submit(self, task: Callable[[], None]) -> None:
        self._queue.put(task)
        with self._lock:
            self._free -= 1
            if self._threads and self._free < 0 and len(self._threads) < self._most:
                # Where there is no thread to be had, those that are there come to it in time.
                with suppress(RuntimeError):
                    self._add(1)

    def lend(self, work: Callable[[], None]) -> None:
        """Has a thread of its own do some work, which ends by itself before `close` is called."""
        self._lent += begin([(f"lent {len(self._lent)}", work)])

    def close(self) -> None:
        """Returns when every task submitted has run."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads + self._lent:
            thread.join()

    def _add(self, count: int) -> None:
        """Called with the lock held."""
        first = len(self._threads)
        self._threads += begin([(f"blocking {n}", self._work) for n in range(first, first + count)])
        self._free += count

    def _work(self) -> None:
        while task := self._queue.get():
            task()
            with self._lock:
                self._free += 1


class Parking(Protocol):
    """vfsd.parking.Parking."""

    def park(self, chain: Any, op: Op, request: Request, body: bytes) -> tuple[int, bytes]: ...


@dataclass(frozen=True, slots=True)
class Door:
    """Where the requests of one core enter."""

    core: Core
    pool: Pool | None
    parking: Parking | None


_doors: dict[Any, Door] = {}


def open_door(core: Core, pool: Pool | None = None, parking: Parking | None = None) -> None:
    """Lets requests of `core` in. Without a pool blocking ops run on the ring's thread; without parking none waits."""
    _doors[core.pointer] = Door(core, pool, parking)


def close_door(core: Core) -> None:
    """Drains the pool; to be called before core.close(), after the rings have stopped."""
    door = _doors.pop(core.pointer)
    if door.pool:
        lib.fuse_lent_end(core.pointer)
        door.pool.close()


def end_short_of_memory() -> NoReturn:
    """Ends this process. What was in flight is the next worker's, which starts afresh."""
    with suppress(MemoryError):
        log.error("a worker is short of memory")
    os._exit(1)


def _raised(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Before an op runs nothing else is foreseen."""
    if isinstance(error, MemoryError):
        end_short_of_memory()


@ffi.def_extern(error=-errno.EIO, onerror=_raised)  # type: ignore[untyped-decorator]
def fuse_door(core: Any, packet: Any) -> int:
    """The fuse_door_function of core.h. `packet`, a struct fuse_request, is valid until this returns."""
    door = _doors[core]
    header = packet.header
    op = OPS[header.opcode]
    request = Request(header.nodeid, header.unique, header.uid, header.gid, packet.memo, packet.reply_max)
    body = ffi.buffer(packet.arg, packet.arg_len)[:]
    chain = packet.chain if packet.chain and packet.chain.queue else None
    if chain and op.blocking and door.pool:
        door.pool.submit(lambda: _finish(door.core, chain, op, request, body))
        return lib.VIRTQ_DEFERRED  # type: ignore[no-any-return]
    result, reply = op.run(door.core, request, body)
    if isinstance(reply, Question):
        return door.core.window.ask(chain, request, reply) if chain and door.core.window else -errno.ENOSYS
    if result == -errno.EAGAIN and chain and op.waits and door.parking:
        result, reply = door.parking.park(chain, op, request, body)
    ffi.memmove(packet.reply, reply, len(reply))
    return result


@ffi.def_extern(error=-errno.EIO, onerror=_raised)  # type: ignore[untyped-decorator]
def fuse_lend(core: Any, work: int) -> int:
    """The fuse_lend_function of config.h."""
    pool = _doors[core].pool
    if not pool:
        return -errno.EAGAIN
    pool.lend(lambda: lib.fuse_lent(core, work))
    return 0


def _finish(core: Core, chain: Any, op: Op, request: Request, body: bytes) -> None:
    result, reply = op.run(core, request, body)
    lib.fuse_finish(core.pointer, chain, request.unique, reply, result)
