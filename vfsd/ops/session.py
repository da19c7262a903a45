"""INIT, DESTROY, SYNCFS: the mount as a whole.

INIT settles what both sides do: fs/fuse/inode.c, fuse_send_init and process_init_reply, is the other half.
"""

import errno
import logging
import os
from typing import Any

from vfsd._fuse import ffi, lib
from vfsd.core import Core, check, packed
from vfsd.door import Question, Request, op
from vfsd.settings import Settings

log = logging.getLogger("vfsd.session")

#: Linux 5.4, the first kernel with virtiofs.
MINOR_MIN = 31
#: Linux 6.18. What is newer than the system's <linux/fuse.h> is in vfsd/fuse/newer.h.
MINOR_MAX = 45

#: Agreed to whenever the guest offers it.
ALWAYS = (
    lib.FUSE_ASYNC_READ
    | lib.FUSE_BIG_WRITES
    | lib.FUSE_AUTO_INVAL_DATA
    | lib.FUSE_ASYNC_DIO
    | lib.FUSE_PARALLEL_DIROPS
    | lib.FUSE_ABORT_ERROR
    | lib.FUSE_MAX_PAGES
    | lib.FUSE_SETXATTR_EXT
    | lib.FUSE_INIT_EXT
    | lib.FUSE_CREATE_SUPP_GROUP
    | lib.FUSE_EXPORT_SUPPORT
)

#: POSIX ACLs take all three: the daemon applies umasks, and clears sgid when told to.
ACLS = lib.FUSE_POSIX_ACL | lib.FUSE_DONT_MASK | lib.FUSE_SETXATTR_EXT

PAGE = 4096
#: Pages of a request when the guest doesn't offer MAX_PAGES (FUSE_DEFAULT_MAX_PAGES_PER_REQ).
PAGES_DEFAULT = 32
#: Descriptors of a ring that carry no page (FUSE_HEADER_OVERHEAD, fs/fuse/virtio_fs.c).
RING_OVERHEAD = 4

LOW = 0xFFFFFFFF

#: Where ranges of the DAX window may begin: on pages, as a power of two.
MAP_ALIGNMENT = 12
#: Asks for an empty window.
EMPTY = Question(packed(ffi.new("struct window_question *", {"kind": lib.WINDOW_EMPTY, "fd": -1})))


def wanted(settings: Settings) -> int:
    """The INIT flags we agree to, flags2 in the upper half."""
    flags: int = ALWAYS
    if settings.readdirplus != "never":
        flags |= lib.FUSE_DO_READDIRPLUS
    if settings.readdirplus == "auto":
        flags |= lib.FUSE_READDIRPLUS_AUTO
    if settings.cache != "never":
        # A symlink is replaced, never changed, and the one in its place is another inode.
        flags |= lib.FUSE_CACHE_SYMLINKS
    if settings.writeback:
        flags |= lib.FUSE_WRITEBACK_CACHE
    if settings.killpriv:
        flags |= lib.FUSE_HANDLE_KILLPRIV_V2
    if settings.announce_submounts:
        flags |= lib.FUSE_SUBMOUNTS
    if settings.posix_lock:
        flags |= lib.FUSE_POSIX_LOCKS
    if settings.flock:
        flags |= lib.FUSE_FLOCK_LOCKS
    if settings.allow_mmap:
        flags |= lib.FUSE_DIRECT_IO_ALLOW_MMAP
    if settings.window >= 0:
        flags |= lib.FUSE_MAP_ALIGNMENT
        if settings.dax_policy != "never":
            flags |= lib.FUSE_HAS_INODE_DAX
    if settings.allow_idmap:
        # From now on only what creates an inode says who asks: ACCESS and what takes set-id bits do without.
        flags |= lib.FUSE_ALLOW_IDMAP
    return flags


def negotiated(settings: Settings, offered: int) -> int:
    """The INIT flags that both sides use. OSError when the guest can't do what it must."""
    flags = wanted(settings)
    if settings.posix_acl != "never" and offered & ACLS == ACLS:
        flags |= ACLS
    elif settings.posix_acl == "always":
        raise _refusal("--posix-acl", "POSIX ACLs")
    if settings.security_label != "never" and offered & lib.FUSE_SECURITY_CTX:
        flags |= lib.FUSE_SECURITY_CTX
    elif settings.security_label == "always":
        raise _refusal("--security-label", "security labels")
    return offered & flags


#: The options that make us agree to flags which one of two daemons has agreed to, and the other would not.
OPTIONS = {
    lib.FUSE_WRITEBACK_CACHE: "--writeback",
    ACLS: "--posix-acl",
    lib.FUSE_SECURITY_CTX: "--security-label",
    lib.FUSE_HANDLE_KILLPRIV_V2 | lib.FUSE_ATOMIC_O_TRUNC: "--killpriv-v2",
    lib.FUSE_SUBMOUNTS: "--announce-submounts",
    lib.FUSE_POSIX_LOCKS: "--posix-lock",
    lib.FUSE_FLOCK_LOCKS: "--flock",
    lib.FUSE_DO_READDIRPLUS | lib.FUSE_READDIRPLUS_AUTO: "--readdirplus",
    lib.FUSE_CACHE_SYMLINKS: "--cache",
    lib.FUSE_DIRECT_IO_ALLOW_MMAP: "--allow-mmap",
    lib.FUSE_ALLOW_IDMAP: "--no-allow-idmap",
    lib.FUSE_MAP_ALIGNMENT | lib.FUSE_HAS_INODE_DAX: "--dax-window",
}


def differences(settings: Settings, agreed: int) -> list[str]:
    """What another daemon has agreed to, and one with these settings would not: the options to look at."""
    mine = wanted(settings)
    if settings.killpriv:
        mine |= lib.FUSE_ATOMIC_O_TRUNC
    if settings.posix_acl != "never":
        mine |= ACLS
    if settings.security_label != "never":
        mine |= lib.FUSE_SECURITY_CTX
    other = agreed & ~mine
    found = [option for flags, option in OPTIONS.items() if other & flags]
    unknown = other & ~sum(OPTIONS)
    return [*found, f"FUSE flags {unknown:#x} of a newer vfsd"] if unknown else found


def _refusal(option: str, what: str) -> OSError:
    log.error("%s=always: the guest's kernel does not offer %s, so it can't mount", option, what)
    return OSError(errno.EPROTO, f"the guest does not offer {what}")


@op("INIT", tail=True)
def init(core: Core, request: Request, body: bytes) -> bytes:
    # A guest before Linux 6.0 sends the struct's first 16 bytes.
    asked = ffi.from_buffer("struct fuse_init_in *", body.ljust(ffi.sizeof("struct fuse_init_in"), b"\0"))
    out = ffi.new("struct fuse_init_out *", {"major": lib.FUSE_KERNEL_VERSION, "minor": MINOR_MAX})
    if asked.major > lib.FUSE_KERNEL_VERSION:
        return packed(out)  # the guest asks again, with our major
    if asked.major < lib.FUSE_KERNEL_VERSION or asked.minor < MINOR_MIN:
        raise OSError(errno.EPROTO, f"the guest's FUSE {asked.major}.{asked.minor} is older than 7.{MINOR_MIN}")

    offered = asked.flags
    if offered & lib.FUSE_INIT_EXT:
        offered |= asked.flags2 << 32
    agreed = negotiated(core.settings, offered)
    # Only under the agreement does an OPEN tell whether its truncation takes set-id bits away. Without it the guest
    # truncates by SETATTR and takes them away itself. FUSE_HANDLE_KILLPRIV, which 5.4 to 5.10 offer alone, is no help:
    # it says of no request whether its caller has CAP_FSETID.
    if agreed & lib.FUSE_HANDLE_KILLPRIV_V2:
        agreed |= offered & lib.FUSE_ATOMIC_O_TRUNC
    pages = max(core.settings.queue_size - RING_OVERHEAD, 1)
    if not agreed & lib.FUSE_MAX_PAGES:
        pages = min(pages, PAGES_DEFAULT)

    # Mounted already: the guest rebooted, and never sent DESTROY.
    core.reset()
    session = core.session
    session.minor = min(asked.minor, MINOR_MAX)
    session.flags = agreed
    session.max_write = pages * PAGE
    session.max_pages = pages
    session.mounted = 1

    out.minor = session.minor
    out.max_readahead = asked.max_readahead
    out.flags = agreed & LOW
    out.flags2 = agreed >> 32
    # As many asynchronous requests as the ring holds; "congested" at three quarters, as the guest's own default.
    out.max_background = min(core.settings.queue_size, 0xFFFF)
    out.congestion_threshold = out.max_background * 3 // 4
    out.max_write = session.max_write
    out.max_pages = pages
    out.map_alignment = MAP_ALIGNMENT if agreed & lib.FUSE_MAP_ALIGNMENT else 0
    out.time_gran = 1
    if not core.window:
        return packed(out)
    # Nodeids begin anew: what the last mount has mapped must be gone before they are used.
    question = Question(EMPTY)
    question.reply = packed(out)
    return question


@op("DESTROY")
def destroy(core: Core, request: Request) -> bytes:
    core.reset()
    # Answered when it is empty: what the front-end still maps when the guest resets the device can't be taken back.
    return EMPTY if core.window else b""


@op("SYNCFS", "fuse_syncfs_in", blocking=True)
def syncfs(core: Core, request: Request, arg: Any) -> bytes:
    # syncfs(2) takes no O_PATH descriptor.
    fd = core.open(request.nodeid, os.O_RDONLY)
    try:
        check(lib.sys_syncfs(fd))
    finally:
        os.close(fd)
    return b""
