"""Mounts one after the other leave nothing behind in the daemon."""

import os

from .conftest import Place

FILES = 100


def test_ten_mounts(place: Place, scale: int) -> None:
    for index in range(FILES * scale):
        (place.host / f"f{index}").write_text(f"{index}\n")
    mount = place.guest.shares[0].mount_point
    counts = []
    for _ in range(10):
        # Everything is looked up, some of it stays open until the unmount has to wait for it.
        assert place.run("cat f* | wc -l; ls -lR . >/dev/null").text == str(FILES * scale)
        place.run(f"cd /; umount {mount} && mount -t virtiofs share {mount}")
        counts.append(len(os.listdir(f"/proc/{place.guest.daemon.worker}/fd")))
    # A mount that left its inodes would leave all of them.
    assert counts[-1] < counts[0] + FILES // 2, counts
