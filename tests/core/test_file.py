"""OPEN, CREATE, READ, WRITE, FLUSH, RELEASE."""

import os
import socket
import stat
import subprocess
from collections.abc import Callable
from errno import EACCES, EBADF, EEXIST, EINVAL, EISDIR, ELOOP, ENFILE, ENOENT, ENOTDIR, ENXIO, EROFS, ESTALE
from pathlib import Path

import pytest

from tests.core.served import REAL_ROOT, Served
from tests.fuseclient import ROOT, FuseClient
from vfsd._fuse import lib


def open_file(client: FuseClient, name: bytes, flags: int = os.O_RDWR) -> tuple[int, int]:
    nodeid = client.lookup(ROOT, name).nodeid
    return nodeid, client.open(nodeid, flags).fh


def host_flags(served: Served, fh: int) -> int:
    """The status flags of the host's open file behind a handle."""
    fd = lib.handle_get(served.core, fh)
    with open(f"/proc/self/fdinfo/{fd}") as info:
        flags = int(info.read().split("flags:")[1].split()[0], 8)
    lib.handle_put(served.core, fh)
    return flags


def test_read_and_write(root: Path, client: FuseClient) -> None:
    (root / "f").write_bytes(b"0123456789")
    nodeid, fh = open_file(client, b"f")
    assert client.read(nodeid, fh, 4, 3) == b"3456"
    assert client.read(nodeid, fh, 100, 8) == b"89"
    assert client.read(nodeid, fh, 100, 10) == b""
    assert client.read(nodeid, fh, 0, 0) == b""
    assert client.write(nodeid, fh, b"AB", 9) == 2
    assert client.write(nodeid, fh, b"") == 0
    client.flush(nodeid, fh)
    client.release(nodeid, fh)
    assert (root / "f").read_bytes() == b"012345678AB"


@pytest.mark.parametrize("sizes", [(), (1,), (40,), (80,), (39, 1, 1), (0, 16, 0, 3, 0), (7,) * 40, (16, 4096, 4096)])
def test_any_layout_of_buffers(served: Served, root: Path, sizes: tuple[int, ...]) -> None:
    data = os.urandom(20_000)
    client = served.guest(in_sizes=sizes, out_sizes=sizes)
    entry, opened = client.create(ROOT, b"f")
    assert client.write(entry.nodeid, opened.fh, data, 3) == len(data)
    assert (root / "f").read_bytes() == b"\0\0\0" + data
    assert client.read(entry.nodeid, opened.fh, len(data), 3) == data
    assert client.read(entry.nodeid, opened.fh, 2 * len(data), 0) == b"\0\0\0" + data


def test_a_thousand_buffers(served: Served, root: Path) -> None:
    data = os.urandom(1 << 20)
    client = served.guest(in_sizes=(1000,) * 1023, out_sizes=(1024,) * 1023)
    entry, opened = client.create(ROOT, b"f")
    assert client.write(entry.nodeid, opened.fh, data) == len(data)
    assert client.read(entry.nodeid, opened.fh, len(data)) == data


def test_more_buffers_than_one_system_call_takes(served: Served) -> None:
    data = os.urandom(9_000)
    client = served.guest(in_sizes=(3,) * 2999, out_sizes=(2,) * 4000)
    entry, opened = client.create(ROOT, b"f")
    assert client.write(entry.nodeid, opened.fh, data) == len(data)
    assert client.read(entry.nodeid, opened.fh, len(data)) == data


def test_write_claims_more_than_it_brings(client: FuseClient) -> None:
    from tests.fuseclient import pack

    entry, opened = client.create(ROOT, b"f")
    body = pack("fuse_write_in", fh=opened.fh, size=11) + b"0123456789"
    client.call(lib.FUSE_WRITE, entry.nodeid, body, expect=EINVAL)
    body = pack("fuse_write_in", fh=opened.fh, size=0xFFFFFFFF) + b"0123456789"
    client.call(lib.FUSE_WRITE, entry.nodeid, body, expect=EINVAL)


@pytest.mark.parametrize("offset", [2**63, 2**64 - 1, 2**63 - 2])
def test_offsets_beyond_any_file(client: FuseClient, offset: int) -> None:
    entry, opened = client.create(ROOT, b"f")
    client.write(entry.nodeid, opened.fh, b"data")
    if offset >= 2**63:
        client.read(entry.nodeid, opened.fh, 10, offset, expect=EINVAL)
        client.write(entry.nodeid, opened.fh, b"x", offset, expect=EINVAL)
    else:
        with pytest.raises(OSError):
            client.write(entry.nodeid, opened.fh, b"xxx", offset)
    assert client.read(entry.nodeid, opened.fh, 10) == b"data"


def test_read_gives_no_more_than_there_is_room_for(root: Path, client: FuseClient) -> None:
    from tests.fuseclient import pack

    (root / "f").write_bytes(b"0123456789")
    nodeid, fh = open_file(client, b"f")
    assert client.call(lib.FUSE_READ, nodeid, pack("fuse_read_in", fh=fh, size=0xFFFFFFFF), room=4) == b"0123"
    assert client.call(lib.FUSE_READ, nodeid, pack("fuse_read_in", fh=fh, size=10), room=0) == b""


@pytest.mark.parametrize("fh", [0, 1, 2, 4096, 2**32, 2**64 - 1, 5 << 32 | 1])
def test_invented_handles(client: FuseClient, fh: int) -> None:
    client.read(ROOT, fh, 10, expect=EBADF)
    client.write(ROOT, fh, b"x", expect=EBADF)
    client.flush(ROOT, fh, expect=EBADF)
    client.release(ROOT, fh, expect=EBADF)
    client.readdir(ROOT, fh, expect=EBADF)


def test_a_released_handle_is_stale_for_ever(root: Path, client: FuseClient) -> None:
    (root / "f").touch()
    nodeid, fh = open_file(client, b"f")
    client.release(nodeid, fh)
    client.release(nodeid, fh, expect=EBADF)
    again = client.open(nodeid).fh
    assert again != fh
    client.read(nodeid, fh, 1, expect=EBADF)


def test_open_modes_and_truncation(root: Path, client: FuseClient) -> None:
    (root / "f").write_bytes(b"0123456789")
    nodeid, fh = open_file(client, b"f", os.O_RDONLY)
    client.write(nodeid, fh, b"x", expect=EBADF)
    write_only = client.open(nodeid, os.O_WRONLY).fh
    client.read(nodeid, write_only, 1, expect=EBADF)
    client.open(nodeid, os.O_RDWR | os.O_TRUNC)
    assert (root / "f").read_bytes() == b""


def test_append(root: Path, client: FuseClient) -> None:
    (root / "f").write_bytes(b"one")
    nodeid, fh = open_file(client, b"f", os.O_WRONLY | os.O_APPEND)
    client.write(nodeid, fh, b"two", 0, flags=os.O_APPEND)
    assert (root / "f").read_bytes() == b"onetwo"


def test_open_flags_are_made_safe(served: Served, root: Path, client: FuseClient) -> None:
    (root / "f").write_bytes(b"data")
    unsafe = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_DIRECT | os.O_NOATIME | os.O_NOFOLLOW | os.O_PATH
    nodeid, fh = open_file(client, b"f", os.O_RDWR | os.O_SYNC | unsafe | 1 << 31)
    flags = host_flags(served, fh)
    assert flags & os.O_ACCMODE == os.O_RDWR
    assert flags & os.O_SYNC == os.O_SYNC
    assert not flags & unsafe
    assert flags & os.O_CLOEXEC
    assert client.read(nodeid, fh, 10) == b"data"


def test_allowed_host_flags(serve: Callable[..., Served]) -> None:
    served = serve(core_flags=lib.CORE_ALLOW_DIRECT_IO | lib.CORE_PRESERVE_NOATIME)
    (served.root / "f").touch()
    nodeid = served.client.lookup(ROOT, b"f").nodeid
    try:
        fh = served.client.open(nodeid, os.O_RDONLY | os.O_DIRECT).fh
    except OSError as error:
        assert error.errno == EINVAL  # the host's file system has no O_DIRECT, and was asked
    else:
        assert host_flags(served, fh) & os.O_DIRECT
    assert host_flags(served, served.client.open(nodeid, os.O_RDONLY | os.O_NOATIME).fh) & os.O_NOATIME


def test_writeback_reads_what_it_writes(serve: Callable[..., Served]) -> None:
    served = serve(session_flags=lib.FUSE_WRITEBACK_CACHE)
    (served.root / "f").write_bytes(b"0123456789")
    nodeid, fh = open_file(served.client, b"f", os.O_WRONLY | os.O_APPEND)
    assert served.client.read(nodeid, fh, 4) == b"0123"
    served.client.write(nodeid, fh, b"AB", 0, flags=os.O_APPEND)
    assert (served.root / "f").read_bytes() == b"AB23456789"


def test_special_files_are_not_opened(root: Path, client: FuseClient) -> None:
    os.mkfifo(root / "fifo")
    special = [(b"fifo", ENXIO), (b"socket", ENXIO), (b"link", ELOOP)]
    if REAL_ROOT:
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        special.append((b"null", ENXIO))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
    (root / "link").symlink_to("fifo")
    for name, error in special:
        nodeid = client.lookup(ROOT, name).nodeid
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_NONBLOCK):
            client.open(nodeid, flags, expect=error)
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC):
            client.create(ROOT, name, flags, expect=error)
        client.create(ROOT, name, os.O_RDWR | os.O_EXCL, expect=EEXIST)


def test_create(root: Path, client: FuseClient) -> None:
    entry, opened = client.create(ROOT, b"f", mode=0o4751)
    assert entry.attr.mode == os.stat(root / "f").st_mode == stat.S_IFREG | 0o4751
    assert client.write(entry.nodeid, opened.fh, b"data") == 4
    assert client.lookup(ROOT, b"f").nodeid == entry.nodeid
    client.create(ROOT, b"f", expect=EEXIST)


def test_create_of_what_exists(root: Path, client: FuseClient) -> None:
    (root / "f").write_bytes(b"data")
    (root / "d").mkdir()
    entry, opened = client.create(ROOT, b"f", os.O_RDWR)
    assert client.read(entry.nodeid, opened.fh, 10) == b"data"
    client.create(ROOT, b"f", os.O_RDWR | os.O_TRUNC)
    assert (root / "f").read_bytes() == b""
    client.create(ROOT, b"d", os.O_RDWR, expect=EISDIR)
    client.create(client.lookup(ROOT, b"f").nodeid, b"x", expect=ENOTDIR)


def test_create_does_not_follow_a_symlink_out(root: Path, tmp_path: Path, client: FuseClient) -> None:
    (root / "l").symlink_to(tmp_path / "outside")
    client.create(ROOT, b"l", os.O_RDWR, expect=ELOOP)
    client.create(ROOT, b"l", os.O_RDWR | os.O_EXCL, expect=EEXIST)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("mode", [0o644, 0o444, 0])
def test_create_served_twice(served: Served, root: Path, mode: int) -> None:
    served.client.create(ROOT, b"f", mode=mode)
    (root / "f").write_bytes(b"by somebody else")
    entry, opened = served.again().create(ROOT, b"f", os.O_RDWR | os.O_EXCL | os.O_TRUNC, mode)
    assert (root / "f").read_bytes() == b"by somebody else", "not truncated again"
    assert served.client.write(entry.nodeid, opened.fh, b"data") == 4
    assert stat.S_IMODE((root / "f").stat().st_mode) == mode
    assert (lib.core_inode_count(served.core), lib.core_handle_count(served.core)) == (2, 1)


def test_create_of_what_is_there_served_twice(served: Served, root: Path) -> None:
    (root / "f").touch()
    served.client.create(ROOT, b"f", expect=EEXIST)
    served.again().create(ROOT, b"f", expect=EEXIST)


def test_create_in_a_removed_directory(root: Path, client: FuseClient) -> None:
    (root / "d").mkdir()
    nodeid = client.lookup(ROOT, b"d").nodeid
    (root / "d").rmdir()
    client.create(nodeid, b"f", expect=ENOENT)
    client.forget(nodeid)
    client.create(nodeid, b"f", expect=ESTALE)


def test_a_failed_create_leaves_nothing_open(serve: Callable[..., Served]) -> None:
    served = serve(records=3)
    served.client.create(ROOT, b"a")
    before = served.descriptors()
    with pytest.raises(OSError):
        served.client.create(ROOT, b"b")
    assert served.descriptors() == before


def test_open_of_an_unlinked_file(root: Path, client: FuseClient) -> None:
    (root / "f").write_bytes(b"data")
    nodeid = client.lookup(ROOT, b"f").nodeid
    (root / "f").unlink()
    assert client.read(nodeid, client.open(nodeid).fh, 10) == b"data"


def test_read_only(serve: Callable[..., Served]) -> None:
    served = serve(core_flags=lib.CORE_READONLY)
    (served.root / "f").write_bytes(b"data")
    client = served.client
    nodeid, fh = open_file(client, b"f", os.O_RDONLY)
    assert client.read(nodeid, fh, 10) == b"data"
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        client.open(nodeid, flags, expect=EROFS)
    client.create(ROOT, b"g", expect=EROFS)
    client.write(nodeid, fh, b"x", expect=EROFS)
    client.mkdir(ROOT, b"d", expect=EROFS)
    assert os.listdir(served.root) == ["f"]


def test_a_write_replayed_is_not_appended_twice(served: Served, root: Path, client: FuseClient) -> None:
    (root / "f").write_bytes(b"first\n")
    nodeid = client.lookup(ROOT, b"f").nodeid
    fh = client.open(nodeid, os.O_WRONLY | os.O_APPEND).fh
    client.write(nodeid, fh, b"second\n", 6, flags=os.O_APPEND)
    served.again().write(nodeid, fh, b"second\n", 6, flags=os.O_APPEND)
    client.write(nodeid, fh, b"third\n", 0, flags=os.O_APPEND)
    assert (root / "f").read_bytes() == b"first\nsecond\nthird\n"


def test_the_rest_of_a_write_is_appended(served: Served, root: Path, client: FuseClient) -> None:
    data = bytes(range(256)) * 1024
    (root / "f").write_bytes(b"first\n")
    nodeid, fh = open_file(client, b"f", os.O_RDWR | os.O_APPEND)
    client.write(nodeid, fh, data, 0, flags=os.O_APPEND)
    os.truncate(root / "f", 6 + 100_000)
    assert served.again().write(nodeid, fh, data, 0, flags=os.O_APPEND) == len(data)
    assert (root / "f").read_bytes() == b"first\n" + data


def test_what_another_has_appended_is_not_ours(served: Served, root: Path, client: FuseClient) -> None:
    (root / "f").write_bytes(b"first\n")
    nodeid, fh = open_file(client, b"f", os.O_RDWR | os.O_APPEND)
    client.write(nodeid, fh, b"ours\n", 0, flags=os.O_APPEND)
    (root / "f").write_bytes(b"first\ntheirs\n")
    assert served.again().write(nodeid, fh, b"ours\n", 0, flags=os.O_APPEND) == 5
    assert (root / "f").read_bytes() == b"first\ntheirs\nours\n"


def test_a_page_of_a_mapping_is_not_appended(root: Path, client: FuseClient) -> None:
    """The guest's kernel writes it by whatever handle there is (fs/fuse/file.c, fuse_write_file_get)."""
    (root / "f").write_bytes(b"0123456789")
    nodeid, fh = open_file(client, b"f", os.O_RDWR | os.O_APPEND)
    client.write(nodeid, fh, b"AB", 2, lib.FUSE_WRITE_CACHE)
    assert (root / "f").read_bytes() == b"01AB456789"


def test_a_release_replayed_is_done_already(served: Served, root: Path, client: FuseClient) -> None:
    (root / "f").touch()
    nodeid = client.lookup(ROOT, b"f").nodeid
    fh = client.open(nodeid).fh
    client.release(nodeid, fh)
    served.again().release(nodeid, fh)
    client.release(nodeid, fh, expect=EBADF)


@pytest.mark.skipif(not REAL_ROOT, reason="only root takes a caller's identity")
def test_create_does_not_open_what_its_caller_may_not(serve: Callable[..., Served]) -> None:
    """A guest before 6.3 has checked access to the directory, and knew of no file."""
    served = serve(core_flags=lib.CORE_PRIVILEGED)
    root = served.root
    (root / "secret").touch(mode=0o600)
    caller = served.guest()
    caller.uid = caller.gid = 1000
    caller.create(ROOT, b"secret", os.O_RDWR, expect=EACCES)
    (root / "public").touch()
    (root / "public").chmod(0o666)
    assert caller.create(ROOT, b"public", os.O_RDWR)


@pytest.mark.skipif(not REAL_ROOT, reason="only root can mount")
def test_files_of_proc_are_not_opened(root: Path, client: FuseClient) -> None:
    (root / "proc").mkdir()
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    try:
        at = client.lookup(ROOT, b"proc").nodeid
        for name in (str(os.getpid()).encode(), b"mem"):
            at = client.lookup(at, name).nodeid
        client.open(at, os.O_RDWR, expect=EACCES)
    finally:
        subprocess.run(["umount", "-l", root / "proc"], check=True)


def test_what_cannot_be_held_is_not_made(served: Served, root: Path, client: FuseClient) -> None:
    (root / "known").touch()
    nodeid = client.lookup(ROOT, b"known").nodeid
    fh = client.open(nodeid).fh
    served.limit(2)
    client.create(ROOT, b"new", os.O_RDWR, expect=ENFILE)
    client.mkdir(ROOT, b"dir", expect=ENFILE)
    assert os.listdir(root) == ["known"]
    (root / "other").touch()
    client.lookup(ROOT, b"other", expect=ENFILE)
    client.open(nodeid, expect=ENFILE)
    assert client.lookup(ROOT, b"known").nodeid == nodeid
    served.limit(3)
    client.open(nodeid, expect=ENFILE)  # it must be open itself, and so must the root
    client.release(nodeid, fh)
    assert client.open(nodeid).fh


def test_a_handle_opened_for_direct_io_serves_other_io_too(serve: Callable[..., Served]) -> None:
    """A mapping's pages come on it, and what a program does after it has cleared O_DIRECT: of any length, anywhere."""
    served = serve(core_flags=lib.CORE_ALLOW_DIRECT_IO)
    client = served.client
    (served.root / "f").write_bytes(b"x" * 10_000)
    nodeid = client.lookup(ROOT, b"f").nodeid
    try:
        fh = client.open(nodeid, os.O_RDWR | os.O_DIRECT).fh
    except OSError:
        pytest.skip("no direct I/O on this file system")
    assert client.write(nodeid, fh, b"odd", 777) == 3
    assert client.write(nodeid, fh, b"from a mapping", 10_000, lib.FUSE_WRITE_CACHE, os.O_DIRECT) == 14
    assert client.read(nodeid, fh, 5, 776) == b"xoddx"
    assert client.read(nodeid, fh, 100_000, 9999) == b"xfrom a mapping"
    assert host_flags(served, fh) & os.O_DIRECT
    # Without the option no handle is direct.
    served.config.flags = 0
    served.restart()
    fh = client.open(nodeid, os.O_RDWR | os.O_DIRECT).fh
    assert client.write(nodeid, fh, b"odd", 7, flags=os.O_DIRECT) == 3
