"""What is done in a guest: for each row of the table the files it needs, the script that does it and says what it took,
and what must come of it."""

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

KIB, MIB = 1 << 10, 1 << 20
#: Bytes of the file that fio works on, and seconds it does.
FIO_SIZE, FIO_SECONDS = 32 * MIB, 1
#: Directories of the tree, and files of each, most of them small.
DIRECTORIES, FILES = 40, 25
SIZES = [200, 1500, 3 * KIB, 9 * KIB, 40 * KIB]
#: When they were changed last, seconds since the epoch.
OLD = 1_700_000_000
#: Where the guest has the archive: in its memory.
ARCHIVE = "/run/tree.tar"


class Work(NamedTuple):
    title: str
    #: A script for bash in the directory of the share; the last line it writes is the figure.
    script: str
    #: The figure is a rate, and not seconds.
    rate: bool = False
    #: Nothing is asked of the daemon that depends on how it remembers inodes: with file handles and without it runs the
    #: same code.
    plain: bool = False
    #: How often it is done for one figure, their mean, each time with a mount that knows nothing yet.
    times: int = 1
    #: AssertionError when the share, seen from the host, is not what it must be.
    check: Callable[[Path], None] = lambda share: None


def timed(command: str) -> str:
    """The seconds that a command takes, with what it wrote thrown away."""
    return f"begun=$EPOCHREALTIME; {command} || exit 1; ended=$EPOCHREALTIME; echo $((${{ended/./}} - ${{begun/./}}))"


def fio(how: str, kib: int) -> str:
    """Operations per second, each of so many KiB."""
    words = f"fio --name=work --filename=file --size={FIO_SIZE} --runtime={FIO_SECONDS} --time_based --bs={kib}k {how}"
    # KiB per second read, and written.
    picked = f"awk -F ';' '{{ print ($7 + $48) / {kib} }}'"
    return f"set -o pipefail; {words} --output-format=terse --terse-version=3 | {picked}"


def tree_is_whole(share: Path) -> None:
    subprocess.run(["diff", "-rq", "--no-dereference", share / "tree", share / "untarred"], check=True)


def tree_is_gone(share: Path) -> None:
    assert not (share / "untarred").exists()


WORKS = {
    "read": Work("fio: random 4K reads, O_DIRECT, one at a time, 1/s",
                 fio("--rw=randread --direct=1 --ioengine=psync", 4), rate=True, plain=True),
    "read-deep": Work("fio: random 4K reads, O_DIRECT, 16 at a time, 1/s",
                      fio("--rw=randread --direct=1 --ioengine=libaio --iodepth=16", 4), rate=True, plain=True),
    "write-deep": Work("fio: random 4K writes, O_DIRECT, 16 at a time, 1/s",
                       fio("--rw=randwrite --direct=1 --ioengine=libaio --iodepth=16", 4), rate=True, plain=True),
    "stream-read": Work("fio: 1M reads in order, buffered, 1/s",
                        fio("--rw=read --ioengine=psync --invalidate=1", 1024), rate=True, plain=True),
    "stream-write": Work("fio: 1M writes in order, buffered, 1/s",
                         fio("--rw=write --ioengine=psync", 1024), rate=True, plain=True),
    "untar": Work("untar, s", timed(f"tar xf {ARCHIVE} --one-top-level=untarred --strip-components=1"),
                  check=tree_is_whole),
    "git": Work("git status, s", timed("test -z \"$(git -c core.fsmonitor=false -C repository status --porcelain)\""),
                times=3),
    "find": Work("find, each file looked at, s",
                 timed(f"test $(find tree -type f -size -1000k | wc -l) = {DIRECTORIES * FILES}"), times=3),
    "rm": Work("rm -r, s", timed("rm -r untarred"), check=tree_is_gone),
}  # fmt: skip


def _tree(root: Path) -> None:
    """The same each time: all guests unpack the archive of one of them."""
    source = random.Random(0)
    for directory in range(DIRECTORIES):
        place = root / f"part-{directory % 7}" / f"directory-{directory}"
        place.mkdir(parents=True)
        for number in range(FILES):
            path = place / f"file-{number}.c"
            path.write_bytes(source.randbytes(SIZES[(directory + number) % len(SIZES)]))
            # Of a file as young as its index git reads the contents.
            os.utime(path, (OLD, OLD))


def prepare(share: Path) -> None:
    """Makes all that any of them needs."""
    _tree(share / "tree")
    subprocess.run(["tar", "cf", share / "tree.tar", "tree"], cwd=share, check=True)
    subprocess.run(["cp", "-a", share / "tree", share / "repository"], check=True)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
        subprocess.run(["git", *identity, *words], cwd=share / "repository", check=True)
    (share / "file").write_bytes(os.urandom(FIO_SIZE))


def warm(tag: str) -> str:
    """Has the guest's own programs in its memory, so that none is loaded while time is taken."""
    return (f"cp /mnt/{tag}/tree.tar {ARCHIVE} && cd /run && mkdir -p warm && tar xf {ARCHIVE} -C warm && "
            "git init -q warm && git -C warm status >/dev/null && find warm -size -1k >/dev/null && "
            "fio --name=warm --size=64k --filename=/run/warm/fio --output-format=terse | awk 1 >/dev/null && "
            "rm -r warm")  # fmt: skip
