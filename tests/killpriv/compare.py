"""Runs the cells in a guest, on its own file system and on shares."""

import json
from pathlib import Path
from typing import NamedTuple

from tests.killpriv import cells
from vfsd.guest import Guest, Share, kernel

#: Outcomes by cell, as cells.py prints them.
Outcomes = dict[str, str]
#: Where the guest's own file system is mounted.
NATIVE = "/run/native"
#: Seconds for one file system, under TCG on a busy machine.
PATIENCE = 300.0
#: Names of shares, and what their daemons are told.
SHARES = {
    f"{cache}{'' if killpriv else ' off'}": [*options, "--killpriv-v2" if killpriv else "--no-killpriv-v2"]
    for killpriv in (True, False)
    for cache, options in {
        "never": ["--cache=never"],
        "metadata": ["--cache=metadata"],
        "auto": ["--cache=auto"],
        "always": ["--cache=always"],
        "writeback": ["--cache=always", "--writeback"],
    }.items()
}
#: Where a guest from Linux 6.12 on names its callers.
SHARES["auto named"] = [*SHARES["auto"], "--no-allow-idmap"]


class Cell(NamedTuple):
    operation: str
    caller: str
    bits: str
    capability: str

    @classmethod
    def of(cls, name: str) -> "Cell":
        return cls(*name.split(" / "))


def extra_modules(kernel_name: str | None) -> list[str]:
    """What the control takes of this kernel: ext4 on a file."""
    known = (kernel.find(kernel_name).modules / "modules.dep").read_text()
    return ["loop", "ext4", *(["crc32c_generic"] if "/crc32c_generic.ko" in known else [])]


def share(directory: Path, name: str, daemon: str | None = None) -> Share:
    """One of SHARES, of an empty directory below `directory`; `daemon` is another than ours."""
    tag = ("peer-" if daemon else "") + name.replace(" ", "-")
    (directory / tag).mkdir()
    return Share(directory / tag, tag, daemon=daemon, daemon_options=["--xattr", *SHARES[name]])


def place_script(share: Share) -> None:
    (Path(share.directory) / "cells.py").write_text(Path(cells.__file__).read_text())


def _run(guest: Guest, script: Share, where: str, *arguments: str) -> Outcomes:
    command = ["/usr/bin/python3", f"{script.mount_point}/cells.py", where, *arguments]
    return dict(json.loads(guest.run(command, PATIENCE, cwd="/").check().text))


def native(guest: Guest, script: Share) -> Outcomes:
    """On an ext4 image in the guest's memory. `script` is a share that place_script was told of."""
    guest.run(
        f"set -e; mkdir -p {NATIVE}; truncate -s 64M /run/image; mkfs.ext4 -q -I 256 -N 8192 /run/image; "
        f"mount -o loop,user_xattr /run/image {NATIVE}; mkdir {NATIVE}/work",
        PATIENCE,
        cwd="/",
    ).check()
    outcomes = _run(guest, script, f"{NATIVE}/work")
    guest.run(f"umount {NATIVE}; rm /run/image", PATIENCE, cwd="/").check()
    return outcomes


def shared(guest: Guest, share: Share, *arguments: str) -> tuple[Outcomes, Outcomes]:
    """On a share: as the guest sees it, and as the host does afterwards. `arguments` are for cells.py."""
    place_script(share)
    work = Path(share.directory) / "work"
    work.mkdir()
    seen = _run(guest, share, f"{share.mount_point}/work", *arguments)
    guest.run("sync", PATIENCE, cwd="/").check()
    real = {}
    for name, outcome in seen.items():
        error = [word for word in outcome.split() if word.isupper()]
        real[name] = " ".join([*error, *cells.left(str(work / name.replace(" / ", " ")))])
    return seen, real
