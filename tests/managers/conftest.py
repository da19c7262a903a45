"""What the tests of managers share: our command as they find it, and the command line they give it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LIMIT = 240


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.timeout(LIMIT + 60))


@contextmanager
def command_lines(share: Path) -> Iterator[list[list[str]]]:
    """Collects, as they appear, the command lines of processes that name this directory and are daemons of ours."""
    seen: list[list[str]] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    words = path.read_bytes().decode(errors="replace").split("\0")[:-1]
                except OSError:
                    continue
                # A script's interpreter comes first, then the script.
                name = Path(words[1]).name if len(words) > 1 else ""
                ours = name in ("vfsd", "virtiofsd") and any(str(share) in word for word in words)
                if ours and words[1:] not in seen:
                    seen.append(words[1:])
            time.sleep(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
