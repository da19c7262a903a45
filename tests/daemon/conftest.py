from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon
from tests.daemon.windowed import Guest, Model
from tests.shmem import PAGE


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
def daemons(tmp_path: Path, share: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons on `share`, or on another directory, each with a socket of its own. Without a sandbox, unless an
    option asks for one."""
    with ExitStack() as stack:
        started: list[Daemon] = []

        def begin(*options: str, directory: Path = share, **how: list[str]) -> Daemon:
            if not any(option.startswith("--sandbox") for option in options):
                options = ("--sandbox=none", *options)
            daemon = Daemon(directory, tmp_path / f"vfsd{len(started)}.sock", *options, **how)
            started.append(stack.enter_context(daemon))
            return daemon

        yield begin


@pytest.fixture
def daemon(start: Callable[..., Daemon]) -> Daemon:
    """A daemon without a sandbox."""
    return start("--sandbox=none")


@pytest.fixture
def vm(windowed: Daemon) -> Iterator[Guest]:
    """A guest on a daemon with a window, `windowed`."""
    vm = Guest(windowed)
    yield vm
    vm.close()
    assert not vm.fe.late, "something was asked of a front-end whose device is stopped"


@pytest.fixture
def model(vm: Guest, share: Path) -> Model:
    """With one file of ten and a half pages, `a`."""
    model = Model(vm, share, 1)
    model.add("a", 10 * PAGE + PAGE // 2)
    return model
