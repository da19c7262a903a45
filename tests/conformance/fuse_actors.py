"""The steps of tests.conformance.locks as FUSE requests: processes are lock owners, and no more (fs/fuse/file.c,
fuse_lk_fill and fuse_flush)."""

from typing import Any

from tests.conformance.actors import KINDS, NAMES
from tests.fuseclient import FuseClient
from vfsd._fuse import lib


class FuseActor:
    def __init__(self, number: int, files: dict[str, Any]) -> None:
        self.owner = 0xAC7 + number
        self.pid = 1000 + number
        #: What it has open.
        self.files = dict(files)


class FuseActors:
    """Part of fuse.FuseExecutor. The actor named "" is owner 0, as which its files are flushed."""

    client: FuseClient
    open_files: dict[str, Any]
    actors: dict[str, FuseActor]

    def fork(self, who: str) -> None:
        self.actors[who] = FuseActor(len(self.actors), self.open_files)

    def end(self, who: str) -> None:
        for name in list(self.actors[who].files):
            self.shut(who, name)
        del self.actors[who]

    def shut(self, who: str, file: str) -> None:
        actor = self.actors[who]
        nodeid, fh, _ = actor.files.pop(file)
        # The case may have closed its own by now, and RELEASE have been sent.
        if file in self.open_files:
            self.client.flush(nodeid, fh, actor.owner)

    def lock(self, who: str, file: str, kind: str, start: int, length: int) -> None:
        actor = self.actors.get(who)
        self._set(file, actor.owner if actor else 0, kind, start, length, actor.pid if actor else 1)

    def ofd_lock(self, who: str, file: str, kind: str, start: int, length: int) -> None:
        self._set(file, 1 << 63 | self.open_files[file].fh, kind, start, length, 1)

    def _set(self, file: str, owner: int, kind: str, start: int, length: int, pid: int) -> None:
        nodeid, fh, _ = self.open_files[file]
        self.client.setlk(nodeid, fh, owner, KINDS[kind], start, _end(start, length), pid=pid)

    def holder(self, who: str, file: str, kind: str, start: int, length: int) -> tuple[str, int, int, str]:
        nodeid, fh, _ = self.open_files[file]
        owner = self.actors[who].owner if who else 0
        found = self.client.getlk(nodeid, fh, owner, KINDS[kind], start, _end(start, length))
        if NAMES[found.type] == "u":
            return "u", 0, 0, ""
        length = 0 if found.end == lib.LOCK_END else found.end - found.start + 1
        name = next((name for name, actor in self.actors.items() if actor.pid == found.pid), str(found.pid))
        return NAMES[found.type], found.start, length, name

    def flock(self, who: str, file: str, kind: str) -> None:
        nodeid, fh, _ = self.open_files[file]
        self.client.setlk(nodeid, fh, 1 << 63 | fh, KINDS[kind], flock=True)


def _end(start: int, length: int) -> int:
    return start + length - 1 if length else lib.LOCK_END  # type: ignore[no-any-return]
