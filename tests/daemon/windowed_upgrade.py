"""A daemon with a DAX window that is upgraded."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon, children, name, open_files, until
from tests.daemon.upgrading import upgrade
from tests.daemon.windowed import File, Model
from tests.sandbox.user import AS_ROOT
from tests.shmem import PAGE

WINDOW = 2 << 20
MODES = ["none", "namespace", *(["chroot"] if AS_ROOT else [])]


class Upgraded(Daemon):
    """Its control process is another one after each upgrade, and the worker is that one's."""

    @property
    def workers(self) -> list[int]:
        return self.named("vfsd-worker")

    @property
    def control(self) -> int:
        """Parent of the worker, which is waited for."""
        return until(self._parent)  # type: ignore[no-any-return]

    def _parent(self) -> int:
        with suppress(FileNotFoundError, ProcessLookupError):
            status = Path(f"/proc/{self.worker}/status").read_text()
            return int(status.partition("PPid:")[2].split()[0])
        return 0

    def named(self, wanted: str) -> list[int]:
        return [pid for pid in descendants(self.process.pid) if name(pid) == wanted]

    @property
    def keepers(self) -> list[int]:
        """Of this daemon, what opens files so that they can be mapped. Whoever its parent is, it has the log."""
        found = []
        for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
            with suppress(FileNotFoundError, ProcessLookupError):
                if name(pid) == "vfsd-padded" and open_files(pid).get(2) == str(self.log_path):
                    found.append(pid)
        return found

    def upgrade(self, *options: str, **how: Callable[[], object]) -> None:
        done = upgrade(self.process.pid, *options, **how)
        assert done.returncode == 0, (done.stderr, self.log)


def descendants(pid: int) -> list[int]:
    try:
        return [each for child in children(pid) for each in (child, *descendants(child))]
    except (FileNotFoundError, ProcessLookupError):
        return []


@contextmanager
def upgraded(share: Path, place: Path, *options: str) -> Iterator[Upgraded]:
    """A daemon with these options. Skips the test where there can be no window."""
    window = ("--tag=fs", f"--dax-window={WINDOW}", "--dax-policy=always", "--log-level=debug")
    with Upgraded(share, place / "fs.sock", *window, *options) as daemon:
        daemon.logged("Waiting")
        if "there is no DAX window" in daemon.log:
            pytest.skip(f"a window takes root and Linux 6.9: {daemon.log}")
        yield daemon
    until(lambda: not daemon.keepers)
    assert "Traceback" not in daemon.log


def stored(model: Model, file: File, pages: int = 10) -> None:
    """A store to where its first pages are in the window reaches the file, and every byte of the window is right."""
    data = model.random.randbytes(10)
    at = model.random.randrange(pages * PAGE - 10)
    model.guest.fe.window[0].write(at, data)
    model.write(file, at, data)
    model.check_file(file)
    model.check()
