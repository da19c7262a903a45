"""What a modification leaves of a file's privileges, in every combination. Run as root on any file system.

    python3 cells.py DIRECTORY [UID:GID [without]]

The files belong to UID:GID, and have no capabilities with "without".

Prints {"operation caller bits capability": outcome} as JSON. An outcome is what is left of "suid", "sgid" and "cap" by
stat and getxattr, after the errno of an operation that failed. Plain Python, for a guest: it imports nothing of ours.
"""

import ctypes
import errno
import json
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

SIZE = 8192


def callers(owner: int, group: int) -> dict[str, tuple[int, int, list[int]]]:
    """uid, gid, supplementary groups."""
    return {
        "root": (0, 0, []),
        "owner": (owner, 1000, []),
        "owner in group": (owner, group, []),
        "member": (1001, group, []),
        "supplementary member": (1001, 1001, [group]),
        "other": (1002, 1002, []),
    }


#: Everybody may write.
BITS = {
    "none": 0o777,
    "suid": 0o4777,
    "sgid": 0o2777,
    "sgid-x": 0o2767,
    "suid+sgid": 0o6777,
    "suid+sgid-x": 0o6767,
}
CAPABILITY = "security.capability"
#: cap_net_raw=ep (struct vfs_cap_data of revision 2, <linux/capability.h>).
CAPABILITY_VALUE = bytes.fromhex("0100000200200000000000000000000000000000")

_libc = ctypes.CDLL(None, use_errno=True)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC)


def _with(flags: int, use: Callable[[int], object]) -> Callable[[str], None]:
    """An operation on an open file."""

    def operation(path: str) -> None:
        fd = _open(path, flags)
        try:
            use(fd)
        finally:
            os.close(fd)

    return operation


def _mapped(fd: int) -> None:
    with mmap.mmap(fd, SIZE) as mapping:
        mapping[:4] = b"new!"
        mapping.flush()


def _direct(fd: int) -> None:
    buffer = mmap.mmap(-1, 4096)
    os.pwrite(fd, buffer, 0)


def _fallocate(mode: int) -> Callable[[str], None]:
    def use(fd: int) -> None:
        if _libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(4096)):
            raise OSError(ctypes.get_errno(), "fallocate")

    return _with(os.O_RDWR, use)


def _from_beside(use: Callable[[int, int], object]) -> Callable[[str], None]:
    """An operation that reads the file `source` in the same directory."""

    def operation(path: str) -> None:
        source = _open(os.path.join(os.path.dirname(path), "source"), os.O_RDONLY)
        try:
            _with(os.O_WRONLY, lambda fd: use(source, fd))(path)
        finally:
            os.close(source)

    return operation


def _splice(fd: int) -> None:
    end, start = os.pipe()
    os.write(start, b"new!")
    try:
        os.splice(end, fd, 4)
    finally:
        os.close(end)
        os.close(start)


def _chown_other(path: str) -> None:
    if os.geteuid():
        os.chown(path, -1, os.getegid())
    else:
        os.chown(path, 1003, 3000)


OPERATIONS: dict[str, Callable[[str], None]] = {
    "write": _with(os.O_WRONLY, lambda fd: os.write(fd, b"new!")),
    "write nothing": _with(os.O_WRONLY, lambda fd: os.pwrite(fd, b"", 0)),
    "write O_DIRECT": _with(os.O_WRONLY | os.O_DIRECT, _direct),
    "write O_SYNC": _with(os.O_WRONLY | os.O_SYNC, lambda fd: os.pwrite(fd, b"new!", 0)),
    "append": _with(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"new!")),
    "mmap": _with(os.O_RDWR, _mapped),
    "ftruncate": _with(os.O_WRONLY, lambda fd: os.ftruncate(fd, 10)),
    "ftruncate same size": _with(os.O_WRONLY, lambda fd: os.ftruncate(fd, SIZE)),
    "truncate": lambda path: os.truncate(path, 10),
    "open O_TRUNC": _with(os.O_WRONLY | os.O_TRUNC, lambda fd: None),
    "open O_RDONLY|O_TRUNC": _with(os.O_RDONLY | os.O_TRUNC, lambda fd: None),
    "creat": _with(os.O_WRONLY | os.O_CREAT | os.O_TRUNC, lambda fd: None),
    "chown same": lambda path: os.chown(path, os.stat(path).st_uid, os.stat(path).st_gid),
    "chown other": _chown_other,
    "chown -1": lambda path: os.chown(path, -1, -1),
    "fchown -1": _with(os.O_RDONLY, lambda fd: os.fchown(fd, -1, -1)),
    "chmod": lambda path: os.chmod(path, 0o6755),
    "utime": lambda path: os.utime(path, (1, 1)),
    "fallocate": _fallocate(0),
    "fallocate keep size": _fallocate(1),
    "fallocate punch": _fallocate(3),
    "fallocate zero": _fallocate(16),
    "copy_file_range": _from_beside(lambda source, fd: os.copy_file_range(source, fd, 4096)),
    "sendfile": _from_beside(lambda source, fd: os.sendfile(fd, source, 0, 4096)),
    "splice": _with(os.O_WRONLY, _splice),
}


def cells(capabilities: list[str]) -> Iterator[tuple[str, str, str, str]]:
    for operation in OPERATIONS:
        for caller in callers(0, 0):
            for bits in BITS:
                for capability in capabilities:
                    yield operation, caller, bits, capability


def _make(path: str, owner: int, group: int, bits: int, capability: bool) -> None:
    with open(path, "xb") as file:
        file.write(bytes(SIZE))
        os.fchown(file.fileno(), owner, group)
        os.fchmod(file.fileno(), bits)
        file.flush()
    if capability:
        os.setxattr(path, CAPABILITY, CAPABILITY_VALUE)
    # Truncation and writing took the bits that are to be tested, where the caller's privilege does not count.
    os.chmod(path, bits)


def left(path: str) -> list[str]:
    """The privileges of a file."""
    mode = os.stat(path).st_mode
    found = [name for name, bit in (("suid", 0o4000), ("sgid", 0o2000)) if mode & bit]
    return [*found, "cap"] if CAPABILITY in os.listxattr(path) else found


def _as(caller: tuple[int, int, list[int]], jobs: list[tuple[str, str]]) -> list[str]:
    """Runs (operation, path) jobs as this caller, in a process of its own. Their errnos by name, or ""."""
    uid, gid, groups = caller
    end, start = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        with os.fdopen(start, "w") as out:
            for operation, path in jobs:
                try:
                    OPERATIONS[operation](path)
                    print("", file=out)
                except OSError as error:
                    print(errno.errorcode[error.errno or 0], file=out)
        os._exit(0)
    os.close(start)
    with os.fdopen(end) as answers:
        lines = answers.read().split("\n")[:-1]
    os.waitpid(child, 0)
    assert len(lines) == len(jobs), f"{caller} ended after {len(lines)} of {len(jobs)}"
    return lines


def run(directory: Path, owner: int, group: int, capabilities: list[str]) -> dict[str, str]:
    os.umask(0)
    os.chmod(directory, 0o777)
    (directory / "source").write_bytes(b"s" * SIZE)
    chosen = list(cells(capabilities))
    paths = {cell: str(directory / " ".join(cell)) for cell in chosen}
    for cell, path in paths.items():
        _make(path, owner, group, BITS[cell[2]], cell[3] == "cap")
    failed: dict[tuple[str, str, str, str], str] = {}
    for name, caller in callers(owner, group).items():
        own = [cell for cell in chosen if cell[1] == name]
        failed.update(zip(own, _as(caller, [(cell[0], paths[cell]) for cell in own]), strict=True))
    return {" / ".join(cell): " ".join([*filter(None, [failed[cell]]), *left(paths[cell])]) for cell in chosen}


def main(directory: str, owner: str = "1000:2000", without: str = "") -> None:
    uid, _, gid = owner.partition(":")
    print(json.dumps(run(Path(directory), int(uid), int(gid), ["no cap"] if without else ["no cap", "cap"])))


if __name__ == "__main__":
    main(*sys.argv[1:])
