"""What scripts/test runs beside the other tests, seen in a tree that has few of either."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: Passes, or is begun and waits to be interrupted.
TEST = """
import os, time
from pathlib import Path
def test_it():
    if "WAITS" in os.environ:
        Path(__file__).with_suffix(".begun").touch()
        time.sleep(100)
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    scripts = {
        "scripts/bootstrap": "", "scripts/check": "", "scripts/sanitize": "touch sanitized", "scripts/fuzz": "",
        ".venv/bin/python": f'exec {sys.executable} -B "$@"',
    }  # fmt: skip
    tests = {f"tests/{name}/test_one.py": TEST for name in (".", "guest", "managers")}
    modules = dict.fromkeys(("vfsd/it.py", "vhost/it.py", "dax/it.py"), "")
    for name, text in (scripts | tests | modules).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n" if name in scripts else text)
        path.chmod(0o755)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    shutil.copy(ROOT / "scripts/test", tmp_path / "scripts")
    shutil.copy(ROOT / "tests/closing.py", tmp_path / "tests")
    return tmp_path


def start(tree: Path, **environment: str) -> subprocess.Popen[str]:
    # Whoever runs us may ignore them, and so would all that we start.
    command = ["env", "--default-signal=INT,QUIT", "bash", "scripts/test"]
    return subprocess.Popen(
        command, cwd=tree, env=os.environ | environment, start_new_session=True, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_all_of_them_are_told(tree: Path) -> None:
    """Also where somebody wants to see colours."""
    run = start(tree, FORCE_COLOR="1")
    said, _ = run.communicate()
    assert run.returncode == 0, said
    assert " 3 passed in " in said.splitlines()[-1]
    assert (tree / "sanitized").exists()


@pytest.mark.parametrize("name", [".", "guest"])
def test_one_that_fails_fails_them_all(tree: Path, name: str) -> None:
    (tree / "tests" / name / "test_one.py").write_text("def test_it(): assert 0")
    run = start(tree)
    said, _ = run.communicate()
    assert run.returncode == 1
    assert " 1 failed, 2 passed in " in said.splitlines()[-1]


def test_an_interrupt_ends_them_all(tree: Path) -> None:
    """And what they have found until then is told."""
    run = start(tree, WAITS="1")
    begun = [tree / "tests" / name / "test_one.begun" for name in (".", "guest")]
    while not all(path.exists() for path in begun):
        assert run.poll() is None
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate()
    assert run.returncode == 1
    assert said.count("! KeyboardInterrupt !") == 2
    assert " no tests ran in " in said.splitlines()[-1]
    assert not (tree / "sanitized").exists()
