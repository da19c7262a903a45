"""Much at once: more files than the window holds, workers that die, devices side by side. A byte model checks all."""

import os
import signal
import threading

from tests.guest.dax.conftest import SCALE
from tests.guest.dax.windowed import MODEL, Windowed, digest

FILES = [f"file{number}" for number in range(8)]
#: Sizes that are no multiple of anything: 32 MiB together, which is twice the window of `always`.
SIZES = [(4 << 20) + 1111 * number for number in range(8)]


def prepare(share: Windowed) -> None:
    for name, size in zip(FILES, SIZES, strict=True):
        share.fill(name, size)


def sums(share: Windowed) -> list[str]:
    """Of the files on the host."""
    return [digest((share.host / name).read_bytes()) for name in FILES]


def test_more_than_the_window_holds(always: Windowed) -> None:
    prepare(always)
    transfers, before = always.transfers(), always.statistics()
    printed = always.run(MODEL, 3000 * SCALE, prelude="").split()
    assert printed == sums(always)
    after = always.statistics()
    # It was a window full of mappings that gave way to others.
    assert after.unmaps - before.unmaps > 8 and after.mapped <= 16 << 20
    assert after.refusals == before.refusals
    assert always.transfers() == transfers


def test_workers_die(always: Windowed) -> None:
    """One every 100 ms, while the window is fought for."""
    prepare(always)
    transfers = always.transfers()
    over, kills = threading.Event(), 0

    def kill() -> None:
        nonlocal kills
        while not over.wait(0.1):
            os.kill(always.daemon.worker, signal.SIGKILL)
            kills += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        printed = always.run(MODEL, 2000 * SCALE, prelude="").split()
    finally:
        over.set()
        killer.join()
    assert printed == sums(always)
    assert always.transfers() == transfers
    assert kills >= 20 * SCALE
    print(f"{kills} workers killed")


def test_devices_side_by_side(auto: Windowed, always: Windowed, plain: Windowed) -> None:
    """Two with a window and one without, all three busy."""
    shares = [auto, always, plain]
    for share in shares:
        prepare(share)
    transfers = [share.transfers() for share in shares]
    commands = [share.start(MODEL, 1000 * SCALE, prelude="") for share in shares]
    printed = [share.finish(command).split() for share, command in zip(shares, commands, strict=True)]
    for share, words in zip(shares, printed, strict=True):
        assert words == sums(share), share.share.tag
    travelled = [share.transfers() - before for share, before in zip(shares, transfers, strict=True)]
    assert travelled[1] == 0 and travelled[2] > 0
