"""What dax.Manager knows as plain data, and back.

Rule 1. What is read makes a window of this size, or is refused. A file is a number here, as it is to the manager.
"""

from typing import Any

from dax.manager import COUNTS, Change, Drop, Empty, Fill, Manager, Remove, Setup, State, Statistics
from dax.window import Mapping, WindowError
from vhost.saved import StateError, field, items, numbers, rows

#: What can be due at most: of every file that there can be, that it is dropped.
DUE_MAX = 1 << 24
#: Ranges of a request at most (vfsd/fuse/internal.h, REQUEST_MAX, in struct fuse_removemapping_one).
RANGES_MAX = 1 << 13


def save(manager: Manager) -> dict[str, Any]:
    state = manager.state()
    counted = state.statistics
    return {
        "mappings": [[*_place(mapping), int(doubtful)] for mapping, doubtful in state.mappings],
        "due": [_save(change) for change in state.due],
        "counts": [*(getattr(counted, name) for name in COUNTS), counted.highest],
    }


def restore(manager: Manager, data: Any) -> None:
    """Raises StateError."""
    window = manager.window
    found = rows(data, "mappings", window.size // window.page, 5)
    mappings = tuple((_mapping(*place), bool(doubtful)) for *place, doubtful in found)
    due = tuple(_read(saved) for saved in items(data, "due", DUE_MAX))
    *counts, highest = numbers(data, "counts", len(COUNTS) + 1)
    statistics = Statistics(**dict(zip(COUNTS, counts, strict=True)), highest=highest, mappings=0, mapped=0)
    try:
        manager.restore(State(mappings, due, statistics))
    except WindowError as error:
        raise StateError(str(error)) from error


def _place(mapping: Mapping) -> tuple[int, int, int, int]:
    return mapping.offset, mapping.length, mapping.file, mapping.file_offset


def _mapping(offset: int, length: int, file: int, file_offset: int) -> Mapping:
    """QEMU knows no other than writable ones."""
    return Mapping(offset, length, file, file_offset, writable=True)


def _save(change: Change) -> dict[str, Any]:
    match change:
        case Setup(mapping):
            return {"setup": _place(mapping)}
        case Fill(mapping):
            return {"fill": _place(mapping)}
        case Remove(ranges):
            return {"remove": ranges}
        case Drop(file):
            return {"drop": [file]}
        case Empty():
            return {"empty": []}


def _read(data: Any) -> Change:
    if not isinstance(data, dict) or len(data) != 1:
        raise StateError("what is due makes no sense")
    match kind := next(iter(data)):
        case "setup":
            return Setup(_mapping(*numbers(data, kind, 4)))
        case "fill":
            return Fill(_mapping(*numbers(data, kind, 4)))
        case "remove":
            return Remove(tuple((offset, length) for offset, length in rows(data, kind, RANGES_MAX, 2)))
        case "drop":
            return Drop(*numbers(data, kind, 1))
        case "empty":
            field(data, kind, list)
            return Empty()
    raise StateError(f"{kind!r} is nothing that can be due")
