"""A sweep closes what nobody owns, and nothing else."""

import os
import subprocess
import sys

from tests.daemon.daemon import REPOSITORY

# In a process of its own: a sweep knows no mercy with pytest's descriptors.
PROGRAM = """
import os
from vfsd import descriptors
proc = os.open("/proc", os.O_PATH)
own = descriptors.opened(proc)
assert own == {0, 1, 2, proc}, own
strays = {os.open("/dev/null", os.O_RDONLY) for _ in range(100)}
kept = set(sorted(strays)[::7])
assert descriptors.opened(proc) == own | strays
assert descriptors.sweep(proc, own | kept) == len(strays - kept)
assert descriptors.opened(proc) == own | kept
assert descriptors.sweep(proc, own) == len(kept)
assert descriptors.sweep(proc, own) == 0
assert descriptors.opened(proc) == own
descriptors.reserve()
assert descriptors.opened(proc) == own
"""


def test_sweep() -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=environment)
