"""QEMU's monitor: qemu.qmp behind blocking calls, its event loop on a thread of its own."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from vfsd.guest.errors import GuestError

_T = TypeVar("_T")


def check() -> None:
    """Raises GuestError if there is no qemu.qmp, an optional dependency of the package."""
    try:
        import qemu.qmp  # noqa: F401
    except ImportError:
        raise GuestError(
            "the Python package qemu.qmp is missing: pip install '.[guest]' in vfsd's source tree, or "
            "pip install 'vfsd[guest]'"
        ) from None


class Monitor:
    """One QMP session over a connected socket. Every method may be called from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        from qemu.qmp import EventListener, QMPClient

        #: QMP events seen so far, oldest first.
        self.events: list[Mapping[str, Any]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient("vfsd-guest")
        self._client.logger.disabled = True
        self._listener = EventListener()
        self._client.register_listener(self._listener)
        try:
            self._wait(self._connect(connection), 20)
        except Exception as error:
            self.close()
            raise GuestError(f"QEMU's monitor does not answer: {error}") from None

    def execute(self, command: str, arguments: dict[str, object] | None = None, timeout: float = 20) -> Any:
        """A QMP command's return value. Raises GuestError for its failure, or after `timeout` seconds."""
        try:
            return self._wait(self._client.execute(command, arguments), timeout)
        except Exception as error:
            raise GuestError(f"QMP {command}: {error or type(error).__name__}") from None

    def close(self) -> None:
        # An error means that QEMU has gone, and the session with it.
        with contextlib.suppress(Exception):
            self._wait(self._end(), 5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, coroutine: Coroutine[Any, Any, _T], timeout: float) -> _T:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, timeout), self._loop).result()

    async def _connect(self, connection: socket.socket) -> None:
        await self._client.connect(connection)
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        async for event in self._listener:
            self.events.append(dict(event))

    async def _end(self) -> None:
        self._watcher.cancel()
        await self._client.disconnect()
