"""What programs of the guest do to files in the window, and that no data travels as requests."""

import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

from tests.guest.dax.windowed import MAPPED, Windowed, digest
from tests.guest.waiting import until

#: More than one of the guest's ranges of 2 MiB, and no multiple of a page.
SIZE = (5 << 20) + 1234


def test_reads(auto: Windowed) -> None:
    data = auto.fill("read", SIZE)
    before, transfers = auto.served()["SETUPMAPPING"], auto.transfers()
    sums = auto.run(
        """
print(hashlib.md5(os.pread(fd, size, 0)).hexdigest(), hashlib.md5(mapped).hexdigest())
print(len(os.pread(fd, 9999, size - 99)))
""",
        "read",
    )
    assert sums.split() == [digest(data)] * 2 + ["99"]
    assert auto.transfers() == transfers
    assert auto.served()["SETUPMAPPING"] - before == 3
    assert auto.statistics().mapped == 6 << 20


def test_writes_in_place(auto: Windowed) -> None:
    """A byte model: what the guest wrote is on the host when the write returns, by either call."""
    model = bytearray(auto.fill("written", SIZE))
    transfers = auto.transfers()
    auto.run(
        """
dice = random.Random(1)
for turn in range(2000):
    piece = dice.randbytes(dice.randrange(1, 9000))
    offset = dice.randrange(size - len(piece))
    if turn % 2:
        mapped[offset : offset + len(piece)] = piece
    else:
        assert os.pwrite(fd, piece, offset) == len(piece)
os._exit(0)
""",
        "written",
    )
    dice = random.Random(1)
    for _ in range(2000):
        piece = dice.randbytes(dice.randrange(1, 9000))
        offset = dice.randrange(SIZE - len(piece))
        model[offset : offset + len(piece)] = piece
    assert (auto.host / "written").read_bytes() == model
    assert auto.transfers() == transfers


def test_both_sides_see_each_other_at_once(auto: Windowed) -> None:
    """Guest and host answer each other through a page of the file, in memory and by calls. No data is in requests."""
    auto.fill("shared", SIZE)
    rounds = 300
    program = f"""
mapped[:16] = bytes(16)
for turn in range(1, {rounds + 1}):
    while int.from_bytes((mapped[:8], os.pread(fd, 8, 0))[turn % 2], "little") != turn:
        pass
    if turn % 3:
        mapped[8:16] = turn.to_bytes(8, "little")
    else:
        os.pwrite(fd, turn.to_bytes(8, "little"), 8)
"""
    with open(auto.host / "shared", "r+b") as file, mmap.mmap(file.fileno(), 4096) as mapped:
        mapped[8:16] = b"\xff" * 8
        command = auto.start(program, "shared")
        while any(mapped[8:16]):
            os.sched_yield()
        served = auto.served()
        for turn in range(1, rounds + 1):
            if turn % 4:
                mapped[:8] = turn.to_bytes(8, "little")
            else:
                os.pwrite(file.fileno(), turn.to_bytes(8, "little"), 0)
            while int.from_bytes((mapped[8:16], os.pread(file.fileno(), 8, 8))[turn % 2], "little") != turn:
                os.sched_yield()
            if turn == rounds - 1:
                # It asks for the size now and then, and once whether privileges go with the first write.
                assert set(auto.served() - served) <= {"GETATTR", "GETXATTR", "SETUPMAPPING"}
        auto.finish(command)


def test_the_file_grows(auto: Windowed) -> None:
    """By the guest and by the host, within the last page and beyond it, while it is mapped."""
    size = (2 << 20) - 5000
    data = auto.fill("growing", size)
    program = """
def see(length):  # the guest believes in a size for a second
    while os.fstat(fd).st_size != length:
        time.sleep(0.05)
assert mapped[-1] == os.pread(fd, 1, size - 1)[0]
os.pwrite(fd, b"A" * 100, size)             # in the last page
assert os.pread(fd, 200, size) == b"A" * 100
os.pwrite(fd, b"B" * 8000, size + 100)      # over its end, and that of the range
longer = mmap.mmap(fd, size + 8100)
assert longer[size:] == b"A" * 100 + b"B" * 8000
longer[size + 8099] = ord("C")
see(size + 8100 + 3000)                     # the host goes on
assert os.pread(fd, 4000, size + 8100) == b"D" * 3000
open("seen", "x").close()
see(3 << 20)                                # and leaves a hole
longest = mmap.mmap(fd, 3 << 20)
assert longest[size + 8100 : size + 11100] == b"D" * 3000
assert longest[size + 11100 :] == bytes((3 << 20) - size - 11100)
longest[-1] = ord("E")
os.pwrite(fd, b"F", 5 << 20)
assert mmap.mmap(fd, 0)[-2:] == b"\\0F"
assert longest[:size] == mapped[:] and hashlib.md5(mapped).hexdigest() == sys.argv[2]
"""
    command = auto.start(program, "growing", digest(data))
    path = auto.host / "growing"
    until(lambda: path.stat().st_size == size + 8100 and path.read_bytes().endswith(b"C"))
    with open(path, "ab") as file:
        file.write(b"D" * 3000)
    until((auto.host / "seen").exists)
    os.truncate(path, 3 << 20)
    auto.finish(command)
    grown = data + b"A" * 100 + b"B" * 7999 + b"C" + b"D" * 3000
    grown = grown.ljust((3 << 20) - 1, b"\0") + b"E"
    assert path.read_bytes() == grown.ljust(5 << 20, b"\0") + b"F"


#: What a mapping shows of a file whose pages are taken away, printed line by line: a name, and a digest or a signal.
TAKEN_AWAY = """
def show(name, at=0, length=None):
    child = os.fork()
    if not child:
        print(name, hashlib.md5(mapped[at : at + length if length else size]).hexdigest(), flush=True)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        print(name, signal.Signals(-status).name, flush=True)
def store(name, at):
    child = os.fork()
    if not child:
        mapped[at] = 1
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
libc = ctypes.CDLL(None, use_errno=True)
def fallocate(mode, at, length):
    result = libc.fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(length))
    print("fallocate", result and errno.errorcode[ctypes.get_errno()], flush=True)
show("whole")
for edge in (3 << 20, (2 << 20) + 4096 + 10, 4096 * 3 + 1, 5, 0):
    os.truncate(sys.argv[1], edge)
    page = -(-edge // 4096) * 4096
    if edge:
        show(f"up to {edge}", 0, edge)
    if page > edge:
        show(f"to the end of the page of {edge}", edge, page - edge)
    show(f"beyond {edge}", page, 1)
    show("far beyond", size - 1, 1)
    store("stored beyond", page)
    store("stored far beyond", size - 1)
    assert os.fstat(fd).st_size == edge
os.truncate(sys.argv[1], size)
show("all zero")
mapped[:] = random.Random(2).randbytes(size)
show("filled again")
PUNCH_HOLE, ZERO_RANGE = 3, 0x11
for mode in (PUNCH_HOLE, ZERO_RANGE):
    for at, length in ((4096, 8192), (100, 50), ((2 << 20) - 3000, 7000), (size - 100, 4000), (1 << 20, 3 << 20)):
        fallocate(mode, at, length)
        show(f"without {length} at {at}")
        store("stored there", at)
        show("then")
    mapped[:] = random.Random(3).randbytes(size)
os.close(os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC))
show("emptied", 0, 1)
os.truncate(sys.argv[1], size)
show("all zero again")
"""


def test_pages_are_taken_away_as_natively(auto: Windowed, tmp_path: Path) -> None:
    """Truncation and holes under a mapping that has pages there: the same program says the same on the host."""
    data = auto.fill("shrinking", SIZE)
    prelude = "import ctypes, errno\n" + MAPPED
    (tmp_path / "shrinking").write_bytes(data)
    command = [sys.executable, "-c", prelude + TAKEN_AWAY, "shrinking"]
    native = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert auto.run(TAKEN_AWAY, "shrinking", prelude=prelude).splitlines() == native.stdout.splitlines()
    assert (auto.host / "shrinking").read_bytes() == (tmp_path / "shrinking").read_bytes()
    assert "SIGBUS" in native.stdout and native.stdout.count("fallocate 0") == 10


def test_unmount_and_remount_with_live_maps(auto: Windowed) -> None:
    data = auto.fill("remounted", SIZE)
    program = "mapped[:4] = b'turn'; assert hashlib.md5(mapped[4:]).hexdigest() == sys.argv[2]"
    for _ in range(3):
        auto.run(program, "remounted", digest(data[4:]))
        assert auto.statistics().mapped >= 6 << 20
        auto.remount()
        # What is unmounted has nothing in the window.
        assert auto.statistics().mapped == 0
    # Under a program that maps: the mount lives until the program has ended, without a name.
    program = """
while not os.path.exists("end"):
    mapped[:5], last = b"later", mapped[-1]
    time.sleep(0.1)
"""
    command = auto.start(program, "remounted")
    until(lambda: auto.statistics().mapped > 0)
    auto.shell(f"umount -l {auto.path}")
    (auto.host / "end").touch()
    auto.finish(command)
    until(lambda: auto.statistics().mapped == 0)
    auto.shell(f"mount -t virtiofs {auto.share.tag} {auto.path}")
    assert auto.run("print(hashlib.md5(mapped[5:]).hexdigest())", "remounted") == digest(data[5:])
    assert (auto.host / "remounted").read_bytes() == b"later" + data[5:]
