"""Records of inodes and handles that nobody should believe."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.core.records import Record, begin, load
from tests.core.served import Served
from tests.fuseclient import ROOT
from vfsd._fuse import ffi, lib

Serve = Callable[..., Served]


def records(root: Path) -> list[Record]:
    """A directory in the root, and a file in it, as two slots of generations 1 and 2."""
    (root / "d").mkdir(exist_ok=True)
    (root / "d/file").touch()
    directory = Record(1 << 32 | 2, 1, ROOT, 0, 0o040000, 0, lib.STATE_PATH, 1, 0, b"d")
    return [directory, Record(2 << 32 | 3, 1, directory.nodeid, 0, 0o100000, 0, lib.STATE_PATH, 4, 0, b"file")]


@pytest.fixture
def ready(serve: Serve) -> Served:
    target = serve(session_flags=lib.FUSE_EXPORT_SUPPORT)
    assert lib.state_set_numbers(target.core, ffi.new("struct state_numbers *", [8, 9, 8, 9])) == 0
    return target


def test_records_by_hand(ready: Served) -> None:
    directory, file = records(ready.root)
    assert load(ready, directory.pack() + file.pack()) == []
    assert ready.client.lookup(directory.nodeid, b"file").nodeid == file.nodeid


BAD: dict[str, Callable[[Record], bytes]] = {
    "the header's slot": lambda file: file._replace(nodeid=9 << 32).pack(),
    "the root": lambda file: file._replace(nodeid=ROOT).pack(),
    "beyond the table": lambda file: file._replace(nodeid=1 << 32 | 8).pack(),
    "without a generation": lambda file: file._replace(nodeid=3).pack(),
    "of a later generation": lambda file: file._replace(nodeid=10 << 32 | 3).pack(),
    "a slot twice": lambda file: file.pack() + file.pack(),
    "no type": lambda file: file._replace(type=0).pack(),
    "two types": lambda file: file._replace(type=0o160000).pack(),
    "no way to find it": lambda file: file._replace(how=3).pack(),
    "no name": lambda file: file._replace(len=0, bytes=b"").pack(),
    "a name with an end in it": lambda file: file._replace(bytes=b"fi\0e").pack(),
    "a name too long": lambda file: file._replace(len=4096, bytes=b"n" * 4096).pack(),
    "a handle too long": lambda file: file._replace(how=lib.STATE_HANDLE, len=129, bytes=b"n" * 129).pack(),
    "cut off": lambda file: file.pack()[:-8],
    "its head cut off": lambda file: file.pack()[:40],
    "lost without a reason": lambda file: file._replace(how=lib.STATE_LOST).pack(),
    "lost for a strange reason": lambda file: file._replace(how=lib.STATE_LOST, error=5000).pack(),
}


@pytest.mark.parametrize("spoiled", BAD)
def test_a_record_that_makes_no_sense(ready: Served, spoiled: str) -> None:
    directory, file = records(ready.root)
    assert load(ready, directory.pack() + BAD[spoiled](file)) == [errno.EBADMSG]


LEADS_NOWHERE = {
    b"../outside": errno.EXDEV,
    b"/etc/passwd": errno.EXDEV,
    b"away": errno.ELOOP,
    b"away/secret": errno.ELOOP,
    b"inner/file": errno.ELOOP,
    b"nothing": errno.ENOENT,
    b"d/../../outside": errno.EXDEV,
    b"d/file/x": errno.ENOTDIR,
}


@pytest.mark.parametrize("path", LEADS_NOWHERE)
def test_no_path_leads_out(ready: Served, path: bytes) -> None:
    """Nor through a symbolic link. Only a name that is one may be opened, as what it is."""
    outside = ready.root.parent / "outside"
    outside.mkdir()
    (outside / "secret").touch()
    os.symlink(outside, ready.root / "away")
    os.symlink("d", ready.root / "inner")
    _, file = records(ready.root)
    expected = LEADS_NOWHERE[path]
    if path == b"away":
        expected = errno.ESTALE
    assert load(ready, file._replace(base=ROOT, len=len(path), bytes=path).pack()) == [expected]


def test_one_inode_is_one_nodeid(ready: Served) -> None:
    directory, file = records(ready.root)
    other = file._replace(nodeid=3 << 32 | 4)
    root = directory._replace(nodeid=4 << 32 | 5, bytes=b".")
    data = b"".join(record.pack() for record in (directory, file, other, root))
    assert load(ready, data) == [errno.EEXIST, errno.EEXIST]


@pytest.mark.parametrize("base", [0, 3 << 32 | 4, 2 << 32 | 3, (1 << 64) - 1])
def test_nothing_is_found_through_what_is_not_there(ready: Served, base: int) -> None:
    directory, file = records(ready.root)
    assert load(ready, directory.pack() + file._replace(base=base).pack()) == [errno.ESTALE]


def test_nothing_is_found_through_a_file(ready: Served) -> None:
    directory, file = records(ready.root)
    beyond = file._replace(nodeid=3 << 32 | 4, base=file.nodeid)
    assert load(ready, directory.pack() + file.pack() + beyond.pack()) == [errno.ENOTDIR]


@pytest.mark.parametrize("fields", [(1, 9, 8, 9), (8, 9, 0, 9), (5000, 9, 8, 9), (8, 9, 5000, 9), (1 << 31, 9, 8, 9)])
def test_tables_of_impossible_sizes(serve: Serve, fields: tuple[int, ...]) -> None:
    target = serve()
    assert lib.state_set_numbers(target.core, ffi.new("struct state_numbers *", fields)) == -errno.EBADMSG


def test_tables_in_use_take_nothing(served: Served) -> None:
    served.client.create(ROOT, b"x")
    assert lib.state_set_numbers(served.core, ffi.new("struct state_numbers *", [99, 99, 99, 99])) == -errno.EBADMSG


@pytest.mark.parametrize("fh", [0, 3, 1 << 32, 1 << 32 | 8, 10 << 32 | 3])
def test_a_handle_that_makes_no_sense(ready: Served, fh: int) -> None:
    directory, file = records(ready.root)
    load(ready, directory.pack() + file.pack())
    handle = ffi.new("struct state_handle *", {"fh": fh, "nodeid": file.nodeid})
    assert lib.state_load_handle(ready.core, handle) == -errno.EBADMSG


def test_a_handle_does_no_more_than_an_open_one(ready: Served) -> None:
    directory, file = records(ready.root)
    (ready.root / "d/file").write_bytes(b"contents")
    load(ready, directory.pack() + file.pack())
    opened = {"fh": 1 << 32 | 3, "nodeid": file.nodeid, "flags": os.O_RDWR | os.O_TRUNC | os.O_CREAT | os.O_EXCL}
    assert lib.state_load_handle(ready.core, ffi.new("struct state_handle *", opened)) == 0
    assert lib.state_load_handle(ready.core, ffi.new("struct state_handle *", opened)) == -errno.EBADMSG
    assert ready.client.read(file.nodeid, 1 << 32 | 3, 100) == b"contents"
    opened.update(fh=2 << 32 | 4, flags=os.O_DIRECTORY)
    assert lib.state_load_handle(ready.core, ffi.new("struct state_handle *", opened)) == -errno.ENOTDIR
    opened.update(nodeid=77)
    assert lib.state_load_handle(ready.core, ffi.new("struct state_handle *", opened)) == -errno.ESTALE


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=8), st.integers(0, 200))
@example([(8 * 5 + 4, 1)], 200)
def test_damaged_records(tmp_path: Path, damage: list[tuple[int, int]], length: int) -> None:
    """Whatever comes, it is refused or taken, and the tables are good for the next worker."""
    target = Served(tmp_path, session_flags=lib.FUSE_EXPORT_SUPPORT, records=64)
    lib.state_set_numbers(target.core, ffi.new("struct state_numbers *", [8, 9, 8, 9]))
    data = bytearray(b"".join(record.pack() for record in records(target.root)))
    for at, value in damage:
        data[at % len(data)] = value
    load(target, bytes(data[:length]), lib.STATE_TAGS if len(damage) % 2 else 0)
    begin(target)
    target.client.list(ROOT, plus=True)
    target.close()
