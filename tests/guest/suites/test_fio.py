"""fio writes at random with a checksum in every block, and verifies them: by write(2), through a mapping, and (the long
tests) past the guest's cache and with many requests at a time."""

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


#: How each job does its I/O.
ENGINES = {
    "buffered": "--ioengine=psync",
    "mmap": "--ioengine=mmap",
    "direct": "--ioengine=psync --direct=1",
    "libaio": "--ioengine=libaio --direct=1 --iodepth=16",
    "io_uring": "--ioengine=io_uring --iodepth=16",
}
BLOCKS = {"512": "--bs=512", "4k": "--bs=4k", "64k": "--bs=64k", "1m": "--bs=1m", "mixed": "--bsrange=512-256k"}
#: Megabytes per job: fewer where requests are small.
SIZES = {"512": 1, "4k": 8, "64k": 32, "1m": 64, "mixed": 16}


@pytest.mark.long
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("engine", ENGINES)
def test_fio_matrix(place: Place, control: str, engine: str, block: str, scale: int) -> None:
    """Two writers at random in files of their own, each block verified; what fails on ext4 too is not ours."""
    job = f"{ENGINES[engine]} {BLOCKS[block]} --size={SIZES[block] * scale}m --rw=randrw --rwmixread=30 --numjobs=2"
    job += " --name=verify --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_backlog=256 --verify_state_save=0"
    command = f"exec 2>&1; fio {job} --randseed=11 --blockalign=512 --fallocate=none --group_reporting"
    result = place.guest.run(command, 600, cwd=place.path)
    if result.status:
        same = place.guest.run(command, 600, cwd=control)
        assert same.status, f"status {result.status}, but 0 on ext4:\n{result.text[-8000:]}"
        pytest.skip(f"fails on the guest's ext4 too, with status {same.status}")
    assert "err= 0" in result.text
    written = [path.stat().st_size for path in place.host.iterdir()]
    assert written == [SIZES[block] * scale << 20] * 2
