"""Files that are costly to make and cheap to keep: initramfs images, unpacked kernels, the KVM verdict.

Each is named after a digest of all it was made from, so nothing is ever stale. The least recently used are removed.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

#: Files of one kind that stay in the cache.
KEPT = 6


def directory() -> Path:
    """$XDG_CACHE_HOME/vfsd, made if missing; where that can't be, one of this user's own among the temporary files."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for path in (Path(base) / "vfsd", Path(tempfile.gettempdir()) / f"vfsd-cache-{os.getuid()}"):
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # The second name is guessable: refuse one that somebody else made.
        if os.access(path, os.W_OK) and path.stat().st_uid == os.getuid():
            return path
    return Path(tempfile.mkdtemp(prefix="vfsd-cache-"))


def fingerprint(path: Path) -> str:
    """What tells one version of a file from another without reading it."""
    status = path.stat()
    return f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"


def stored(kind: str, key: str, make: Callable[[], bytes]) -> Path:
    """The cached file of this kind for this key; made by `make` if it is not there. Safe against other processes."""
    where = directory()
    path = where / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:24]}"
    if path.exists():
        path.touch()
        return path
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=where)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(make())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    _prune(where, kind)
    return path


def _prune(where: Path, kind: str) -> None:
    def used(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    for path in sorted(where.glob(f"{kind}-*"), key=used)[:-KEPT]:
        path.unlink(missing_ok=True)
