"""What a guest is to have of the host."""

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """A host directory and where the guest sees it."""

    directory: str | os.PathLike[str]
    tag: str = "share"
    #: Mount point; /mnt/TAG if empty.
    path: str = ""
    #: As for mount -o.
    mount_options: str = "rw"
    #: The daemon program; None is ours.
    daemon: str | None = None
    daemon_options: Sequence[str] = ()
    #: Size of the DAX window as --dax-window takes it; "": none.
    dax_window: str = ""
    #: False leaves mounting to the caller.
    mounted: bool = True

    @property
    def mount_point(self) -> str:
        return self.path or f"/mnt/{self.tag}"
