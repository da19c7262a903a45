"""The conformance list as system calls of the guest. What it leaves on the host is what the host's own calls leave."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from tests import conformance

from .conftest import Place

REPOSITORY = Path(__file__).resolve().parents[3]


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """Every path below root: mode with type, links, owner, device, size, content or target, attributes."""
    found = {}
    for directory, directories, files in os.walk(root):
        for path in (Path(directory, name) for name in (*directories, *files)):
            status = path.lstat()
            body = ""
            if stat.S_ISLNK(status.st_mode):
                body = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                body = hashlib.sha256(path.read_bytes()).hexdigest()
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            names = os.listxattr(path, follow_symlinks=False)
            attributes = tuple(sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names))
            inode = (oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, status.st_rdev)
            found[str(path.relative_to(root))] = (*inode, size, body, attributes)
    return found


def test_conformance(place: Place, tmp_path: Path) -> None:
    # The guest hides the host's /tmp, where this tree may lie, so it gets the list on the share.
    package = Path(conformance.__file__).parent
    shutil.copytree(package, place.host / "list/tests/conformance", ignore=shutil.ignore_patterns("__pycache__"))
    (place.host / "list/tests/__init__.py").touch()
    (place.host / "work").mkdir()
    release = tuple(int(number) for number in place.guest.release.split("-")[0].split(".")[:2])
    without = ["tmpfile"] if release < (6, 1) else []
    without += ["root"] if os.geteuid() else []
    command = ["-m", "tests.conformance", f"--without={','.join(without)}"]
    text = place.run(f'PYTHONPATH=list /usr/bin/python3 {" ".join(command)} "$PWD/work"').text
    print(text)
    assert " passed, 0 failed, " in text

    native = subprocess.run([sys.executable, *command, tmp_path], cwd=REPOSITORY, capture_output=True, text=True)
    assert native.stdout.strip() == text.splitlines()[-1]
    (on_share,), (on_host,) = (place.host / "work").iterdir(), tmp_path.iterdir()
    assert snapshot(on_share) == snapshot(on_host)
