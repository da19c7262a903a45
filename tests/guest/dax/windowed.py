"""A share with a DAX window as tests see it: both sides' names of a file, and what the daemon counts."""

import hashlib
import os
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

from dax.manager import Statistics
from tests.guest.waiting import until
from vfsd.guest import Guest
from vfsd.guest.channel import Command, Result

#: For programs in the guest: a mapping of a whole file, its name the first argument.
MAPPED = """
import hashlib, mmap, os, random, signal, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
size = os.fstat(fd).st_size
mapped = mmap.mmap(fd, size)
"""

#: Reads and writes eight files here and there, by calls and through mappings, so many times or until there is a file
#: `end`, and compares all it reads with what it should be. Prints the files' checksums.
MODEL = """
import hashlib, mmap, os, random, sys
dice = random.Random(1)
files = [os.open(f"file{number}", os.O_RDWR) for number in range(8)]
mappings = [mmap.mmap(fd, 0) for fd in files]
models = [bytearray(mapped) for mapped in mappings]
open("begun", "w").close()
for turn in range(int(sys.argv[1])):
    number = dice.randrange(8)
    fd, mapped, model = files[number], mappings[number], models[number]
    kind, offset = dice.random(), dice.randrange(len(model) - 300)
    there = slice(offset, offset + 300)
    if kind < 0.4:
        mapped[there] = model[there] = dice.randbytes(300)
    elif kind < 0.6:
        model[there] = dice.randbytes(300)
        assert os.pwrite(fd, model[there], offset) == 300
    elif kind < 0.8:
        assert mapped[there] == model[there], (turn, number, offset)
    else:
        assert os.pread(fd, 300, offset) == model[there], (turn, number, offset)
    if turn % 50 == 0 and os.path.exists("end"):
        break
for mapped, model in zip(mappings, models):
    assert mapped[:] == model
    print(hashlib.md5(model).hexdigest())
"""


def digest(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


class Windowed:
    """One share of a guest."""

    def __init__(self, guest: Guest, number: int) -> None:
        self.guest, self.share, self.daemon = guest, guest.shares[number], guest.daemons[number]
        #: On the host, and in the guest.
        self.host, self.path = Path(self.share.directory), self.share.mount_point

    def fill(self, name: str, size: int) -> bytes:
        """Writes a file on the host; its bytes."""
        data = random.Random(name).randbytes(size)
        (self.host / name).write_bytes(data)
        return data

    def start(self, program: str, *arguments: object, prelude: str = MAPPED) -> Command:
        """Starts a Python program in the guest, in the share's root."""
        words = ["python3", "-c", prelude + program, *map(str, arguments)]
        return self.guest.start(words, cwd=self.path)

    def finish(self, command: Command, timeout: float = 240) -> str:
        """What a started program printed. Fails the test if it failed."""
        result: Result = self.guest.wait(command, timeout)
        assert result.status == 0, f"status {result.status}: {result.text}\n{result.stderr.decode()[-4000:]}"
        return result.text

    def run(self, program: str, *arguments: object, prelude: str = MAPPED) -> str:
        return self.finish(self.start(program, *arguments, prelude=prelude))

    def shell(self, script: str, timeout: float = 120) -> str:
        """What a shell script printed in the guest; it runs outside of the share, which may be unmounted."""
        result = self.guest.run(f"exec 2>&1; set -e; {script}", timeout, cwd="/")
        assert result.status == 0, f"{script}: status {result.status}\n{result.text[-4000:]}"
        return result.text

    def remount(self, options: str = "rw") -> None:
        self.shell(f"umount {self.path}; mount -t virtiofs -o {options} {self.share.tag} {self.path}")

    def served(self) -> Counter[str]:
        """Requests the daemon has served so far, by their names."""
        return Counter({name: int(count) for count, name in re.findall(r"(\d+) ([A-Z_0-9]+)", self._report()[0])})

    def statistics(self) -> Statistics:
        """What the daemon knows of its window."""
        numbers = [int(number) for number in re.findall(r"=(\d+)", self._report()[1])]
        return Statistics(*numbers)

    def transfers(self) -> int:
        """Reads and writes that travelled as requests."""
        served = self.served()
        return served["READ"] + served["WRITE"]

    def wait_for_load(self) -> None:
        """Returns when MODEL, just started, is at work."""
        until((self.host / "begun").exists)
        (self.host / "begun").unlink()

    def _report(self) -> tuple[str, str]:
        """The two lines that SIGUSR1 asks for."""
        kinds = ("requests served: ", "DAX window: ")
        size = self.daemon.log.stat().st_size
        os.kill(self.daemon.pid, signal.SIGUSR1)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            text = self.daemon.log.read_bytes()[size:].decode()
            *lines, _ = text.split("\n")
            found = [[line for line in lines if kind in line] for kind in kinds]
            if found[0] and (found[1] or not self.share.dax_window):
                return found[0][-1].partition(kinds[0])[2], found[1][-1] if found[1] else ""
            time.sleep(0.01)
        raise TimeoutError("the daemon says nothing")
