"""The launcher: the started process when the daemon itself lives behind walls.

It stays outside, forwards signals, ends with the status of the process inside, and can clean up: the path of the socket
means something else inside.
"""

import contextlib
import errno
import logging
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from vfsd import capabilities, idmap
from vfsd._process import ffi, lib
from vfsd.config import Config
from vfsd.errors import Failure
from vfsd.log import report
from vfsd.values import IdMap

log = logging.getLogger("vfsd")

FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)


@dataclass(frozen=True)
class Namespaces:
    """What the process inside is cloned with."""

    #: PROCESS_NEW_* flags.
    flags: int = 0
    #: Maps of the user namespace; empty: none is made.
    uids: tuple[IdMap, ...] = ()
    gids: tuple[IdMap, ...] = ()
    #: A map is the user's choice (--uid-map, --gid-map).
    chosen: bool = False
    #: setuid and setgid are held outside: any map may be written without newuidmap.
    privileged: bool = False

    @property
    def identities(self) -> bool:
        """More than one user exists inside."""
        return not self.uids or sum(ids.count for ids in self.uids) > 1


def namespaces(config: Config) -> Namespaces:
    """What --sandbox asks for. A user namespace only where privilege is lacking or a map is given."""
    if config.sandbox != "namespace":
        return Namespaces()
    flags = lib.PROCESS_NEW_MOUNT | lib.PROCESS_NEW_PID | lib.PROCESS_NEW_NET
    held = capabilities.effective()
    uids, gids = config.uid_map, config.gid_map
    chosen = bool(uids or gids)
    if held & capabilities.mask("sys_admin") and not chosen:
        return Namespaces(flags)
    setids = capabilities.mask("setuid", "setgid")
    privileged = held & setids == setids
    if not (uids and gids):
        automatic = idmap.automatic(privileged=privileged)
        uids, gids = uids or automatic[0], gids or automatic[1]
    return Namespaces(flags | lib.PROCESS_NEW_USER, uids, gids, chosen, privileged)


def launch(spaces: Namespaces, inside: Callable[[Callable[[], None]], int]) -> int:
    """Runs `inside` in a new process and returns its status; 1 when a signal killed it. Raises Failure.

    `inside` gets a function to call when it needs no file of the host any more. The new process never returns: nothing
    of the caller's runs twice.
    """
    ready, go = os.pipe2(os.O_CLOEXEC)
    parent = os.pidfd_open(os.getpid())
    pidfd = ffi.new("int *")
    # A signal that came before the handlers below would end this process and not the other.
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    pid = lib.process_fork(spaces.flags, pidfd)
    if pid < 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        raise Failure(_no_namespace(-pid))
    if pid == 0:
        os.close(go)
        _live_inside(spaces, ready, parent, inside)
    os.close(ready)
    os.close(parent)
    try:
        if spaces.uids:
            idmap.write(pid, spaces.uids, spaces.gids, chosen=spaces.chosen, privileged=spaces.privileged)
        os.write(go, b"!")
        _forward_signals(pidfd[0])
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(go)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        # It had no time to say so itself. The kernel's OOM killer sends SIGKILL.
        log.error("the daemon was killed by %s", signal.Signals(-status).name)
        return 1
    return status


def _forward_signals(pidfd: int) -> None:
    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)

    signal.set_wakeup_fd(-1)
    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)


def _live_inside(spaces: Namespaces, ready: int, parent: int, inside: Callable[[Callable[[], None]], int]) -> None:
    """The whole life of the new process; does not return."""
    status = 1
    try:
        if os.read(ready, 1):
            os.close(ready)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            status = inside(partial(_settle, spaces, parent))
    except Failure as failure:
        log.error("%s", failure)
        status = failure.exit_status
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        report(error)
    finally:
        # Not sys.exit: the caller's clean-up is the launcher's to do, and its paths mean something else here.
        os._exit(status)


def _settle(spaces: Namespaces, parent: int) -> None:
    """For the process inside, once it needs no file of the host any more: its ids, and its end with the launcher's.

    The ids are 0 in a user namespace that has it; else they stay what they are.
    """
    if any(ids.inside == 0 for ids in spaces.gids):
        os.setresgid(0, 0, 0)
    if any(ids.inside == 0 for ids in spaces.uids):
        os.setresuid(0, 0, 0)
    # The signal comes only if the launcher dies after this call, so look once whether it already has. A change of ids
    # would clear it.
    lib.process_set_death_signal(signal.SIGKILL)
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    if poll.poll(0):
        raise Failure("the launcher is gone")
    os.close(parent)


def _no_namespace(number: int) -> str:
    if number in (errno.EPERM, errno.ENOSPC, errno.EUSERS):
        return (
            f"no permission to make namespaces ({os.strerror(number)}): start as root, allow user namespaces "
            "(sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), or use --sandbox=none"
        )
    return f"the kernel makes no namespaces ({os.strerror(number)}): use --sandbox=chroot or --sandbox=none"
