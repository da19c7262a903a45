"""Work of real guests, as the requests they sent: what is recorded (scripts/bench-record), how it is kept, and the lane
that sends it again.

A recording is made with a guest on the C daemon, which knows nothing when it begins. In it nodeids and handles are
registers: when it is sent again they are what this daemon has said. All requests of one program after the other are in
one lane, in the order they had. Three things are not as they were: a directory is read in one go, until there is no
more (how many entries a reply has is the daemon's choice); contents are other bytes; and FLUSH is not sent to a daemon
that has said it needs none. In the end all is forgotten, so that it can begin anew. A slow guest asks again for
attributes whose second is over.
"""

import base64
import json
import lzma
import os
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.build import lib
from tests.bench.layout import PAGE, Lane, Patch, Step
from vfsd._fuse import ffi
from vfsd._fuse import lib as fuse

KEPT = Path(__file__).resolve().parent / "recorded"
#: Names that the guest looks up before the work and after it.
BEGIN, END = b"recording-begins", b"recording-ends"


class File(NamedTuple):
    """What is there before, and after."""

    path: str
    mode: int
    size: int
    #: Of a symbolic link.
    target: str = ""


class Request(NamedTuple):
    """One step, in registers; `patches` are (kind, at, register)."""

    opcode: int
    arguments: str
    patches: Sequence[Sequence[int]] = ()
    #: Bytes for what follows the reply's header, without pages; and what followed, with them.
    room: int = 0
    answer: int = 0
    error: int = 0
    #: Bytes of pages.
    read: int = 0
    written: int = 0
    #: Entries of the directory that is read, and their registers.
    names: dict[str, int] | None = None
    #: FLUSH: the register of the flags its file was opened with.
    flags: int = 0


class Macro(NamedTuple):
    files: list[File]
    requests: list[Request]
    registers: int


class Work(NamedTuple):
    """Something that programs do, in the share's root."""

    title: str
    #: Makes what has to be there.
    prepare: Callable[[Path], None]
    #: A script; it leaves all as it was.
    script: str
    #: It makes inodes.
    makes: bool = True


# What is done.


def _tree(root: Path, directories: int, files: int) -> None:
    source = random.Random(0)
    for number in range(directories):
        place = root / f"package-{number}" / "lib"
        place.mkdir(parents=True)
        for each in range(files):
            size = source.choice((120, 900, 2500, 7000, 30000))
            (place / f"module-{each}.js").write_bytes(source.randbytes(size))
        (place.parent / "package.json").write_bytes(source.randbytes(700))


def _repository(share: Path) -> None:
    _tree(share, 12, 10)
    for path in share.rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    name = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    for words in (["init", "-q", "--template="], ["add", "."], ["commit", "-qm", "all"], ["gc", "-q"]):
        subprocess.run(["git", *name, *words], cwd=share, check=True)


def _archive(share: Path) -> None:
    _tree(share / "tree", 12, 10)
    subprocess.run(["tar", "cf", "tree.tar", "tree"], cwd=share, check=True)
    subprocess.run(["rm", "-r", "tree"], cwd=share, check=True)


def _sources(share: Path) -> None:
    (share / "all.h").write_text("int twice(int value);\n")
    for number in range(8):
        text = f'#include "all.h"\nint function_{number}(int value) {{ return twice(value) + {number}; }}\n'
        (share / f"part-{number}.c").write_text(text)
    (share / "main.c").write_text(
        '#include "all.h"\nint twice(int v) { return v * 2; }\nint main(void) { return 0; }\n'
    )


SQL = "create table t(a integer primary key, b text); " + "".join(
    f"insert into t(b) values ('{number:0100}'); " for number in range(12)
)
WORKS = {
    "git": Work("git status", _repository, "git -c safe.directory='*' status --porcelain", makes=False),
    "untar": Work("untar, rm -r", _archive, "tar xf tree.tar; rm -r tree"),
    "find": Work("find, each file looked at", lambda share: _tree(share, 25, 10),
                 "find . -type f -size +1k >/dev/null", makes=False),
    "packages": Work("small files copied, moved, removed", lambda share: _tree(share, 12, 8),
                     "mkdir staging; for each in package-*; do cp -r $each staging/.$each-new; "
                     "mv staging/.$each-new staging/$each; done; ls -lR staging >/dev/null; rm -r staging"),
    "compile": Work("compile, link, rm", _sources,
                    "for each in *.c; do gcc -c -o ${each%.c}.o $each; done; gcc -o program *.o; ./program; "
                    "rm *.o program"),
    "sqlite": Work("sqlite, 13 transactions", lambda share: None, f'sqlite3 data.db "{SQL}"; rm data.db'),
}  # fmt: skip


def script(work: Work) -> str:
    """With nothing known before, and marks at both ends."""
    forget = "sync; cd /; echo 3 >/proc/sys/vm/drop_caches; cd /mnt/share"
    marks = [f"stat {name.decode()} 2>/dev/null" for name in (BEGIN, END)]
    return f"{forget}; {marks[0]}; ( set -e; {work.script}; ) || exit 1; {marks[1]}; exit 0"


# The files.


def manifest(share: Path) -> list[File]:
    found = []
    for path in sorted(share.rglob("*")):
        stat, link = path.lstat(), path.is_symlink()
        size = stat.st_size if path.is_file() and not link else 0
        found.append(File(str(path.relative_to(share)), stat.st_mode, size, os.readlink(path) if link else ""))
    return found


def make(root: Path, files: Sequence[File]) -> None:
    """What `manifest` gave, with other contents."""
    source = random.Random(0)
    root.mkdir(exist_ok=True)
    for file in files:
        path = root / file.path
        if file.target:
            path.symlink_to(file.target)
        elif file.mode & 0o170000 == 0o040000:
            path.mkdir()
        else:
            path.write_bytes(source.randbytes(file.size))
            path.chmod(file.mode & 0o7777)


# Kept.


def save(name: str, macro: Macro) -> int:
    """Returns its size in bytes."""
    KEPT.mkdir(exist_ok=True)
    data = lzma.compress(json.dumps(macro, separators=(",", ":")).encode(), preset=9)
    return (KEPT / f"{name}.json.xz").write_bytes(data)


def load(name: str) -> Macro:
    files, requests, registers = json.loads(lzma.decompress((KEPT / f"{name}.json.xz").read_bytes()))
    return Macro([File(*file) for file in files], [Request(*request) for request in requests], registers)


# Sent again.


def lane(macro: Macro, root: int) -> Lane:
    """`root` is the nodeid of a directory with the macro's files."""
    steps = [_step(request) for request in macro.requests]
    last = max(number for number, step in enumerate(steps) if step.replied)
    steps[last] = steps[last]._replace(units=1)
    return Lane(steps, [root, *[0] * (macro.registers - 1)])


def _step(request: Request) -> Step:
    arguments = base64.b64decode(request.arguments)
    patches = tuple(Patch(*patch) for patch in request.patches)
    more: dict[str, Any] = {}
    if request.names is not None:
        names = {os.fsencode(name): register for name, register in request.names.items()}
        more = {"data": lib.DRIVER_ENTRIES, "size": PAGE, "names": names, "entries": len(names), "whole": True,
                "offset_at": ffi.offsetof("struct fuse_read_in", "offset")}  # fmt: skip
    elif request.read:
        more = {"data": lib.DRIVER_ANY_READ, "size": request.read, "answer": request.answer}
    elif request.written:
        more = {"data": lib.DRIVER_ANY_WRITE, "size": request.written, "room": request.room}
    else:
        more = {"room": request.room, "answer": request.answer}
    if request.flags:
        more["unless"] = (request.flags, fuse.FOPEN_NOFLUSH)
    replied = request.opcode not in (fuse.FUSE_FORGET, fuse.FUSE_BATCH_FORGET)
    return Step(request.opcode, 0, arguments, error=request.error, patches=patches, replied=replied, **more)
