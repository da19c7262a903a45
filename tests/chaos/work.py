"""What programs do on a share while its workers are killed, checked step by step: runs in guests and on the host, with
the standard library only.

    python3 work.py PART DIRECTORY SEED ROUNDS [STOP]
    python3 work.py ping DIRECTORY PAUSE 0 STOP

PART is one of PARTS. ROUNDS of the same seed leave the same tree, whatever happens meanwhile; with STOP, a path, there
is no other once that is there. Prints the rounds and the steps that were taken. What a step finds and should not is an
exception.
"""

import json
import mmap
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

BIGGEST = 1 << 18  # bytes


class Exerciser:
    """One file, against a copy of it in memory, in the manner of fsx."""

    def __init__(self, path: Path, dice: random.Random) -> None:
        self.dice, self.model, self.steps = dice, bytearray(), 0
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self.path = path

    def span(self) -> tuple[int, int]:
        start = self.dice.randrange(BIGGEST)
        return start, self.dice.randrange(1, min(BIGGEST - start, 1 << 16) + 1)

    def put(self, start: int, data: bytes) -> None:
        if len(self.model) < start:
            self.model += bytes(start - len(self.model))
        self.model[start : start + len(data)] = data

    def write(self) -> None:
        start, size = self.span()
        data = self.dice.randbytes(size)
        assert os.pwrite(self.fd, data, start) == size
        self.put(start, data)

    def read(self) -> None:
        start, size = self.span()
        assert os.pread(self.fd, size, start) == self.model[start : start + size], f"{self.path} at {start}, {size}"

    def append(self) -> None:
        data = self.dice.randbytes(self.dice.randrange(1, 5000))
        if len(self.model) + len(data) <= BIGGEST:
            with open(self.path, "ab") as file:
                file.write(data)
            self.put(len(self.model), data)

    def truncate(self) -> None:
        size = self.dice.randrange(BIGGEST)
        os.ftruncate(self.fd, size)
        del self.model[size:]
        self.model += bytes(size - len(self.model))

    def mapped(self) -> None:
        if not self.model:
            return
        start = self.dice.randrange(len(self.model))
        data = self.dice.randbytes(min(len(self.model) - start, self.dice.randrange(1, 1 << 15)))
        with mmap.mmap(self.fd, len(self.model)) as view:
            assert view[start : start + len(data)] == self.model[start : start + len(data)]
            view[start : start + len(data)] = data
        self.put(start, data)

    def copy(self) -> None:
        """copy_file_range(2), the ranges apart."""
        start, size = self.span()
        to = self.dice.randrange(BIGGEST)
        size = min(size, len(self.model) - start, abs(to - start), BIGGEST - to)
        if size > 0:
            done = 0
            while done < size:
                copied = os.copy_file_range(self.fd, self.fd, size - done, start + done, to + done)
                assert copied > 0, f"{self.path}: {size - done} bytes at {start + done} of {os.fstat(self.fd).st_size}"
                done += copied
            self.put(to, bytes(self.model[start : start + size]))

    def sync(self) -> None:
        os.fsync(self.fd)

    def size(self) -> None:
        assert os.stat(self.path).st_size == len(self.model)

    def run(self, steps: int) -> int:
        ways = [self.write] * 4 + [self.read] * 4 + [self.append, self.truncate, self.mapped, self.copy, self.size]
        for _ in range(steps):
            self.dice.choice(ways)()
        self.sync()
        assert self.path.read_bytes() == self.model
        os.close(self.fd)
        return steps


def fsx(where: Path, dice: random.Random) -> int:
    return Exerciser(where / "file", dice).run(200)


def large(where: Path, dice: random.Random) -> int:
    """A file written and read in large pieces, by way of the cache and past it."""
    pieces = [dice.randbytes(1 << 20) for _ in range(8)]
    fd = os.open(where / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    for number, piece in enumerate(pieces):
        assert os.pwrite(fd, piece, number << 20) == len(piece)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    direct = os.open(where / "file", os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 1 << 20)
    for number, piece in enumerate(pieces):
        assert os.preadv(direct, [buffer], number << 20) == len(piece)
        assert buffer[:] == piece, f"MiB {number}, past the cache"
        assert os.pread(fd, len(piece), number << 20) == piece, f"MiB {number}"
    os.close(direct)
    os.close(fd)
    return 3 * len(pieces)


def call(*command: str, cwd: Path) -> bytes:
    moment = {f"GIT_{who}_DATE": "1700000000 +0000" for who in ("AUTHOR", "COMMITTER")}
    fixed = {**os.environ, **moment, "HOME": str(cwd), "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(command, cwd=cwd, env=fixed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise OSError(f"{command}: status {done.returncode}: {done.stdout.decode(errors='replace')}")
    return done.stdout


def git(where: Path, dice: random.Random) -> int:
    options = ["-c", "user.name=test", "-c", "user.email=t@example.org", "-c", "gc.auto=0", "-c", "safe.directory=*"]
    git = ["git", *options]
    call(*git, "init", "-q", "-b", "main", ".", cwd=where)
    for number in range(2):
        for name in range(40):
            path = where / f"d{dice.randrange(6)}" / f"f{name}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(dice.randbytes(dice.randrange(3000)))
        call(*git, "add", "-A", cwd=where)
        call(*git, "commit", "-qm", str(number), cwd=where)
    call(*git, "checkout", "-q", "-b", "other", "HEAD~1", cwd=where)
    assert call(*git, "status", "--porcelain", cwd=where) == b""
    call(*git, "checkout", "-q", "main", cwd=where)
    assert call(*git, "status", "--porcelain", cwd=where) == b""
    call(*git, "fsck", "--full", "--strict", cwd=where)
    return 120


def tar(where: Path, dice: random.Random) -> int:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(80):
            info = tarfile.TarInfo(f"t/{number % 7}/f{number}")
            info.mode, info.mtime = dice.choice([0o644, 0o600, 0o755, 0o444]), 1_600_000_000 + number
            data = dice.randbytes(dice.choice([0, 1, 4095, 4096, 20000]))
            info.size = len(data)
            if number % 10 == 9:
                info.type, info.linkname, info.size, data = tarfile.SYMTYPE, "f1", 0, b""
            elif number % 10 == 8:
                info.type, info.linkname = tarfile.LNKTYPE, f"t/{(number - 1) % 7}/f{number - 1}"
                info.size, data = 0, b""
            archive.addfile(info, BytesIO(data))
    (where / "archive.tar").write_bytes(buffer.getvalue())
    call("tar", "-xf", "archive.tar", cwd=where)
    call("tar", "-df", "archive.tar", cwd=where)
    call("tar", "-cf", "again.tar", "t", cwd=where)
    call("tar", "-df", "again.tar", cwd=where)
    os.unlink(where / "again.tar")
    return 330


def refused(error: type[OSError], function: Callable[..., object], *arguments: object) -> None:
    try:
        function(*arguments)
    except error:
        return
    raise AssertionError(f"{function} of {arguments} succeeded")


def names(where: Path, dice: random.Random) -> int:
    """Calls that must not happen twice, each looked at from both sides: done once it is so, done again is an error."""
    steps = 0
    for number in range(25):
        a, b, c = (where / f"{letter}{number}" for letter in "abc")
        os.mkdir(a)
        refused(FileExistsError, os.mkdir, a)
        with open(b, "x") as file:
            file.write(str(number))
        refused(FileExistsError, os.open, b, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.link(b, c)
        assert os.stat(b).st_nlink == 2
        refused(FileExistsError, os.link, b, c)
        os.unlink(b)
        refused(FileNotFoundError, os.unlink, b)
        assert os.stat(c).st_nlink == 1
        os.symlink("nowhere", b)
        refused(FileExistsError, os.symlink, "nowhere", b)
        assert os.readlink(b) == "nowhere"
        os.rename(c, a / "moved")
        refused(FileNotFoundError, os.rename, c, a / "moved")
        with open(a / "moved", "a") as file:
            file.write("x")
        os.mkfifo(c)
        refused(FileExistsError, os.mkfifo, c)
        os.chmod(a / "moved", dice.choice([0o600, 0o640, 0o755]))
        os.utime(a / "moved", (number, number))
        assert os.stat(a / "moved").st_mtime == number
        os.setxattr(a, "user.n", b"1", os.XATTR_CREATE)
        refused(FileExistsError, os.setxattr, a, "user.n", b"1", os.XATTR_CREATE)
        refused(OSError, os.removexattr, a, "user.none")
        assert sorted(os.listdir(a)) == ["moved"]
        assert (a / "moved").read_text() == f"{number}x"
        with open(where / "gone", "w+") as file:
            os.unlink(where / "gone")
            file.write("still")
            file.flush()
            file.seek(0)
            assert file.read() == "still"
        steps += 32
        if number % 3 == 0:
            os.mkdir(a / "sub")
            refused(OSError, os.rmdir, a)
            shutil.rmtree(a)
            refused(FileNotFoundError, os.rmdir, a)
            steps += 5
    return steps


def ping(where: Path, stop: Path, pause: float) -> None:
    """Reads that no cache answers, one after the other: prints when each was answered, s, and how long it took, ms."""
    (where / "ping").write_bytes(bytes(4096))
    reads = []
    buffer = mmap.mmap(-1, 4096)
    fd = os.open(where / "ping", os.O_RDONLY | os.O_DIRECT)
    while not stop.exists():
        for _ in range(20):
            begun = time.monotonic()
            assert os.preadv(fd, [buffer], 0) == 4096
            ended = time.monotonic()
            reads.append((round(ended, 5), round(1000 * (ended - begun), 3)))
            time.sleep(pause)
    print(json.dumps({"reads": reads}))


PARTS: dict[str, Callable[[Path, random.Random], int]] = {
    "fsx": fsx, "large": large, "git": git, "tar": tar, "names": names,
}  # fmt: skip
#: Rounds whose trees are kept.
KEPT = 3


def main() -> None:
    part, directory, seed, rounds = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    stop = Path(sys.argv[5]) if len(sys.argv) > 5 else None
    if part == "ping":
        assert stop
        ping(directory, stop, float(seed))
        return
    steps = done = 0
    while done < rounds and not (done and stop and stop.exists()):
        where = directory / f"{part}{done}"
        where.mkdir()
        steps += PARTS[part](where, random.Random(f"{seed} {part} {done}"))
        if done >= KEPT:
            shutil.rmtree(directory / f"{part}{done - KEPT}")
        done += 1
    print(json.dumps({"rounds": done, "steps": steps}))


if __name__ == "__main__":
    main()
