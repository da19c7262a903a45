"""What other options than the default do to a guest: one guest with a share for each."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfsd.guest import Guest, Share
from vfsd.guest.machine import Settings

MODES = {
    "never": ["--cache=never"],
    "direct": ["--allow-direct-io", "--modcaps=+linux_immutable"],
    "writeback": ["--writeback"],
    "readonly": ["--readonly", "--negative-timeout=3"],
    "auto": [],
}


@pytest.fixture(scope="module")
def modes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guest, Path]]:
    """A guest with a share for each mode, on /mnt/MODE; and the directory of their directories."""
    if "VFSD_TEST_DAEMON" in os.environ:
        pytest.skip("options of vfsd")
    root = tmp_path_factory.mktemp("modes")
    for mode in MODES:
        (root / mode).mkdir()
    shares = [Share(root / mode, mode, f"/mnt/{mode}", daemon_options=options) for mode, options in MODES.items()]
    settings = Settings(qemu=os.environ.get("VFSD_TEST_QEMU", Settings.qemu), memory=1024)
    with Guest(*shares, settings=settings, kernel_name=os.environ.get("VFSD_TEST_KERNEL")) as guest:
        yield guest, root


def python(guest: Guest, mode: str, script: str) -> str:
    """What a script prints that runs in the guest, in the share of a mode."""
    head = "import errno, fcntl, mmap, os, time\n"
    result = guest.run(["/usr/bin/python3", "-c", head + script], 120, cwd=f"/mnt/{mode}")
    assert result.status == 0, result.text
    return result.text


def release(guest: Guest) -> tuple[int, ...]:
    return tuple(int(number) for number in guest.release.split("-")[0].split(".")[:2])


def test_shared_mappings_without_a_cache(modes: tuple[Guest, Path]) -> None:
    guest, root = modes
    (root / "never/f").write_bytes(b"x" * 5000)
    script = """
fd = os.open("f", os.O_RDWR)
try:
    m = mmap.mmap(fd, 5000)
    m[4990:4994] = b"mmap"
    m.flush()
    print(os.pread(fd, 10, 4986))
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    if release(guest) >= (6, 6):
        assert python(guest, "never", script) == "b'xxxxmmapxx'"
        assert (root / "never/f").read_bytes()[4985:4995] == b"xxxxxmmapx"
    else:
        assert python(guest, "never", script) == "ENODEV"


def test_without_a_cache_changes_are_seen_at_once(modes: tuple[Guest, Path]) -> None:
    guest, root = modes
    (root / "never/g").write_bytes(b"old")
    script = """
fd = os.open("g", os.O_RDONLY)
print(os.pread(fd, 10, 0), os.stat("g").st_size, flush=True)
open("now", "x").close()
while os.path.exists("now"): pass
print(os.pread(fd, 10, 0), os.stat("g").st_size, os.path.exists("new"))
"""
    job = guest.start(["/usr/bin/python3", "-c", "import os\n" + script], cwd="/mnt/never")
    while not (root / "never/now").exists():
        pass
    (root / "never/g").write_bytes(b"newer")
    (root / "never/new").touch()
    (root / "never/now").unlink()
    assert guest.wait(job, 60).text == "b'old' 3\nb'newer' 5 True"


def test_direct_io(modes: tuple[Guest, Path]) -> None:
    """What O_DIRECT can't do on the host it can't do in the guest; what is not direct goes on."""
    guest, root = modes
    host = root / "direct/f"
    host.write_bytes(b"x" * 10_000)
    script = """
fd = os.open("f", os.O_RDWR | os.O_DIRECT)
page = mmap.mmap(-1, 16384)
print(os.preadv(fd, [page], 0), page[9999:10001])
page[:4096] = b"d" * 4096
print(os.pwritev(fd, [memoryview(page)[:4096]], 4096))
for what in (memoryview(page)[:100], memoryview(page)[1:4097]):
    try:
        print(os.pwritev(fd, [what], 0))
    except OSError as error:
        print(errno.errorcode[error.errno])
m = mmap.mmap(fd, 10_000)
m[9990:9994] = b"mmap"
m.flush()
m.close()
fcntl.fcntl(fd, fcntl.F_SETFL, 0)
print(os.pwrite(fd, b"buffered", 9001), os.pread(fd, 12, 8999))
os.close(fd)
"""
    native = subprocess.run(
        ["/usr/bin/python3", "-c", f"import errno, fcntl, mmap, os\n{script}"],
        cwd=root / "direct", capture_output=True, text=True, check=False,
    )  # fmt: skip
    if native.returncode:
        pytest.skip(f"no direct I/O on this host's file system: {native.stderr[-200:]}")
    after = host.read_bytes()
    host.write_bytes(b"x" * 10_000)
    assert python(guest, "direct", script) == native.stdout.strip()
    assert host.read_bytes() == after


def test_writeback(modes: tuple[Guest, Path]) -> None:
    """With the guest's cache in charge of size and times: what the host has after a sync is what the guest says."""
    guest, root = modes
    (root / "writeback/f").write_bytes(b"0123456789")
    os.utime(root / "writeback/f", (1, 1))
    script = """
fd = os.open("f", os.O_WRONLY | os.O_APPEND)
for number in range(100):
    os.write(fd, b"%03d\\n" % number)
os.close(fd)
fd = os.open("f", os.O_WRONLY)
os.pwrite(fd, b"middle", 5)
os.ftruncate(fd, 300)
time.sleep(0.05)  # in the tick of the truncation it would change no time, and the guest would tell the host of none
os.pwrite(fd, b"!", 5000)
os.fsync(fd)
os.close(fd)
os.mkfifo("fifo")
with open("kept", "w") as file:
    file.write("times are kept")
os.utime("kept", ns=(1_000_000_001, 2_000_000_002))
with open("renamed", "w") as file:
    file.write("x")
    os.rename("renamed", "renamed to")
    file.write("y")
with open("sparse", "wb") as file:
    file.truncate(1 << 20)
    time.sleep(0.05)  # as above
    os.pwrite(file.fileno(), b"not on the host yet", 500_000)
    assert os.lseek(file.fileno(), 0, os.SEEK_DATA) <= 500_000, "data that is not written back is no hole"
    assert os.lseek(file.fileno(), 500_000, os.SEEK_HOLE) > 500_000
os.sync()
for name in sorted(os.listdir(".")):
    status = os.stat(name)
    print(name, status.st_size, status.st_mtime_ns, oct(status.st_mode))
"""
    told = python(guest, "writeback", script)
    there = "\n".join(
        f"{path.name} {status.st_size} {status.st_mtime_ns} {oct(status.st_mode)}"
        for path in sorted((root / "writeback").iterdir())
        for status in [path.stat()]
    )
    assert told == there
    assert "kept 14 2000000002 " in there
    lines = b"".join(b"%03d\n" % number for number in range(100))
    want = bytearray((b"0123456789" + lines)[:300].ljust(5000, b"\0") + b"!")
    want[5:11] = b"middle"
    assert (root / "writeback/f").read_bytes() == want
    assert (root / "writeback/renamed to").read_bytes() == b"xy"


def test_names_that_are_not_there_may_be_remembered(modes: tuple[Guest, Path]) -> None:
    guest, root = modes
    script = """
print(os.path.exists("later"), flush=True)
time.sleep(0.5)
"""
    assert python(guest, "readonly", script) == "False"
    (root / "readonly/later").touch()
    script = """
while not os.path.exists("later"):
    time.sleep(0.05)
print("seen")
"""
    assert python(guest, "readonly", script) == "seen"


def test_a_read_only_share(modes: tuple[Guest, Path]) -> None:
    guest, root = modes
    (root / "readonly/f").write_bytes(b"x")
    os.utime(root / "readonly/f", (1, 1))
    calls = (
        'open("f", "w")', 'open("f", "a")', 'open("new", "x")', 'os.mkdir("d")', 'os.unlink("f")', 'os.chmod("f", 0)',
        'os.chown("f", 1, 1)', 'os.utime("f")', 'os.rename("f", "g")', 'os.link("f", "g")', 'os.symlink("f", "g")',
        'os.truncate("f", 0)', 'os.mkfifo("p")',
    )  # fmt: skip
    script = f"""
print(open("f").read())
for call in {calls}:
    try:
        exec(call)
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    assert python(guest, "readonly", script).split() == ["x", *["EROFS"] * len(calls)]
    assert (root / "readonly/f").stat().st_atime == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="immutable files take root on the host")
def test_inode_flags(modes: tuple[Guest, Path]) -> None:
    """chattr and lsattr, beside what lsattr says on the host."""
    guest, root = modes
    for mode in ("auto", "direct"):
        (root / mode / "flags").touch()
        if subprocess.run(["lsattr", root / mode / "flags"], capture_output=True, check=False).returncode:
            pytest.skip("no inode flags on this file system")

    def lsattr(mode: str) -> tuple[str, str]:
        host = subprocess.run(["lsattr", "flags"], cwd=root / mode, capture_output=True, text=True, check=True).stdout
        return guest.run("lsattr flags", 60, cwd=f"/mnt/{mode}").text.strip(), host.strip()

    def chattr(mode: str, change: str) -> int:
        return guest.run(f"chattr {change} flags 2>/dev/null", 60, cwd=f"/mnt/{mode}").status

    assert chattr("auto", "+d") == 0
    inside, outside = lsattr("auto")
    assert inside == outside and "d" in inside.split()[0]
    assert chattr("auto", "+i") != 0, "without the capability"
    assert chattr("direct", "+i") == 0
    inside, outside = lsattr("direct")
    assert inside == outside and "i" in inside.split()[0]
    assert guest.run("echo x >flags", 60, cwd="/mnt/direct").status != 0
    assert guest.run("rm -f flags", 60, cwd="/mnt/direct").status != 0
    assert chattr("direct", "-i") == 0
    assert guest.run("rm flags", 60, cwd="/mnt/direct").status == 0


def test_requests_of_four_mebibytes(modes: tuple[Guest, Path]) -> None:
    """On a ring of 1024, from Linux 6.13 on, when the guest raises its limit."""
    guest, root = modes
    if release(guest) < (6, 13):
        pytest.skip("Linux from 6.13 on")
    guest.run(
        "sysctl -w fs.fuse.max_pages_limit=1020; umount /mnt/direct; mount -t virtiofs direct /mnt/direct"
    ).check()
    size = 8 * 1020 * 4096
    (root / "direct/big").write_bytes(os.urandom(1 << 20).ljust(size, b"x"))

    def calls(kind: str) -> int:
        lines = Path(f"/proc/{guest.daemons[1].worker}/io").read_text().splitlines()
        return {key: int(value) for key, value in (line.split(": ") for line in lines)}[kind]

    before = calls("syscr")
    digest = guest.run("dd if=big bs=4080k iflag=direct 2>/dev/null | md5sum", 120, cwd="/mnt/direct").check().text
    reads = calls("syscr") - before
    native = subprocess.run(["md5sum", root / "direct/big"], capture_output=True, text=True, check=True).stdout
    assert digest.split()[0] == native.split()[0]
    before = calls("syscw")
    guest.run("dd if=/dev/zero of=copy bs=4080k count=8 oflag=direct", 120, cwd="/mnt/direct").check()
    writes = calls("syscw") - before
    assert (root / "direct/copy").read_bytes() == bytes(size)
    print(f"\n{size} bytes in {reads} system calls that read, {writes} that write")
    # Eight requests, and an eventfd each and for what else the guest asks. Of 1 MiB it would be 32 and more.
    assert writes < 32 and reads < 32
