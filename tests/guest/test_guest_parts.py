"""The parts of vfsd.guest that need no guest: archive, modules, kernel image, streams, and the complaints."""

import io
import lzma
import os
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from vfsd.guest import GuestError, cache, kernel, modules
from vfsd.guest.channel import Stream, script
from vfsd.guest.initramfs import Archive
from vfsd.guest.machine import TCG_WORDS, Settings, arguments
from vfsd.guest.options import environment_of, parser, shares_of
from vfsd.guest.progress import Progress


def test_archive_unpacks(tmp_path: Path) -> None:
    archive = Archive()
    archive.directory("etc")
    archive.file("etc/odd", b"12345", 0o640)
    archive.symlink("link", "etc/odd")
    busybox = shutil.which("busybox")
    assert busybox
    unpack = [busybox, "cpio", "-i", "-d", "-F", "/dev/stdin"]
    subprocess.run(unpack, input=archive.finish(), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "link").read_bytes() == b"12345"
    assert (tmp_path / "etc/odd").stat().st_mode & 0o7777 == 0o640


def module_directory(path: Path) -> Path:
    (path / "modules.dep").write_text(
        "kernel/a-top.ko.xz: kernel/b_mid.ko.xz kernel/c.ko.xz\nkernel/b_mid.ko.xz: kernel/c.ko.xz\nkernel/c.ko.xz:\n"
    )
    (path / "modules.builtin").write_text("kernel/fs/built-in.ko\n")
    return path


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    found = modules.resolve(module_directory(tmp_path), ["c", "a_top", "built_in", "b-mid"])
    assert [modules.module_name(file.name) for file in found] == ["c", "b_mid", "a_top"]


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="no module virtiofs"):
        modules.resolve(module_directory(tmp_path), ["virtiofs"])


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".xz", lzma.compress)])
def test_modules_are_unpacked(tmp_path: Path, suffix: str, pack: type[bytes]) -> None:
    file = tmp_path / f"m.ko{suffix}"
    file.write_bytes(pack(b"\x7fELF module"))
    assert modules.read_plain(file) == b"\x7fELF module"


def elf_with_note(kind: int) -> bytes:
    """An ELF64 file of one program header, a PT_NOTE with one note of owner Xen."""
    note = struct.pack("<III", 4, 8, kind) + b"Xen\0" + bytes(8)
    header = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<QQIHHH", 64, 0, 0, 64, 56, 1) + bytes(6)
    return header + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(note), len(note), 4) + note


def bzimage(payload: bytes) -> bytes:
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, 0x20F)
    struct.pack_into("<H", head, 0x20E, 0x100)
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    head[0x300:0x320] = b"6.1.0-test (somebody) #1".ljust(32, b"\0")
    return bytes(head) + payload


def test_kernel_image() -> None:
    plain = elf_with_note(18)
    assert kernel.read_version(bzimage(b"")) == "6.1.0-test"
    for pack in (lzma.compress, lambda data: zlib.compress(data, wbits=31)):
        assert kernel.unpack(bzimage(pack(plain) + struct.pack("<I", len(plain)))) == plain
    assert kernel.unpack(bzimage(lzma.compress(elf_with_note(17)))) is None
    assert kernel.unpack(bzimage(b"unknown packing")) is None
    with pytest.raises(GuestError, match="no x86 bzImage"):
        kernel.read_version(b"\x7fELF".ljust(1024, b"\0"))


def test_newest_kernel_wins() -> None:
    names = ["vmlinuz-6.9.1", "vmlinuz-6.10.0", "vmlinuz-6.10.0-rc1", "vmlinuz-5.4"]
    assert sorted(names, key=kernel.version_order)[0] == "vmlinuz-5.4"
    assert sorted(names, key=kernel.version_order)[1] == "vmlinuz-6.9.1"


def test_cache_makes_once_and_forgets_the_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cache.stored("kind", "key", lambda: b"one")
    assert cache.stored("kind", "key", lambda: b"two").read_bytes() == b"one"
    for number in range(cache.KEPT):
        cache.stored("kind", f"key {number}", lambda: b"")
    assert not first.exists()
    assert len(list((tmp_path / "vfsd").iterdir())) == cache.KEPT


@pytest.mark.parametrize(("accelerator", "spared"), [("tcg", True), ("kvm", False)])
def test_what_the_kernel_is_told(accelerator: str, spared: bool) -> None:
    """What TCG is spared a processor is not, and an argument of the user's comes last, which is the one that counts."""
    settings = Settings(kernel_args=["mitigations=auto"])
    words = arguments(settings, accelerator, Path("kernel"), Path("initramfs"), Path("console"), [], {}, True)
    told = words[words.index("-append") + 1].split()
    assert told[-1] == "mitigations=auto"
    assert [word in told for word in TCG_WORDS] == [spared] * 3


@pytest.mark.parametrize("size", [1, 3, 16, 1000])
def test_stream_ends_at_the_token_wherever_it_is_cut(size: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = Stream(ours, b"TOKEN", None)
        data = b"TOKTOKTOKENISH"
        for start in range(0, len(data), size):
            theirs.sendall(data[start : start + size])
            if not stream.ended:
                stream.receive()
        assert stream.ended
        assert stream.collected == b"TOKTOK"


def test_stream_keeps_back_no_more_than_it_must() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = Stream(ours, b"TOKEN", None)
        theirs.sendall(b"prompt> ")
        stream.receive()
        assert stream.collected == b"prompt> "
        theirs.close()
        with pytest.raises(GuestError):
            stream.receive()


def test_script_is_what_a_shell_reads(tmp_path: Path) -> None:
    text = script(["printf", "%s|%s", "a b", "$X"], str(tmp_path), {"X": "it's"})
    assert subprocess.run(["sh"], input=text, capture_output=True, check=True).stdout == b"a b|$X"
    text = script('pwd; printf "$X"', str(tmp_path), {"X": "it's"})
    assert subprocess.run(["sh"], input=text, capture_output=True, check=True).stdout.decode() == f"{tmp_path}\nit's"


def test_shares_from_options() -> None:
    options = parser().parse_args(
        ["run", "/a", "--share", "data=/b", "--share", "/srv/c=/c", "--daemon-option=--readonly"]
    )
    assert [(share.tag, share.mount_point, str(share.directory)) for share in shares_of(options)] == [
        ("share", "/mnt/share", "/a"),
        ("data", "/mnt/data", "/b"),
        ("share2", "/srv/c", "/c"),
    ]
    assert all(share.daemon_options == ("--readonly",) for share in shares_of(options))
    for wrong in ("data", "=/b", "a b=/b", "x" * 37 + "=/b"):
        options.share = [wrong]
        with pytest.raises(GuestError, match="--share"):
            shares_of(options)
    with pytest.raises(GuestError, match="--env"):
        environment_of(["1=x"])


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals() -> None:
    screen, file = Screen(), io.StringIO()
    for stream in (screen, file):
        progress = Progress(stream)
        progress.stage("kernel")
        progress.tick()
        progress.done()
    assert "kernel" in screen.getvalue() and screen.getvalue().endswith("\r\033[K")
    assert file.getvalue() == ""


def test_a_missing_qemu_qmp_is_seen_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "qemu").mkdir()
    (tmp_path / "qemu/__init__.py").write_text("'''A package that hides the namespace package qemu.'''")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    command = [sys.executable, "-m", "vfsd.guest", "run", str(tmp_path), "--log-dir", f"{tmp_path}/logs", "--", "true"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd="/", env={**os.environ, "PYTHONPATH": path}
    )
    assert result.returncode == 125
    (line,) = result.stderr.splitlines()
    assert "qemu.qmp is missing" in line and "'.[guest]'" in line and "'vfsd[guest]'" in line
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["run", "{tmp}/missing", "--", "true"], 125, "is no directory"),
        (["run", "{tmp}", "--memory", "64", "--", "true"], 125, "--memory"),
        (["run", "{tmp}", "--queue-size", "100", "--", "true"], 125, "power of two"),
        (["run", "{tmp}", "--qemu", "no-such-qemu", "--", "true"], 125, "no-such-qemu"),
        (["run", "{tmp}", "--daemon", "no-such-daemon", "--", "true"], 125, "no-such-daemon"),
        (["run", "{tmp}", "--daemon-option=--no-such-option", "--", "true"], 125, "no-such-option"),
        (["run", "{tmp}", "--share", "nonsense", "--", "true"], 125, "--share nonsense"),
        (["run", "{tmp}", "--kernel", "0.1-none", "--", "true"], 125, "0.1-none"),
        (["run", "{tmp}"], 2, "after --"),
        (["shell", "{tmp}", "--", "true"], 2, "use run"),
        ([], 2, "usage"),
    ],
)
def test_complaints(tmp_path: Path, words: list[str], status: int, says: str) -> None:
    """A user's mistake costs no boot: status and one sentence, without a traceback."""
    command = [sys.executable, "-m", "vfsd.guest", *(word.format(tmp=tmp_path) for word in words)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert result.returncode == status
    assert says in result.stderr
    assert "Traceback" not in result.stderr
