"""Starting a virtiofs daemon for a guest, ours or another, and looking at its processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vfsd.guest.errors import GuestError

#: Seconds a daemon may take until its socket exists.
SOCKET_LIMIT = 20.0
#: Seconds our daemon may take to replace its worker, and what it calls that process.
WORKER_LIMIT = 10.0
WORKER_NAME = "vfsd-worker"


class Daemon:
    """A running virtiofs daemon with one shared directory and one socket."""

    def __init__(
        self, directory: Path, socket: Path, log: Path, program: str | None = None, options: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.socket = socket
        self.log = log
        self._ours = program is None
        self.argv = [*_command(program, directory, socket), *options]
        try:
            with open(log, "ab") as output:
                self.process = subprocess.Popen(
                    [*bound_to_us("TERM"), *self.argv],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as error:
            raise GuestError(f"the daemon {self.argv[0]} does not start: {error.strerror}") from None

    @property
    def pid(self) -> int:
        """The started process. With a namespace sandbox that is a launcher; the others descend from it."""
        return self.process.pid

    def processes(self) -> list[int]:
        """The daemon's live processes: the started one first, then its descendants, parents before children."""
        pids = [self.pid]
        for pid in pids:
            try:
                for thread in os.listdir(f"/proc/{pid}/task"):
                    pids += [int(child) for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue
        return pids

    @property
    def worker(self) -> int:
        """The process of our daemon that serves the rings now, waited for if one is just being replaced; of another
        daemon, its last process. Raises GuestError if none appears."""
        if not self._ours:
            return self.processes()[-1]
        limit = time.monotonic() + WORKER_LIMIT
        while time.monotonic() < limit:
            for pid in self.processes():
                if _name_and_state(pid) == (WORKER_NAME, "live"):
                    return pid
            time.sleep(0.01)
        raise GuestError(f"the daemon for {self.directory} has no worker: no guest drives its rings")

    def wait_for_socket(self, tick: Callable[[], None] = lambda: None) -> None:
        """Returns when QEMU can connect. Raises GuestError if the daemon ends, or is too slow."""
        limit = time.monotonic() + SOCKET_LIMIT
        while not self.socket.exists():
            status = self.process.poll()
            if status is not None:
                raise GuestError(
                    f"the daemon for {self.directory} ended with {describe_status(status)} before its socket was there"
                )
            if time.monotonic() > limit:
                raise GuestError(f"the daemon for {self.directory} made no socket within {SOCKET_LIMIT:.0f} s")
            tick()
            time.sleep(0.02)

    def close(self, limit: float = 5) -> int:
        """Waits for the daemon to end, as it does when QEMU has gone; after `limit` seconds ends it. Exit status."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.terminate()
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            for pid in reversed(self.processes()):
                os.kill(pid, signal.SIGKILL)
            return self.process.wait()


def bound_to_us(name: str) -> list[str]:
    """The start of a command line whose process gets signal `name` when the thread that starts it ends, anyhow:
    nothing of a guest outlives whoever drives it. Empty where setpriv (util-linux) is missing."""
    return ["setpriv", "--pdeathsig", name, "--"] if shutil.which("setpriv") else []


def _name_and_state(pid: int) -> tuple[str, str]:
    """A process's name, and "live" or "gone"; a zombie is gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "", "gone"
    name, state = status.partition("(")[2].rpartition(")")[::2]
    return name, "gone" if state.split()[0] in "ZX" else "live"


def describe_status(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


def _command(program: str | None, directory: Path, socket: Path) -> list[str]:
    if program is None:
        return [sys.executable, "-m", "vfsd", "--shared-dir", str(directory), "--socket-path", str(socket)]
    path = shutil.which(program)
    if path is None:
        raise GuestError(f"there is no program {program} to use as the daemon; give --daemon a path")
    try:
        usage = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuestError(f"{path} --help fails, so it is no virtiofs daemon: {error}") from None
    if "--shared-dir" in usage.stdout + usage.stderr:
        return [path, "--shared-dir", str(directory), "--socket-path", str(socket)]
    # QEMU's own daemon, up to QEMU 7.2, takes the directory as a mount-style option; a comma there is doubled.
    return [path, "-o", "source=" + str(directory).replace(",", ",,"), f"--socket-path={socket}"]
