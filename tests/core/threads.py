"""Threads whose privileges and system calls are their own: they end with the test."""

import ctypes
import os
import struct
import threading
from collections.abc import Callable

#: Of x86-64.
CAPSET = 126
FCNTL = {"x86_64": 72}.get(os.uname().machine, 25)
#: The same on every machine.
FCHMODAT2 = 452

_libc = ctypes.CDLL(None, use_errno=True)


def in_thread(function: Callable[[], object]) -> None:
    """Runs it on a thread that ends with it, whose privileges are its own."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def answer(call: int, error: int) -> None:
    """From now on the system calls of this number, made by this thread, fail with `error`, or do nothing (0)."""
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # load the number of the call
            (0x15, 0, 1, call),
            (0x06, 0, 0, 0x00050000 | error),  # SECCOMP_RET_ERRNO
            (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        )
    )
    code = ctypes.create_string_buffer(program)
    arguments = struct.pack("=Hxxxxxx", 4) + struct.pack("=Q", ctypes.addressof(code))
    assert _libc.prctl(22, 2, arguments) == 0, "PR_SET_SECCOMP"
