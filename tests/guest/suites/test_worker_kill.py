"""Workers are killed under a guest, which sees no error. At length: scripts/chaos."""

import os
import signal
from pathlib import Path

from tests.chaos.guest import booted, in_a_guest, parent
from tests.chaos.runs import ENDLESS, here, look
from tests.chaos.storm import Outcome, tree

from .conftest import Place

KILLS = 20
#: git takes a guest that is emulated too long.
PARTS = ("fsx", "large", "tar", "names")


def test_nobody_notices(tmp_path: Path) -> None:
    """What a guest leaves in which workers were killed is what the same programs leave in a directory of the host."""
    at_rest = Outcome()
    with booted(tmp_path) as guest:
        look(at_rest, parent(guest.daemon.worker), "stormy")
        stormy = in_a_guest(guest, 0, KILLS, 1, {part: ENDLESS[part] for part in PARTS})
    control = tmp_path / "control"
    control.mkdir()
    (control / "ping").write_bytes(bytes(4096))
    for part in PARTS:
        status, text = here([part, str(control), "1", str(stormy.rounds[part])])
        assert status == 0, text
    assert len(stormy.kills) >= KILLS
    assert stormy.tree == tree(control)
    assert stormy.known == (0, 0)
    assert stormy.descriptors == at_rest.descriptors
    assert stormy.complaints == []
    assert stormy.log.count("was killed by SIGKILL; another one goes on") >= KILLS
    assert "ERROR" not in stormy.log


def test_idle_worker_killed(place: Place) -> None:
    (place.host / "file").write_text("before\n")
    assert place.run("cat file").text == "before"
    os.kill(place.guest.daemon.worker, signal.SIGKILL)
    assert place.run("cat file; echo more >>file; mkdir made").text == "before"
    assert (place.host / "file").read_text() == "before\nmore\n"
    assert (place.host / "made").is_dir()
