"""The private mount that shows files without an end, with the kernel's own passthrough behind it."""

import errno
import mmap
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vfsd.padded import SIZE, Padded, PaddedError

PAGE = mmap.PAGESIZE


@pytest.fixture
def padded() -> Iterator[Padded]:
    try:
        padded = Padded(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except (OSError, PaddedError) as error:
        pytest.skip(f"takes root and Linux 6.9: {error}")
    yield padded
    padded.close()


def file(path: Path, content: bytes) -> int:
    path.write_bytes(content)
    return os.open(path, os.O_RDWR)


def test_a_file_has_no_end_and_is_the_same_pages(padded: Padded, tmp_path: Path) -> None:
    fd = file(tmp_path / "f", b"tail" * 1001)
    opened = padded.open(fd)
    os.close(fd)
    assert os.fstat(opened).st_size == SIZE
    with mmap.mmap(opened, 4 * PAGE) as pages:
        assert pages[4000:4008] == b"tail\0\0\0\0"
        pages[0:4] = b"TAIL"
        assert (tmp_path / "f").read_bytes()[:8] == b"TAILtail"
        # What it grows by later is there, too.
        with open(tmp_path / "f", "r+b") as host:
            host.seek(3 * PAGE)
            host.write(b"grown")
        assert pages[3 * PAGE : 3 * PAGE + 5] == b"grown"
    os.close(opened)
    assert os.stat(tmp_path / "f").st_size == 3 * PAGE + 5


def test_each_name_is_a_file_of_its_own(padded: Padded, tmp_path: Path) -> None:
    """A descriptor's number may mean another file by the next time."""
    opened = []
    for number in range(200):
        fd = file(tmp_path / f"f{number}", b"%d" % number)
        opened.append(padded.open(fd))
        os.close(fd)
    for number, fd in enumerate(opened):
        with mmap.mmap(fd, PAGE) as page:
            assert page[:3].rstrip(b"\0") == b"%d" % number
        os.close(fd)


def test_what_is_no_file_is_refused(padded: Padded, tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError) as refusal:
        padded.open(directory)
    os.close(directory)
    assert refusal.value.errno in (errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL)
    with pytest.raises(OSError):
        padded.open(directory)
    for name in ("x", "-1", "a" * 32, "x" * 255, "."):
        with pytest.raises(OSError):
            os.open(name, os.O_RDWR, dir_fd=padded.root)
    os.close(padded.open(fd := file(tmp_path / "f", b"")))
    os.close(fd)


def test_without_its_process_opens_fail_and_mappings_stay(padded: Padded, tmp_path: Path) -> None:
    fd = file(tmp_path / "f", b"here")
    with mmap.mmap(opened := padded.open(fd), PAGE) as page:
        signal.pidfd_send_signal(padded.pidfd, signal.SIGKILL)
        assert os.waitid(os.P_PIDFD, padded.pidfd, os.WEXITED)
        for call in (lambda: padded.open(fd), lambda: os.open("x", os.O_RDWR, dir_fd=padded.root)):
            with pytest.raises(OSError) as refusal:
                call()
            assert refusal.value.errno == errno.ENOTCONN
        os.pwrite(fd, b"HERE", 0)
        assert page[:4] == b"HERE"
        with mmap.mmap(opened, PAGE) as again:
            assert again[:4] == b"HERE"
    os.close(opened)
    os.close(fd)


def table(pid: int) -> list[str]:
    return sorted(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))


def pid_of(padded: Padded) -> int:
    fields = dict(line.split(":\t") for line in Path(f"/proc/self/fdinfo/{padded.pidfd}").read_text().splitlines())
    return int(fields["Pid"])


def test_its_process_holds_no_file_but_its_own(padded: Padded, tmp_path: Path) -> None:
    before = table(pid_of(padded))
    assert len(before) <= 5, "0 to 2, the device and a socket"
    opened = []
    for number in range(20):
        opened.append(padded.open(fd := file(tmp_path / f"f{number}", b"x")))
        os.close(fd)
    directory = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError):
        padded.open(directory)
    os.close(directory)
    assert table(pid_of(padded)) == before
    for fd in opened:
        os.close(fd)


def test_who_sends_a_file_and_dies(padded: Padded, tmp_path: Path) -> None:
    before = table(pid_of(padded))
    fd = file(tmp_path / "f", b"here")
    for number in range(20):
        socket.send_fds(padded._socket, [b"%d" % number], [fd])
    os.close(padded.open(fd))
    assert table(pid_of(padded)).count(str(tmp_path / "f")) == 20
    padded.flush()
    os.close(padded.open(fd))
    assert table(pid_of(padded)) == before
    os.close(fd)


def test_a_process_that_does_not_answer_and_is_killed(padded: Padded, tmp_path: Path) -> None:
    """Who waits for it waits no longer."""
    fd = file(tmp_path / "f", b"here")
    opened = padded.open(fd)
    mmap.mmap(opened, PAGE)[0]  # now fstat has to ask
    signal.pidfd_send_signal(padded.pidfd, signal.SIGSTOP)
    waits: list[Callable[[], object]] = [lambda: padded.open(fd), lambda: os.fstat(opened)]
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(call) for call in waits]
        assert not any(answer.done() for answer in answers)
        signal.pidfd_send_signal(padded.pidfd, signal.SIGKILL)
        for answer in answers:
            with pytest.raises(OSError):
                answer.result(20)
    os.close(opened)
    os.close(fd)
