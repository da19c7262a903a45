import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.served import REAL_ROOT, Served
from tests.fuseclient import FuseClient
from vfsd._fuse import lib

#: How inodes are found again, as core flags.
MODES = {"names": 0, "handles": lib.CORE_FILE_HANDLES}


def open_descriptors() -> int:
    # What other tests left to the collector is not to be closed in between.
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Makes cores on the directory `root`, and sees afterwards that none of them leaks a descriptor."""
    before = open_descriptors()
    made: list[Served] = []
    umask = os.umask(0)

    def make(**options: Any) -> Served:
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        made.append(Served(root, **options))
        return made[-1]

    yield make
    os.umask(umask)
    for served in made:
        served.close()
    assert open_descriptors() == before, "a descriptor was left open"


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve()


@pytest.fixture
def root(served: Served) -> Path:
    return served.root


@pytest.fixture
def client(served: Served) -> FuseClient:
    return served.client


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    if request.param == "handles" and not REAL_ROOT:
        pytest.skip("a file handle is opened by root only")
    return str(request.param)


@pytest.fixture
def tight(serve: Callable[..., Served], mode: str) -> Served:
    """A share whose guest may hold eight descriptors, the root's included."""
    served = serve(core_flags=MODES[mode], session_flags=lib.FUSE_EXPORT_SUPPORT)
    served.limit(8)
    return served
