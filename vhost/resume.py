"""A connection, from one process to another that goes on with it while the front-end notices nothing.

    data = save(backend, packed)                        # here, while no worker runs
    backend = resume(data, unpacked, device, ...)       # there, on the same arenas of rings and in-flight regions

Rule 1. The connection is between two messages, and nothing is owed on the back-end channel: `between_messages`.
"""

import os
import socket
import stat
from typing import Any

from .arena import Arena
from .backend import Backend
from .channel import BackendChannel
from .device import Device
from .protocol import ProtocolError
from .saved import Packed, StateError, Unpacked, field, items, number


def between_messages(backend: Backend) -> bool:
    return backend.connection.idle and not backend.waits and not (backend.channel and backend.channel.owed)


def save(backend: Backend, packed: Packed) -> dict[str, Any]:
    """What the connection consists of, besides the arenas. No worker runs."""
    channel = backend.channel
    return {
        "socket": packed.put(backend.fileno()),
        "features": backend.features,
        "protocol_features": backend.protocol_features,
        "status": backend.status,
        "memory": backend.memory.save(packed),
        "log": backend.log.save(packed),
        "inflight": backend.inflight.save(packed),
        "channel": {"socket": packed.put(channel.fileno()), "reply_ack": channel.reply_ack} if channel else None,
        "vrings": [vring.save(packed) for vring in backend.vrings if vring.used],
    }


def resume(data: Any, unpacked: Unpacked, device: Device, table: Arena, states: Arena, inflight: Arena) -> Backend:
    """The connection that `save` described. Raises StateError, and descriptors are left open: the caller is to end."""
    backend = Backend(_socket(unpacked.take(data, "socket")), device, table, states, inflight)
    try:
        _fill(backend, data, unpacked)
    except (ProtocolError, OSError) as error:
        raise StateError(str(error)) from error
    return backend


def _fill(backend: Backend, data: Any, unpacked: Unpacked) -> None:
    device = backend.device
    backend.features = _offered(data, "features", device.features)
    backend.connection.features = _offered(data, "protocol_features", device.protocol_features)
    backend.status = number(data, "status", 0, 0xFF)
    backend.memory.resume(field(data, "memory", dict), unpacked)
    backend.log.resume(field(data, "log", dict), unpacked)
    backend.inflight.resume(field(data, "inflight", dict), unpacked)
    if (channel := data.get("channel")) is not None:
        fd = _socket(unpacked.take(channel, "socket")).detach()
        backend.channel = BackendChannel(fd, field(channel, "reply_ack", bool))
    for saved in items(data, "vrings", len(backend.vrings)):
        backend.vrings[number(saved, "index", 0, len(backend.vrings) - 1)].resume(saved, unpacked)


def _offered(data: Any, name: str, offered: int) -> int:
    """Features that were negotiated, all of which this program has to have."""
    value = number(data, name)
    if missing := value & ~offered:
        raise StateError(f"{name}: {missing:#x} was negotiated, which this program does not offer")
    return value


def _socket(fd: int) -> socket.socket:
    if fd < 0 or not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise StateError("a connection is not a socket")
    return socket.socket(fileno=fd)
