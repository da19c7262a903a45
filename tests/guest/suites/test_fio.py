"""fio writes at random with a checksum in every block, and verifies them: by write(2) and through a mapping."""

import pytest

from .conftest import Place


@pytest.mark.parametrize("pattern", ["randwrite", "randrw"])
@pytest.mark.parametrize("engine", ["psync", "mmap"])
def test_fio(place: Place, engine: str, pattern: str, scale: int) -> None:
    text = place.run(
        f"fio --name=verify --filename=data --size={32 * scale}m --rw={pattern} --bsrange=512-64k --blockalign=512"
        f" --ioengine={engine} --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed=7 --fsync_on_close=1"
        f" --numjobs=1 --thread"
    ).text
    assert "err= 0" in text
    assert (place.host / "data").stat().st_size == 32 * scale << 20


def test_fio_reads_back_what_another_mount_wrote(place: Place, scale: int) -> None:
    """The same blocks, verified after an unmount: from the host's file, not from the guest's cache."""
    job = (
        f"--name=verify --filename=data --size={16 * scale}m --bs=4k --ioengine=psync --verify=crc32c --verify_fatal=1"
        " --randseed=9 --thread"
    )
    place.run(f"fio {job} --rw=randwrite --do_verify=0 --end_fsync=1")
    mount = place.guest.shares[0].mount_point
    place.run(f"cd /; umount {mount} && mount -t virtiofs share {mount}")
    place.run(f"fio {job} --rw=randwrite --verify_only")
