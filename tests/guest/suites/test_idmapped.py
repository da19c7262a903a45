"""An idmapped mount of the share gives what it gives on the guest's own tmpfs (Linux 6.12, FUSE_ALLOW_IDMAP)."""

import shutil
from pathlib import Path

import pytest

from .conftest import Place

PROGRAM = Path(__file__).with_name("idmapped.py")


def test_idmapped_mount(place: Place) -> None:
    if tuple(int(number) for number in place.guest.release.split("-")[0].split(".")[:2]) < (6, 12):
        pytest.skip("virtiofs has idmapped mounts from Linux 6.12 on")
    shutil.copy(PROGRAM, place.host)
    (place.host / "tree").mkdir()
    native = place.run("mkdir /run/own && mount -t tmpfs own /run/own && python3 idmapped.py /run/own")
    text = place.run("umount /run/own && python3 idmapped.py $PWD/tree").text
    assert text == native.text
    # And what is below is what the host has.
    lines = [line.split() for line in text.splitlines()]
    owners = {fields[0]: (int(fields[4]), int(fields[5])) for fields in lines if len(fields) == 6}
    for name in ("file", "dir", "link", "fifo", "renamed", "other", "group/in"):
        host = (place.host / "tree/below" / name).lstat()
        assert (host.st_uid, host.st_gid) == owners[name], name
    assert owners["file"] == (0, 0) and owners["other"] == (5, 6)
