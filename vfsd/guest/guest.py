"""A guest from its start to its end: what the command and the tests both use.

    with Guest("/some/directory") as guest:
        result = guest.run(["ls", "-l"], timeout=20)
        print(result.status, result.stdout)

Law: one boot serves many commands, and everything a boot has started is gone when `close` returns.
"""

import os
import select
import shlex
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from vfsd.guest import accel, initramfs, kernel, machine, monitor
from vfsd.guest.channel import Command, Result, Sink, Slot, script
from vfsd.guest.daemon import Daemon, describe_status
from vfsd.guest.errors import GuestError, TimeLimitError
from vfsd.guest.machine import Attached, Machine, Settings, tail
from vfsd.guest.migration import Moved, migrate
from vfsd.guest.progress import Progress, Silent
from vfsd.guest.share import Share

_STAGE = "vfsd-guest: "


class Guest:
    """A throwaway guest with shares mounted. A context manager: boots on entry, ends on exit."""

    def __init__(
        self,
        *shares: Share | str | os.PathLike[str],
        settings: Settings | None = None,
        kernel_name: str | None = None,
        modules: Path | None = None,
        extra_modules: Sequence[str] = (),
        host_root: bool = True,
        slots: int = 2,
        terminal: bool = False,
        boot_limit: float = 180,
        progress: Progress | None = None,
        log_directory: Path | None = None,
    ) -> None:
        """`slots` is how many commands may run at a time (1 to 8). `boot_limit` is in seconds. With `host_root` the
        guest's root is the host's, under a layer that is thrown away; else it holds busybox only. `log_directory` keeps
        the logs. Boot it on a thread that outlives it: daemons and QEMU end with the thread that started them."""
        self.shares = [share if isinstance(share, Share) else Share(share) for share in shares]
        self.settings = settings or Settings()
        self.progress = progress or Silent()
        self.daemons: list[Daemon] = []
        #: `uname -r` of the guest, once booted.
        self.release = ""
        #: "kvm" or "tcg", and why.
        self.accelerator = ("", "")
        self.machine: Machine | None = None
        self._kernel_choice = (kernel_name, modules, extra_modules)
        self._host_root = host_root
        self._terminal = terminal
        self._boot_limit = boot_limit
        self._logs = log_directory
        self._directory: Path | None = None
        self._slots: list[Slot] = []
        self._slot_count = slots
        self._moves = 0
        self._request_lock = threading.Lock()
        self._replies = b""

    def __enter__(self) -> "Guest":
        self.boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Life

    def boot(self) -> None:
        """Starts the daemons and QEMU and returns when the shares are mounted. Raises GuestError with a report."""
        try:
            self._prepare()
            self._start()
            self._await_guest()
            self._mount_shares()
        except BaseException as error:
            self.progress.done()
            if isinstance(error, GuestError):
                error.report = error.report or self.report()
            self.close()
            raise
        self.progress.done()

    def close(self, limit: float = 15) -> None:
        """Ends the guest in order, so that what it has written reaches the host; by force after `limit` seconds."""
        if self.machine is not None:
            process = self.machine.process
            # Without its daemon a mount never ends: no order can be had.
            served = all(daemon.process.poll() is None for daemon in self.daemons)
            if process is not None and process.poll() is None and self.release and served:
                try:
                    self.request("stop")
                    process.wait(limit)
                except Exception:
                    pass  # A guest that does not stop is ended below.
            self.machine.close()
            self.machine = None
        for daemon in self.daemons:
            daemon.close()
        self._keep_logs()

    def report(self, lines: int = 20) -> str:
        """The last lines of the guest's console, of QEMU and of each daemon, with headings."""
        if self._directory is None:
            return ""
        logs = [("guest console", self._log("console")), ("QEMU", self._log("qemu"))]
        logs += [(f"daemon of {daemon.directory}", daemon.log) for daemon in self.daemons]
        texts = [(title, tail(path, lines)) for title, path in logs if path.exists()]
        return "\n".join(f"--- {title} ---\n{text or '(nothing)'}" for title, text in texts)

    # Use

    @property
    def daemon(self) -> Daemon:
        """The first share's daemon."""
        return self.daemons[0]

    @property
    def mount_point(self) -> str:
        """The first share's mount point; the root of a guest without shares."""
        return self.shares[0].mount_point if self.shares else "/"

    @property
    def console(self) -> str:
        """The guest's console so far, from where it is now."""
        return self._log("console").read_text(errors="replace")

    def start(
        self,
        command: Sequence[str] | str,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | int | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
    ) -> Command:
        """Starts a command, by default in the first share. A string is a shell script, a sequence a program with its
        arguments. Raises GuestError when every slot is busy."""
        slot = next((slot for slot in self._slots if slot.busy.acquire(blocking=False)), None)
        if slot is None:
            raise GuestError(f"{len(self._slots)} commands run already; give Guest more slots")
        text = script(command, cwd or self.mount_point, environment or {})
        return Command(slot, text, self.request, stdin, stdout, stderr)

    def wait(
        self, command: Command, timeout: float | None = None, also: Mapping[int, Callable[[], object]] | None = None
    ) -> Result:
        """A started command's result. Raises TimeLimitError, or GuestError with a report if guest or daemon is lost."""
        watched: dict[int, Callable[[], object]] = dict(also or {})
        handles = [(os.pidfd_open(daemon.pid), daemon) for daemon in self.daemons if daemon.process.poll() is None]

        def lost(daemon: Daemon) -> None:
            status = describe_status(daemon.process.wait())
            raise GuestError(f"the daemon for {daemon.directory} ended with {status} under the guest")

        for handle, daemon in handles:
            watched[handle] = lambda daemon=daemon: lost(daemon)  # type: ignore[misc]
        try:
            return command.wait(timeout, watched)
        except TimeLimitError:
            raise
        except (GuestError, OSError) as error:
            ended = self.machine.ended(1) if self.machine else None
            reason = error.args[0] if isinstance(error, GuestError) else error
            raise GuestError(f"{reason}{f' ({ended})' if ended else ''}", self.report()) from None
        finally:
            for handle, _ in handles:
                os.close(handle)

    def run(
        self,
        command: Sequence[str] | str,
        timeout: float | None = None,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
        stdin: bytes | int | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
    ) -> Result:
        """Runs a command to its end; see `start` and `wait`."""
        return self.wait(self.start(command, cwd, environment, stdin, stdout, stderr), timeout)

    def qmp(self, command: str, **arguments: object) -> Any:
        """A QMP command on the guest's QEMU; its return value."""
        assert self.machine is not None and self.machine.monitor is not None
        return self.machine.monitor.execute(command, arguments or None)

    def reset(self) -> None:
        """Resets the machine, and returns when the guest has booted anew and the shares are mounted. Commands under way
        are lost, and nobody may wait for one. Raises GuestError with a report."""
        assert self.machine is not None and self.machine.monitor is not None
        events = self.machine.monitor.events
        seen = len(events)
        try:
            # QEMU was told to end instead, so that a panic is the end of a guest.
            self.qmp("set-action", reboot="reset")
            self.qmp("system_reset")
            while not any(event["event"] == "RESET" for event in events[seen:]):
                self._look()
                time.sleep(0.01)
            self.machine.drain()
            self._replies = b""
            self._slots = []
            # The firmware may reset it once more.
            self._await_guest()
            self.qmp("set-action", reboot="shutdown")
            self._mount_shares()
        except GuestError as error:
            error.report = error.report or self.report()
            raise

    def migrate(
        self,
        daemon_options: Sequence[str] | None = None,
        relay: Callable[[Path], Path] = lambda path: path,
        limit: float = 120,
    ) -> Moved:
        """Moves the running guest to another QEMU with daemons of its own, which have other options if they are given.
        No command may run meanwhile, but what was left in the background does. `relay` is told the socket of the
        destination, and tells which one the source is to connect to. Raises GuestError with a report of the destination
        when the guest can't be moved; it runs on where it was."""
        assert self.machine is not None and self.machine.monitor is not None
        source, was = self.machine.monitor, (self.machine, self.daemons, self._slots)
        self._moves += 1
        try:
            self._start("-incoming", "defer", daemon_options=daemon_options)
            assert self.machine.monitor is not None
            path = self._path(f"migrate{self._moves}.sock")
            moved = migrate(source, self.machine.monitor, path, relay, limit)
        except GuestError as error:
            error.report = error.report or self.report()
            self.machine.close()
            for daemon in self.daemons:
                daemon.close()
            self.machine, self.daemons, self._slots = was
            raise
        self._slots = [Slot(number, *self._ends(number)) for number in range(self._slot_count)]
        was[0].close()
        for daemon in was[1]:
            daemon.close()
        return moved

    def request(self, line: str) -> None:
        """Runs a shell line in the guest's first process, without an answer. It must not block."""
        assert self.machine is not None
        with self._request_lock:
            self.machine.ports["request"].sendall(line.encode() + b"\n")

    # Boot, step by step

    def _prepare(self) -> None:
        monitor.check()
        self.settings.check()
        for share in self.shares:
            if not os.path.isdir(share.directory):
                raise GuestError(f"{share.directory} is no directory")
        if len({share.tag for share in self.shares}) != len(self.shares):
            raise GuestError("two shares have the same tag")
        self._program = self.settings.program()
        if any(share.dax_window for share in self.shares):
            self.settings.check_window()
        name, modules, _ = self._kernel_choice
        self._kernel = kernel.find(name, modules)
        self._directory = Path(tempfile.mkdtemp(prefix="vfsd-guest-"))

    def _path(self, name: str) -> Path:
        assert self._directory is not None
        return self._directory / name

    def _log(self, name: str) -> Path:
        """A log of the QEMU, or the daemons, that have the guest now."""
        return self._path(f"{name}{self._moves or ''}.log")

    def _start(self, *words: str, daemon_options: Sequence[str] | None = None) -> None:
        self.daemons = []
        self._start_daemons(daemon_options)
        self._start_machine(words)

    def _start_daemons(self, options: Sequence[str] | None) -> None:
        self.progress.stage("starting the daemon")
        for share in self.shares:
            socket, log = self._path(f"{share.tag}{self._moves or ''}.sock"), self._log(f"daemon-{share.tag}")
            directory = Path(os.path.abspath(share.directory))
            window = ["--dax-window", share.dax_window, "--tag", share.tag] if share.dax_window else []
            given = share.daemon_options if options is None else options
            self.daemons.append(Daemon(directory, socket, log, share.daemon, [*window, *given]))
        for daemon in self.daemons:
            daemon.wait_for_socket(self.progress.tick)

    def _start_machine(self, more: Sequence[str]) -> None:
        self.progress.stage("looking at KVM")
        self.accelerator = accel.choose(self.settings.accel, self._program, self.settings.environment)
        self.progress.stage("preparing kernel and initramfs")
        image = initramfs.build(self._kernel, self._kernel_choice[2])
        names = ["qmp", "request", *(["tty"] if self._terminal else [])]
        names += [f"{stream}{slot}" for slot in range(self._slot_count) for stream in ("control", "out", "err")]
        self.machine = Machine(self._program, names, self._log("qemu"), self.settings.environment)
        sockets = [
            Attached(share.tag, daemon.socket, bool(share.dax_window))
            for share, daemon in zip(self.shares, self.daemons, strict=True)
        ]
        words = machine.arguments(
            self.settings,
            self.accelerator[0],
            self._kernel.bootable(),
            image,
            self._log("console"),
            sockets,
            self.machine.descriptors(),
            self._host_root,
        )
        self.progress.stage("starting QEMU")
        self.machine.start([*words, *more])

    def _ends(self, number: int) -> list[socket.socket]:
        """Ours of a slot's streams."""
        assert self.machine is not None
        return [self.machine.ports[f"{stream}{number}"] for stream in ("control", "out", "err")]

    def _await_guest(self) -> None:
        word, _, self.release = self._reply(self._boot_limit).partition(" ")
        if word != "ready":
            raise GuestError(f"the guest answered {word} to its boot")
        for number in range(self._slot_count):
            self._slots.append(Slot(number, *self._ends(number)))
            self.request(f"start_slot {number}")

    def _mount_shares(self) -> None:
        for share in self.shares:
            if not share.mounted:
                continue
            self.progress.stage(f"mounting {share.mount_point}")
            self.request(shlex.join(["share", share.tag, share.mount_point, share.mount_options or "rw"]))
            word, _, reason = self._reply(self._boot_limit).partition(" ")
            if word != "ok":
                hint = "" if share.mount_options in ("", "rw") else f"; look at --mount-options {share.mount_options}"
                raise GuestError(f"the guest can't mount {share.directory}: {reason.strip()}{hint}")

    def _reply(self, limit: float) -> str:
        """The next line from the request port, with an eye on QEMU, the daemons and the console meanwhile."""
        assert self.machine is not None
        port = self.machine.ports["request"]
        deadline = self.progress.elapsed + limit
        while b"\n" not in self._replies:
            self._look()
            if self.progress.elapsed > deadline:
                raise GuestError(f"the guest was not up after {limit:g} s; where it got to is above (--boot-timeout)")
            if select.select([port], [], [], 0.1)[0]:
                self._replies += port.recv(4096)
            self.progress.tick()
        line, _, self._replies = self._replies.partition(b"\n")
        return line.decode(errors="replace")

    def _look(self) -> None:
        assert self.machine is not None
        text = self.console if self._log("console").exists() else ""
        stages = [line.partition(_STAGE)[2] for line in text.splitlines() if _STAGE in line]
        if stages and stages[-1].startswith("failed: "):
            raise GuestError("in the guest: " + stages[-1].removeprefix("failed: "))
        lost = next((daemon for daemon in self.daemons if daemon.process.poll() is not None), None)
        # A daemon ends with its QEMU, and may be the first of the two to be seen.
        if ended := self.machine.ended(1 if lost else 0):
            panicked = ": the guest's kernel panicked" if "Kernel panic" in text else ""
            raise GuestError(f"{ended} before the guest was up{panicked}")
        if lost:
            raise GuestError(f"the daemon for {lost.directory} ended with {describe_status(lost.process.wait())}")
        if not self.release:
            self.progress.stage("firmware" if not text else "modules and root" if stages else "kernel")

    def _keep_logs(self) -> None:
        if self._directory is None:
            return
        if self._logs is not None:
            self._logs.mkdir(parents=True, exist_ok=True)
            for path in self._directory.glob("*.log"):
                shutil.copy(path, self._logs / path.name)
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory = None
