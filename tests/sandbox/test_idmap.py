import os
from pathlib import Path
from typing import Any

import pytest

from vfsd import idmap
from vfsd.errors import Failure
from vfsd.values import IdMap

USER = os.geteuid()
ALONE = (IdMap(0, USER, 1),), (IdMap(0, os.getegid(), 1),)
GRANTED = tuple((*own, IdMap(1, 400000, 65536)) for own in ALONE)


@pytest.mark.parametrize(
    ("granted", "mapped"),
    [
        (f"other:1:1\n{USER}:400000:65536\n{USER}:700000:1\n", GRANTED),
        (f"{USER}:400000:0\n", ALONE),
        ("# nothing\n\n:::\nx\n", ALONE),
        ("", ALONE),
    ],
)
def test_automatic(tmp_path: Path, granted: str, mapped: tuple[tuple[IdMap, ...], ...]) -> None:
    file, missing = str(tmp_path / "subuid"), str(tmp_path / "missing")
    Path(file).write_text(granted)
    assert idmap.automatic(privileged=False, grants=(file, file), programs=("sh", "sh")) == mapped
    assert idmap.automatic(privileged=True, grants=(file, file), programs=("no-such-program", "sh")) == mapped
    # The caller's identity is a user and a group: one alone is of no use.
    for grants, programs in (
        ((file, missing), ("sh", "sh")),
        ((missing, file), ("sh", "sh")),
        ((file, file), ("sh", "no-such-program")),
    ):
        assert idmap.automatic(privileged=False, grants=grants, programs=programs) == ALONE


def test_why_only_one_id_is_mapped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    file = tmp_path / "subuid"
    file.write_text(f"{USER}:400000:65536\n")
    grants = (str(file), str(file))

    def reason(**how: Any) -> str:
        caplog.clear()
        assert idmap.automatic(**{"privileged": False, "grants": grants, "programs": ("sh", "sh")} | how) == ALONE
        (line,) = caplog.messages
        assert line.startswith("only one user and one group id are mapped, ")
        return line

    assert "no-such-program is not installed (Debian package uidmap)" in reason(programs=("sh", "no-such-program"))
    assert f"{file} and /no-such-file don't both grant" in reason(grants=(str(file), "/no-such-file"))
    monkeypatch.setattr(idmap, "_no_new_privs", lambda: True)
    assert "no_new_privs is set" in reason()
    caplog.clear()
    assert idmap.automatic(privileged=True, grants=grants) == GRANTED, "it needs no newuidmap"
    assert not caplog.messages


def test_a_map_for_which_a_program_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Failure, match="newgidmap is not installed"):
        idmap.write(os.getpid(), (IdMap(0, 0, 2),), (IdMap(0, 0, 2),), chosen=True, privileged=False)
