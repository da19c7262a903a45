"""Why a share may differ from the guest's own file system: every known reason, and exactly what it changes.

Each is a limit of the protocol, named with the kernel function that sets it. A reason says what the outcome is then, so
that it hides nothing else.
"""

from collections.abc import Callable

from tests.killpriv.compare import Cell

#: Changes what the control leaves of a cell to what a share leaves; None where it does not apply.
Reason = Callable[[Cell, list[str]], list[str] | None]

TRUNCATES = ("ftruncate", "ftruncate same size", "truncate", "open O_TRUNC", "open O_RDONLY|O_TRUNC", "creat")
WRITES = ("write", "write O_DIRECT", "write O_SYNC", "append", "sendfile", "splice")
ALLOCATES = ("fallocate", "fallocate keep size", "fallocate punch", "fallocate zero", "copy_file_range")
MODIFIES = (*TRUNCATES, *WRITES, *ALLOCATES)
NOTHING = ("chown -1", "fchown -1")
STRANGERS = ("member", "supplementary member", "other")


def _without(words: list[str], *gone: str) -> list[str]:
    return [word for word in words if word not in gone]


def _set_id(cell: Cell) -> list[str]:
    return [bit for bit in ("suid", "sgid") if bit in cell.bits]


def supplementary(cell: Cell, words: list[str]) -> list[str] | None:
    """fs/fuse/dev.c, fuse_get_req: a request names the primary group of its caller only."""
    if cell.caller == "supplementary member" and cell.operation in MODIFIES and cell.bits.endswith("sgid-x"):
        return _without(words, "sgid")
    return None


def refused(cell: Cell, words: list[str]) -> list[str] | None:
    """fs/fuse/dir.c, fuse_setattr: ATTR_MODE is dropped, so setattr_prepare no more refuses it to strangers."""
    if cell.caller in STRANGERS and cell.operation in NOTHING and words[:1] == ["EPERM"]:
        return _without(words, "EPERM", "cap")
    return None


def mapped(cell: Cell, words: list[str]) -> list[str] | None:
    """mm/filemap.c, filemap_page_mkwrite strips nothing; what is written back is a write to the host."""
    return _without(words, "cap") if cell.operation == "mmap" and "cap" in words else None


def no_shared_mapping(cell: Cell, words: list[str]) -> list[str] | None:
    """fs/fuse/file.c, fuse_file_mmap: none of an uncached file, before Linux 6.6."""
    return ["ENODEV", *words] if cell.operation == "mmap" else None


def capability_first(operations: tuple[str, ...]) -> Reason:
    def reason(cell: Cell, words: list[str]) -> list[str] | None:
        """fs/attr.c, notify_change: taking a capability leaves an empty SETATTR, the same as a chown of nothing."""
        if cell.caller != "root" or cell.operation not in operations or cell.capability != "cap":
            return None
        return _without(words, "suid", *([] if cell.bits.endswith("-x") else ["sgid"])) if _set_id(cell) else None

    return reason


def marks_stay(cell: Cell, words: list[str]) -> list[str] | None:
    """fs/fuse/dir.c, fuse_setattr: a guest that takes the bits itself leaves sgid without group execute alone."""
    # With O_DIRECT it tells us to take them (fs/fuse/file.c, fuse_direct_io).
    operations = {*TRUNCATES, *WRITES, *NOTHING, "chown same", "chown other"} - {"write O_DIRECT"}
    if cell.operation in operations and cell.bits.endswith("sgid-x") and cell.caller in ("owner", "other"):
        return [*words, "sgid"]
    return None


def nobody_marks(cell: Cell, words: list[str]) -> list[str] | None:
    """fs/fuse/dev.c, fuse_get_req: with FUSE_ALLOW_IDMAP no group is named, and sgid without group execute stays."""
    if cell.operation in (*MODIFIES, "chown same", "chown other") and cell.bits.endswith("sgid-x"):
        return [*words, "sgid"] if cell.caller in ("owner", "other") and "EPERM" not in words else None
    return None


def nobody_owns(cell: Cell, words: list[str]) -> list[str] | None:
    """fs/fuse/dev.c, fuse_get_req: with FUSE_ALLOW_IDMAP a chown of nothing may be anybody's, and takes nothing."""
    if cell.operation in NOTHING and cell.caller not in STRANGERS:
        return _set_id(cell) or None
    return None


def nobody_is_root(cell: Cell, words: list[str]) -> list[str] | None:
    """fs/fuse/dev.c, fuse_get_req: with FUSE_ALLOW_IDMAP nobody is root for FALLOCATE and COPY_FILE_RANGE."""
    if cell.operation in ALLOCATES and cell.caller == "root" and _set_id(cell):
        return _without(words, "suid", *([] if cell.bits.endswith("-x") else ["sgid"]))
    return None


def of_share(name: str, release: str) -> list[Reason]:
    """Those of one of compare.SHARES, on a guest's kernel (uname -r)."""
    cache, _, variant = name.partition(" ")
    version = tuple(int(number) for number in release.split(".")[:2])
    # From Linux 6.12 on a guest offers FUSE_ALLOW_IDMAP.
    nameless = version >= (6, 12) and variant != "named"
    direct = cache in ("never", "metadata")
    known: list[Reason] = [no_shared_mapping if direct and version < (6, 6) else mapped, refused]
    if variant == "off":
        return [*known, marks_stay, supplementary, *([nobody_marks, nobody_is_root] if nameless else [])]
    if nameless:
        return [*known, nobody_marks, nobody_owns, nobody_is_root]
    # Without the page cache a write is the daemon's alone.
    return [*known, supplementary, capability_first(ALLOCATES if direct else (*ALLOCATES, *WRITES))]


def explain(known: list[Reason], cell: Cell, control: str, outcome: str) -> str:
    """The first reason by which `outcome` is what a share has to leave, in its own words; "" when none is."""
    for reason in known:
        changed = reason(cell, control.split())
        if changed is not None and " ".join(changed) == outcome != control:
            return (reason.__doc__ or "").strip()
    return ""
