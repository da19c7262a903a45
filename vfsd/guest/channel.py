"""Commands in a guest, from the host's side: the other end of agent.sh, whose two rules this follows.

A slot is three byte streams and runs one command at a time. Nothing here knows QEMU: a slot works on any three sockets.
"""

import contextlib
import os
import secrets
import select
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vfsd.guest.errors import GuestError, TimeLimitError

#: Bytes of standard input sent in one piece: one process in the guest copies each.
_PIECE = 65536
#: Seconds a killed command gets to be gone.
_KILL_LIMIT = 30.0

Sink = Callable[[bytes], object]


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    #: Exit status; 128 + n after signal n, 127 for a command not found.
    status: int
    #: What it wrote, empty where a sink took it.
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, without the last newline."""
        return self.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")

    def check(self) -> "Result":
        """Itself. Raises GuestError with the standard error if the status is not 0."""
        if self.status:
            raise GuestError(
                f"the guest's command ended with status {self.status}: {self.stderr.decode(errors='replace')}"
            )
        return self


def script(command: Sequence[str] | str, directory: str, environment: Mapping[str, str]) -> bytes:
    """The shell script that runs a command: a string is a script already, a sequence one program and its arguments."""
    lines = [f"cd {shlex.quote(directory)} || exit 125"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines.append(command if isinstance(command, str) else "exec " + shlex.join(command))
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


class Slot:
    """One slot's three sockets, and a lock held while a command runs."""

    def __init__(self, number: int, control: socket.socket, out: socket.socket, err: socket.socket) -> None:
        self.number = number
        self.control = control
        self.out = out
        self.err = err
        self.busy = threading.Lock()


class Stream:
    """One output stream of a command: passes bytes on until the token, which it swallows."""

    def __init__(self, source: socket.socket, token: bytes, sink: Sink | None) -> None:
        self.source = source
        self.collected = bytearray()
        self.ended = False
        self._token = token
        self._sink: Sink = sink or self.collected.extend
        self._held = b""

    def receive(self) -> None:
        data = self.source.recv(262144)
        if not data:
            raise GuestError("the guest is gone")
        data = self._held + data
        end = data.find(self._token)
        if end >= 0:
            self.ended = True
            self._pass(data[:end])
            return
        # Only a tail that may be the start of the token waits; a prompt must show at once.
        keep = next(
            (n for n in range(min(len(self._token) - 1, len(data)), 0, -1) if self._token.startswith(data[-n:])), 0
        )
        self._held = data[len(data) - keep :]
        self._pass(data[: len(data) - keep])

    def _pass(self, data: bytes) -> None:
        if data:
            self._sink(data)


class Command:
    """A command running in a guest. Made by Guest.start; ends with `wait`."""

    def __init__(
        self,
        slot: Slot,
        text: bytes,
        request: Callable[[str], None],
        stdin: bytes | int | None = None,
        stdout: Sink | None = None,
        stderr: Sink | None = None,
    ) -> None:
        """`stdin` is all of it, or a descriptor to read it from. `request` runs a line in the guest's first process."""
        self.pid: int | None = None
        self._slot = slot
        self._request = request
        token = secrets.token_hex(16)
        self._out = Stream(slot.out, token.encode(), stdout)
        self._err = Stream(slot.err, token.encode(), stderr)
        self._lines = b""
        self._status: int | None = None
        self._finished = False
        self._source = stdin if isinstance(stdin, int) else None
        self._unsent = bytearray(f"{token} {len(text)}\n".encode() + text)
        data = b"" if isinstance(stdin, int) or stdin is None else stdin
        for start in range(0, len(data), _PIECE):
            self._send_piece(data[start : start + _PIECE])
        self._input_open = True
        if self._source is None:
            self._end_input()
        # Small requests are with the guest at once; `wait` sends the rest of large ones.
        self._send()

    def signal(self, number: int) -> None:
        """Sends a signal to the command's process group; nothing before the guest has started it."""
        if self.pid is not None and self._status is None:
            self._request(f"kill -{number} -{self.pid} 2>/dev/null")

    def kill(self) -> None:
        """Kills every process of the command's session, and lets go of its output."""
        if self.pid is not None:
            self._request(f"kill_session {self.pid} {self._slot.number}")

    def wait(self, timeout: float | None = None, also: Mapping[int, Callable[[], object]] | None = None) -> Result:
        """The command's result. Raises TimeLimitError after `timeout` seconds, when the command has been killed;
        GuestError if the guest ends first. `also` maps further descriptors to what is called when one is readable."""
        limit = None if timeout is None else time.monotonic() + timeout
        late = False
        while not self._complete():
            left = None if limit is None else limit - time.monotonic()
            if left is not None and left <= 0:
                if late:
                    raise GuestError("a killed command does not end; the guest hangs")
                late = True
                self.kill()
                limit = time.monotonic() + _KILL_LIMIT
                continue
            self._serve(left, also or {})
        self._release()
        if late:
            raise TimeLimitError(f"the command took longer than {timeout:g} s and was killed")
        assert self._status is not None
        return Result(self._status, bytes(self._out.collected), bytes(self._err.collected))

    def _complete(self) -> bool:
        return self._status is not None and self._out.ended and self._err.ended and not self._unsent

    def _release(self) -> None:
        if not self._finished:
            self._finished = True
            self._slot.busy.release()

    def _serve(self, timeout: float | None, also: Mapping[int, Callable[[], object]]) -> None:
        """Waits once for any of the streams and moves what there is."""
        poll = select.poll()
        control = self._slot.control
        poll.register(control, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        actions: dict[int, Callable[[], object]] = dict(also)
        for stream in (self._out, self._err):
            if not stream.ended:
                actions[stream.source.fileno()] = stream.receive
        if self._source is not None and self._input_open and not self._unsent:
            actions[self._source] = self._read_source
        for descriptor in actions:
            poll.register(descriptor, select.POLLIN)
        for descriptor, event in poll.poll(None if timeout is None else timeout * 1000):
            if descriptor != control.fileno():
                actions[descriptor]()
                continue
            if event & select.POLLOUT:
                self._send()
            if event & ~select.POLLOUT:
                self._read_control()

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            del self._unsent[: self._slot.control.send(self._unsent, socket.MSG_DONTWAIT)]

    def _read_control(self) -> None:
        data = self._slot.control.recv(4096)
        if not data:
            raise GuestError("the guest is gone")
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            word, _, value = line.partition(b" ")
            if word == b"pid":
                self.pid = int(value)
            elif word == b"exit":
                self._status = int(value)
                self._end_input()

    def _read_source(self) -> None:
        assert self._source is not None
        data = os.read(self._source, _PIECE)
        if data:
            self._send_piece(data)
        else:
            self._end_input()

    def _send_piece(self, data: bytes) -> None:
        self._unsent += b"%d\n" % len(data) + data

    def _end_input(self) -> None:
        if self._input_open:
            self._input_open = False
            self._unsent += b"0\n"


def signal_name(status: int) -> str:
    """SIGKILL for 137; the number as text for what is no signal's."""
    try:
        return signal.Signals(status - 128).name
    except ValueError:
        return str(status)
