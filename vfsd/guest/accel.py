"""Whether KVM really works here.

Opening /dev/kvm proves little: on some nested hosts it opens, and an ordinary guest then crawls or never returns. So a
boot sector that ends QEMU through its debug-exit port is run under TCG, then under KVM, and KVM must not be much
slower. The verdict is kept until the host boots again.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vfsd.guest import cache

#: mov al, 0x10; mov dx, 0xf4; out dx, al; hlt; jmp $-1
_CODE = bytes.fromhex("b010 baf400 ee f4 ebfd")
#: isa-debug-exit ends QEMU with twice the value written, plus one.
_STATUS = 0x10 << 1 | 1
#: Seconds that KVM gets at least, for what TCG does in a tenth of one.
_LIMIT = 1.5


def choose(wanted: str, qemu: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[str, str]:
    """("kvm" or "tcg", why) for `wanted` = auto, kvm or tcg. `qemu` is the program and arguments such as -L."""
    if wanted != "auto":
        return wanted, "as asked"
    if not os.path.exists("/dev/kvm"):
        return "tcg", "there is no /dev/kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "no permission for /dev/kvm"
    key = "\n".join([Path("/proc/sys/kernel/random/boot_id").read_text(), *qemu])
    verdict = cache.stored("kvm", key, lambda: b"yes" if _works(qemu, environment) else b"no").read_bytes()
    return ("kvm", "KVM works") if verdict == b"yes" else ("tcg", "/dev/kvm opens, but a guest does not run on it")


def _works(qemu: Sequence[str], environment: Mapping[str, str] | None) -> bool:
    start = time.monotonic()
    if not _boots(qemu, environment, ["-accel", "tcg"], 20):
        return False
    usual = time.monotonic() - start
    return _boots(qemu, environment, ["-accel", "kvm", "-cpu", "host"], max(_LIMIT, 5 * usual))


def _boots(qemu: Sequence[str], environment: Mapping[str, str] | None, accelerator: list[str], limit: float) -> bool:
    with tempfile.NamedTemporaryFile(prefix="vfsd-probe-") as disk:
        disk.write(_CODE.ljust(510, b"\0") + b"\x55\xaa")
        disk.flush()
        machine = ["-machine", "q35", "-m", "64M", "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none"]
        probe = [
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=1",
            "-drive",
            f"file={disk.name},format=raw,if=ide,readonly=on",
        ]
        try:
            run = subprocess.run(
                [*qemu, *machine, *accelerator, *probe],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=limit,
            )
        except (subprocess.TimeoutExpired, OSError):
            return False
        return run.returncode == _STATUS
