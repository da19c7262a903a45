"""docs/options.md says what the option table says."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_in_step_with_the_table() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "options-page", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
