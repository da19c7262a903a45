"""An ext4 of its own for what makes inodes.

An ext4 without a journal gives a removed inode's number to nobody for six minutes, and looks past such numbers one by
one at each inode it makes (fs/ext4/ialloc.c, recently_deleted): a symlink that takes 6 us with its unlink takes 290
where 4,000 files were removed before, by whomever. So the figures of a share tell where it lies. One with a journal
does not do so, and most have one.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.share import file_system
from tests.frontend import MIB


def has_journal(where: Path) -> bool:
    """Of an ext4. Linux before 5.0 does not tell."""
    device = where.stat().st_dev
    mine = f"{os.major(device)}:{os.minor(device)}"
    for task in Path("/sys/fs/ext4").glob("*/journal_task"):
        number = Path("/sys/class/block", task.parent.name, "dev")
        if number.exists() and number.read_text().strip() == mine:
            return task.read_text().strip() != "<none>"
    return True


def is_fair(where: Path) -> bool:
    """Whether it does not matter what was removed before."""
    return file_system(where) != "ext4" or has_journal(where)


def _run(*argv: str) -> str:
    """What it prints. Raises OSError with what it complains of."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{argv[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def journalled(where: Path, shares: int, share_size: int) -> Iterator[Path]:
    """An empty ext4 with a journal and room for so many shares of so many bytes, in a file below `where`. Raises
    OSError: it takes root and a loop device."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-ext4-", dir=where)))
        image, place = directory / "image", directory / "ext4"
        with image.open("wb") as file:
            file.truncate(shares * share_size + 256 * MIB)
        # What is put off by default would be done while it is measured.
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
        device = _run("losetup", "--find", "--show", "--direct-io=on", str(image))
        stack.callback(_run, "losetup", "--detach", device)
        place.mkdir()
        _run("mount", device, str(place))
        stack.callback(_run, "umount", str(place))
        yield place
