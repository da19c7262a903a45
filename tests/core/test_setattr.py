"""SETATTR on hosts that are not like this one."""

import os
import stat
from collections.abc import Callable
from errno import ENOSYS, EOPNOTSUPP, EPERM

import pytest

from tests.core.served import REAL_ROOT, Served
from tests.core.threads import FCHMODAT2, answer, in_thread
from tests.fuseclient import ROOT

pytestmark = pytest.mark.skipif(not REAL_ROOT, reason="only root may filter system calls and go on")


@pytest.mark.parametrize("error", [ENOSYS, EPERM], ids=["an older kernel", "an older container"])
def test_a_host_without_fchmodat2(serve: Callable[..., Served], error: int) -> None:
    def run() -> None:
        answer(FCHMODAT2, error)
        served = serve()
        path = served.root / "f"
        path.touch()
        os.symlink("f", served.root / "l")
        nodeid = served.client.lookup(ROOT, b"f").nodeid
        assert served.client.setattr(nodeid, mode=0o4711).attr.mode == stat.S_IFREG | 0o4711
        assert stat.S_IMODE(path.stat().st_mode) == 0o4711
        served.client.setattr(served.client.lookup(ROOT, b"l").nodeid, mode=0o600, expect=EOPNOTSUPP)
        assert stat.S_IMODE(path.stat().st_mode) == 0o4711

    in_thread(run)
