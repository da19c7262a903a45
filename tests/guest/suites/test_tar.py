"""tar: 2,000 small files unpacked in the guest, compared on the host."""

import hashlib
import io
import os
import random
import tarfile
from pathlib import Path

from .conftest import Place

FILES = 2000
AS_ROOT = os.geteuid() == 0
Record = tuple[str, int, int, int, str]


def make_archive(path: Path, files: int) -> dict[str, Record]:
    """Writes the archive; returns what each path in it must become: type, mode, owner, modification time, content."""
    numbers = random.Random(3)
    expected: dict[str, Record] = {}
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for index in range(files):
            info = tarfile.TarInfo(f"t/{index % 50}/{index % 3}/f{index}")
            content = numbers.randbytes(numbers.choice([0, 1, 100, 4095, 4096, 4097]))
            info.mode = numbers.choice([0o644, 0o600, 0o755, 0o444])
            info.uid = info.gid = numbers.choice([0, 1000] if AS_ROOT else [0])
            info.mtime = 1_600_000_000 + index
            info.size = len(content)
            if index % 100 == 7:
                info.type, info.linkname, info.size, content = tarfile.SYMTYPE, f"f{index - 1}", 0, b""
            archive.addfile(info, io.BytesIO(content))
            kind = "link" if info.issym() else "file"
            mode = 0o777 if info.issym() else info.mode
            body = info.linkname if info.issym() else hashlib.sha256(content).hexdigest()
            # The guest's root is the user that runs the daemon.
            expected[info.name] = (kind, mode, info.uid or os.geteuid(), int(info.mtime), body)
    return expected


def read_tree(root: Path) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            stat = path.lstat()
            link = path.is_symlink()
            body = os.readlink(path) if link else hashlib.sha256(path.read_bytes()).hexdigest()
            record = ("link" if link else "file", stat.st_mode & 0o7777, stat.st_uid, int(stat.st_mtime), body)
            found[str(path.relative_to(root))] = record
    return found


def test_tar(place: Place, scale: int) -> None:
    expected = make_archive(place.host / "archive.tar", FILES * scale)
    place.run("mkdir out; tar -x --numeric-owner -C out -f archive.tar")
    assert read_tree(place.host / "out") == expected
    # And as the guest reads it back, with nothing of it cached.
    place.run("echo 3 >/proc/sys/vm/drop_caches; tar -d -C out -f archive.tar")
