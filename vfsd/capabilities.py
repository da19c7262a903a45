"""Which capabilities the daemon keeps.

The file operations need nine of them; everything else goes, from every set, before the first guest request.
"""

import os
from collections.abc import Iterable

from vfsd._process import ffi, lib
from vfsd.values import CAPABILITIES

#: What serving files takes: any owner and mode (chown, dac_*, fowner), set-id bits kept where the caller may keep them
#: (fsetid), the caller's identity (setuid, setgid), device nodes (mknod) and file capabilities (setfcap).
NEEDED = ("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "setgid", "setuid", "mknod", "setfcap")


def mask(*names: str) -> int:
    """The set of these capabilities: bit n = capability n."""
    return sum(1 << CAPABILITIES.index(name) for name in names)


def effective() -> int:
    """The effective set of this thread."""
    return _sets()[0]


def reduce(changes: Iterable[tuple[bool, int]]) -> int:
    """Leaves this thread, and all it starts later, with NEEDED and the (add, number) `changes`, as far as it had them.

    Returns what is left. The bounding set shrinks too where that is allowed (it takes setpcap).
    """
    had, permitted = _sets()
    wanted = mask(*NEEDED)
    for add, number in changes:
        wanted = wanted | 1 << number if add else wanted & ~(1 << number)
    keep = permitted & wanted
    if had & mask("setpcap"):
        _check(lib.process_bound_capabilities(keep))
    _check(lib.process_set_capabilities(keep, keep, 0))
    return keep


def _sets() -> tuple[int, int]:
    """Effective and permitted."""
    sets = ffi.new("uint64_t[3]")
    _check(lib.process_capabilities(sets, sets + 1, sets + 2))
    return int(sets[0]), int(sets[1])


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
