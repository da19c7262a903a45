"""git on the share: a repository of 1,000 files is cloned, checked out, and checked."""

import random
import subprocess
from pathlib import Path

from .conftest import Place

FILES = 1000
IDENTITY = ["-c", "user.name=test", "-c", "user.email=test@example.org"]


def git(directory: Path, *arguments: str) -> str:
    # The guest's files belong to whoever wrote them there, which git would call dubious.
    command = ["git", "-c", "safe.directory=*", *IDENTITY, "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def make_repository(directory: Path, files: int) -> None:
    """Two branches, `main` and `other`, that differ in a tenth of the files."""
    numbers = random.Random(2)
    directory.mkdir()
    git(directory, "init", "-q", "-b", "main")
    for index in range(files):
        path = directory / f"d{index % 40:02}" / f"sub{index % 7}" / f"file{index}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbers.randbytes(numbers.randrange(1, 3000)))
    git(directory, "add", "-A")
    git(directory, "commit", "-qm", "main")
    git(directory, "checkout", "-qb", "other")
    for index in range(0, files, 10):
        (directory / f"d{index % 40:02}" / f"sub{index % 7}" / f"file{index}.txt").write_bytes(numbers.randbytes(500))
    (directory / "d00" / "new").symlink_to("../d01")
    git(directory, "rm", "-rq", "d39")
    git(directory, "add", "-A")
    git(directory, "commit", "-qm", "other")
    git(directory, "checkout", "-q", "main")


def test_git(place: Place, scale: int) -> None:
    source = place.host / "source"
    make_repository(source, FILES * scale)
    place.run("export HOME=$PWD; git config --global safe.directory '*'; git config --global advice.detachedHead false")
    place.run("HOME=$PWD git clone -q --no-hardlinks source clone")
    clone = place.host / "clone"
    assert git(clone, "rev-parse", "HEAD") == git(source, "rev-parse", "main")
    assert place.run("HOME=$PWD git -C clone status --porcelain").text == ""
    # The host agrees with what the guest has put into the index: sizes, times and inode numbers aside.
    assert git(clone, "-c", "core.checkStat=minimal", "status", "--porcelain") == ""

    place.run("HOME=$PWD git -C clone checkout -q other")
    assert place.run("HOME=$PWD git -C clone status --porcelain").text == ""
    assert git(clone, "rev-parse", "HEAD") == git(source, "rev-parse", "other")
    assert not (clone / "d39").exists()
    assert (clone / "d00" / "new").readlink() == Path("../d01")
    place.run("HOME=$PWD git -C clone fsck --full --strict")
    assert git(clone, "diff", "--stat", "HEAD") == ""
