"""What is measured: for each workload the requests each lane repeats, and what the share must look like after each of
them."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import data, recorded
from tests.bench.build import lib
from tests.bench.data import FH, FH_AT, NODEID, NODEID_AT, Workload
from tests.bench.guest import Guest, Script
from tests.bench.layout import PAGE, Lane, Step, match, put, take
from tests.bench.share import MANY, Place, has_disk
from tests.frontend import MIB
from tests.fuseclient import REPLY_HEADER, ROOT
from tests.fusestructs import pack
from vfsd._fuse import ffi
from vfsd._fuse import lib as fuse

ENTRY: int = ffi.sizeof("struct fuse_entry_out")
ATTR: int = ffi.sizeof("struct fuse_attr_out")
OPENED: int = ffi.sizeof("struct fuse_open_out")
#: Where in the last one, with what lies beside them.
OPEN_FLAGS: int = ffi.offsetof("struct fuse_open_out", "open_flags")
STATFS: int = ffi.sizeof("struct fuse_statfs_out")
#: Where replies say what file it is.
ENTRY_NODEID = REPLY_HEADER + ffi.offsetof("struct fuse_entry_out", "nodeid")
ATTR_INO = REPLY_HEADER + ffi.offsetof("struct fuse_attr_out", "attr") + ffi.offsetof("struct fuse_attr", "ino")
#: Registers, as those of data.py.
INO, FLAGS = 2, 3
KIB = 1024
#: More steps than a lane of one operation has.
MANY_STEPS = 20
#: Seconds.
UTIMES = (1_000_000_000, 1_000_000_001)


def _known(guest: Guest, place: Place) -> int:
    nodeid: int = guest.client.lookup(place.nodeid, b"known").nodeid
    return nodeid


def _forget() -> Step:
    arguments = pack("fuse_forget_in", nlookup=1)
    return Step(fuse.FUSE_FORGET, 0, arguments, replied=False, patches=(put(NODEID_AT, NODEID),))


def _release(opcode: int = fuse.FUSE_RELEASE, flags: int = os.O_RDONLY, **more: Any) -> Step:
    return Step(opcode, arguments=pack("fuse_release_in", flags=flags), **more)


# Names and attributes.


def getattr_(guest: Guest, place: Place) -> Lane:
    ino = place.file.stat().st_ino
    step = Step(fuse.FUSE_GETATTR, _known(guest, place), pack("fuse_getattr_in"), ATTR, units=1,
                patches=(match(ATTR_INO, INO),))  # fmt: skip
    return Lane([step], [0, 0, ino])


def lookup_known(guest: Guest, place: Place) -> Lane:
    nodeid = _known(guest, place)
    step = Step(fuse.FUSE_LOOKUP, place.nodeid, b"known\0", ENTRY, units=1, patches=(match(ENTRY_NODEID, NODEID),))
    return Lane([step], [nodeid])


def lookup_missing(guest: Guest, place: Place) -> Lane:
    return Lane([Step(fuse.FUSE_LOOKUP, place.nodeid, b"missing\0", ENTRY, error=2, units=1)])


def chmod(guest: Guest, place: Place) -> Lane:
    nodeid = _known(guest, place)
    modes = [pack("fuse_setattr_in", valid=fuse.FATTR_MODE, mode=0o100000 | mode) for mode in (0o600, 0o644)]
    return Lane([Step(fuse.FUSE_SETATTR, nodeid, mode, ATTR, units=1) for mode in modes])


def chmod_check(script: Script, place: Place, done: int) -> None:
    assert place.file.stat().st_mode & 0o777 == (0o644, 0o600)[done % 2]


def rename(guest: Guest, place: Place) -> Lane:
    _known(guest, place)
    to = pack("fuse_rename_in", newdir=place.nodeid)
    names = (b"known\0renamed\0", b"renamed\0known\0")
    return Lane([Step(fuse.FUSE_RENAME, place.nodeid, to + both, units=1) for both in names])


def rename_check(script: Script, place: Place, done: int) -> None:
    names = {path.name for path in place.path.iterdir()}
    assert names & {"known", "renamed"} == {("known", "renamed")[done % 2]}


def mkdir_rmdir(guest: Guest, place: Place) -> Lane:
    made = pack("fuse_mkdir_in", mode=0o755, umask=0o22)
    return Lane([
        Step(fuse.FUSE_MKDIR, place.nodeid, made + b"made\0", ENTRY, patches=(take(ENTRY_NODEID, NODEID),)),
        Step(fuse.FUSE_RMDIR, place.nodeid, b"made\0", units=1),
        _forget(),
    ])  # fmt: skip


def mkdir_check(script: Script, place: Place, done: int) -> None:
    assert (place.path / "made").is_dir() == (done == 1)


def readdirplus(guest: Guest, place: Place) -> Lane:
    nodeid = guest.client.lookup(ROOT, b"many").nodeid
    fh = guest.client.opendir(nodeid).fh
    # A page at a time, as Linux 6.1 does.
    step = Step(fuse.FUSE_READDIRPLUS, nodeid, pack("fuse_read_in", fh=fh, size=PAGE), data=lib.DRIVER_ENTRIES,
                size=PAGE, offset_at=ffi.offsetof("struct fuse_read_in", "offset"), entries=MANY)  # fmt: skip
    return Lane([step])


def utimens(guest: Guest, place: Place) -> Lane:
    nodeid = _known(guest, place)
    valid = fuse.FATTR_ATIME | fuse.FATTR_MTIME
    times = [pack("fuse_setattr_in", valid=valid, atime=second, mtime=second) for second in UTIMES]
    return Lane([Step(fuse.FUSE_SETATTR, nodeid, each, ATTR, units=1) for each in times])


def utimens_check(script: Script, place: Place, done: int) -> None:
    assert place.file.stat().st_mtime == UTIMES[1 - done % 2]


def statfs(guest: Guest, place: Place) -> Lane:
    return Lane([Step(fuse.FUSE_STATFS, _known(guest, place), b"", STATFS, units=1)])


# Other names.


def readlink(guest: Guest, place: Place) -> Lane:
    nodeid = guest.client.lookup(place.nodeid, b"link").nodeid
    return Lane([Step(fuse.FUSE_READLINK, nodeid, b"", len("known"), units=1)])


def _made_unlinked(opcode: int, place: Place, arguments: bytes) -> Lane:
    return Lane([
        Step(opcode, place.nodeid, arguments, ENTRY, patches=(take(ENTRY_NODEID, NODEID),)),
        Step(fuse.FUSE_UNLINK, place.nodeid, b"made\0", units=1),
        _forget(),
    ])  # fmt: skip


def symlink_unlink(guest: Guest, place: Place) -> Lane:
    return _made_unlinked(fuse.FUSE_SYMLINK, place, b"made\0target\0")


def symlink_check(script: Script, place: Place, done: int) -> None:
    assert (place.path / "made").is_symlink() == (done == 1)


def link_unlink(guest: Guest, place: Place) -> Lane:
    return _made_unlinked(fuse.FUSE_LINK, place, pack("fuse_link_in", oldnodeid=_known(guest, place)) + b"made\0")


def link_check(script: Script, place: Place, done: int) -> None:
    assert place.file.stat().st_nlink == (2 if done == 1 else 1)


# Open files.


def open_release(guest: Guest, place: Place) -> Lane:
    nodeid = _known(guest, place)
    opened = Step(fuse.FUSE_OPEN, nodeid, pack("fuse_open_in", flags=os.O_RDONLY), OPENED,
                  patches=(take(REPLY_HEADER, FH),))  # fmt: skip
    return Lane([opened, _release(nodeid=nodeid, units=1, patches=(put(FH_AT, FH),))])


def opendir_releasedir(guest: Guest, place: Place) -> Lane:
    opened = Step(fuse.FUSE_OPENDIR, place.nodeid, pack("fuse_open_in", flags=os.O_RDONLY | os.O_DIRECTORY), OPENED,
                  patches=(take(REPLY_HEADER, FH),))  # fmt: skip
    closed = _release(fuse.FUSE_RELEASEDIR, nodeid=place.nodeid, units=1, patches=(put(FH_AT, FH),))
    return Lane([opened, closed])


def create_cycle(guest: Guest, place: Place) -> Lane:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    created = pack("fuse_create_in", flags=flags, mode=0o100644, umask=0o22)
    known = put(NODEID_AT, NODEID), put(FH_AT, FH)
    opened = REPLY_HEADER + ENTRY
    return Lane([
        Step(fuse.FUSE_CREATE, place.nodeid, created + b"created\0", ENTRY + OPENED,
             patches=(take(ENTRY_NODEID, NODEID), take(opened, FH), take(opened + OPEN_FLAGS, FLAGS))),
        data.write_step(0, 0, PAGE, patches=known),
        # Not sent where the daemon has said that it needs none.
        Step(fuse.FUSE_FLUSH, arguments=pack("fuse_flush_in"), patches=known, unless=(FLAGS, fuse.FOPEN_NOFLUSH)),
        _release(flags=flags, patches=known),
        Step(fuse.FUSE_UNLINK, place.nodeid, b"created\0", units=1),
        _forget(),
    ], end=PAGE)  # fmt: skip


def create_check(script: Script, place: Place, done: int) -> None:
    path = place.path / "created"
    assert path.exists() == (1 <= done <= 4)
    if done in (2, 3, 4):
        assert path.read_bytes() == script.data(place.number, 1)


# What guests have done.


def _recorded(name: str) -> Workload:
    macro = functools.cache(recorded.load)

    def lane(guest: Guest, place: Place) -> Lane:
        root = place.path / name
        if not root.exists():
            recorded.make(root, macro(name).files)
        return recorded.lane(macro(name), guest.client.lookup(place.nodeid, os.fsencode(name)).nodeid)

    def finished(script: Script, place: Place) -> None:
        found = [file._replace(mode=0) for file in recorded.manifest(place.path / name)]
        assert found == [file._replace(mode=0) for file in macro(name).files]

    made = recorded.WORKS[name].makes
    return Workload(recorded.WORKS[name].title, lane, "", finished=finished, depth=8, makes=made)


WORKLOADS = {
    "getattr": Workload("getattr", getattr_, "getattr"),
    "lookup": Workload("lookup, known inode", lookup_known, "lookup"),
    "missing": Workload("lookup, missing name", lookup_missing, "missing"),
    "statfs": Workload("statfs", statfs, "statfs"),
    "readlink": Workload("readlink", readlink, "readlink"),
    "open": Workload("open + release", open_release, "open"),
    "opendir": Workload("opendir + releasedir", opendir_releasedir, "opendir"),
    "create": Workload(
        "create, write 4K, flush, release, unlink", create_cycle, "create", check=create_check, makes=True
    ),
    "readdirplus": Workload("readdirplus, per entry", readdirplus, "readdirplus"),
    "rename": Workload("rename", rename, "rename", check=rename_check),
    "chmod": Workload("chmod", chmod, "chmod", check=chmod_check),
    "utimens": Workload("utimens", utimens, "utimens", check=utimens_check),
    "mkdir": Workload("mkdir + rmdir", mkdir_rmdir, "mkdir", check=mkdir_check, makes=True),
    "symlink": Workload("symlink + unlink", symlink_unlink, "symlink", check=symlink_check, makes=True),
    "link": Workload("link + unlink", link_unlink, "link", check=link_check),
    "read-4k": data.read("read 4K", PAGE),
    "read-64k": data.read("read 64K", 64 * KIB),
    "read-128k": data.read("read 128K", 128 * KIB),
    "read-1m": data.read("read 1M", MIB),
    "random-read-4k": data.read("read 4K at random", PAGE, True),
    "random-read-64k": data.read("read 64K at random", 64 * KIB, True),
    "write-4k": data.write("write 4K", PAGE),
    "write-64k": data.write("write 64K", 64 * KIB),
    "write-128k": data.write("write 128K", 128 * KIB),
    "write-1m": data.write("write 1M", MIB),
    "random-write-4k": data.write("write 4K at random", PAGE, True),
    "random-write-64k": data.write("write 64K at random", 64 * KIB, True),
    "fsync": data.fsync("write 4K + fsync"),
    "cold-read": data.read_cold("read 4K at random, from the disk"),
}


WORKLOADS.update({f"recorded-{name}": _recorded(name) for name in recorded.WORKS})


def available(where: Path) -> list[str]:
    """Those that can be done there."""
    return [name for name, each in WORKLOADS.items() if not each.cold or has_disk(where)]


def verify(guest: Guest, workload: Workload, script: Script, where: Sequence[Place], content: bytes) -> None:
    """All lanes go through their requests once, one at a time; after each the share is looked at, if there are few."""
    compared = content if workload.compared else None
    steps = len(script.described[0].steps)
    if steps > MANY_STEPS:
        guest.run(script)
    for done in range(1, steps + 1) if steps <= MANY_STEPS else ():
        guest.run(script, limit=1, content=compared)
        for place in where if not guest.daemon.kind.alone else ():
            workload.check(script, place, done)
    if not guest.daemon.kind.alone:
        for place in where:
            workload.finished(script, place)
