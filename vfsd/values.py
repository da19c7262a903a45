"""What the text after an option may be. Each function makes the value of a setting, or raises ValueError with a phrase
that ends the sentence "--option must be …"."""

from collections.abc import Callable
from typing import NamedTuple

#: struct virtio_fs_config has room for so many bytes of tag (virtio 1.3, section 5.11.4).
TAG_MAX = 36

#: More threads than this on one ring is a typing error.
THREADS_MAX = 256
#: Longer than this no ring is watched at once, microseconds (vhost/polling.h).
POLL_MAX = 50

#: With fewer descriptors the daemon can't even start: its own, a worker's, and one for each ring and region of memory.
NOFILE_MIN = 256

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

#: A guest maps ranges of 2 MiB (fs/fuse/dax.c, FUSE_DAX_SZ); more than the other is a typing error.
WINDOW_MIN, WINDOW_MAX = 2 << 20, 64 << 30

#: Names of the capabilities by number (<linux/capability.h>), without "CAP_".
CAPABILITIES = (
    *("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
    *("linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner"),
    *("sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice"),
    *("sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap"),
    *("mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf"),
    "checkpoint_restore",
)


class Sentence(ValueError):  # noqa: N818  (not an error of ours)
    """What is wrong with a value, where one phrase would not do: follows "--option: "."""


class IdMap(NamedTuple):
    """One line of a user namespace's map: `count` ids from `inside` on are those from `outside` on, on the host."""

    inside: int
    outside: int
    count: int  # type: ignore[assignment]  # hides tuple.count


def path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("a path")
    return text


def name(text: str) -> str:
    if not text:
        raise ValueError("a name or a number")
    return text


def tag(text: str) -> str:
    if not text or "\0" in text or len(text.encode(errors="surrogateescape")) > TAG_MAX:
        raise ValueError(f"1 to {TAG_MAX} bytes long")
    return text


def number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 31:
        raise ValueError("a number from 0 to 2147483647")
    return int(text)


def threads(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > THREADS_MAX:
        raise ValueError(f"a number from 0 to {THREADS_MAX}")
    return max(1, int(text))


def poll(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > POLL_MAX:
        raise ValueError(f"a number of microseconds from 0 to {POLL_MAX}")
    return int(text)


def descriptors(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not (int(text) == 0 or NOFILE_MIN <= int(text) < 1 << 31):
        raise ValueError(f"0, or a number from {NOFILE_MIN} to 2147483647")
    return int(text)


def seconds(text: str) -> int:
    """Nanoseconds. Digits beyond the ninth after the point are cut off."""
    whole, point, part = text.partition(".")
    if not (whole + part).isascii() or not (whole + part).isdigit() or (point and not part) or len(whole) > 9:
        raise ValueError("seconds below 1000000000, like 0.5")
    return int(whole or "0") * 1_000_000_000 + int(part[:9].ljust(9, "0"))


def size(text: str) -> int:
    """Bytes, with K, M, G or T for powers of 1024."""
    digits = text[:-1] if text[-1:].upper() in UNITS else text
    if not digits.isascii() or not digits.isdigit() or len(digits) > 15:
        raise ValueError("a size, as 512K, 64M or 4G")
    return int(digits) * UNITS.get(text[len(digits) :].upper(), 1)


def window_size(text: str) -> int:
    """Bytes, a power of two: QEMU aborts over others, and the guest divides it into ranges of 2 MiB."""
    bytes = size(text)
    if bytes < WINDOW_MIN or bytes > WINDOW_MAX or bytes & (bytes - 1):
        raise ValueError("a power of two from 2M to 64G")
    return bytes


def id_map(text: str) -> IdMap:
    """`:inside:outside:count:`, where any character but a digit may stand for the colon."""
    parts = text[1:-1].split(text[0]) if len(text) > 2 and text[0] == text[-1] else []
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError("of the form :INSIDE:OUTSIDE:COUNT:")
    ids = IdMap(*map(int, parts))
    if ids.count == 0 or max(ids.inside, ids.outside) + ids.count > 1 << 32:
        raise ValueError("a range of at least one id, all below 2^32")
    return ids


def modcaps(text: str) -> tuple[tuple[bool, int], ...]:
    """`+name:-name` as (add, number), names with or without "cap_" and in any case."""
    changes = []
    for item in text.split(":"):
        capability = item[1:].lower().removeprefix("cap_")
        if item[:1] not in ("+", "-") or capability not in CAPABILITIES:
            raise ValueError("a list like +sys_admin:-mknod of capabilities to keep and to drop")
        changes.append((item[0] == "+", CAPABILITIES.index(capability)))
    return tuple(changes)


#: Of the types above, for a row of the option table.
Convert = Callable[[str], object]
