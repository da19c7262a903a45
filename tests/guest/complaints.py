"""What a guest's kernel says, and what of it means that something is wrong."""

import re

from vfsd.guest import Guest

COMPLAINT = re.compile(r"WARNING:|BUG:|Oops|blocked for more than|general protection fault|refcount_t:|corruption")


def kernel_log(guest: Guest) -> list[str]:
    return guest.run("dmesg", 30, cwd="/").check().text.splitlines()


def complaints(guest: Guest, since: int = 0) -> list[str]:
    """Lines that tell of a fault, but for those among the first `since` of the log."""
    return [line for line in kernel_log(guest)[since:] if COMPLAINT.search(line)]
