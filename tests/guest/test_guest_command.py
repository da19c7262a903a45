"""The vfsd-guest command as a user meets it: exit status, streams, the shell, and what a failure shows."""

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from vfsd.guest import Guest, GuestError, Settings, Share

from .conftest import DAEMON, KERNEL, QEMU

COMMON = ["--qemu", QEMU, *(["--kernel", KERNEL] if KERNEL else []), *(["--daemon", DAEMON] if DAEMON else [])]


def vfsd_guest(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    options.setdefault("stdin", subprocess.DEVNULL)
    command = [sys.executable, "-m", "vfsd.guest", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, **options)  # type: ignore[call-overload, no-any-return]


def test_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content\n")
    (tmp_path / "other").mkdir()
    script = "pwd; cat file - >/mnt/data/copy; cat /mnt/data/copy; echo wrong >&2; exit 5"
    with subprocess.Popen(["echo", "piped"], stdout=subprocess.PIPE) as source:
        words = ["run", str(tmp_path), *COMMON, "--share", f"data={tmp_path}/other", "--", "sh", "-c", script]
        result = vfsd_guest(*words, stdin=source.stdout)
    assert (result.returncode, result.stdout) == (5, "/mnt/share\ncontent\npiped\n"), result.stderr
    first, *rest = result.stderr.splitlines()
    assert rest == ["wrong"]
    assert first.startswith("vfsd-guest: Linux ") and ("KVM" in first or "TCG" in first)
    assert (tmp_path / "other/copy").read_text() == "content\npiped\n"


def test_run_over_its_time(tmp_path: Path) -> None:
    result = vfsd_guest("run", str(tmp_path), *COMMON, "--timeout", "1", "--quiet", "--", "sleep", "600")
    assert result.returncode == 124
    assert result.stderr == "vfsd-guest: the command took longer than 1 s and was killed\n"


def test_what_a_command_wrote_is_on_the_host_when_the_guest_has_ended(tmp_path: Path) -> None:
    script = "dd if=/dev/zero of=data bs=1M count=16 2>/dev/null; sleep 600 >/dev/null 2>&1 &"
    words = ["--root", "busybox", "--quiet", *([] if DAEMON else ["--daemon-option=--writeback"])]
    assert vfsd_guest("run", str(tmp_path), *COMMON, *words, "--", "sh", "-c", script).returncode == 0
    assert (tmp_path / "data").read_bytes() == bytes(16 << 20)


def test_shell(tmp_path: Path) -> None:
    """A shell on a terminal: its size, and Ctrl-C, reach the guest."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "vfsd.guest", "shell", str(tmp_path), *COMMON])
    termios.tcsetwinsize(terminal, (33, 77))
    output = b""

    def until(text: bytes) -> None:
        nonlocal output
        while text not in output:
            output += os.read(terminal, 4096)
        output = output.partition(text)[2]

    until(b"guest:/mnt/share# ")
    os.write(terminal, b"stty size >size; tty; sleep 600\n")
    until(b"/dev/hvc0")
    time.sleep(0.5)
    os.write(terminal, b"\x03")
    until(b"guest:/mnt/share# ")
    os.write(terminal, b"echo status $?; exit 9\n")
    until(b"status 130")
    while True:
        try:
            if not os.read(terminal, 4096):
                break
        except OSError:  # EIO: the other side has gone
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    os.close(terminal)
    assert (tmp_path / "size").read_text() == "33 77\n"


def test_a_panic_is_reported_with_the_console(tmp_path: Path) -> None:
    result = vfsd_guest("run", str(tmp_path), *COMMON, "--kernel-arg", "rdinit=/nothing", "--", "true")
    assert result.returncode == 125
    assert "--- guest console ---" in result.stderr and "Kernel panic" in result.stderr
    assert f"--- daemon of {tmp_path} ---" in result.stderr
    assert "the guest's kernel panicked" in result.stderr.splitlines()[-1]


def test_a_mount_that_fails_is_reported(tmp_path: Path) -> None:
    result = vfsd_guest("run", str(tmp_path), *COMMON, "--root", "busybox", "--mount-options", "nonsense", "--", "true")
    assert result.returncode == 125
    assert "can't mount" in result.stderr and "--mount-options" in result.stderr


def test_a_daemon_that_ends_under_the_guest_is_reported(tmp_path: Path) -> None:
    settings = Settings(qemu=QEMU)
    with Guest(Share(tmp_path, daemon=DAEMON), settings=settings, kernel_name=KERNEL, host_root=False) as guest:
        command = guest.start(["sleep", "600"])
        for pid in reversed(guest.daemon.processes()):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(GuestError, match="daemon") as caught:
            guest.wait(command, 60)
        assert f"--- daemon of {tmp_path} ---" in str(caught.value)
    assert not Path(f"/proc/{guest.daemon.pid}").exists()
