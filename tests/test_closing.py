import subprocess
import sys
from pathlib import Path

import pytest

from tests.closing import closing, last

TESTS = """
import pytest
def test_passes(): pass
@pytest.mark.skip
def test_skipped(): pass
@pytest.fixture
def broken(): raise OSError
def test_error(broken): pass
"""


def test_two_runs_are_told_as_one() -> None:
    first = "==== 2 failed, 5098 passed, 30 skipped, 33 deselected, 1 error in 1248.89s (0:20:48) ====="
    second = "=== 1 failed, 3 passed, 1 xfailed, 2 warnings, 1 error in 9.10s ==="
    line = "3 failed, 5101 passed, 30 skipped, 33 deselected, 1 xfailed, 2 warnings, 2 errors in 1248.89s (0:20:48)"
    assert closing([first, second]) == f" {line} "
    assert closing(["=== no tests ran in 0.01s ==="]).strip("=") == " no tests ran in 0.01s (0:00:00) "


def test_a_run_without_an_end() -> None:
    with pytest.raises(ValueError, match=r"tests/test_x\.py"):
        closing(["=== 1 passed in 0.01s ===", "tests/test_x.py ......"])


def test_a_run_has_its_line_whatever_is_said_after_it() -> None:
    line = "=== 2 passed, 1 warning in 9.10s ==="
    assert last(f"started in 3s\n{line}\na guest in 1s\nException ignored in: <x>\n") == line
    assert last("tests/test_x.py ...\ntests/test_y.py ..") == "tests/test_y.py .."


def test_it_is_what_pytest_prints(tmp_path: Path) -> None:
    (tmp_path / "test_few.py").write_text(TESTS)
    for name, options in (("first", []), ("second", ["--deselect", "test_few.py::test_error"])):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "test_few.py"]
        with open(tmp_path / name, "w") as output:
            subprocess.run(command, cwd=tmp_path, stdout=output, check=False)
    command = [sys.executable, "-m", "tests.closing", str(tmp_path / "first"), str(tmp_path / "second")]
    line = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert " 2 passed, 2 skipped, 1 deselected, 1 error in " in line
