import os
from pathlib import Path

import pytest

from vfsd import idmap
from vfsd.errors import Failure
from vfsd.values import IdMap

USER = os.geteuid()
ALONE = (IdMap(0, 1000, 1),)


@pytest.mark.parametrize(
    ("granted", "mapped"),
    [
        (f"other:1:1\n{USER}:400000:65536\n{USER}:700000:1\n", (*ALONE, IdMap(1, 400000, 65536))),
        (f"{USER}:400000:0\n", ALONE),
        ("# nothing\n\n:::\nx\n", ALONE),
        ("", ALONE),
    ],
)
def test_automatic(tmp_path: Path, granted: str, mapped: tuple[IdMap, ...]) -> None:
    file = tmp_path / "subuid"
    file.write_text(granted)
    assert idmap.automatic(1000, str(file), "sh") == mapped
    assert idmap.automatic(1000, str(file), "no-such-program") == ALONE
    assert idmap.automatic(1000, str(tmp_path / "missing"), "sh") == ALONE


def test_a_map_for_which_a_program_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Failure, match="newgidmap is not installed"):
        idmap.write(os.getpid(), (IdMap(0, 0, 2),), (IdMap(0, 0, 2),), privileged=False)
