"""Every request happens once, wherever its worker is killed: after each system call, and between any two stores."""

import platform
from collections.abc import Iterator

import pytest

from tests.once.cases import CASES
from tests.once.matrix import Matrix, matrix
from tests.once.tracer import Stop
from vfsd._fuse import ffi, lib

#: Where an ordinary user's daemon goes ways of its own: its caller's rights are not ours, nor are set-id bits.
OF_USERS = [name for name in CASES if name.startswith(("CREATE", "TMPFILE")) or "set-id" in name or "sgid" in name]


def rows() -> Iterator[tuple[str, int]]:
    """Names of the ops that are served, and ONCE_*."""
    for opcode in range(4096):
        if name := lib.fuse_row_name(opcode):
            yield ffi.string(name).decode(), lib.fuse_row_once(opcode)


def test_every_row_is_disturbed() -> None:
    kept = {name for name, how in rows() if how != lib.ONCE_AGAIN}
    assert kept, "the table is empty"
    assert kept - {"COPY_FILE_RANGE_64"} <= {name.partition(",")[0] for name in CASES}


def made(factory: pytest.TempPathFactory, user: bool) -> Iterator[Matrix]:
    place = factory.mktemp("once")
    for path in (place, place.parent):
        path.chmod(0o755)
    with matrix(place, user) as of:
        yield of


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """On a daemon that runs as who runs the tests."""
    yield from made(tmp_path_factory, False)


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """On a daemon of an ordinary user."""
    yield from made(tmp_path_factory, True)


def after_calls(stops: list[Stop]) -> list[Stop]:
    """Where a system call has been made and what came of it is not written yet. The other half, before each call, is
    scripts/kill-matrix's."""
    return [stop for stop in stops if stop.kind == "exit"]


def killed(on: Matrix, name: str) -> None:
    cells = list(on.cells(CASES[name], after_calls))
    assert [cell for cell in cells if cell.wrong] == []
    # But for one or two after the reply, which may or may not be seen. A FORGET makes no call at all.
    assert len([cell for cell in cells if not cell.missed]) >= max(1, len(cells) - 2)


@pytest.mark.parametrize("name", CASES)
def test_killed_after_every_system_call(ours: Matrix, name: str) -> None:
    killed(ours, name)


@pytest.mark.parametrize("name", OF_USERS)
def test_a_users_worker_killed_after_every_system_call(users: Matrix, name: str) -> None:
    killed(users, name)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the tracer can't tell where instructions end")
@pytest.mark.parametrize("name", ["LOOKUP", "FORGET, all", "BATCH_FORGET", "CREATE, EXCL", "RELEASE"])
def test_killed_between_instructions(ours: Matrix, name: str) -> None:
    """Each so many of them; scripts/kill-matrix goes through all."""
    cells = list(ours.instructions(CASES[name], every=331))
    assert [cell for cell in cells if cell.wrong] == []
    assert len([cell for cell in cells if not cell.missed]) >= 4
