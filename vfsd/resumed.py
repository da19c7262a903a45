"""What the program does that is started, or that a process becomes, in an upgrade (vfsd/upgrade.py)."""

import logging
import os
import socket
import sys
from functools import partial

from vfsd import descriptors, handover
from vfsd._process import lib
from vfsd.config import parse
from vfsd.launcher import Watching, watch
from vfsd.listen import Listener
from vfsd.log import setup, status_of
from vfsd.upgrade import Child, Client, Command
from vhost.saved import Unpacked, number

log = logging.getLogger("vfsd.upgrade")


def resumed(fd: int, arguments: list[str]) -> int:
    """The exit status."""
    # Whoever started us may have had thousands of descriptors: a low number is one no guest has (vfsd/descriptors.py).
    sock = socket.socket(fileno=os.dup(fd))
    os.close(fd)
    # Nor does anybody need what was left open for whoever was started first.
    descriptors.sweep({sock.fileno(), *range(descriptors.PLACES)})
    name = os.path.basename(sys.argv[0])
    if name not in ("-c", "__main__.py"):
        # A script was executed by way of its interpreter, whose name this process has now.
        lib.process_set_name(os.fsencode(name))
    return status_of(log, partial(_resume, sock, arguments))


def _resume(sock: socket.socket, arguments: list[str]) -> int:
    config = parse(arguments)
    setup(config.log_level, config.syslog)
    note = handover.receive(sock, 0)
    if note.kind == "launch":
        sock.close()
        return _launch(note)
    # Not for who only launches: it imports all that serves.
    from vfsd.taker import take_over

    transfer, *fds = note.fds
    listener = Listener.resume(note.data["listener"], Unpacked(fds))
    return take_over(config, sock, socket.socket(fileno=transfer), listener)


def _launch(note: handover.Note) -> int:
    """This process has been the launcher, or all of the daemon, and is the launcher again."""
    unpacked = Unpacked(note.fds)
    leash, client = unpacked.take(note.data, "leash"), unpacked.take(note.data, "client")
    listener = Listener.resume(note.data["listener"], unpacked)
    pid = number(note.data, "pid", 1, 1 << 30)
    child = Child(pid, os.pidfd_open(pid), socket.socket(fileno=leash))
    try:
        return watch(child, Watching(Command.own(), listener), ready=lambda: Client(client).tell("done"))
    finally:
        listener.close()
