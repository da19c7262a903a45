"""libvirt starts our daemon for a `type='qemu'` domain with <binary path=...>; its guest mounts the share.

virt-qemu-run is libvirt's own QEMU driver in one process, with every state directory under a root of ours.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vfsd.guest import initramfs, kernel, modules

from .conftest import LIMIT, command_lines

VFSD = Path(sys.executable).parent / "vfsd"

DOMAIN = """
<domain type='qemu'>
  <name>vfsd-test</name>
  <memory unit='MiB'>256</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>console=ttyS0 panic=-1 quiet</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <filesystem type='mount'>
      <driver type='virtiofs' queue='1024'/>
      <binary path='{binary}' xattr='on'><cache mode='always'/><sandbox mode='namespace'/></binary>
      <source dir='{share}'/>
      <target dir='share'/>
    </filesystem>
    <serial type='file'><source path='{serial}'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""

# No confinement that a container or a build machine lacks.
QEMU_CONF = """
security_driver = "none"
cgroup_controllers = []
namespaces = []
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
stdio_handler = "file"
"""

INIT = """#!/bin/sh
/bin/busybox --install -s /bin
PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for name in {modules}; do insmod /modules/$name.ko; done
mount -t virtiofs share /mnt && cat /mnt/from-host && echo hello from the guest >/mnt/from-guest
umount /mnt && echo unmounted
poweroff -f
"""


def make_initramfs(chosen: kernel.Kernel, path: Path) -> None:
    files = modules.resolve(chosen.modules, ("virtio_pci", "virtiofs"))
    names = [modules.module_name(file.name) for file in files]
    archive = initramfs.Archive()
    for directory in ("bin", "dev", "mnt", "modules", "proc"):
        archive.directory(directory)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
    archive.symlink("bin/sh", "busybox")
    for name, file in zip(names, files, strict=True):
        archive.file(f"modules/{name}.ko", modules.read_plain(file))
    archive.file("init", INIT.format(modules=" ".join(names)).encode(), 0o755)
    path.write_bytes(archive.finish())


@pytest.mark.skipif(os.geteuid() != 0, reason="libvirt before 10.0 gives virtiofs to root's domains only")
def test_libvirt(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    (share / "from-host").write_text("hello from the host\n")
    chosen = kernel.find()
    make_initramfs(chosen, tmp_path / "initrd")
    serial = tmp_path / "serial.log"
    domain = tmp_path / "domain.xml"
    words = {"kernel": chosen.image, "initrd": tmp_path / "initrd", "serial": serial, "share": share, "binary": VFSD}
    domain.write_text(DOMAIN.format(**words))
    root = tmp_path / "libvirt"
    (root / "etc").mkdir(parents=True)
    (root / "etc/qemu.conf").write_text(QEMU_CONF)
    # libvirt looks its service user up before it reads qemu.conf; only here, in a mount namespace, is there one.
    for name, entry in (("passwd", "libvirt-qemu:x:64055:64055::/:/bin/false"), ("group", "libvirt-qemu:x:64055:")):
        (tmp_path / name).write_text(Path("/etc", name).read_text().rstrip("\n") + f"\n{entry}\n")
    # And only here does it make /run/libvirt.
    script = (
        'set -e; mount --bind "$1/passwd" /etc/passwd; mount --bind "$1/group" /etc/group; mount -t tmpfs tmpfs /run;'
        ' shift; exec "$@"'
    )
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path)]
    command += ["virt-qemu-run", "--root", str(root), str(domain)]
    log = root / "log/qemu/vfsd-test.log"
    with command_lines(share) as seen, open(tmp_path / "virt-qemu-run.log", "w") as output:
        # It goes on after the guest has ended, and ends the guest when it is told to go.
        runner = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            limit = time.monotonic() + LIMIT
            while runner.poll() is None and time.monotonic() < limit:
                if log.exists() and "shutting down, reason=" in log.read_text(errors="replace"):
                    break
                time.sleep(0.2)
        finally:
            runner.terminate()
            runner.wait(30)
    print((tmp_path / "virt-qemu-run.log").read_text(), log.read_text(errors="replace") if log.exists() else "")
    logs = "".join(path.read_text(errors="replace") for path in sorted(root.glob("log/qemu/*virtiofsd.log")))
    print(logs, serial.read_text(errors="replace") if serial.exists() else "")
    assert "reason=shutdown" in log.read_text(errors="replace")
    assert "hello from the host" in serial.read_text()
    assert "unmounted" in serial.read_text()
    assert (share / "from-guest").read_text() == "hello from the guest\n"
    assert "Client disconnected, shutting down" in logs

    # libvirt 9.0 gives a daemon named by <binary> the old kind of options.
    (line,) = {tuple(words) for words in seen}
    assert line[0] == str(VFSD)
    assert line[1].startswith("--fd=")
    assert line[2:] == ("-o", f"source={share},cache=always,sandbox=namespace,xattr")
