"""Extended attributes as a daemon offers them: by itself, by force, under other names, or not at all."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon, guest
from tests.fuseclient import ROOT
from tests.sandbox.user import AS_ROOT

#: A file system without extended attributes in the place of the share.
WITHOUT = ["unshare", "-m", "sh", "-c", 'mount -t ramfs none "$0" && touch "$0/hello" && exec "$@"']


def listed(daemon: Daemon) -> int:
    """The errno of LISTXATTR on a file."""
    with guest(daemon) as (_, client):
        try:
            client.listxattr(client.lookup(ROOT, b"hello").nodeid)
        except OSError as error:
            return error.errno or 0
    return 0


def test_on_where_the_share_has_them(start: Callable[..., Daemon], share: Path) -> None:
    os.setxattr(share / "hello", "user.a", b"value")
    with guest(start()) as (_, client):
        nodeid = client.lookup(ROOT, b"hello").nodeid
        assert client.getxattr(nodeid, b"user.a") == b"value"
        client.setxattr(nodeid, b"user.b", b"of the guest")
    assert os.getxattr(share / "hello", "user.b") == b"of the guest"


@pytest.mark.parametrize("option", ["--no-xattr", "-ono_xattr"])
def test_off(start: Callable[..., Daemon], option: str) -> None:
    assert listed(start(option)) == errno.ENOSYS


@pytest.mark.skipif(not AS_ROOT, reason="only root mounts")
@pytest.mark.parametrize(("options", "expected"), [([], errno.ENOSYS), (["--xattr"], 0)])
def test_a_share_without_them(
    start: Callable[..., Daemon], share: Path, options: list[str], expected: int
) -> None:
    """Nothing is offered, unless it is asked for: then the host answers, for what is mounted below too."""
    daemon = start("--sandbox=none", *options, prefix=[*WITHOUT, str(share)])
    assert listed(daemon) == expected


def test_names_are_mapped(start: Callable[..., Daemon], share: Path) -> None:
    with guest(start("--xattrmap=:map::user.virtiofs.:")) as (_, client):
        nodeid = client.lookup(ROOT, b"hello").nodeid
        client.setxattr(nodeid, b"trusted.overlay.opaque", b"y")
        assert client.listxattr(nodeid) == b"trusted.overlay.opaque\0"
    assert os.listxattr(share / "hello") == ["user.virtiofs.trusted.overlay.opaque"]
