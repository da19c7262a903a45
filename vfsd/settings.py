"""What the file system needs to know of the configuration."""

import os
from typing import TYPE_CHECKING, NamedTuple, Self

from vfsd._fuse import lib
from vfsd.facts import NOTHING, Facts
from vfsd.translate import Ids, Owner, tables

if TYPE_CHECKING:
    from vfsd.config import Config
    from vfsd.xattrmap import XattrMap


def _unhurried(window: int) -> int:
    """Bytes a guest maps in a window of this size before it takes mappings back: a fifth stays free (fs/fuse/dax.c,
    FUSE_DAX_RECLAIM_THRESHOLD)."""
    return window * 4 // 5


def _possible(mode: str, possible: bool) -> str:
    """What never, auto or always comes to where something is possible or not."""
    return "never" if mode == "auto" and not possible else mode


class Settings(NamedTuple):
    """Frozen, as a worker's configuration is. The defaults are those of tests."""

    #: A key of CACHES.
    cache: str = "auto"
    #: How long the guest may trust names, attributes, and that there is no such name, nanoseconds.
    entry_ns: int = 1_000_000_000
    attr_ns: int = 1_000_000_000
    negative_ns: int = 0
    #: How long a file or a directory has not changed when its times begin to tell of every change (vfsd/fuse/cache.c).
    file_settle_ns: int = 60_000_000_000
    dir_settle_ns: int = 3_000_000_000
    readonly: bool = False
    #: The worker may switch to the guest caller's identity.
    privileged: bool = False
    allow_direct_io: bool = False
    preserve_noatime: bool = False
    announce_submounts: bool = True
    #: Whether there are extended attributes, and the names the host knows them by (None: the guest's own).
    xattr: bool = False
    xattrmap: "XattrMap | None" = None
    killpriv: bool = True
    #: The host leaves the set-id bits of what we write.
    keeps_set_id: bool = False
    #: POSIX ACLs: never, auto (if the guest offers them) or always.
    posix_acl: str = "never"
    #: Security labels at creation: never, auto (if the guest offers them) or always; and the host's name for them.
    security_label: str = "never"
    label: bytes = b""
    #: never, auto or always.
    readdirplus: str = "auto"
    writeback: bool = False
    allow_mmap: bool = True
    allow_idmap: bool = True
    #: Locks reach the host, so that other guests and its processes see them: fcntl(2) and flock(2).
    posix_lock: bool = True
    flock: bool = True
    #: Descriptors of the largest ring: bounds the pages of one request.
    queue_size: int = 1024
    #: How many descriptors its inodes, handles and lock owners may hold together, 0: as many as there is room for.
    descriptors: int = 0
    #: How ids differ between guest and host; None: they don't.
    ids: Ids | None = None
    #: The socket to the owner of the DAX window, -1: there is none.
    window: int = -1
    #: Which files are offered for it: never, auto (of these sizes, in bytes) or always.
    dax_policy: str = "never"
    dax_min: int = 0
    dax_max: int = 0
    #: And how much of them may be open at the same time, bytes.
    dax_room: int = 0
    #: never, prefer or mandatory: whether an inode whose descriptor was closed is opened by file handle.
    file_handles: str = "prefer"

    @classmethod
    def of(cls, config: "Config", privileged: bool, queue_size: int = 1024, facts: Facts = NOTHING) -> Self:
        xattr = facts.xattr if config.xattr is None else config.xattr
        return cls(
            cache=config.cache,
            entry_ns=config.validity(config.entry_timeout),
            attr_ns=config.validity(config.attr_timeout),
            negative_ns=config.negative_timeout,
            readonly=config.readonly,
            privileged=privileged,
            allow_direct_io=config.allow_direct_io,
            preserve_noatime=config.preserve_noatime,
            announce_submounts=config.announce_submounts,
            xattr=xattr,
            xattrmap=config.xattrmap,
            killpriv=config.killpriv,
            keeps_set_id=facts.keeps_set_id,
            posix_acl=_possible(config.posix_acl, xattr and facts.acl),
            security_label=_possible(config.security_label, xattr and facts.label),
            label=config.label,
            readdirplus=config.readdirplus_mode,
            writeback=config.gathers_writes,
            allow_mmap=config.allow_mmap,
            allow_idmap=config.allow_idmap,
            posix_lock=config.posix_lock,
            flock=config.flock,
            queue_size=queue_size,
            ids=tables(config.translate_uid, config.translate_gid, config.owner, Owner(os.geteuid(), os.getegid())),
            file_handles=config.inode_file_handles,
            dax_policy=config.dax_policy,
            dax_min=config.dax_min_size,
            dax_max=_unhurried(config.dax_window) if config.dax_max_size is None else config.dax_max_size,
            dax_room=_unhurried(config.dax_window),
        )

    @property
    def capability(self) -> bytes:
        """The name under which the host keeps a guest's security.capability, if it is another one; else b""."""
        return self.xattrmap.renamed(b"security.capability") if self.xattrmap else b""

    @property
    def flags(self) -> int:
        """The CORE_* flags."""
        return (
            (lib.CORE_READONLY if self.readonly else 0)
            | (lib.CORE_PRIVILEGED if self.privileged else 0)
            | (lib.CORE_ALLOW_DIRECT_IO if self.allow_direct_io else 0)
            | (lib.CORE_PRESERVE_NOATIME if self.preserve_noatime else 0)
            | (lib.CORE_ANNOUNCE_SUBMOUNTS if self.announce_submounts else 0)
            | (lib.CORE_FILE_HANDLES if self.file_handles != "never" else 0)
            | (lib.CORE_FILE_HANDLES_ONLY if self.file_handles == "mandatory" else 0)
            | (lib.CORE_DAX_ALWAYS if self.dax_policy == "always" else 0)
            | (lib.CORE_KEEPS_SET_ID if self.keeps_set_id else 0)
        )
