"""`vfsd --upgrade`: asks a running daemon to give its place to a new program, and says what came of it."""

import fcntl
import os
import select
import signal
import socket
import stat
import sys
import time

from vfsd import handover
from vfsd.errors import Failure, UsageError
from vfsd.handover import HandoverError
from vfsd.listen import peer, take_lock
from vfsd.upgrade import address

#: Seconds until the daemon answers at all, and until the upgrade is over, in either way.
ANSWERING = 10.0
UPGRADING = 120.0


def upgrade(target: str, program: str) -> int:
    """Returns 0 when the new program serves. `target`: a pid file, the socket of --socket-path, or a pid. `program`:
    the executable to run; "": the one the daemon was started as. Raises Failure."""
    pid = _pid(target)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        raise Failure(f"--upgrade {target}: process {pid} has ended") from None
    _check(target, pid)
    if program and not os.access(program, os.X_OK):
        raise UsageError(f"--program {program} is not an executable file")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        try:
            server.bind(address(pid))
        except OSError:
            raise Failure(f"somebody else is about to upgrade process {pid}: try again") from None
        server.listen(1)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGUSR2)
        except PermissionError:
            raise Failure(f"process {pid} belongs to another user: upgrade it as that user, or as root") from None
        conversation = _accept(server, pid, pidfd)
    with conversation:
        try:
            handover.send(conversation, "upgrade", os.path.abspath(program) if program else "")
            handover.expect(conversation, "done", UPGRADING)
        except HandoverError as error:
            raise Failure(f"no upgrade: {error}; the old program goes on") from None
    print(f"process {pid} is upgraded", file=sys.stderr)
    return 0


def _pid(target: str) -> int:
    if target.isascii() and target.isdigit() and int(target):
        return int(target)
    try:
        path = f"{target}.pid" if stat.S_ISSOCK(os.stat(target).st_mode) else target
        with open(path, "rb") as file:
            text = file.read(32).strip()
            if path != target and take_lock(file.fileno(), fcntl.LOCK_SH):
                raise Failure(f"--upgrade {target}: the daemon of this socket has ended")
    except OSError as error:
        raise UsageError(f"--upgrade {target}: {error.strerror}; name a pid file, a socket of vfsd, or a pid") from None
    if not text.isdigit() or not int(text):
        raise UsageError(f"--upgrade {target}: there is no pid in it")
    return int(text)


def _check(target: str, pid: int) -> None:
    """The signal ends a process that does not know it. One that is about to start, or is just being upgraded, does
    not take it yet."""
    deadline = time.monotonic() + ANSWERING
    while True:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            fields = dict(line.split(":", 1) for line in file)
        caught, ignored, blocked = (
            int(fields[name], 16) >> (signal.SIGUSR2 - 1) & 1 for name in ("SigCgt", "SigIgn", "SigBlk")
        )
        if caught:
            return
        if not (ignored or blocked) or time.monotonic() > deadline:
            name = fields["Name"].strip()
            raise UsageError(f"--upgrade {target}: process {pid} ({name}) is no vfsd that can be upgraded")
        time.sleep(0.01)


def _accept(server: socket.socket, pid: int, pidfd: int) -> socket.socket:
    poll = select.poll()
    poll.register(server, select.POLLIN)
    poll.register(pidfd, select.POLLIN)
    while ready := dict(poll.poll(ANSWERING * 1000)):
        if pidfd in ready:
            raise Failure(f"process {pid} has ended")
        conversation, _ = server.accept()
        if peer(conversation).pid == pid:
            return conversation
        conversation.close()
    raise Failure(f"process {pid} does not answer; if it upgrades all the same, its log says so")
