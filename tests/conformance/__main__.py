"""Runs the list as system calls below a directory, prints "N passed, N failed", and exits 1 when one failed."""

import argparse
import os
import sys
import tempfile

from tests.conformance import CASES, run
from tests.conformance.syscalls import Syscalls, has_acls, has_flags


def place(root: str, without: str) -> frozenset[str]:
    """What this place has of a case's needs."""
    has = {"xattr", "kernel"}
    if os.geteuid() == 0:
        has.add("root")
    if has_flags(root):
        has.add("flags")
    if has_acls(root):
        has.add("acl")
    # Linux 6.1 taught FUSE about O_TMPFILE.
    if tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 1):
        has.add("tmpfile")
    return frozenset(has) - frozenset(without.split(","))


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs the conformance list as system calls.")
    parser.add_argument("root", help="directory to work in; a directory is made below it and left there")
    parser.add_argument("--without", default="", help="what this place lacks (root,xattr,tmpfile,acl)")
    options = parser.parse_args()
    has = place(options.root, options.without)
    os.umask(0)
    executor = Syscalls(tempfile.mkdtemp(prefix="conformance-", dir=options.root), "root" in has)
    os.chmod(executor.root, 0o755)
    failed = 0
    cases = [case for case in CASES if case.needs <= has]
    for number, case in enumerate(cases):
        if wrong := run(executor, case, number):
            failed += 1
            print(f"FAILED {case.name}: {wrong}", flush=True)
    print(f"{len(cases) - failed} passed, {failed} failed, {len(CASES) - len(cases)} left out")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
