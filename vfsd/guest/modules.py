"""Which kernel modules a guest needs, in load order, unpacked: busybox loads plain .ko files only."""

import gzip
import lzma
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from vfsd.guest.errors import GuestError

#: What every guest loads: the transport, the command channel, the file system.
NEEDED = ("virtio_pci", "virtio_console", "virtiofs")
#: What the host's root as the guest's root takes.
HOST_ROOT = ("9pnet_virtio", "9p", "overlay")


def resolve(directory: Path, names: Iterable[str]) -> list[Path]:
    """The module files that loading `names` takes, each after what it depends on; built-in modules need none.

    `directory` holds modules.dep and modules.builtin (modules.dep(5)). Raises GuestError for a module that is neither.
    """
    depends = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        file, _, others = line.partition(":")
        depends[module_name(file)] = [file, *others.split()]
    builtin_list = directory / "modules.builtin"
    builtin = {module_name(line) for line in builtin_list.read_text().split()} if builtin_list.exists() else set()
    ordered: dict[str, None] = {}
    for name in (name.replace("-", "_") for name in names):
        if name in depends:
            # modules.dep lists what a module needs in the reverse of load order.
            ordered.update(dict.fromkeys(reversed(depends[name])))
        elif name not in builtin:
            raise GuestError(f"the kernel of {directory} has no module {name}; choose another with --kernel")
    return [directory / file for file in ordered]


def module_name(file: str) -> str:
    """fuse for kernel/fs/fuse/fuse.ko.xz; the kernel treats - and _ alike."""
    return Path(file).name.partition(".ko")[0].replace("-", "_")


def read_plain(file: Path) -> bytes:
    """A module's ELF file, unpacked. Raises GuestError if it is missing or its packing can't be read."""
    try:
        data = file.read_bytes()
        if file.suffix == ".xz":
            return lzma.decompress(data)
        if file.suffix == ".gz":
            return gzip.decompress(data)
        if file.suffix == ".zst":
            if not shutil.which("zstd"):
                raise GuestError(f"{file} is packed with zstd and there is no zstd program: apt install zstd")
            return subprocess.run(["zstd", "-dcq"], input=data, stdout=subprocess.PIPE, check=True).stdout
    except (OSError, lzma.LZMAError, subprocess.CalledProcessError) as error:
        raise GuestError(f"the kernel module {file} can't be read: {error}") from None
    return data
