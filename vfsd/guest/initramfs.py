"""The guest's first root: busybox, kernel modules and two scripts, as a cpio archive made in memory.

The archive is not packed: unpacking costs a TCG guest more than QEMU takes to copy two more megabytes.
"""

import os
import shutil
import stat
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from vfsd.guest import cache, modules
from vfsd.guest.errors import GuestError
from vfsd.guest.kernel import Kernel

_SCRIPTS = ("init.sh", "agent.sh")


class Archive:
    """A cpio archive in the "newc" form (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._entries = 0

    def directory(self, name: str) -> None:
        self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._entry(name, stat.S_IFREG | mode, data)

    def symlink(self, name: str, target: str) -> None:
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int) -> None:
        self._entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", 0)
        return bytes(self._data)

    def _entry(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self._entries += 1
        encoded = name.encode() + b"\0"
        # Inode, mode, uid, gid, links, mtime, size, device of the file, device it is, length of the name, checksum.
        fields = (self._entries, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        self._data += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        self._pad()
        self._data += data
        self._pad()

    def _pad(self) -> None:
        self._data += bytes(-len(self._data) % 4)


def build(kernel: Kernel, extra_modules: Sequence[str] = ()) -> Path:
    """The initramfs for this kernel, from the cache or made now. Raises GuestError."""
    busybox = _busybox()
    try:
        host_root = modules.resolve(kernel.modules, modules.HOST_ROOT)
    except GuestError:
        host_root = []  # init.sh says so if the host's root is asked for.
    needed = modules.resolve(kernel.modules, (*modules.NEEDED, *extra_modules))
    host_root = [file for file in host_root if file not in needed]
    scripts = {name: files("vfsd.guest").joinpath(name).read_bytes() for name in _SCRIPTS}

    def make() -> bytes:
        archive = Archive()
        for name in ("bin", "dev", "proc", "sys", "modules", "newroot", "host", "rw"):
            archive.directory(name)
        # The kernel opens /dev/console for init before init can mount devtmpfs.
        archive.character_device("dev/console", 5, 1)
        archive.file("bin/busybox", busybox.read_bytes(), 0o755)
        archive.symlink("bin/sh", "busybox")
        archive.file("init", scripts["init.sh"], 0o755)
        archive.file("agent.sh", scripts["agent.sh"], 0o755)
        for file in (*needed, *host_root):
            archive.file(f"modules/{modules.module_name(file.name)}.ko", modules.read_plain(file))
        archive.file("modules/needed", _lines(needed))
        archive.file("modules/host-root", _lines(host_root))
        return archive.finish()

    parts = [cache.fingerprint(file) for file in (busybox, *needed, *host_root)]
    return cache.stored("initramfs", "\n".join([*parts, *(text.decode() for text in scripts.values())]), make)


def _lines(files_in_order: Sequence[Path]) -> bytes:
    return "".join(f"{modules.module_name(file.name)}\n" for file in files_in_order).encode()


def _busybox() -> Path:
    """A busybox that runs without libraries. Raises GuestError."""
    for name in (shutil.which("busybox"), "/bin/busybox"):
        if name and os.path.isfile(name):
            if b"/ld-linux" in Path(name).read_bytes()[:4096]:
                raise GuestError(f"{name} needs shared libraries: apt install busybox-static")
            return Path(name)
    raise GuestError("there is no busybox for the guest: apt install busybox-static")
