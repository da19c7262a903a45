"""What changes on the host is seen by the guest, whatever it has cached. `pytest -s` shows after how long; in auto mode
that is a second, the validity of what it has cached, and what two looks at it take.

VFSD_TEST_SETTLE=65 waits so many seconds first: only then is a file kept in the guest from one open to the next."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from . import watcher
from .conftest import Place


def changes(root: Path) -> dict[str, Callable[[int], object]]:
    """What the host does for each kind of change; called with the round."""

    def replace(name: str, make: Callable[[Path], object]) -> None:
        make(root / "aside")
        os.replace(root / "aside", root / name)

    def replace_directory(number: int) -> None:
        (root / "aside").mkdir()
        (root / "aside" / f"in {number}").touch()
        os.rename(root / "directory", root / f"old {number}")
        os.rename(root / "aside", root / "directory")

    def overwrite(name: str, text: str) -> None:
        # In place, and no longer than it was.
        with (root / name).open("r+") as file:
            file.write(text)


    def rename(number: int) -> None:
        # Comes after that was seen to be removed, and before the next round.
        (root / "removed").touch()
        names = ("renamed a", "renamed b")
        os.rename(root / names[number % 2], root / names[1 - number % 2])

    def grow(number: int) -> None:
        os.truncate(root / "size", 1000 + number)

    return {
        "contents": lambda number: overwrite("contents", f"{number:07}"),
        "contents of an open file": lambda number: overwrite("open", f"{number:07}"),
        "replaced file": lambda number: replace("replaced", lambda path: path.write_text(f"{number:07}")),
        "size": grow,
        "mode": lambda number: (root / "mode").chmod(0o600 + number),
        "owner's time stamp": lambda number: os.utime(root / "time", (number, number)),
        "new name": lambda number: (root / "new").write_bytes(bytes(number + 1)),
        "removed name": lambda number: (root / "removed").unlink(),
        "renamed": rename,
        "listing": lambda number: (root / "listing" / f"new {number}").touch(),
        "listing of an open directory": lambda number: (root / "open directory" / f"new {number}").touch(),
        "replaced symlink": lambda number: replace("symlink", lambda path: path.symlink_to(f"{number:07}")),
        "file behind a replaced symlink": lambda number: replace(
            "link", lambda path: path.symlink_to(f"f{number % 2}")
        ),
        "replaced directory": replace_directory,
    }


def prepare(root: Path) -> None:
    for name in ("ask", "listing", "open directory", "directory"):
        (root / name).mkdir()
    for name in ("contents", "open", "replaced", "size", "mode", "time", "removed", "renamed a"):
        (root / name).write_text("fresh..")
    (root / "f0").write_text("0")
    (root / "f1").write_text("1")
    (root / "symlink").symlink_to("fresh..")
    (root / "link").symlink_to("f1")


def test_host_changes(place: Place, scale: int) -> None:
    prepare(place.host)
    time.sleep(float(os.environ.get("VFSD_TEST_SETTLE", "0")))
    shutil.copy(watcher.__file__, place.host)
    host, counts, done = changes(place.host), dict.fromkeys(watcher.STATES, 0), threading.Event()
    #: What passed from each request to the change, which on a busy host may be long.
    delays: list[float] = []
    assert host.keys() == watcher.STATES.keys()

    def serve() -> None:
        while not done.is_set():
            for kind in os.listdir(place.host / "ask"):
                host[kind](counts[kind])
                counts[kind] += 1
                delays.append(time.time() - (place.host / "ask" / kind).stat().st_ctime)
                (place.host / "ask" / kind).unlink()
            time.sleep(0.001)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        text = place.run(f'/usr/bin/python3 watcher.py "$PWD" {scale}').text
    finally:
        done.set()
        thread.join()
    seen = [line.split(maxsplit=1) for line in text.splitlines()]
    assert len(seen) == len(delays) == len(host) * scale
    lines = [f"{float(seconds) - delay:.3f} s {kind}" for (seconds, kind), delay in zip(seen, delays, strict=True)]
    print("", *lines, f"slowest: {max(lines)}", sep="\n")
    assert set(counts.values()) == {scale}
