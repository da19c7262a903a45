"""Runs in a guest: sees a directory's state change under its hands, and says how long that took.

usage: watcher.py DIRECTORY ROUNDS. For each kind of change and each round it looks at the state for a while, so that
all of it is cached, asks the host for the change by making a file, and looks on. It prints "SECONDS KIND" lines. The
standard library only.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

#: Seconds that a change may take before the watcher says it is not seen at all.
LIMIT = 60
#: Seconds to look before, in turn: nothing of the validity is over, which is the worst, or some of it.
BEFORE = (0.01, 0.37, 0.74)


def size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def open_file() -> Callable[[], bytes]:
    fd = os.open("open", os.O_RDONLY)
    return lambda: os.pread(fd, 1 << 16, 0)


def open_directory() -> Callable[[], list[str]]:
    fd = os.open("open directory", os.O_RDONLY | os.O_DIRECTORY)
    # Each listing rewinds the directory that is open, and reads it again.
    return lambda: sorted(os.listdir(fd))


#: What to look at, for each kind of change. tests/guest/suites/test_host_changes.py makes them.
STATES: dict[str, Callable[[], Callable[[], Any]]] = {
    "contents": lambda: lambda: read("contents"),
    "contents of an open file": open_file,
    "replaced file": lambda: lambda: read("replaced"),
    "size": lambda: lambda: size("size"),
    "mode": lambda: lambda: os.stat("mode").st_mode,
    "owner's time stamp": lambda: lambda: os.stat("time").st_mtime_ns,
    "new name": lambda: lambda: size("new"),
    "removed name": lambda: lambda: size("removed"),
    "renamed": lambda: lambda: (size("renamed a"), size("renamed b")),
    "listing": lambda: lambda: sorted(os.listdir("listing")),
    "listing of an open directory": open_directory,
    "replaced symlink": lambda: lambda: os.readlink("symlink"),
    "file behind a replaced symlink": lambda: lambda: read("link"),
    "replaced directory": lambda: lambda: sorted(os.listdir("directory")),
}


def main() -> None:
    os.chdir(sys.argv[1])
    for index in range(int(sys.argv[2])):
        for kind, make in STATES.items():
            state = make()
            before = state()
            end = time.monotonic() + BEFORE[index % len(BEFORE)]
            while time.monotonic() < end:
                assert state() == before, f"{kind} changed by itself"
            started = time.monotonic()
            os.close(os.open(f"ask/{kind}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            while state() == before:
                if time.monotonic() > started + LIMIT:
                    sys.exit(f"{kind}: not seen in {LIMIT} s")
            print(f"{time.monotonic() - started:.3f} {kind}", flush=True)


if __name__ == "__main__":
    main()
