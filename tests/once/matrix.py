"""Runs a case with the worker killed at each of its steps in turn, and compares what there is afterwards with a run in
which nobody was killed."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.daemon.daemon import Daemon, at_rest, guest, prepared, until
from tests.fuseclient import ROOT, FuseClient
from tests.once.cases import Case, Place
from tests.once.tracer import Stop, Tracer
from tests.once.view import Records, host_locks, names, plain, tree
from tests.sandbox.user import UID, as_user

View = dict[str, Any]
#: A guest that offers all there is.
INIT: dict[str, Any] = {"minor": 45, "flags": (1 << 64) - 1}
#: Of the daemon: what makes it serve all there is, with the same instructions each time: how long a ring is watched
#: depends on the clock, and a worker that is stepped would fall asleep where it was seen to go on.
OPTIONS = ("--sandbox=none", "--xattr", "--posix-lock", "--flock", "--poll-us=0")


class Cell(NamedTuple):
    #: Where the worker was killed.
    stop: Stop
    #: It did not come there this time.
    missed: bool
    #: What differs from the control, by kind: (what it is, what it should be).
    wrong: dict[str, tuple[Any, Any]]


@contextmanager
def matrix(place: Path, user: bool = False) -> Iterator["Matrix"]:
    """On a daemon of its own, which an ordinary user may run. `place` is an empty directory."""
    share = place / "share"
    share.mkdir()
    owner = UID if user else os.geteuid()
    prefix = as_user(place) if user else []
    os.chown(share, owner, -1)
    daemon = Daemon(share, place / "vfsd.sock", *OPTIONS, prefix=prefix)
    with daemon, guest(daemon, init=False) as (_, client):
        client.init(**INIT)
        yield Matrix(daemon, share, client, owner)


class Matrix:
    """One guest on a daemon."""

    def __init__(self, daemon: Daemon, share: Path, client: FuseClient, owner: int = 0) -> None:
        self._daemon, self._share, self._client, self._owner = daemon, share, client, owner
        self._places = 0
        self.kills = 0

    def control(self, case: Case) -> tuple[View, list[Stop]]:
        """What a case leaves in which nobody is killed, and where the worker could have been."""
        tracer = Tracer(self._worker())
        return self._view(case, tracer.run), tracer.stops

    def cells(self, case: Case, some: Callable[[list[Stop]], list[Stop]] = lambda stops: stops) -> Iterator[Cell]:
        """One cell for each stop, or for some of them."""
        control, stops = self.control(case)
        for stop in some(stops):
            cell = self.cell(case, control, stop)
            # Where it goes after the reply is chance.
            yield self.cell(case, control, stop) if cell.missed else cell

    def cell(self, case: Case, control: View, stop: Stop, steps: int = 0) -> Cell:
        """A case in which the worker is killed so many instructions after a stop."""
        tracer = Tracer(self._worker())
        seen = self._view(case, lambda request: tracer.run(request, stop, steps))
        self.kills += tracer.killed
        return Cell(stop, not tracer.killed, differences(seen, control))

    def instructions(self, case: Case, every: int = 1) -> Iterator[Cell]:
        """One cell for each instruction, or for some of them, between two system calls of the worker."""
        control, stops = self.control(case)
        for stop in stops:
            if stop.kind != "exit":
                continue
            tracer = Tracer(self._worker())
            self._view(case, lambda request, to=tracer, at=stop: to.run(request, count_from=at))
            for steps in range(1, tracer.counted + 1, every):
                yield self.cell(case, control, stop, steps)

    def _worker(self) -> int:
        """One that has answered something, since the death of others makes the next one wait, and has begun all it does
        by itself."""
        self._client.statfs()
        # The thread for what waits for a disk comes with the first that does.
        fh = self._client.opendir(ROOT).fh
        self._client.fsyncdir(ROOT, fh)
        self._client.releasedir(ROOT, fh)
        pid = self._daemon.worker
        until(lambda: at_rest(pid))
        return pid

    def _view(self, case: Case, run: Callable[[Callable[[], Any]], Any]) -> View:
        self._client.uid = self._client.gid = 0
        self._places += 1
        path = self._share / f"place{self._places}"
        path.mkdir()
        entry = self._client.lookup(ROOT, path.name.encode())
        place = Place(path, entry.nodeid, self._client, self._owner)
        place.own()
        before = self._records()
        case.prepare(place)
        try:
            reply = run(lambda: case.request(place))
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            reply = error
        self._client.uid = self._client.gid = 0
        known = names(path)
        # Answered by a worker that has served all that was in flight.
        self._client.statfs()
        after = self._records()
        view = {
            "tree": tree(path),
            "locks": host_locks(known),
            **after.since(before, known),
            "reply": plain(reply, self._client, known),
        }
        self._clean(path)
        return view

    def _records(self) -> Records:
        """When the next worker, which rehearses on descriptors of its own, has closed them."""
        prepared(self._daemon)
        return Records(self._daemon.control)

    def _clean(self, path: Path) -> None:
        self._client.init(**INIT)
        with suppress(OSError):
            os.chmod(path, 0o700)
        shutil.rmtree(path)


def differences(seen: View, control: View) -> dict[str, tuple[Any, Any]]:
    return {kind: (seen[kind], control[kind]) for kind in control if seen[kind] != control[kind]}
