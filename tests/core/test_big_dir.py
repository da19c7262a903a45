"""A directory of very many names that changes while it is read: what stays is there once, whatever else happens."""

import itertools
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.served import Served
from tests.fuseclient import ROOT, FuseClient

COUNT = 100_000


def fill(root: Path, count: int) -> set[bytes]:
    names = {b"stays-%06d" % number for number in range(count)}
    for name in names:
        os.close(os.open(os.path.join(os.fsencode(root), name), os.O_CREAT | os.O_WRONLY))
    return names


def check(seen: Counter[bytes], stays: set[bytes]) -> None:
    assert {name for name, times in seen.items() if times > 1 and name in stays} == set(), "seen twice"
    assert stays - seen.keys() == set(), "not seen"


def read_while_both_sides_change(
    served: Served, read: Callable[[FuseClient, int, int, int], list[tuple[bytes, int]]], stays: set[bytes]
) -> None:
    """Reads the root to its end, with another request and another call of the host between any two reads."""
    client = served.client
    fh, position = client.opendir(ROOT).fh, 0
    seen: Counter[bytes] = Counter()
    for number in itertools.count():
        some = read(client, ROOT, fh, position)
        if not some:
            break
        seen.update(name for name, _ in some)
        position = some[-1][1]
        (served.root / f"host-{number}").touch()
        client.forget(client.create(ROOT, b"guest-%d" % number)[0].nodeid)
        if number % 3 == 2:
            (served.root / f"host-{number - 2}").rename(served.root / f"moved-{number}")
            (served.root / f"guest-{number - 1}").unlink()
    client.releasedir(ROOT, fh)
    check(seen, stays)


def test_readdir(serve: Callable[..., Served]) -> None:
    served = serve()
    stays = fill(served.root, COUNT)

    def read(client: FuseClient, nodeid: int, fh: int, position: int) -> list[tuple[bytes, int]]:
        return [(entry.name, entry.off) for entry in client.readdir(nodeid, fh, position, size=32768)]

    read_while_both_sides_change(served, read, stays)


def test_readdirplus(serve: Callable[..., Served]) -> None:
    served = serve()
    stays = fill(served.root, 5000)

    def read(client: FuseClient, nodeid: int, fh: int, position: int) -> list[tuple[bytes, int]]:
        entries = client.readdirplus(nodeid, fh, position, size=4096)
        for entry in entries:
            if entry.entry.nodeid:
                client.forget(entry.entry.nodeid)
        return [(entry.name, entry.off) for entry in entries]

    read_while_both_sides_change(served, read, stays)


@pytest.mark.parametrize("readers", [4])
def test_several_readers_of_one_handle_and_a_host_that_does_not_rest(
    serve: Callable[..., Served], readers: int
) -> None:
    """Each request brings its own position, so they do not disturb one another."""
    served = serve()
    stays = fill(served.root, 10_000)
    fh, done, errors = served.client.opendir(ROOT).fh, threading.Event(), []

    def change() -> None:
        for number in itertools.count():
            if done.is_set():
                return
            name = served.root / f"host-{number % 50}"
            name.unlink() if name.exists() else name.touch()

    def read() -> None:
        try:
            seen: Counter[bytes] = Counter()
            position = 0
            while some := served.client.readdir(ROOT, fh, position):
                seen.update(entry.name for entry in some)
                position = some[-1].off
            check(seen, stays)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(readers)]
    changer = threading.Thread(target=change)
    for thread in (changer, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    changer.join()
    served.client.releasedir(ROOT, fh)
    assert not errors, errors[0]
