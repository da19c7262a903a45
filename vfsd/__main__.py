"""The `vfsd` command.

Rule 1. The socket exists before anything slow is imported: managers wait for it, Lima one second.
Rule 2. What goes wrong is one sentence and an exit status (`vfsd.errors`); a traceback is for --log-level=debug.
"""

import os
import signal
import sys
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from vfsd.config import RESUME, Config, parse
from vfsd.errors import Failure, UsageError, internal
from vfsd.listen import Listener, listen

if TYPE_CHECKING:
    import socket

    from vfsd import sandbox
    from vfsd.launcher import Watching


def main() -> int:
    """Returns 0 when the front-end has left, 1 on a failure or when told to end, 2 on wrong usage."""
    _open_standard_files()
    if len(sys.argv) > 1 and sys.argv[1].startswith(RESUME):
        from vfsd.resumed import resumed

        return resumed(int(sys.argv[1].removeprefix(RESUME)), sys.argv[2:])
    try:
        config = parse(sys.argv[1:])
        if config.upgrade:
            from vfsd.upgrader import upgrade

            return upgrade(config.upgrade, config.program)
        config = config._replace(shared_dir=_share(config.shared_dir))
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, _end)
        # There is nothing to report or to upgrade yet.
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        listener = listen(config)
    except Failure as error:
        _complain(str(error))
        return error.exit_status
    except Exception as error:
        _complain(internal(error))
        return 1
    try:
        return _serve(config, listener)
    finally:
        listener.close()


def _serve(config: Config, listener: Listener) -> int:
    """The life of the daemon once its socket exists; returns the exit status."""
    import logging

    from vfsd.log import setup, status_of

    setup(config.log_level, config.syslog)
    return status_of(logging.getLogger("vfsd"), partial(_run, config, listener))


def _run(config: Config, listener: Listener) -> int:
    from vfsd import sandbox
    from vfsd.launcher import Watching
    from vfsd.upgrade import Command

    watching = Watching(Command.own(), listener)
    return sandbox.run(config, _preload, partial(_inside, config, watching), watching)


def _preload() -> None:
    """Imports whatever is used behind the walls."""
    import vfsd.control  # noqa: F401


def _inside(config: Config, watching: "Watching", share: "sandbox.Share", leash: "socket.socket | None") -> int:
    """The control process, behind the walls."""
    from vfsd.control import Control

    if config.sandbox != "none":
        watching.listener.detach()
    return Control(config, watching.listener, share, leash, command=watching.command).run()


def _share(path: str) -> str:
    """The real path of the shared directory."""
    try:
        real = os.path.realpath(path, strict=True)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"--shared-dir {path} does not exist: make it, or name another directory") from None
    except OSError as error:
        raise Failure(f"--shared-dir {path} can't be reached: {error.strerror}") from None
    if not os.path.isdir(real):
        raise UsageError(f"--shared-dir {path} is not a directory: name the directory that holds it")
    return real


def _open_standard_files() -> None:
    """Fills 0 to 2 where the manager closed them: else the next descriptor opened would be taken for standard error."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Until the control process or the launcher takes the signals over: leave, by way of `listener.close`."""
    raise SystemExit(1)


def _complain(sentence: str) -> None:
    try:
        print(f"vfsd: {sentence}", file=sys.stderr, flush=True)
    except OSError:
        # Nobody reads it. Without this Python's own last flush fails again, and that changes the exit status.
        sys.stderr = None


if __name__ == "__main__":
    sys.exit(main())
