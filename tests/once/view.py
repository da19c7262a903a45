"""What a guest, its host and the daemon's records look like after a request: as plain values that can be compared.

What no two runs have in common is left out, or said in other words: an inode by its name, a nodeid by whether it
answers for that inode, a time not at all.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.core.served import HEADER, RECORD
from tests.daemon.daemon import open_files
from tests.fuseclient import FuseClient
from tests.fusestructs import Dirent
from vfsd._fuse import ffi, lib


def tree(root: Path) -> dict[str, Any]:
    """Everything below a directory, by its path relative to it."""
    found = {}
    for path in sorted([root, *root.rglob("*")]):
        host = path.lstat()
        content: Any = None
        if stat.S_ISREG(host.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(host.st_mode):
            content = os.readlink(path)
        elif not stat.S_ISDIR(host.st_mode):
            content = host.st_rdev
        names = [] if stat.S_ISLNK(host.st_mode) else os.listxattr(path)
        attributes = {name: os.getxattr(path, name) for name in names}
        size = 0 if stat.S_ISDIR(host.st_mode) else host.st_size
        found[str(path.relative_to(root))] = (
            oct(host.st_mode), host.st_uid, host.st_gid, host.st_nlink, size, content, attributes
        )  # fmt: skip
    return found


def names(root: Path) -> dict[int, str]:
    """Inode numbers of what is below a directory."""
    return {path.lstat().st_ino: str(path.relative_to(root)) for path in sorted([root, *root.rglob("*")], reverse=True)}


class Arena:
    """A worker's arena, read from outside. Its records have a valid mark first."""

    def __init__(self, pid: int, name: str, record: int) -> None:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if f"memfd:{name}" in line:
                self._start = int(line.partition("-")[0], 16)
                break
        self._pid, self._record = pid, record

    def valid(self) -> Iterator[tuple[int, bytes]]:
        """Slots and records that are marked valid."""
        with open(f"/proc/{self._pid}/mem", "rb", 0) as memory:
            high = HEADER.unpack(os.pread(memory.fileno(), HEADER.size, self._start))[3]
            data = os.pread(memory.fileno(), high * self._record, self._start)
        for slot in range(1, high):
            record = data[slot * self._record : (slot + 1) * self._record]
            if record[:4] == b"\1\0\0\0":
                yield slot, record


class Records:
    """What the daemon has on record: (slot, generation) of each, and what is said of it."""

    def __init__(self, control: int) -> None:
        inodes = Arena(control, "vfsd-inodes", lib.INODE_RECORD)
        #: Inode number and nlookup.
        self.inodes = {
            (slot, fields[1]): (fields[3], fields[6])
            for slot, record in inodes.valid()
            if slot > 1 and (fields := RECORD.unpack(record))
        }
        self.handles = {
            (slot, record[4:8]) for slot, record in Arena(control, "vfsd-handles", lib.HANDLE_RECORD).valid()
        }
        self.locks = {(slot, record[4:8]) for slot, record in Arena(control, "vfsd-locks", 48).valid()}
        self.descriptors = len(open_files(control))

    def since(self, before: "Records", known: dict[int, str]) -> dict[str, Any]:
        """What there is that was not there."""
        return {
            "nlookup": sorted(
                (known.get(ino, "gone"), count) for key, (ino, count) in self.inodes.items() if key not in before.inodes
            ),
            "handles": len(self.handles - before.handles),
            "lock owners": len(self.locks - before.locks),
            "descriptors": self.descriptors - before.descriptors,
        }


def host_locks(known: dict[int, str]) -> list[tuple[str, ...]]:
    """The locks on inodes of these numbers: proc(5), /proc/locks."""
    found = []
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()[1:]
        ino = int(fields[4].rpartition(":")[2]) if "->" not in fields else -1
        if ino in known:
            found.append((known[ino], fields[0], fields[2], *fields[5:]))
    return sorted(found)


def answers(client: FuseClient, nodeid: int, ino: int) -> bool:
    """Whether the guest may use this nodeid, and it is that inode."""
    with contextlib.suppress(OSError):
        return bool(client.getattr(nodeid).attr.ino == ino)
    return False


def plain(reply: Any, client: FuseClient, known: dict[int, str]) -> Any:
    """A reply without what differs from run to run."""
    if isinstance(reply, OSError):
        return ("errno", reply.errno)
    if isinstance(reply, tuple) and not isinstance(reply, Dirent):
        return tuple(plain(part, client, known) for part in reply)
    if isinstance(reply, list):
        return sorted((entry.name, entry.type, plain(entry.entry, client, known)) for entry in reply)
    if not isinstance(reply, ffi.CData):
        return reply
    kind = ffi.typeof(reply).item.cname
    if kind == "struct fuse_entry_out":
        if reply.nodeid == 0:
            return None
        return (known.get(reply.attr.ino, "gone"), answers(client, reply.nodeid, reply.attr.ino), *_attr(reply.attr))
    if kind == "struct fuse_attr_out":
        return (known.get(reply.attr.ino, "gone"), *_attr(reply.attr))
    if kind == "struct fuse_open_out":
        return (kind, reply.fh != 0, reply.open_flags)
    raise TypeError(kind)


def _attr(attr: Any) -> tuple[Any, ...]:
    return oct(attr.mode), attr.nlink, attr.uid, attr.gid, attr.size if not stat.S_ISDIR(attr.mode) else 0
