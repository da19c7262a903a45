"""The process that moves a guest's mount to another daemon, or takes it from one, through a pipe.

Rule 1. It has the arenas while no worker has, and may die at any instruction: what it has saved is as it was, what it
        has loaded is thrown away. So it is where what came from outside is looked at first.
Rule 2. As a worker, it shares the descriptor table with the control process, and imports nothing.
"""

import gc
import logging
import os
import signal
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from vfsd import migration
from vfsd._fuse import lib
from vfsd.child import ends, fork, settle
from vfsd.config import Config
from vfsd.core import Arenas, Core
from vfsd.descriptors import leave_room
from vfsd.held import Given
from vfsd.sandbox import Share
from vfsd.settings import Settings
from vhost import suspended
from vhost.backend import Backend
from vhost.saved import StateError

log = logging.getLogger("vfsd.migration")

#: Bytes read at once; a pipe holds 64 KiB unless its owner made it larger.
READ_SIZE = 1 << 18


class Spec(NamedTuple):
    """All that a transfer is forked with."""

    config: Config
    share: Share
    settings: Settings
    arenas: Arenas
    backend: Backend
    #: Load rather than save, through the pipe.
    load: bool
    pipe: int
    given: Given


class Transfer:
    """At most one process at a time. `check` is called when `interrupt` is readable during a wait, and may raise."""

    def __init__(self, interrupt: int, check: Callable[[], None]) -> None:
        self._interrupt, self._check = interrupt, check
        #: Readable when the process has ended, -1 when there is none.
        self.pidfd = -1
        #: Whether the last one did what it should; it loads, or loaded.
        self.outcome: bool | None = False
        self.load = False
        #: The locks that the guest had where it was saved.
        self.given = Given()
        self._pid = 0

    @property
    def busy(self) -> bool:
        """The guest is on its way to another daemon, or may be."""
        return self.running or bool(self.given)

    @property
    def running(self) -> bool:
        return self.pidfd >= 0

    def start(self, spec: Spec) -> None:
        """Begins one. It closes the pipe. Raises OSError, after which the pipe is the caller's."""
        self.load, self.outcome = spec.load, None
        try:
            self._pid, self.pidfd = fork(lambda: _run(spec))
        except OSError:
            self.outcome = False
            raise

    def collect(self, cancelled: bool = False) -> None:
        """The process has ended."""
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        os.close(self.pidfd)
        self.pidfd = -1
        self.outcome = status == 0
        if status < 0 and not cancelled:
            log.error("moving the guest's state was ended by %s", signal.Signals(-status).name)

    def cancel(self) -> None:
        """Returns when none runs. Raises what `check` raises."""
        if self.running:
            log.warning("the front-end gives up moving the guest's state")
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            ends(self.pidfd, None, self._interrupt, self._check)
            self.collect(cancelled=True)


def _run(spec: Spec) -> NoReturn:
    status = 1
    try:
        settle(b"vfsd-state")
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        gc.freeze()
        proc_fd = os.open("self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=spec.share.proc_fd)
        os.fchdir(proc_fd)
        os.set_blocking(spec.pipe, True)
        core = Core(spec.settings, spec.share.root_fd, proc_fd, spec.arenas)
        leave_room()
        (_load if spec.load else _save)(spec, core)
        core.close()
        status = 0
    except StateError as error:
        log.error("the guest's state can't be %s: %s", "loaded" if spec.load else "saved", error)
    except OSError as error:
        log.error("the guest's state can't be %s: %s", "loaded" if spec.load else "saved", error.strerror)
    except BaseException:
        log.exception("moving the guest's state failed in a way nobody foresaw")
    finally:
        os._exit(status)


def _save(spec: Spec, core: Core) -> None:
    config, backend = spec.config, spec.backend
    flags = lib.STATE_HANDLES if config.migration_mode == "file-handles" else 0
    if config.migration_confirm_paths:
        flags |= lib.STATE_CONFIRM
    if config.migration_verify_handles:
        flags |= lib.STATE_TAGS
    rings = [ring for vring in backend.vrings if (ring := suspended.look(vring, backend.inflight))]

    def write(data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(spec.pipe, left) :]

    locks = migration.save(core, write, flags, spec.share.proc_fd, rings)
    # First, since the front-end reads on until the pipe ends, and asks then how it went, which waits for us.
    spec.given.give(locks)
    os.close(spec.pipe)


def _load(spec: Spec, core: Core) -> None:
    config, backend = spec.config, spec.backend
    tolerant = config.migration_on_error == "guest-error"
    rings = migration.load(core, lambda size: os.read(spec.pipe, min(size, READ_SIZE)), tolerant, len(backend.vrings))
    os.close(spec.pipe)
    for ring in rings:
        suspended.put(ring, backend.vrings[ring.ring], backend.inflight)
