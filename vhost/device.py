"""What a vhost-user device is to its transport (backend.py)."""

from collections.abc import Mapping
from typing import Protocol

from .message import MemoryRegion


class Refused(Exception):  # noqa: N818 (an answer)
    """A request is refused. The front-end is told, and the connection goes on. `routine`: that is no news."""

    def __init__(self, reason: str, routine: bool = False) -> None:
        super().__init__(reason)
        self.routine = routine


class Device(Protocol):
    """What a device fills in."""

    features: int  #: virtio feature bits offered, message.Feature among them
    protocol_features: int  #: message.ProtocolFeature bits offered
    queues: int  #: rings it can serve
    #: Bytes of its shared memory regions by number, none of them 0. With any, protocol_features has SHMEM.
    shared_memory: Mapping[int, int]

    def read_config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the configuration space. Raises Refused."""

    def write_config(self, offset: int, data: bytes) -> None:
        """Raises Refused."""

    def is_mapping(self, region: MemoryRegion, fd: int) -> bool:
        """Whether what the front-end tells of as memory, in the file `fd`, is a mapping in a shared memory region: of
        this device, or of another one of the same machine."""

    def quiesce(self) -> None:
        """Returns when no worker runs, every ring is parked, and each state record says where it is.

        Requests that can't be finished now are left in flight for the next worker.

        Raises RemoteProtocolError when no worker runs but a ring can't be parked: nobody knows where it is.
        """

    def reset(self) -> None:
        """The device is reset, or its front-end is gone. No worker runs."""

    def transfer(self, load: bool, fd: int) -> None:
        """Begins to write the device's state to a pipe, until it ends there, or to read it from one to its end. Returns
        at once. Every ring is stopped. `fd` is the caller's, and may be closed. Raises Refused.

        `quiesce` and `reset` give up a transfer that is under way.
        """

    def transferred(self) -> bool | None:
        """Whether the last transfer came to a good end; None while it is under way."""
