"""process.c: a fork that shares descriptors is a fork that CPython knows of."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from vfsd._process import ffi, lib


def fork(work: Callable[[], int]) -> int:
    """Runs `work` in a child that shares our descriptors; returns its exit status."""
    pidfd = ffi.new("int *")
    pid = lib.process_fork(lib.PROCESS_SHARE_FILES, pidfd)
    if pid == 0:
        try:
            status = work()
        except BaseException:
            status = 255
        os._exit(status)
    assert pid > 0
    found = os.waitid(os.P_PIDFD, pidfd[0], os.WEXITED)
    os.close(pidfd[0])
    assert found and found.si_pid == pid
    return found.si_status


def test_a_descriptor_opened_in_the_child_outlives_it(tmp_path: Path) -> None:
    read, write = os.pipe()

    def work() -> int:
        fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
        os.write(fd, b"from the child")
        os.write(write, str(fd).encode())
        return 0

    assert fork(work) == 0
    fd = int(os.read(read, 16))
    assert os.pread(fd, 100, 0) == b"from the child"
    for each in (fd, read, write):
        os.close(each)


def test_threads_and_locks_work_in_the_child() -> None:
    lock, before = threading.RLock(), threading.get_native_id()

    def work() -> int:
        numbers: list[int] = []

        def add() -> None:
            with lock:
                numbers.append(threading.get_native_id())

        threads = [threading.Thread(target=add) for _ in range(4)]
        with lock:
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join()
        known = threading.get_native_id() == os.getpid() != before
        signal.pthread_kill(threading.get_ident(), 0)
        return 0 if known and len(set(numbers)) == 4 and threading.active_count() == 1 else 1

    assert fork(work) == 0
    assert threading.get_native_id() == before


def test_the_fork_hooks_run() -> None:
    called = []
    os.register_at_fork(
        before=lambda: called.append("before"),
        after_in_parent=lambda: called.append("parent"),
        after_in_child=lambda: called.append("child"),
    )
    assert fork(lambda: 0 if called == ["before", "child"] else 1) == 0
    assert called == ["before", "parent"]


def test_an_error_is_returned() -> None:
    # CLONE_NEWUSER is refused with CLONE_FS (clone(2)).
    assert lib.process_fork(lib.PROCESS_NEW_USER | 0x200, ffi.new("int *")) < 0
    assert lib.process_umount(b"/no/such/place", 0) < 0
