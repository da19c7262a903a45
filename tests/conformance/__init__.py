"""The conformance list, written once: what a POSIX program may expect of the share, as system calls and their results.

It runs over a FUSE client (levels 1 and 2: fuse.FuseExecutor), and as real system calls, in a guest (level 3) or on a
host directory (the control):

    PYTHONPATH=<repository> python3 -m tests.conformance ROOT [--without root,xattr]

All but fuse.py imports the standard library only, since it runs in guests.
"""

from tests.conformance import acls, attributes, files, locks, more, names
from tests.conformance.case import Case, Executor, Step, check, run

CASES: list[Case] = [*names.CASES, *files.CASES, *attributes.CASES, *acls.CASES, *more.CASES, *locks.CASES]

__all__ = ["CASES", "Case", "Executor", "Step", "check", "run"]
