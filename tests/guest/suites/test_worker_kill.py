"""The worker is killed while the guest reads: the guest sees no error, and the bytes are right."""

import hashlib
import os
import random
import signal
import threading

from .conftest import Place

SIZE = 200 << 20
PIECE = 8 << 20


def test_worker_killed_while_the_guest_reads(place: Place) -> None:
    numbers = random.Random(5)
    sums = []
    with open(place.host / "data", "wb") as file:
        for _ in range(SIZE // PIECE):
            piece = numbers.randbytes(PIECE)
            file.write(piece)
            sums.append(hashlib.md5(piece).hexdigest())
    read = f"dd if=data bs={PIECE} skip=$i count=1 2>/dev/null | md5sum || exit 1"
    one_pass = f"i=0; while [ $i -lt {len(sums)} ]; do {read}; i=$((i + 1)); done"
    # A fast guest reads it more than once.
    script = f"{one_pass}; until [ -e enough ]; do echo 3 >/proc/sys/vm/drop_caches; {one_pass}; done"
    daemon = place.guest.daemon
    place.run("cat data | head -c 1")
    lasting = set(daemon.processes()[:-1])
    killed: set[int] = set()
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.3):
            worker = daemon.worker
            if worker not in killed | lasting:
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
            if len(killed) == 3:
                (place.host / "enough").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        text = place.run(script).text
    finally:
        ended.set()
        killer.join()
    lines = [line.split()[0] for line in text.splitlines()]
    assert len(lines) >= len(sums)
    assert lines == sums * (len(lines) // len(sums))
    assert len(killed) >= 3
    # The run goes on: the same mount still works, and the daemon is the same process.
    assert place.run("echo alive >after; cat after").text == "alive"
    assert daemon.process.poll() is None


def test_idle_worker_killed(place: Place) -> None:
    (place.host / "file").write_text("before\n")
    assert place.run("cat file").text == "before"
    os.kill(place.guest.daemon.worker, signal.SIGKILL)
    assert place.run("cat file; echo more >>file; mkdir made").text == "before"
    assert (place.host / "file").read_text() == "before\nmore\n"
    assert (place.host / "made").is_dir()
