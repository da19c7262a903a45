"""A directory of 100,000 names, read in the guest while guest and host change it: what stays is seen once."""

import itertools
import threading

from .conftest import Place

COUNT = 100_000

READ = f"""
import os
from collections import Counter
stays = {{f"stays-{{number:06}}" for number in range({COUNT})}}
for turn in range(2):
    seen = Counter()
    with os.scandir(".") as entries:
        for number, entry in enumerate(entries):
            assert entry.is_file(follow_symlinks=False)
            seen[entry.name] += 1
            if number % 500 == 0:
                os.close(os.open(f"guest-{{turn}}-{{number}}", os.O_CREAT))
            if number % 500 == 250:
                os.rename(f"guest-{{turn}}-{{number - 250}}", f"moved-{{turn}}-{{number}}")
            if number % 500 == 400:
                os.unlink(f"moved-{{turn}}-{{number - 150}}")
    twice = [name for name in stays if seen[name] > 1]
    missed = [name for name in stays if seen[name] == 0]
    print(len(seen) >= len(stays), len(twice), len(missed))
"""


def test_a_big_directory_that_changes(place: Place) -> None:
    directory = place.host / "big"
    directory.mkdir()
    for number in range(COUNT):
        (directory / f"stays-{number:06}").touch()
    (place.host / "read.py").write_text(READ)
    done = threading.Event()

    def change() -> None:
        for number in itertools.count():
            if done.wait(0.001):
                return
            name = directory / f"host-{number % 50}"
            name.unlink() if name.exists() else name.touch()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        text = place.run("cd big && /usr/bin/python3 ../read.py").text
    finally:
        done.set()
        thread.join()
    assert text.splitlines() == ["True 0 0"] * 2
