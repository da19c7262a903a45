"""Random operations on a guest with a DAX window: what a guest, its host and its machine do, one after the other."""

import errno
import os
from collections import Counter
from typing import ClassVar

from tests.daemon.windowed import FLAGS, File, Model, refusing
from tests.fuseclient import HEADER, NO_HANDLE, REPLY_HEADER, ROOT, pack, unpack
from tests.shmem import PAGE
from vfsd._fuse import lib

FILES = 6
LARGEST = 40 * PAGE  # bytes of a file


class Storm:
    """Random operations, one after the other. Each method but `run` and those it names is one."""

    def __init__(self, model: Model) -> None:
        self.model, self.guest, self.client, self.random = model, model.guest, model.guest.client, model.random
        self.count: Counter[str] = Counter()
        #: The daemon may doubt what is mapped, so that it takes a refused unmap for one of what is gone.
        self.doubtful = False
        self.names = 0
        self.pages = model.size // PAGE
        for _ in range(FILES):
            self.make()

    # Choices.

    def make(self) -> None:
        self.names += 1
        self.model.add(f"f{self.names}", self.random.randrange(LARGEST))

    def file(self, linked: bool = False) -> File:
        return self.random.choice([file for file in self.model.files if file.linked or not linked])

    def range(self) -> tuple[int, int]:
        pages = self.random.choice((1, 1, 2, 3, 5, 8, 16, 64))
        return self.random.randrange(self.pages - pages + 1) * PAGE, pages * PAGE

    def ranges(self) -> list[tuple[int, int]]:
        return [self.range() for _ in range(self.random.choice((0, 1, 1, 1, 2, 4, 20)))]

    def wanted(self) -> tuple[File, int, int, int]:
        """(file, its offset, length, offset in the window): mostly, a file lies where it lay before."""
        offset, length = self.range()
        file = self.file()
        at = offset % LARGEST if self.random.random() < 0.7 else self.random.randrange(LARGEST // PAGE) * PAGE
        return file, at, length, offset

    def data(self) -> bytes:
        return self.random.randbytes(self.random.choice((1, 100, PAGE, 3 * PAGE)))

    # The window.

    def setup(self) -> None:
        file, at, length, offset = self.wanted()
        fh = self.random.choice(file.fhs) if file.fhs and self.random.random() < 0.5 else NO_HANDLE
        error = self.model.setup(file, at, length, offset, self.random.random() < 0.6, fh)
        assert error in (0, errno.EIO)
        self.count["refused"] += error == errno.EIO

    def remove(self) -> None:
        assert self.model.remove(self.ranges()) in (0, errno.EIO)

    def nonsense(self) -> None:
        file, (offset, length) = self.file(), self.range()
        bad = self.random.choice(
            ((0, length, offset + 512), (0, length + 1, offset), (512, length, offset), (0, length, self.model.size),
             (0, 0, 0), (0, 1 << 62, 0), (0, PAGE, (1 << 64) - PAGE))
        )  # fmt: skip
        assert self.model.setup(file, *bad) == errno.EINVAL
        assert self.model.remove([(offset, length), (offset, self.model.size + PAGE)]) == errno.EINVAL

    def refusal(self) -> None:
        self.guest.fe.refuses = refusing(self.random.choice((0.3, 1.0)), self.random, not self.doubtful)
        for _ in range(self.random.randrange(1, 4)):
            self.random.choice((self.setup, self.remove))()
            self.model.check()
        del self.guest.fe.refuses

    def together(self) -> None:
        """Several requests at once, each in its own part of the window."""
        parts, queue, begun = self.random.randrange(2, 9), self.guest.fe.queue(1), len(self.guest.fe.handled)
        size, asked = self.pages // parts, []
        for part in range(parts):
            pages = self.random.randrange(1, min(size, 40))
            offset, length = (part * size + self.random.randrange(size - pages)) * PAGE, pages * PAGE
            if self.random.random() < 0.6:
                file, at = self.file(), self.random.randrange(20) * PAGE
                body = pack("fuse_setupmapping_in", fh=NO_HANDLE, foffset=at, len=length, moffset=offset, flags=3)
                opcode, nodeid = lib.FUSE_SETUPMAPPING, self.model.known(file)
                self.model.set(offset, length, file, at)
            else:
                body = pack("fuse_removemapping_in", count=1) + pack(
                    "fuse_removemapping_one", moffset=offset, len=length
                )
                opcode, nodeid = lib.FUSE_REMOVEMAPPING, ROOT
                self.model.set(offset, length)
            unique = next(self.client.uniques)
            head = pack("fuse_in_header", len=HEADER + len(body), opcode=opcode, unique=unique, nodeid=nodeid)
            asked.append((unique, queue.add([head + body], [REPLY_HEADER])))
        queue.kick()
        if self.random.random() < 0.2:
            self.guest.kill()
        for unique, head in asked:
            answer = unpack("fuse_out_header", queue.wait(head).data)
            assert (answer.unique, answer.error) == (unique, 0)
        assert self.model.follow(0, begun) == 0

    # What is in the files, by every way there is.

    def store(self) -> None:
        """By the guest, through the window."""
        runs = [run for run in self.model.runs() if run[2] and len(run[2].data) > run[3] * PAGE]
        if not runs:
            return
        page, pages, file, first = self.random.choice(runs)
        assert file
        room = min(pages * PAGE, len(file.data) - first * PAGE)
        at = self.random.randrange(room)
        data = self.data()[: room - at]
        self.guest.fe.window[0].write(page * PAGE + at, data)
        self.model.write(file, first * PAGE + at, data)
        self.model.check_file(file)

    def write(self) -> None:
        """By the guest, in a request."""
        file, data = self.file(), self.data()
        offset = self.random.randrange(min(len(file.data) + 2 * PAGE, LARGEST))
        fh = self.model.handle(file)
        assert self.client.write(file.nodeid, fh, data, offset) == len(data)
        self.model.write(file, offset, data)

    def host_write(self) -> None:
        file, data = self.file(), self.data()
        offset = self.random.randrange(min(len(file.data) + 2 * PAGE, LARGEST))
        fd = self.model.host_fd(file)
        os.pwrite(fd, data, offset)
        os.close(fd)
        self.model.write(file, offset, data)

    def host_truncate(self) -> None:
        file, size = self.file(), self.random.randrange(LARGEST)
        fd = self.model.host_fd(file)
        os.ftruncate(fd, size)
        os.close(fd)
        self.model.resize(file, size)

    def truncate(self) -> None:
        file, size = self.file(), self.random.choice((0, self.random.randrange(LARGEST)))
        self.client.setattr(self.model.known(file), size=size)
        self.model.resize(file, size)

    def punch(self) -> None:
        file, offset, length = self.file(), self.random.randrange(LARGEST), self.random.randrange(1, 5 * PAGE)
        fh = self.model.handle(file)
        self.client.fallocate(file.nodeid, fh, offset, length, mode=3)
        hole = max(min(length, len(file.data) - offset), 0)
        file.data[offset : offset + hole] = bytes(hole)

    # Files that come and go.

    def open(self) -> None:
        file = self.file()
        if len(file.fhs) < 3:
            self.model.open(file, self.random.choice((os.O_RDWR, os.O_RDONLY)) if file.fhs else os.O_RDWR)

    def close(self) -> None:
        file = self.file()
        self.model.close_handles(file)
        self.end(file)

    def forget(self) -> None:
        file = self.file()
        if not file.fhs:
            self.model.forget(file)
            self.end(file)

    def unlink(self) -> None:
        """Its last handle, or the FORGET, is the end of it."""
        file = self.file(linked=True)
        self.model.known(file)
        file.host = self.model.host_fd(file)
        file.linked = False
        self.client.unlink(ROOT, file.name.encode())
        self.make()

    def end(self, file: File) -> None:
        if not file.linked and not file.fhs:
            self.model.forget(file)
            self.model.lose(file)

    # What happens to the device.

    def pause(self) -> None:
        self.guest.pause()
        self.doubtful = True

    def reset(self) -> None:
        self.guest.fe.reset()
        self.guest.fe.start()
        self.client.init(flags=FLAGS)
        self.model.gone()
        self.doubtful = False

    def remount(self) -> None:
        if self.random.random() < 0.6:
            self.client.destroy()
            assert not self.guest.fe.window[0].mappings
        self.client.init(flags=FLAGS)
        assert not self.guest.fe.window[0].mappings
        self.model.gone()
        self.doubtful = False

    # How requests are disturbed.

    def disturb(self) -> None:
        kind = self.random.random()
        if kind < 0.4:
            self.guest.disturb = self.guest.kill
        elif kind < 0.8:
            self.guest.disturb = self.guest.caught(self.guest.kill)
        else:
            self.guest.disturb = self.guest.caught(self.guest.interrupt)
            self.doubtful = True
            self.count["interrupts"] += 1
        self.count["disturbed"] += 1

    OPERATIONS: ClassVar = {
        setup: 30, remove: 14, store: 14, write: 6, host_write: 6, host_truncate: 4, truncate: 3, punch: 2, open: 4,
        close: 3, forget: 3, unlink: 3, together: 5, nonsense: 1, refusal: 2, pause: 1, reset: 0.5, remount: 0.7,
    }  # fmt: skip

    def run(self, operations: int) -> None:
        fe = self.guest.fe
        choices = self.random.choices(list(self.OPERATIONS), list(self.OPERATIONS.values()), k=operations)
        for number, operation in enumerate(choices):
            fe.delay = self.random.choice((0, 0, 0, 0, 0.003))
            fe.lag = self.random.choice((0, 0, 0.001))
            if operation.__name__ in ("setup", "remove", "write", "truncate") and self.random.random() < 0.05:
                self.disturb()
            self.count[operation.__name__] += 1
            operation(self)
            self.guest.disturb = None
            fe.gate.set()
            self.model.check()
            if number % 50 == 0:
                for file in self.model.files:
                    self.model.check_file(file)
        assert not fe.late, "something was asked of a front-end whose device is stopped"
