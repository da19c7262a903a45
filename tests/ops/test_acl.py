"""Ids in the values of extended attributes."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL, EPERM
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuseclient import ROOT
from tests.ops.mount import Mount, share
from vfsd.acl import CAPABILITY, acl, capability, to_guest, to_host
from vfsd.settings import Settings
from vfsd.translate import Owner, rule, tables
from vfsd.xattrmap import ACLS

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NONE = 2**32 - 1
ENTRIES = st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1))


def made(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def usual(user: int, group: int) -> bytes:
    return made(
        (USER_OBJ, 7, NONE), (USER, 6, user), (GROUP_OBJ, 5, NONE), (GROUP, 4, group), (MASK, 7, NONE), (OTHER, 0, NONE)
    )


def test_users_and_groups_each_have_their_own_translation() -> None:
    assert acl(usual(5, 5), lambda id: id + 1000, lambda id: id + 2000) == usual(1005, 2005)


@given(st.lists(ENTRIES))
def test_nothing_but_ids_of_users_and_groups_changes(entries: list[tuple[int, int, int]]) -> None:
    flipped = acl(made(*entries), lambda id: id ^ 1, lambda id: id ^ 2)
    assert flipped == made(*((tag, perm, id ^ {USER: 1, GROUP: 2}.get(tag, 0)) for tag, perm, id in entries))
    assert acl(flipped, lambda id: id ^ 1, lambda id: id ^ 2) == made(*entries)


@given(st.binary(max_size=64))
def test_what_is_no_acl_is_refused(value: bytes) -> None:
    good = not value or (value[:4] == b"\2\0\0\0" and len(value) % 8 == 4)
    try:
        assert len(acl(value, lambda id: id, lambda id: id)) == len(value) and good
    except OSError as error:
        assert error.errno == EINVAL and not good


@pytest.mark.parametrize("value", [b"\2", b"\2\0\0", b"\1\0\0\0", made((USER, 1, 1))[:-1], made() + b"x", b"\0\0\0\2"])
def test_no_acls(value: bytes) -> None:
    with pytest.raises(OSError, match="not a POSIX ACL"):
        acl(value, lambda id: id, lambda id: id)


def test_a_capability_of_a_namespace_names_its_root() -> None:
    old = struct.pack("<5I", 0x02000001, 1, 2, 3, 4)
    new = struct.pack("<6I", 0x03000001, 1, 2, 3, 4, 1000)
    assert capability(new, lambda id: id + 5) == struct.pack("<6I", 0x03000001, 1, 2, 3, 4, 1005)
    for other in (old, new[:-1], new + b"\0", b"", b"\3", struct.pack("<6I", 0x02000001, 1, 2, 3, 4, 5)):
        assert capability(other, lambda id: id + 5) == other


@contextmanager
def translated(path: Path, *rules: str, one: Owner | None = None) -> Iterator[Mount]:
    found = [rule(text) for text in rules]
    ids = tables(found, found, one, Owner(os.geteuid(), os.getegid())) if rules or one else None
    with share(path, Settings(xattr=True, posix_acl="always", ids=ids)) as mount:
        yield mount


@pytest.mark.parametrize("name", ACLS)
def test_both_directions(tmp_path: Path, name: bytes) -> None:
    with translated(tmp_path, "map:0:1000:10", "forbid-guest:20:1") as mount:
        assert to_host(mount.core, name, usual(3, 4)) == usual(1003, 1004)
        assert to_guest(mount.core, name, usual(1003, 1004)) == usual(3, 4)
        assert to_host(mount.core, name, usual(50, 60)) == to_guest(mount.core, name, usual(50, 60)) == usual(50, 60)
        for forbidden in (usual(20, 4), usual(3, 20)):
            with pytest.raises(PermissionError):
                to_host(mount.core, name, forbidden)
        with pytest.raises(OSError, match="not a POSIX ACL"):
            to_host(mount.core, name, b"nonsense")
        # The host's own nonsense is the guest's to refuse.
        assert to_guest(mount.core, name, b"nonsense") == b"nonsense"
        assert to_host(mount.core, name, b"") == b""
        # Other attributes may look like anything.
        for translate in (to_host, to_guest):
            assert translate(mount.core, b"user.x", usual(3, 4)) == usual(3, 4)


def test_an_entry_for_nobody(tmp_path: Path) -> None:
    """So the host shows ids that its user namespace lacks. Nobody can set one."""
    with translated(tmp_path, "squash-host:0:7:4294967295") as mount:
        assert to_guest(mount.core, ACLS[0], usual(NONE, 5)) == usual(NONE, 7)
        with pytest.raises(OSError) as caught:
            to_host(mount.core, ACLS[0], usual(NONE, 5))
        assert caught.value.errno == EINVAL


def test_where_everything_has_one_owner_no_entry_is_for_another(tmp_path: Path) -> None:
    own = os.geteuid(), os.getegid()
    with translated(tmp_path, one=Owner(4321, 4322)) as mount:
        assert to_host(mount.core, ACLS[0], usual(4321, 4322)) == usual(*own)
        assert to_guest(mount.core, ACLS[0], usual(*own)) == usual(4321, 4322)
        with pytest.raises(OSError) as caught:
            to_host(mount.core, ACLS[0], usual(5, 4322))
        assert caught.value.errno == EPERM


def test_capabilities_and_no_rules(tmp_path: Path) -> None:
    value = struct.pack("<6I", 0x03000001, 1, 2, 3, 4, 5)
    there = struct.pack("<6I", 0x03000001, 1, 2, 3, 4, 1005)
    with translated(tmp_path, "map:0:1000:10") as mount:
        assert to_host(mount.core, CAPABILITY, value) == there
        assert to_guest(mount.core, CAPABILITY, there) == value
    with translated(tmp_path) as mount:
        for name in (CAPABILITY, *ACLS):
            assert to_host(mount.core, name, value) == to_guest(mount.core, name, value) == value


def test_an_acl_through_the_ops(tmp_path: Path) -> None:
    with translated(tmp_path, "map:0:1000:10", "forbid-guest:20:1") as mount:
        client = mount.client
        (tmp_path / "d").mkdir()
        nodeid = client.lookup(ROOT, b"d").nodeid
        for name in ACLS:
            client.setxattr(nodeid, name, usual(3, 4))
            assert os.getxattr(tmp_path / "d", name) == usual(1003, 1004)
            assert client.getxattr(nodeid, name) == usual(3, 4)
            assert client.getxattr(nodeid, name, 0) == len(usual(3, 4))
            client.setxattr(nodeid, name, usual(20, 4), expect=EPERM)
            client.setxattr(nodeid, name, usual(3, 4)[:-1], expect=EINVAL)
        # What inherits an ACL inherits it with the host's ids.
        made = client.mkdir(nodeid, b"inside", 0o777)
        assert os.getxattr(tmp_path / "d/inside", ACLS[1]) == usual(1003, 1004)
        assert client.getxattr(made.nodeid, ACLS[0])[:4] == usual(3, 4)[:4]
        assert struct.unpack_from("<I", client.getxattr(made.nodeid, ACLS[0]), 4 + 8 + 4) == (3,)


@pytest.mark.skipif(os.geteuid() != 0, reason="a file capability takes root")
def test_a_capability_through_the_ops(tmp_path: Path) -> None:
    value = struct.pack("<6I", 0x03000001, 1, 0, 0, 0, 5)
    with translated(tmp_path, "map:0:1000:10", "forbid-guest:20:1") as mount:
        (tmp_path / "f").touch()
        nodeid = mount.client.lookup(ROOT, b"f").nodeid
        mount.client.setxattr(nodeid, CAPABILITY, value)
        assert os.getxattr(tmp_path / "f", CAPABILITY) == value[:20] + struct.pack("<I", 1005)
        assert mount.client.getxattr(nodeid, CAPABILITY) == value
        mount.client.setxattr(nodeid, CAPABILITY, value[:20] + struct.pack("<I", 20), expect=EPERM)
