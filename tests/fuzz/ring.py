"""Random and mutated rings for the engine: `run(count, seed)`.

Every ring is opened on the same guest memory, run on this thread until it breaks, and closed. While it runs, each chain
it serves is compared with a model that walks the same memory in Python; so is the errno it breaks with. Around the
memory, which ends amid a page, lies a pattern that must stay. One ring in ten is recovered from a random in-flight
region. At the end of a run a second process writes to the rings while they are served: then there is no model, but
every buffer must still lie in guest memory.

A ring that hangs ends the process with a traceback (`faulthandler`). It means most in a sanitizer build.
"""

import contextlib
import faulthandler
import mmap
import os
import random
import signal
import time
from collections.abc import Iterator
from errno import E2BIG, EFAULT, EPROTO
from typing import Any

from tests.driver import DESCRIPTOR, INDIRECT, MAX, NEXT, WRITE, Layout
from tests.fuzz.model import BrokenRingError, Model, ModelChain
from vhost._virtq import ffi, lib

HANG = 30.0  # seconds
GUARD = 2 * 4096
USER = 0x7F00_0000_0000
BASE = 0x10_0000  # guest physical address of the first region
SIZES = (0x4000, 0x1840, 0x800)  # adjacent regions, the last with a part of a page
TOTAL = sum(SIZES)
TABLES = (BASE + 0x3E00, 0x600)  # where indirect tables are put: it crosses from the first region to the second
NUMS = (1, 2, 4, 8, 16)
BATCH = 1000
FLIPPED = 20  # one ring in so many is also written to while it runs


class Fuzzer:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.served = self.completed = self.replayed = self.indirect = 0
        self.errors: dict[int, int] = {}
        self._memory()
        self.state = ffi.new("struct virtq_state *")
        self.inflight = ffi.new("struct virtq_inflight *", {"desc": max(NUMS)})
        self.model = Model(self.guest, BASE, SIZES)
        self.config = ffi.new("struct virtq_config *", {"state": self.state, "inflight": self.inflight})
        self.config.memory, self.config.kick, self.config.call = self.view, -1, -1
        self.err = self.config.err = os.eventfd(0, os.EFD_NONBLOCK)
        self.config.stop = -1
        self.error = ffi.new("int *")
        self.wild = [b"".join(self._descriptor() for _ in range(64)) for _ in range(256)]
        self.tame = [self._chains(indirect=bool(i & 1)) for i in range(256)]
        self.modelled = True
        self.deferred: list[tuple[Any, int]] = []
        self.problems: list[str] = []
        self.handler = ffi.callback("int64_t(void *, struct virtq_chain *)", self._serve, error=0)

    def _memory(self) -> None:
        """Guest memory in one file, the regions one after the other; a log with bytes to spare."""
        self.fd = os.memfd_create("fuzz")
        size = GUARD + TOTAL + GUARD
        os.truncate(self.fd, size)
        self.file = mmap.mmap(self.fd, size)
        self.file[:] = b"\xa5" * size
        self.guest = memoryview(self.file)[GUARD : GUARD + TOTAL]
        self.u16 = self.guest.cast("H")
        self.table = ffi.new("struct memory_table *", {"regions": len(SIZES)})
        self.table.capacity = len(SIZES)
        offset = 0
        for length in SIZES:
            region = ffi.new("struct memory_region *", {"guest_addr": BASE + offset, "size": length, "fd": self.fd})
            region.user_addr, region.mmap_offset = USER + offset, GUARD + offset
            assert lib.memory_append(self.table, region) == 0
            offset += length
        self.log_size = (BASE + TOTAL) // 4096 // 8
        self.log = ffi.new("uint8_t[]", self.log_size + 64)
        self.view = lib.memory_new(self.table, self.log, self.log_size)
        self.hosts, offset = [], 0
        for length in SIZES:
            host = int(ffi.cast("uintptr_t", lib.memory_user(self.view, USER + offset, length)))
            self.hosts.append((host, length, offset))
            offset += length

    # Making rings.

    def _address(self) -> int:
        choose = self.random
        kind = choose.randrange(16)
        if kind < 9:
            return BASE + choose.randrange(TOTAL)
        if kind < 12:
            return TABLES[0] + 16 * choose.randrange(TABLES[1] // 16)
        if kind < 14:
            edge = choose.choice([BASE, BASE + SIZES[0], BASE + SIZES[0] + SIZES[1], BASE + TOTAL])
            return edge + choose.randrange(-40, 41)
        return choose.choice([choose.getrandbits(64), (1 << 64) - choose.randrange(1, 64)])

    def _descriptor(self) -> bytes:
        """One descriptor, as often right as wrong."""
        choose = self.random
        length = choose.choice([0, 1, 16, 16, 32, 48, 160, choose.randrange(600), choose.randrange(0x3000)])
        if not choose.randrange(60):
            length = choose.getrandbits(32)
        flags = choose.choice([0, NEXT, NEXT, NEXT, WRITE, WRITE, NEXT | WRITE, NEXT | WRITE, INDIRECT, INDIRECT])
        if flags == INDIRECT:
            address, length = (TABLES[0] + 16 * choose.randrange(64), 16 * choose.randrange(1, 17))
        else:
            address = self._address()
        if not choose.randrange(40):
            flags = choose.choice([INDIRECT | NEXT, INDIRECT | WRITE, choose.getrandbits(16)])
        following = choose.getrandbits(16) if not choose.randrange(60) else choose.randrange(8)
        return DESCRIPTOR.pack(address, length, flags, following)

    def _chains(self, indirect: bool) -> bytes:
        """A table of 64 descriptors without fault: chains one after the other, some ending in an indirect table."""
        choose = self.random
        table: list[tuple[int, int, int]] = []
        while len(table) < 64:
            readable, writable = choose.randrange(4), choose.randrange(4)
            flags = [0] * readable + [WRITE] * writable or [0]
            for i, flag in enumerate(flags):
                length = choose.choice([0, 1, 16, 40, 80, choose.randrange(600)])
                address = BASE + choose.randrange(TOTAL - length)
                table.append((address, length, flag | (NEXT if i < len(flags) - 1 else 0)))
            if indirect and not choose.randrange(3):
                table[-1] = (TABLES[0] + 256 * choose.randrange(4), 16 * choose.randrange(1, 17), INDIRECT)
        return b"".join(DESCRIPTOR.pack(*table[i], i % 16 + 1) for i in range(64))

    def _ring(self) -> int:
        """Fills guest memory with a ring; returns the number of entries made available."""
        choose, guest = self.random, self.guest
        num = self.num = choose.choice(NUMS)
        if choose.randrange(4):
            base = 64 * choose.randrange(0x30)
            where = Layout(base, base + 16 * num, base + 16 * num + 64, base + 0x400)
        else:  # in the last region, the used ring at its end
            where = Layout(TOTAL - 0x400, TOTAL - 0x300, TOTAL - (8 + 8 * num), TOTAL)
        self.where = where
        config = self.config
        config.num, config.event_idx, config.indirect = num, choose.getrandbits(1), choose.randrange(8) > 0
        config.desc_addr, config.avail_addr, config.used_addr = (USER + part for part in where[:3])
        config.log_used, config.log_addr = choose.randrange(4) == 0, choose.choice([BASE + where.used, self._address()])
        tame = choose.randrange(4) > 0
        start = 16 * choose.randrange(40) if not tame else 256 * choose.randrange(4)
        guest[where.desc : where.desc + 16 * num] = choose.choice(self.tame if tame else self.wild)[
            start : start + 16 * num
        ]
        if not choose.randrange(4):
            guest[TABLES[0] - BASE : TABLES[0] - BASE + 1024] = choose.choice(self.tame[::2] if tame else self.wild)
        index = self.index = choose.getrandbits(16)
        entries = choose.randrange(num + 1)
        avail = where.avail // 2
        distinct = tame and choose.getrandbits(1)
        heads = choose.sample(range(num), k=num) if distinct else choose.choices(range(num), k=num)
        if not choose.randrange(20):
            heads[choose.randrange(num)] = choose.getrandbits(16)
        for i, head in enumerate(heads):
            self.u16[avail + 2 + i] = head
        self.u16[avail] = self.u16[where.used // 2] = 0
        self.u16[where.used // 2 + 1] = index
        for _ in range(choose.choice([0, 0, 0, 1, 4])):
            guest[choose.randrange(TOTAL)] = choose.getrandbits(8)
        self.used_idx = self.u16[where.used // 2 + 1]
        self.end = (index + entries + choose.choice([num + 1, 0x8000, MAX - num])) & MAX  # no ring survives it
        self.u16[avail + 1] = (index + entries) & MAX if entries else self.end
        return entries

    def _dead_worker(self) -> None:
        """A random in-flight region, mostly near one that makes sense. No entries are available after it."""
        choose, region = self.random, self.inflight
        self.state.started = 1
        region.version, region.desc_num = choose.choice([1] * 15 + [0]), self.num
        region.last_batch_head = choose.randrange(self.num + 1)
        region.used_idx = (self.used_idx - choose.choice([0, 0, 1, 1, 2, self.num, self.num + 1, 0x7000])) & MAX
        for i in range(self.num):
            desc = region.desc[i]
            desc.inflight, desc.next = choose.choice([0, 0, 1]), choose.randrange(self.num + 1)
            desc.counter = choose.choice([choose.randrange(8), choose.getrandbits(64)])
        self.u16[self.where.avail // 2 + 1] = (self.used_idx + 0x8000) & MAX

    # Running them.

    def _inside(self, iov: Any, count: int) -> list[tuple[int, int]]:
        """Host buffers as offsets into guest memory; reads and writes their ends."""
        found = []
        for i in range(count):
            address, length = int(ffi.cast("uintptr_t", iov[i].iov_base)), iov[i].iov_len
            for host, size, offset in self.hosts:
                if host <= address and address + length <= host + size:
                    found.append((address - host + offset, length))
                    break
            else:
                self.problems.append(f"buffer {address:#x}+{length:#x} is outside guest memory")
        return found

    def _serve(self, _opaque: Any, chain: Any) -> int:
        try:
            return self._serve_chain(chain)
        except BaseException as error:
            self.problems.append(f"handler: {error!r}")
            return 0

    def _serve_chain(self, chain: Any) -> int:
        self.served += 1
        self.replayed += chain.replay
        readable = self._inside(getattr(chain, "in"), chain.in_count)
        writable = self._inside(chain.out, chain.out_count)
        if any(chain.head == other.head for other, _ in self.deferred):
            self.problems.append(f"head {chain.head} taken twice")
        if self.modelled:
            self.taken.append(chain.head)
            model = self._walk(chain.head)
            self.indirect += model.indirect
            faults = (bool(chain.fault & lib.VIRTQ_FAULT_IN), bool(chain.fault & lib.VIRTQ_FAULT_OUT))
            if (*model[:2], model.faults) != (readable, writable, faults):
                self.problems.append(f"chain {readable} {writable}, expected {model}")
        if chain.in_len != sum(n for _, n in readable) or chain.out_len != sum(n for _, n in writable):
            self.problems.append("lengths do not add up")
        choose = self.random
        if self.modelled and not choose.randrange(4):
            for offset, length in writable[:4]:
                part = min(length, 40)
                self.guest[offset : offset + part] = choose.randbytes(part)
        if len(self.taken) == self.entries:
            self.u16[self.where.avail // 2 + 1] = self.end
        length = choose.choice([0, chain.out_len, choose.getrandbits(32)])
        if not choose.randrange(8):
            self.deferred.append((chain, length & 0xFFFF_FFFF))
            return int(lib.VIRTQ_DEFERRED)
        return int(length)

    def _expected(self) -> int:
        """The errno the ring should have broken with, from memory as it is now."""
        replays = self.replays
        done = len(self.taken)
        if replays is not None:
            return self._walk_errno(replays[done]) if done < len(replays) else EPROTO
        if self.u16[self.where.avail // 2 + 1] == self.end:
            return EPROTO
        head = self.u16[self.where.avail // 2 + 2 + (self.index + done) % self.num]
        busy = {chain.head for chain, _ in self.deferred}
        return EPROTO if head >= self.num or head in busy else self._walk_errno(head)

    def _walk(self, head: int) -> ModelChain:
        return self.model.walk(self.where.desc, self.num, head, bool(self.config.indirect))

    def _walk_errno(self, head: int) -> int:
        try:
            self._walk(head)
        except BrokenRingError as error:
            return int(error.args[0])
        return 0

    def _resubmitted(self) -> list[int] | None:
        """Heads to be served again, in order; None when the in-flight region makes no sense."""
        region = self.inflight
        size = (self.used_idx - region.used_idx) & MAX
        if region.version != 1 or size > self.num:
            return None
        marks = {i for i in range(self.num) if region.desc[i].inflight}
        head = region.last_batch_head
        for _ in range(size):
            if head >= self.num:
                return None
            marks.discard(head)
            head = region.desc[head].next
        return sorted(marks, key=lambda i: (region.desc[i].counter, i))

    def ring(self) -> None:
        """One ring, from opening to closing."""
        choose = self.random
        self.state.started = self.state.broken = self.state.popped = self.state.completed = 0
        self.entries = self._ring()
        self.taken: list[int] = []
        self.replays: list[int] | None = None
        self.state.last_avail_idx = self.index
        if not choose.randrange(10):
            self._dead_worker()
            self.replays, self.entries = self._resubmitted() or [], -1
        queue = lib.virtq_new(self.config, self.error)
        assert queue, self.error[0]
        result = lib.virtq_run(queue, self.handler, ffi.NULL)
        if result not in (-EPROTO, -EFAULT, -E2BIG) or self.state.broken != -result:
            self.problems.append(f"virtq_run returned {result}, broken {self.state.broken}")
        self.errors[-result] = self.errors.get(-result, 0) + 1
        if self.modelled and result != -self._expected():
            self.problems.append(f"broke with {-result}, expected {self._expected()}")
        if os.eventfd_read(self.err) != 1:
            self.problems.append("error eventfd")
        if lib.virtq_pending(queue) != len(self.deferred):
            self.problems.append(f"{lib.virtq_pending(queue)} pending, {len(self.deferred)} deferred")
        for chain, length in self.deferred:
            lib.virtq_complete(chain, length)
        self.deferred.clear()
        if lib.virtq_pending(queue):
            self.problems.append("pending after all were completed")
        lib.virtq_free(queue)
        self.completed += self.state.completed

    def check(self) -> None:
        """Raises AssertionError for what went wrong since the last time."""
        assert not self.problems, self.problems[:5]
        assert not self.file[:GUARD].strip(b"\xa5"), "written before guest memory"
        assert not self.file[GUARD + TOTAL :].strip(b"\xa5"), "written after guest memory"
        assert not any(self.log[self.log_size : self.log_size + 64]), "written after the log"

    def close(self) -> None:
        lib.memory_free(self.view)
        self.u16.release()
        self.guest.release()
        self.file.close()
        os.close(self.fd)
        os.close(self.err)

    @contextlib.contextmanager
    def flipping(self, seed: int) -> Iterator[None]:
        """Another process writes to the rings all the while; now and then an index no ring survives."""
        self.modelled = False
        child = os.fork()
        if not child:
            signal.alarm(600)
            flip(self.file, random.Random(seed))
        try:
            yield
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            self.modelled = True


def flip(file: mmap.mmap, choose: random.Random) -> None:
    words = memoryview(file)[GUARD : GUARD + TOTAL].cast("H")
    last = (TOTAL - 0x300) // 2 + 1
    offsets = [*range(0x800), *range((TABLES[0] - BASE) // 2, (TABLES[0] - BASE + 1024) // 2)]
    offsets += range((TOTAL - 0x400) // 2, TOTAL // 2)
    for_indexes = [(64 * base + 16 * num) // 2 + 1 for base in range(0x30) for num in NUMS] + [last] * 16
    while True:
        for _ in range(200):
            words[choose.choice(offsets)] = choose.choice([choose.getrandbits(16), choose.randrange(16)])
        for at in for_indexes:
            words[at] = choose.getrandbits(16)


def run(count: int, seed: int) -> str:
    """Feeds `count` rings to the engine; one sentence of what they did. AssertionError names the seed to repeat."""
    fuzzer = Fuzzer(seed)
    flipped = count // FLIPPED
    begun = time.monotonic()
    for first in range(0, count, BATCH):
        faulthandler.dump_traceback_later(HANG, exit=True)
        try:
            with fuzzer.flipping(first) if first >= count - flipped else contextlib.nullcontext():
                for _ in range(min(BATCH, count - first)):
                    fuzzer.ring()
            fuzzer.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, rings {first} to {first + BATCH}: {error}") from error
        finally:
            faulthandler.cancel_dump_traceback_later()
    fuzzer.close()
    rate = count / (time.monotonic() - begun)
    errors = ", ".join(f"{os.strerror(error)} {number}" for error, number in sorted(fuzzer.errors.items()))
    return (
        f"{count} rings at {rate:.0f}/s: {fuzzer.served} chains served "
        f"({fuzzer.indirect} with indirect tables, {fuzzer.replayed} again), "
        f"{fuzzer.completed} completed; broken by {errors}"
    )


if __name__ == "__main__":
    import sys

    print(run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
