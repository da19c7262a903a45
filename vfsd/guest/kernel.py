"""The guest's kernel: which one, where its modules are, and a form of it that boots fast.

A distribution's bzImage unpacks itself. Under TCG that takes four seconds of a seven-second boot (xz, Linux 6.1), so
the ELF image inside is unpacked here, once, and started through its PVH entry point; a kernel without one, or packed in
a way Python can't read, boots as it is.
"""

import lzma
import os
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

from vfsd.guest import cache
from vfsd.guest.errors import GuestError

#: XEN_ELFNOTE_PHYS32_ENTRY (include/xen/interface/elfnote.h): the PVH entry point that QEMU looks for.
_PHYS32_ENTRY = 18
_MODULE_ROOTS = (Path("/lib/modules"), Path("/usr/lib/modules"))


@dataclass(frozen=True)
class Kernel:
    #: The bzImage.
    image: Path
    #: As `uname -r` prints it.
    version: str
    #: The directory that holds modules.dep.
    modules: Path

    def bootable(self) -> Path:
        """What to give to QEMU's -kernel: the unpacked ELF image where possible, else the bzImage."""
        path = cache.stored("vmlinux", cache.fingerprint(self.image), lambda: unpack(self.image.read_bytes()) or b"")
        return path if path.stat().st_size else self.image


def find(name: str | None = None, modules: Path | None = None) -> Kernel:
    """A kernel by path, by version, or the newest installed one that has modules. Raises GuestError."""
    image = Path(name) if name and ("/" in name or os.path.isfile(name)) else None
    if image is None:
        image = _installed(name, modules)
    if not image.is_file():
        raise GuestError(f"no kernel image at {image}; give --kernel a bzImage, or a version under /boot")
    try:
        with open(image, "rb") as file:
            version = read_version(file.read(0x10000))
    except PermissionError:
        raise GuestError(
            f"the kernel image {image} can't be read; run as root, or copy it and give --kernel COPY"
        ) from None
    return Kernel(image, version, _modules_of(version, image, modules))


def _installed(version: str | None, modules: Path | None) -> Path:
    candidates = sorted(Path("/boot").glob("vmlinuz-*"), key=lambda path: version_order(path.name), reverse=True)
    for root in _MODULE_ROOTS:
        candidates += sorted(root.glob("*/vmlinuz"), key=lambda path: version_order(path.parent.name), reverse=True)
    if version:
        candidates = [path for path in candidates if version in (path.name.removeprefix("vmlinuz-"), path.parent.name)]
    elif not modules:
        candidates = [path for path in candidates if _has_modules(path)] or candidates
    if candidates:
        return candidates[0]
    if version:
        raise GuestError(f"no kernel {version} in /boot or /lib/modules; give --kernel the path of a bzImage")
    raise GuestError(
        "no kernel to boot in /boot: apt install linux-image-amd64, or give --kernel the path of a bzImage"
    )


def _has_modules(image: Path) -> bool:
    version = image.parent.name if image.name == "vmlinuz" else image.name.removeprefix("vmlinuz-")
    return any((root / version / "modules.dep").exists() for root in _MODULE_ROOTS)


def version_order(name: str) -> list[tuple[int, str]]:
    """A sort key that puts 6.10 after 6.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _modules_of(version: str, image: Path, given: Path | None) -> Path:
    if given is not None:
        places = [given, given / version, given / "lib/modules" / version, given / "usr/lib/modules" / version]
    else:
        places = [image.parent, image.parent.parent / "lib/modules" / version]
        places += [root / version for root in _MODULE_ROOTS]
    for place in places:
        if (place / "modules.dep").exists():
            return place
    where = given or "/lib/modules"
    raise GuestError(f"no modules.dep of kernel {version} under {where}; give --modules the directory that holds it")


def read_version(head: bytes) -> str:
    """`uname -r` of a bzImage, from its setup header (Documentation/arch/x86/boot.rst). Raises GuestError."""
    if head[0x202:0x206] != b"HdrS":
        raise GuestError("the kernel is no x86 bzImage; give --kernel the vmlinuz file of a Linux for x86-64")
    offset = struct.unpack_from("<H", head, 0x20E)[0] + 0x200
    return head[offset : offset + 256].split(b"\0")[0].split(b" ")[0].decode("ascii", "replace")


def unpack(image: bytes) -> bytes | None:
    """The ELF image in a bzImage, or None where its packing is unknown or it has no PVH entry point."""
    if image[0x202:0x206] != b"HdrS" or struct.unpack_from("<H", image, 0x206)[0] < 0x208:
        return None
    start = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[start + offset : start + offset + length]
    try:
        if payload.startswith(b"\xfd7zXZ\0"):
            plain = lzma.LZMADecompressor().decompress(payload)
        elif payload.startswith(b"\x1f\x8b"):
            plain = zlib.decompressobj(wbits=31).decompress(payload)
        elif payload.startswith(b"\x28\xb5\x2f\xfd") and shutil.which("zstd"):
            # The last four bytes are the unpacked size, no part of the frame: zstd would complain about them.
            plain = subprocess.run(["zstd", "-dcq"], input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
        else:
            return None
    except (lzma.LZMAError, zlib.error, subprocess.CalledProcessError):
        return None
    return plain if _has_pvh_entry(plain) else None


def _has_pvh_entry(elf: bytes) -> bool:
    """Whether an ELF64 image has the note that QEMU's PVH loader needs (hw/i386/x86.c, load_elfboot)."""
    if elf[:6] != b"\x7fELF\x02\x01":
        return False
    table, size, count = struct.unpack_from("<Q", elf, 32)[0], *struct.unpack_from("<HH", elf, 54)
    for index in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", elf, table + index * size)
        if kind != 4:  # PT_NOTE
            continue
        end = offset + length
        while offset + 12 <= end:
            name, description, note = struct.unpack_from("<III", elf, offset)
            if note == _PHYS32_ENTRY and elf[offset + 12 : offset + 15] == b"Xen":
                return True
            offset += 12 + (name + 3 & ~3) + (description + 3 & ~3)
    return False
