"""An upgrade as the process sees it that the user started, whose pid everybody knows.

It starts the new program beside the old control process, waits for what these two come to (vfsd/handover.py), and at
last becomes the new program itself, under its old pid: as the launcher, also where there was none before.

Rule 1. What fails, fails before the new program serves; then it is killed, and everything is as it was.
Rule 2. The new program is started as this one was: same arguments, same environment, as a child of this process.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from typing import NamedTuple, NoReturn

from vfsd import handover
from vfsd._process import ffi, lib
from vfsd.config import RESUME
from vfsd.handover import ENDED, HandoverError
from vfsd.listen import Listener, peer
from vhost.saved import Packed

log = logging.getLogger("vfsd.upgrade")

#: Seconds until whoever asks for the upgrade has said what for.
ASKING = 1.0
#: Seconds for a process to end that has nothing to do any more.
ENDING = 2.0


class Command(NamedTuple):
    """How the program was started."""

    program: list[str]
    arguments: list[str]
    directory: str

    @classmethod
    def own(cls) -> "Command":
        given = len(sys.argv) - 1
        program = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - given]]
        if len(program) > 1 and program[-1] == sys.argv[0]:
            program[-1] = os.path.abspath(program[-1])
        arguments = sys.argv[1:]
        if arguments and arguments[0].startswith(RESUME):
            arguments = arguments[1:]
        try:
            directory = os.getcwd()
        except OSError:
            # It has been removed.
            directory = "/"
        return cls(program, arguments, directory)

    def execute(self, fd: int) -> NoReturn:
        """Becomes the program, which goes on by what it is told on `fd`. Raises OSError."""
        with contextlib.suppress(OSError):
            os.chdir(self.directory)
        os.set_inheritable(fd, True)
        os.execv(self.program[0], [*self.program, f"{RESUME}{fd}", *self.arguments])


class Child(NamedTuple):
    """The control process, as its launcher sees it."""

    pid: int
    pidfd: int
    #: To the control process: asks it to hand over, and hears what came of it.
    leash: socket.socket


def hold(numbers: list[int]) -> None:
    """These signals, and all that come from now on, are for the program that this process is about to become."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    for number in numbers:
        os.kill(os.getpid(), number)


def address(pid: int) -> bytes:
    """Where whoever wants process `pid` upgraded can be asked for what, and told what came of it."""
    return b"\0vfsd-upgrade-%d" % pid


class Client:
    """Whoever asked: `vfsd --upgrade`, or nobody who listens. Owns its socket.

    `fd`: the socket, -1 for none, where it was asked before. What is wanted is heard once.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.program = ""
        if fd is not None and fd >= 0:
            self._socket = socket.socket(fileno=fd)
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if fd is None:
            self._listen()

    def _listen(self) -> None:
        self._socket.settimeout(ASKING)
        try:
            self._socket.connect(address(os.getpid()))
            # Others may listen there too. These two might as well trace us.
            if peer(self._socket).uid in (0, os.geteuid()):
                self.program = str(handover.expect(self._socket, "upgrade", ASKING).data or "")
                return
        except (OSError, HandoverError):
            pass
        self._socket.close()

    def tell(self, kind: str, text: str = "") -> None:
        with contextlib.suppress(OSError, HandoverError):
            handover.send(self._socket, kind, text)
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()


class Attempt:
    """One upgrade, from its start on. Either `failed` or `succeeded` is its end.

    Raises HandoverError when nothing can be started; whoever asked has been told.
    """

    def __init__(self, command: Command, listener: Listener) -> None:
        self._client = Client()
        self._command = command._replace(program=[self._client.program]) if self._client.program else command
        self._listener = listener
        #: The old control process's end of the conversation with the new one.
        self.transfer, theirs = handover.pair()
        self._leash, end = handover.pair()
        try:
            packed = Packed()
            saved = listener.save(packed, files=False)
            handover.send(self._leash, "succeed", {"listener": saved}, [theirs.fileno(), *packed.fds])
            self._pid = _spawn(self._command, end.fileno())
        except HandoverError as error:
            self._client.tell("failed", str(error))
            for sock in (self.transfer, self._leash):
                sock.close()
            raise
        finally:
            theirs.close()
            end.close()

    def descriptors(self) -> set[int]:
        return {sock.fileno() for sock in (self.transfer, self._leash, self._client)} - {-1}

    def failed(self, reason: str) -> None:
        """Ends the new program, wherever it is."""
        status = self._reap(self._pid, ENDING if reason == ENDED else 0.0)
        if status not in (None, 0):
            how = f"status {status}" if status and status > 0 else f"{signal.Signals(-(status or 0)).name}"
            reason = f"{reason}; the new program ended with {how}"
        with contextlib.suppress(HandoverError):
            self._reap(int(handover.expect(self._leash, "born", 0).data))
        self._leash.close()
        self.transfer.close()
        self._client.tell("failed", reason)

    def succeeded(self, old: Child | None, kept: bool) -> Child:
        """Becomes the launcher of the new control process. Returns when this process can't: then it is to be its
        launcher as it is. `old`: the control process that was, if it is another process; `kept`: it stays. Called after
        `hold`, which is undone where it returns."""
        pid = int(handover.expect(self._leash, "born", ENDING).data)
        child = Child(pid, os.pidfd_open(pid), self._leash)
        os.waitpid(self._pid, 0)
        if old and not kept:
            os.waitpid(old.pid, 0)
        try:
            ours, theirs = handover.pair()
            packed = Packed()
            descriptors = {"leash": packed.put(child.leash.fileno()), "client": packed.put(self._client.fileno())}
            data = {"pid": pid, "listener": self._listener.save(packed), **descriptors}
            handover.send(ours, "launch", data, packed.fds)
            self._command.execute(theirs.fileno())
        except (OSError, HandoverError) as error:
            log.warning("the process that started the daemon remains of the old version: %s", error)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self._client.tell("done")
        return child

    def _reap(self, pid: int, seconds: float = 0.0) -> int | None:
        """Ends a child. Returns the status of one that ends by itself."""
        deadline = time.monotonic() + seconds
        while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < deadline:
            time.sleep(0.001)
        if ended[0]:
            return os.waitstatus_to_exitcode(ended[1])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return None


def _spawn(command: Command, fd: int) -> int:
    """Starts the program with all signals blocked. Raises HandoverError."""
    errors, theirs = os.pipe2(os.O_CLOEXEC)
    pidfd = ffi.new("int *")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = lib.process_fork(0, pidfd)
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            command.execute(fd)
        except OSError as error:
            os.write(theirs, str(error.strerror).encode())
        finally:
            os._exit(127)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(theirs)
    if pid < 0:
        os.close(errors)
        raise HandoverError(f"no process can be started ({os.strerror(-pid)})")
    os.close(pidfd[0])
    with open(errors, "rb") as file:
        refusal = file.read()
    if refusal:
        os.waitpid(pid, 0)
        raise HandoverError(f"{command.program[0]} can't be executed: {refusal.decode()}")
    return int(pid)
