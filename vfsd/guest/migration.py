"""One QEMU's guest moves to another QEMU, as QMP has it (QEMU, qapi/migration.json)."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vfsd.guest.errors import GuestError
from vfsd.guest.monitor import Monitor

#: Bytes a second: as much as there is to be had.
BANDWIDTH = 1 << 40


class Moved(NamedTuple):
    """Seconds: in all, and while the guest stood still."""

    total: float
    downtime: float


def migrate(source: Monitor, target: Monitor, path: Path, relay: Callable[[Path], Path], limit: float) -> Moved:
    """Moves the guest over a new socket at `path`, or what `relay` puts before it. Returns when it runs at the target,
    which was started with `-incoming defer`. Raises GuestError when it can't be moved: then it runs at the source."""
    for monitor in (source, target):
        # The source hears from the target that it has everything, and goes on by itself if not.
        capabilities = [{"capability": "return-path", "state": True}]
        monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})
    source.execute("migrate-set-parameters", {"max-bandwidth": BANDWIDTH})
    target.execute("migrate-incoming", {"uri": f"unix:{path}"})
    source.execute("migrate", {"uri": f"unix:{relay(path)}"})
    status = _await_end(source, limit)
    if status["status"] != "completed":
        _await_running(source, limit)
        raise GuestError(f"the migration has {status['status']}: {status.get('error-desc', 'QEMU does not say why')}")
    _await_running(target, limit)
    return Moved(status["total-time"] / 1000, status["downtime"] / 1000)


def _await_end(source: Monitor, limit: float) -> Mapping[str, Any]:
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        status: Mapping[str, Any] = source.execute("query-migrate")
        if status.get("status") in ("completed", "failed", "cancelled"):
            return status
        time.sleep(0.02)
    source.execute("migrate_cancel")
    raise GuestError(f"the migration was not done in {limit:g} s")


def _await_running(monitor: Monitor, limit: float) -> None:
    deadline = time.monotonic() + limit
    while not monitor.execute("query-status")["running"]:
        if time.monotonic() > deadline:
            raise GuestError("the guest does not go on")
        time.sleep(0.02)
