"""A sweep closes what nobody owns, and nothing else; a full table stops neither it nor a worker."""

import os
import subprocess
import sys

import pytest

from tests.daemon.daemon import REPOSITORY

SWEEP = """
import os
from vfsd import descriptors
proc = os.open("/proc", os.O_PATH)
own = descriptors.opened(proc)
# Above 900 there is only the report file of tests/asan_report.c.
assert {number for number in own if number < 900} == {0, 1, 2, proc}, own
strays = {os.open("/dev/null", os.O_RDONLY) for _ in range(100)}
kept = set(sorted(strays)[::7])
assert descriptors.opened(proc) == own | strays
descriptors.sweep(own | kept)
assert descriptors.opened(proc) == own | kept
descriptors.sweep(own)
descriptors.sweep(own)
assert descriptors.opened(proc) == own
descriptors.reserve()
assert descriptors.opened(proc) == own
"""


FULL_TABLE = """
import os, resource
from vfsd import descriptors

def fill():
    made = set()
    try:
        while True:
            made.add(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return made

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
proc = os.open("/proc", os.O_PATH)
own = descriptors.opened(proc)
descriptors.leave_room()
strays = fill()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
assert 0 < descriptors.room(len(own)) < len(strays)
assert len(fill()) == 16, "the control process has places of its own"
kept = set(sorted(strays)[::5])
descriptors.sweep(own | kept)
assert descriptors.opened(proc) == own | kept
"""


# In a process of its own: a sweep knows no mercy with pytest's descriptors.
@pytest.mark.parametrize("program", [SWEEP, FULL_TABLE], ids=["sweep", "full table"])
def test_sweep(program: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
