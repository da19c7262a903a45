"""Security labels that come with what is made (FUSE_SECURITY_CTX): in both forms, set, or what was made is not."""

import errno
import os
import random
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fuseclient import HEADER, ROOT, FuseClient, pack
from tests.ops.mount import ALL_FLAGS, Mount, share
from tests.sandbox.user import UID
from vfsd._fuse import lib
from vfsd.core import Core
from vfsd.settings import Settings

SELINUX = b"security.selinux"
LABEL = b"system_u:object_r:user_home_t:s0\0"
#: Under which the host keeps it: what needs no privilege.
HOST = "user.virtiofs.security.selinux"
AS_ROOT = os.geteuid() == 0

#: Each makes one inode with this name.
MAKERS: dict[str, Callable[[FuseClient, bytes], Any]] = {
    "mkdir": lambda client, name: client.mkdir(ROOT, name),
    "mknod": lambda client, name: client.mknod(ROOT, name, stat.S_IFREG | 0o600),
    "fifo": lambda client, name: client.mknod(ROOT, name, stat.S_IFIFO | 0o600),
    "symlink": lambda client, name: client.symlink(ROOT, name, b"target"),
    "create": lambda client, name: client.create(ROOT, name),
    "tmpfile": lambda client, name: client.tmpfile(ROOT),
}


def settings(label: bytes = HOST.encode(), **others: Any) -> Settings:
    return Settings(xattr=True, security_label="auto", label=label, privileged=AS_ROOT, **others)


@pytest.fixture(params=[False, True], ids=["new", "old"])
def labelled(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """A mount whose guest sends labels, as from Linux 6.3 on and as before."""
    with share(tmp_path, settings(), init=False) as mount:
        old: bool = request.param
        mount.client.init(minor=45, flags=ALL_FLAGS & ~lib.FUSE_CREATE_SUPP_GROUP if old else ALL_FLAGS)
        assert mount.core.session.flags & lib.FUSE_SECURITY_CTX
        for client in (mount.client, mount.replayed):
            client.old_labels, client.labels = old, [(SELINUX, LABEL)]
        if not old:
            mount.client.groups = [77]
        yield mount


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_made_has_its_label(labelled: Mount, kind: str) -> None:
    made = MAKERS[kind](labelled.client, b"made")
    entry = made[0] if isinstance(made, tuple) else made
    if kind in ("fifo", "symlink"):  # which can have no user.* attribute: they go without
        assert os.path.lexists(labelled.root / "made")
        return
    if kind == "tmpfile":
        labelled.client.link(entry.nodeid, ROOT, b"made")
    assert os.getxattr(labelled.root / "made", HOST) == LABEL


@pytest.mark.skipif(not AS_ROOT, reason="trusted.* attributes take privilege")
@pytest.mark.parametrize("kind", MAKERS)
def test_any_type_has_one_under_a_name_that_takes_privilege(tmp_path: Path, kind: str) -> None:
    with share(tmp_path, settings(b"trusted.virtiofs.security.selinux")) as mount:
        mount.client.labels = [(SELINUX, LABEL)]
        made = MAKERS[kind](mount.client, b"made")
        if kind == "tmpfile":
            mount.client.link(made[0].nodeid, ROOT, b"made")
        got = os.getxattr(tmp_path / "made", "trusted.virtiofs.security.selinux", follow_symlinks=False)
        assert got == LABEL


def test_a_caller_and_a_mode_that_could_not(labelled: Mount) -> None:
    """A label is ours to set: the caller may not be permitted to write what it makes."""
    if AS_ROOT:
        labelled.root.chmod(0o777)
        labelled.client.uid = labelled.client.gid = UID
    labelled.client.create(ROOT, b"f", mode=0o444)
    labelled.client.mkdir(ROOT, b"d", mode=0o500)
    for name, mode in (("f", 0o444), ("d", 0o500)):
        assert os.getxattr(labelled.root / name, HOST) == LABEL
        assert stat.S_IMODE((labelled.root / name).stat().st_mode) == mode


def test_without_privilege(tmp_path: Path) -> None:
    """The daemon's user needs permission to write: it takes it, and gives it back."""
    if AS_ROOT:
        os.chown(tmp_path, UID, UID)
    with share(tmp_path, settings()._replace(privileged=False)) as mount:
        mount.client.labels = [(SELINUX, LABEL)]
        uid = os.geteuid()
        if AS_ROOT:
            tmp_path.chmod(0o777)
            os.seteuid(UID)
        try:
            mount.client.create(ROOT, b"f", mode=0o4444)
        finally:
            os.seteuid(uid)
        assert os.getxattr(tmp_path / "f", HOST) == LABEL
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o4444


def test_no_label(labelled: Mount) -> None:
    """Of a guest without SELinux: it says that there is none."""
    labelled.client.labels = []
    for kind, make in MAKERS.items():
        make(labelled.client, kind.encode())
        if kind != "tmpfile":
            assert not os.listxattr(labelled.root / kind, follow_symlinks=False)


def test_a_file_that_is_there_keeps_its_own(labelled: Mount) -> None:
    (labelled.root / "f").touch()
    labelled.client.create(ROOT, b"f", flags=os.O_RDWR)
    assert not os.listxattr(labelled.root / "f")


def test_served_twice(labelled: Mount) -> None:
    """The worker before may have died between the two."""
    labelled.client.create(ROOT, b"f")
    os.removexattr(labelled.root / "f", HOST)
    labelled.unfinished().create(ROOT, b"f")
    labelled.client.mkdir(ROOT, b"d")
    os.removexattr(labelled.root / "d", HOST)
    labelled.unfinished().mkdir(ROOT, b"d")
    assert os.getxattr(labelled.root / "f", HOST) == os.getxattr(labelled.root / "d", HOST) == LABEL


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [(b"nonsense.name", LABEL, errno.EOPNOTSUPP), (HOST.encode(), b"x" * 70000, errno.E2BIG)],
    ids=["name", "size"],
)
def test_what_can_not_have_its_label_is_unmade(
    tmp_path: Path, kind: str, name: bytes, value: bytes, error: int
) -> None:
    with share(tmp_path, settings(name)) as mount:
        client = mount.client
        client.labels = [(SELINUX, value)]
        with pytest.raises(OSError) as caught:
            MAKERS[kind](client, b"made")
        assert caught.value.errno == error
        assert os.listdir(tmp_path) == []
        assert (mount.core.inodes, mount.core.handles) == (1, 0)
        client.labels = []
        MAKERS[kind](client, b"made")


def test_what_is_forgotten_before_it_has_its_label_is_unmade(labelled: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a FORGET on another queue, from a guest that guesses the nodeid."""
    entry = Core.entry_of

    def forgotten(core: Core, fd: int) -> tuple[int, bytes]:
        nodeid, reply = entry(core, fd)
        core.forget(nodeid)
        return nodeid, reply

    monkeypatch.setattr(Core, "entry_of", forgotten)
    labelled.client.tmpfile(ROOT, expect=errno.ESTALE)
    assert (labelled.core.inodes, labelled.core.handles) == (1, 0)


HEAD = struct.Struct("=II")


def body(size: int, count: int, length: int, rest: bytes) -> bytes:
    return HEAD.pack(size, count) + HEAD.pack(length, 0) + rest


GOOD = SELINUX + b"\0" + LABEL
#: What follows the names, and the errno.
MALFORMED = [
    (HEAD.pack(8, 2), errno.EINVAL),
    (HEAD.pack(8, 1), errno.EINVAL),
    (HEAD.pack(0, 0), errno.EINVAL),
    (HEAD.pack(7, 0), errno.EINVAL),
    (HEAD.pack(1 << 31, 0), errno.EINVAL),
    (HEAD.pack(16, 31) + bytes(8), errno.EINVAL),
    (body(72, 1, 0, GOOD.ljust(56, b"\0")), errno.EINVAL),
    (body(72, 1, 64, GOOD.ljust(56, b"\0")), errno.EINVAL),
    (body(72, 1, 0xFFFFFFFF, GOOD.ljust(56, b"\0")), errno.EINVAL),
    (body(72, 1, 4, b"n" * 56), errno.EINVAL),
    (body(72, 1, 4, b"user.other\0".ljust(56, b"x")), errno.EOPNOTSUPP),
    (body(72, 1, 4, b"\0".ljust(56, b"x")), errno.EOPNOTSUPP),
    (body(16, 1, 4, b""), errno.EINVAL),
]


@pytest.mark.parametrize(("extension", "expected"), MALFORMED)
def test_malformed(labelled: Mount, extension: bytes, expected: int) -> None:
    """Nothing is made."""
    arg = pack("fuse_mkdir_in", mode=0o755) + b"d\0"
    new = b"" if labelled.client.old_labels else extension
    header = pack(
        "fuse_in_header", len=HEADER + len(arg) + len(extension), opcode=lib.FUSE_MKDIR, nodeid=ROOT, unique=2,
        total_extlen=len(new) // 8,
    )  # fmt: skip
    reply = labelled.client.transport(header + arg + extension, 4096)
    assert struct.unpack_from("=Ii", reply)[1] == -expected
    assert os.listdir(labelled.root) == []


def test_random_extensions(labelled: Mount) -> None:
    """Whatever a guest sends there is a reply, and what is left is what was made."""
    choices = random.Random(4711)
    client, good = labelled.client, labelled.client._labels()
    for number in range(2000):
        name = b"%d" % number
        extension = bytearray(good)
        for _ in range(choices.randrange(4)):
            extension[choices.randrange(len(extension))] = choices.choice((0, 1, 8, 255, choices.randrange(256)))
        extension = extension[: choices.choice((len(extension), choices.randrange(len(extension) + 1)))]
        arg = pack("fuse_mkdir_in", mode=0o755) + name + b"\0"
        header = pack(
            "fuse_in_header", len=HEADER + len(arg) + len(extension), opcode=lib.FUSE_MKDIR, nodeid=ROOT, unique=2,
            total_extlen=0 if client.old_labels else choices.choice((len(extension) // 8, choices.randrange(1 << 16))),
        )  # fmt: skip
        error = struct.unpack_from("=Ii", client.transport(header + arg + bytes(extension), 4096))[1]
        assert (error == 0) == (labelled.root / name.decode()).exists()


def test_a_guest_that_does_not_offer_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flags = ALL_FLAGS & ~lib.FUSE_SECURITY_CTX
    with share(tmp_path, settings(), init=False) as mount:
        mount.client.init(minor=45, flags=flags)
        assert not mount.core.session.flags & lib.FUSE_SECURITY_CTX
    with share(tmp_path, settings()._replace(security_label="always"), init=False) as mount:
        mount.client.init(minor=45, flags=flags, expect=errno.EPROTO)
        assert "--security-label=always" in caplog.text
        caplog.clear()
        mount.client.init(minor=45, flags=ALL_FLAGS)
        assert mount.core.session.flags & lib.FUSE_SECURITY_CTX


def test_labels_nobody_agreed_on(mount: Mount) -> None:
    """Are extensions we don't know."""
    mount.client.labels = [(SELINUX, LABEL)]
    mount.client.mkdir(ROOT, b"d")
    assert not os.listxattr(mount.root / "d")
