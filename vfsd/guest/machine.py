"""The QEMU process: its arguments, its descriptors, its end."""

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vfsd.guest.daemon import bound_to_us, describe_status
from vfsd.guest.errors import GuestError
from vfsd.guest.monitor import Monitor

#: Mebibytes below which a distribution kernel and an initramfs of ours do not come up.
LEAST_MEMORY = 160


#: Ports of a virtio-serial device. QEMU tells the guest of each in three or four messages, when it gets to it; for what
#: its control queue of 32 has no room is lost (send_control_msg), and with it that a port is open.
PORTS = 7
#: QEMU's device for any vhost-user back-end, the only one that takes shared memory of a back-end (QEMU 11.1).
WINDOW_DEVICE = "vhost-user-test-device-pci"
#: Words for the kernel that spare TCG work. It translates code anew for each address that the code is seen at: with
#: random ones an exec costs three times as much (QEMU 7.2). It also pays more than a processor would for detours around
#: what processors guess, of which it has none, and for pages that are cleared before they are filled.
TCG_WORDS = ("norandmaps", "mitigations=off", "init_on_alloc=0")
#: The virtio device id of a file system, and bytes of its configuration space (virtio 1.3, section 5.11).
FS_ID, FS_CONFIG_SIZE = 26, 40


class Attached(NamedTuple):
    """A share as QEMU sees it."""

    tag: str
    socket: Path
    #: With a DAX window.
    window: bool = False


@dataclass(frozen=True)
class Settings:
    """What the machine is made of; the defaults are what `vfsd-guest` has."""

    #: The program, a name in PATH or any executable, such as a wrapper that calls a private QEMU.
    qemu: str = "qemu-system-x86_64"
    #: Directories with firmware, for -L.
    qemu_data: Sequence[str] = ()
    #: More arguments, put last.
    qemu_args: Sequence[str] = ()
    #: Environment of QEMU; None is ours.
    environment: Mapping[str, str] | None = None
    #: Mebibytes.
    memory: int = 1024
    #: Virtual processors; 0 is two under KVM and one under TCG, where a second one costs boot time.
    cpus: int = 0
    #: auto, kvm or tcg.
    accel: str = "auto"
    #: Entries in each virtqueue of a share, a power of two up to 1024.
    queue_size: int = 1024
    #: Request queues of a share. Linux uses more than one from 6.11 on.
    queues: int = 1
    #: More words for the kernel's command line.
    kernel_args: Sequence[str] = field(default=())

    def program(self) -> list[str]:
        """The start of any command line for this QEMU. Raises GuestError if there is none."""
        path = shutil.which(self.qemu)
        if path is None:
            hint = (
                "apt install qemu-system-x86" if self.qemu == Settings.qemu else "give --qemu the path of an executable"
            )
            raise GuestError(f"there is no {self.qemu}: {hint}")
        return [path, *(word for directory in self.qemu_data for word in ("-L", directory))]

    def check_window(self) -> None:
        """Raises GuestError if this QEMU has no device with a DAX window."""
        command = [*self.program(), "-machine", "none", "-device", f"{WINDOW_DEVICE},help"]
        answer = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=self.environment, check=False
        )
        if "config_size" not in answer.stdout:
            raise GuestError(
                f"{self.qemu} has no {WINDOW_DEVICE}, which has the DAX window: give --qemu a QEMU of version 11.1 or "
                "later"
            )

    def check(self) -> None:
        """Raises GuestError for values that QEMU or the guest would fail on in a less readable way."""
        if self.memory < LEAST_MEMORY:
            raise GuestError(f"{self.memory} MiB of memory are too few to boot; give --memory {LEAST_MEMORY} or more")
        if not 2 <= self.queue_size <= 1024 or self.queue_size & (self.queue_size - 1):
            raise GuestError(f"--queue-size {self.queue_size}: a power of two from 2 to 1024 is needed")
        if not 1 <= self.queues <= 1023:
            raise GuestError(f"--queues {self.queues}: 1 to 1023 is needed")
        if self.cpus < 0:
            raise GuestError(f"--cpus {self.cpus}: 1 or more is needed")


def arguments(
    settings: Settings,
    accelerator: str,
    kernel: Path,
    initramfs: Path,
    console: Path,
    shares: Sequence[Attached],
    ports: Mapping[str, int],
    host_root: bool,
) -> list[str]:
    """QEMU's argument list. `ports` maps names of virtio-serial ports to inherited descriptors;
    "qmp" is the monitor and "tty" a virtio console."""
    cpus = settings.cpus or (2 if accelerator == "kvm" else 1)
    words = ["-name", "vfsd-guest", "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot"]
    words += ["-machine", f"q35,accel={accelerator},memory-backend=mem,vmport=off", "-smp", str(cpus)]
    words += ["-cpu", "host"] if accelerator == "kvm" else []
    # The daemon maps the guest's memory, so it must be shared.
    words += ["-m", f"{settings.memory}M", "-object", f"memory-backend-memfd,id=mem,size={settings.memory}M,share=on"]
    root = "host" if host_root else "busybox"
    command_line = ["console=ttyS0", "panic=-1", "random.trust_cpu=on", f"vfsd.root={root}"]
    command_line += [*(TCG_WORDS if accelerator == "tcg" else ()), *settings.kernel_args]
    words += ["-kernel", str(kernel), "-initrd", str(initramfs), "-append", " ".join(command_line)]
    words += ["-chardev", f"file,id=console,path={_escape(console)}", "-serial", "chardev:console"]
    words += [word for name, descriptor in ports.items() for word in ("-chardev", f"socket,id={name},fd={descriptor}")]
    words += ["-mon", "chardev=qmp,mode=control"]
    for number, name in enumerate(name for name in ports if name != "qmp"):
        if number % PORTS == 0:
            words += ["-device", f"virtio-serial-pci,id=serial{number // PORTS}"]
        kind = "virtconsole" if name == "tty" else "virtserialport"
        words += ["-device", f"{kind},bus=serial{number // PORTS}.0,chardev={name},name={name}"]
    for number, share in enumerate(shares):
        words += ["-chardev", f"socket,id=share{number},path={_escape(share.socket)}"]
        words += ["-device", _device(settings, share) + f",chardev=share{number}"]
    if host_root:
        words += ["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"]
        words += ["-device", "virtio-9p-pci,fsdev=root,mount_tag=vfsd-root"]
    return [*words, *settings.qemu_args]


def _device(settings: Settings, share: Attached) -> str:
    if share.window:
        # The hiprio queue counts, and the tag is the daemon's to tell.
        queues = f"num_vqs={1 + settings.queues},vq_size={settings.queue_size}"
        return f"{WINDOW_DEVICE},virtio-id={FS_ID},config_size={FS_CONFIG_SIZE},{queues}"
    queues = f",num-request-queues={settings.queues}" if settings.queues != 1 else ""
    return f"vhost-user-fs-pci,tag={share.tag},queue-size={settings.queue_size}{queues}"


def _escape(path: Path) -> str:
    """A comma ends a value in QEMU's option lists unless it is doubled."""
    return str(path).replace(",", ",,")


class Machine:
    """A running QEMU. Its ports are our ends of socket pairs, by name."""

    def __init__(
        self, program: Sequence[str], names: Sequence[str], log: Path, environment: Mapping[str, str] | None
    ) -> None:
        pairs = {name: socket.socketpair() for name in names}
        self.ports = {name: pair[0] for name, pair in pairs.items()}
        self.theirs = {name: pair[1] for name, pair in pairs.items()}
        self.argv = list(program)
        self.monitor: Monitor | None = None
        self._log = log
        self._environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    def descriptors(self) -> dict[str, int]:
        """The descriptors that QEMU inherits, for its argument list."""
        return {name: end.fileno() for name, end in self.theirs.items()}

    def start(self, words: Sequence[str]) -> None:
        """Starts QEMU and its monitor session. Raises GuestError if it ends at once."""
        self.argv += words
        try:
            with open(self._log, "ab") as output:
                self.process = subprocess.Popen(
                    [*bound_to_us("KILL"), *self.argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=list(self.descriptors().values()),
                    env=self._environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise GuestError(f"{self.argv[0]} does not start: {error.strerror}") from None
        finally:
            if self.process is not None:
                self._drop_theirs()
        try:
            self.monitor = Monitor(self.ports["qmp"])
        except GuestError:
            if ended := self.ended(1):
                raise GuestError(f"{ended} at once; what it says is above") from None
            raise

    def drain(self) -> None:
        """Throws away what has come through the ports but not been read."""
        for name, port in self.ports.items():
            with suppress(BlockingIOError):
                while name != "qmp" and port.recv(65536, socket.MSG_DONTWAIT):
                    pass

    def ended(self, wait: float = 0) -> str | None:
        """How QEMU ended, or None if it still runs after `wait` seconds."""
        if self.process is None:
            return None
        try:
            return f"QEMU ended with {describe_status(self.process.wait(wait))}"
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Ends QEMU if it runs, and closes what is ours."""
        if self.process is not None and self.process.poll() is None:
            try:
                if self.monitor is None:
                    raise GuestError("no monitor")
                self.monitor.execute("quit", timeout=3)
                self.process.wait(3)
            except (GuestError, subprocess.TimeoutExpired):
                self.process.kill()
                self.process.wait()
        if self.monitor is not None:
            self.monitor.close()
            self.monitor = None
        self._drop_theirs()
        for end in self.ports.values():
            end.close()

    def _drop_theirs(self) -> None:
        for end in self.theirs.values():
            end.close()


def tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log, without the control sequences that firmware and kernels write."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - 16384))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    kept = "".join(character for character in text if character in "\n\t" or character >= " ")
    return "\n".join(kept.splitlines()[-lines:])
