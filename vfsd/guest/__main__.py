"""vfsd-guest: a throwaway guest on a host directory, in one command."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from vfsd.guest.channel import Sink
from vfsd.guest.errors import GuestError, TimeLimitError
from vfsd.guest.guest import Guest
from vfsd.guest.options import environment_of, guest_of, parser
from vfsd.guest.progress import Progress, Silent
from vfsd.guest.terminal import interact, signal_descriptor

#: As timeout(1) and env(1) have them.
EXIT_TIME_LIMIT = 124
EXIT_NO_GUEST = 125


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    usage = parser()
    options = usage.parse_args(words[:split])
    command = words[split + 1 :]
    if options.action == "run" and not command:
        usage.error("run: give the command after --")
    if options.action == "shell" and command:
        usage.error("shell takes no command; use run")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        if options.action == "run":
            return _run(options, command)
        return _shell(options)
    except TimeLimitError as error:
        return _complain(error, EXIT_TIME_LIMIT)
    except GuestError as error:
        return _complain(error, EXIT_NO_GUEST)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return 128 + signal.SIGPIPE


def _shell(options: argparse.Namespace) -> int:
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    environment = environment_of(options.env)
    with guest_of(options, _progress(options), terminal) as guest:
        _announce(options, guest)
        if terminal:
            return interact(guest, environment).status
        return _follow(guest, ["/bin/sh"], environment, None)


def _run(options: argparse.Namespace, command: Sequence[str]) -> int:
    environment = environment_of(options.env)
    with guest_of(options, _progress(options), terminal=False) as guest:
        _announce(options, guest)
        return _follow(guest, command, environment, options.timeout)


def _follow(guest: Guest, words: Sequence[str], environment: dict[str, str], timeout: float | None) -> int:
    """Runs a command with our standard streams. The first SIGINT goes to the command, a second one ends the guest."""
    stdin = None if sys.stdin is None or sys.stdin.isatty() else sys.stdin.fileno()
    interrupted = False

    def on_signal() -> None:
        nonlocal interrupted
        if signals.recv(1)[0] == signal.SIGINT and not interrupted:
            interrupted = True
            command.signal(signal.SIGINT)
        elif interrupted:
            raise KeyboardInterrupt

    with signal_descriptor(signal.SIGINT) as signals:
        command = guest.start(words, None, environment, stdin, _writer(1), _writer(2))
        return guest.wait(command, timeout, {signals.fileno(): on_signal}).status


def _writer(descriptor: int) -> Sink:
    stream = (sys.stdout if descriptor == 1 else sys.stderr).buffer

    def write(data: bytes) -> None:
        stream.write(data)
        stream.flush()

    return write


def _progress(options: argparse.Namespace) -> Progress:
    return Silent() if options.quiet else Progress()


def _announce(options: argparse.Namespace, guest: Guest) -> None:
    if not options.quiet:
        name, reason = guest.accelerator
        places = ", ".join(f"{os.path.abspath(share.directory)} on {share.mount_point}" for share in guest.shares)
        seconds = f"{guest.progress.elapsed:.1f} s"
        line = f"Linux {guest.release}, {name.upper()} ({reason}), up in {seconds}; {places}"
        print(f"vfsd-guest: {line}", file=sys.stderr, flush=True)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _complain(error: GuestError, status: int) -> int:
    if error.report:
        print(error.report, file=sys.stderr)
    print(f"vfsd-guest: {error.args[0]}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
