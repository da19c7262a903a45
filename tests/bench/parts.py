"""What a sample of a daemon's CPU time was spent on.

Rule 1. The kernel's time counts for the system call it was in, by the function that entry code called; a fault counts
        for the copy it interrupted.
Rule 2. A copy is what moves a request's data: between page cache and guest memory. What a call reads and writes of its
        arguments is the call's.
Rule 3. Waking and waiting are poll and its kin, futexes, and reads and writes of eventfds; and the switch to another
        process on the way out of any call. Daemons read and write eventfds: files have calls with an offset.
Rule 4. In user space it counts for the file whose code ran.
"""

import re
from collections.abc import Sequence
from enum import Enum

from tests.bench.perf import Frame


class Part(Enum):
    COPY = "copy"
    FILES = "file system"
    WAKE = "waking and waiting"
    KERNEL = "rest of the kernel"
    WATCH = "watching the ring"
    RING = "ring"
    CORE = "FUSE core"
    LIBC = "libc"
    PYTHON = "Python"
    OTHER = "other code"


#: The kernel's,
KERNEL = (Part.COPY, Part.FILES, Part.WAKE, Part.KERNEL)
#: and the daemon's own; of a peer only libc is told from the rest.
OWN = (Part.RING, Part.CORE, Part.LIBC, Part.PYTHON, Part.OTHER)

COPIES = re.compile(r"copy_(page_|folio_)?(to|from)_iter|fault_in_(iov_iter_)?(read|write)able")
WAITS = {"poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait", "epoll_pwait2", "futex", "sched_yield",
         "nanosleep", "clock_nanosleep", "read", "write"}  # fmt: skip
#: What calls the function of a system call; what that is called besides its name.
DISPATCH = {"do_syscall_64", "invoke_syscall", "do_el0_svc"}
PREFIX = re.compile(r"^(__(x64|ia32|arm64|se|do)_sys_|ksys_|do_sys_|__sys_|do_)")
#: The way out of a call: with what was put off until then, or to another process.
EXIT = {"exit_to_user_mode_loop", "syscall_exit_to_user_mode", "exit_to_user_mode_prepare"}
#: Of our extensions, where a dry ring is watched for more.
WATCHES = {"watch", "virtq_wait", "avail_ready"}


def is_kernel(frame: Frame) -> bool:
    return frame.place.startswith("[") and frame.place not in ("[vdso]", "[vsyscall]", "[unknown]")


def call(symbols: Sequence[str]) -> str | None:
    """The system call these functions of the kernel were in, innermost first. "": on the way in or out of one; None: in
    none."""
    for number, symbol in enumerate(symbols):
        if symbol in DISPATCH:
            function = symbols[number - 1] if number else ""
            return "" if function in EXIT else PREFIX.sub("", function)
    return "" if symbols[-1].startswith("entry_SYSCALL") else None


def _in_kernel(symbols: Sequence[str]) -> Part:
    found, every = call(symbols), set(symbols)
    if found in WAITS or any(symbol.startswith("eventfd_") for symbol in symbols):
        return Part.WAKE
    if any(COPIES.search(symbol) for symbol in symbols):
        return Part.COPY
    if found == "io_uring_enter" or (found is None and "io_wq_worker" in every):
        # Besides what a request does, there is its way to a thread of the kernel and back.
        return Part.FILES if "io_issue_sqe" in every else Part.WAKE
    if found == "":
        if "task_work_run" in every:
            return Part.FILES
        return Part.WAKE if every & {"schedule", "__rseq_handle_notify_resume"} else Part.KERNEL
    return Part.KERNEL if found is None else Part.FILES


def part(frames: Sequence[Frame]) -> Part:
    if is_kernel(frames[0]):
        return _in_kernel([frame.symbol for frame in frames if is_kernel(frame)])
    symbol, place = frames[0]
    if place.startswith("_virtq"):
        # After a dot is how the compiler came by it.
        return Part.WATCH if symbol.partition(".")[0] in WATCHES else Part.RING
    if place.startswith("_fuse"):
        return Part.CORE
    if place.startswith(("libc.", "libc-", "ld-", "libpthread", "[vdso]")):
        return Part.LIBC
    if place.startswith(("python", "libpython", "_cffi_backend", "_process")):
        return Part.PYTHON
    return Part.OTHER
