"""Programs work on a share while its workers are killed, and leave what they leave where no worker dies. At length:
scripts/chaos."""

from pathlib import Path

import pytest

from tests.chaos.runs import on_the_host
from tests.sandbox.user import AS_ROOT

KILLS = 30


@pytest.mark.skipif(not AS_ROOT, reason="mounts")
def test_nobody_notices(tmp_path: Path) -> None:
    stormy = on_the_host(tmp_path / "stormy", KILLS, 1)
    calm = on_the_host(tmp_path / "calm", 0, 1, stormy.rounds)
    assert len(stormy.kills) >= KILLS
    assert stormy.differences(calm) == []
    assert calm.known == (0, 0)
    assert stormy.log.count("was killed by SIGKILL; another one goes on") >= KILLS
    assert "ERROR" not in stormy.log
