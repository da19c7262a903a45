from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A directory to share."""
    path = tmp_path / "share"
    path.mkdir()
    (path / "hello").write_bytes(b"hi there\n")
    return path


@pytest.fixture
def start(tmp_path: Path, share: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts a daemon on `share` with these options; its socket exists on return. It ends with the test."""
    with ExitStack() as stack:

        def begin(*options: str, **how: list[str]) -> Daemon:
            return stack.enter_context(Daemon(share, tmp_path / "vfsd.sock", *options, **how))

        yield begin


@pytest.fixture
def daemon(start: Callable[..., Daemon]) -> Daemon:
    """A daemon without a sandbox."""
    return start("--sandbox=none")
