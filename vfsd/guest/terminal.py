"""An interactive shell in the guest: our terminal, made raw, tied to the guest's virtio console."""

import contextlib
import os
import shlex
import signal
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Mapping

from vfsd.guest.channel import Result
from vfsd.guest.guest import Guest

# The command is a session leader without a terminal, so the console becomes its controlling terminal when it opens it.
_SHELL = """\
exec </dev/hvc0 >/dev/hvc0 2>&1
stty sane {size}
export TERM={term} PS1='guest:\\w\\$ '
[ -x /bin/bash ] && exec /bin/bash --norc -i
exec /bin/sh -i
"""


@contextlib.contextmanager
def signal_descriptor(*numbers: signal.Signals) -> Iterator[socket.socket]:
    """A socket that yields one byte, the number, for each of these signals, which do nothing else meanwhile. Only for
    the main thread."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    old = {number: signal.signal(number, lambda number, frame: None) for number in numbers}
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in old.items():
            signal.signal(number, handler)
        ours.close()
        theirs.close()


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    saved = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)


def interact(guest: Guest, environment: Mapping[str, str]) -> Result:
    """A shell on our terminal until it ends; its result. The guest was made with terminal=True."""
    assert guest.machine is not None
    console = guest.machine.ports["tty"]
    keyboard, screen = sys.stdin.fileno(), sys.stdout.fileno()

    def show() -> None:
        os.write(screen, console.recv(65536))

    def resize() -> None:
        changes.recv(64)
        guest.request(f"stty -F /dev/hvc0 {_size(screen)}")

    with signal_descriptor(signal.SIGWINCH) as changes, _raw(keyboard):
        term = shlex.quote(os.environ.get("TERM", "linux"))
        command = guest.start(_SHELL.format(size=_size(screen), term=term), environment=environment)
        actions: dict[int, Callable[[], object]] = {
            keyboard: lambda: console.sendall(os.read(keyboard, 4096)),
            console.fileno(): show,
            changes.fileno(): resize,
        }
        result = guest.wait(command, also=actions)
        # What the shell wrote last may come after the word that it has ended.
        console.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            while True:
                show()
    return result


def _size(screen: int) -> str:
    try:
        columns, lines = os.get_terminal_size(screen)
    except OSError:
        return ""
    return f"rows {lines} cols {columns}"
