"""What one vfsd must know of another before it takes its state over.

Rule 1. VERSION grows with every change of what is saved, of what a record in an arena means, or of what is said to a
        process that lives on (vfsd/padded.py). Where that leaves an older version readable, it is added to READABLE,
        and what makes it so is written where it is read.
"""

from typing import Any

from vfsd import _fuse
from vfsd.descriptors import PLACES
from vfsd.information import VERSION as PROGRAM
from vhost import _virtq
from vhost.saved import StateError, field, number

VERSION = 3
#: In version 1 nothing belongs to a DAX window: a daemon that had one was not upgraded (vfsd/taker.py, _prepare).
#: Before version 3 a ring's record has a longer counter where two are now, and 0 where a third one is (vhost/virtq.h).
READABLE = (1, 2, 3)


def layout() -> dict[str, int]:
    """Sizes of what lies in the arenas: two programs that differ here can't share one, whatever their versions say."""
    return {
        "session": _fuse.ffi.sizeof("struct core_session"),
        "inode": _fuse.lib.INODE_RECORD,
        "handle": _fuse.lib.HANDLE_RECORD,
        "vring": _virtq.ffi.sizeof("struct virtq_state"),
        "inflight": _virtq.ffi.sizeof("struct virtq_inflight_desc"),
        "places": PLACES,
    }


def hello() -> dict[str, Any]:
    return {"version": VERSION, "program": PROGRAM, "layout": layout()}


def check_hello(data: Any) -> str:
    """The version of the program whose state this is. Raises StateError when it is no use here."""
    version = number(data, "version")
    if version not in READABLE:
        raise StateError(f"its state has version {version}, and this one reads {', '.join(map(str, READABLE))}")
    theirs, ours = field(data, "layout", dict), layout()
    if different := [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]:
        raise StateError(f"its records differ ({', '.join(different)})")
    return str(field(data, "program", str))
