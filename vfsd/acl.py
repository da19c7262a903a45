"""Ids inside the values of extended attributes: POSIX ACLs name users and groups, a file capability its root user.

The name is the guest's: an attribute that the host keeps under another one has the same ids in it. A value's length
stays what it is.
Layouts: <linux/posix_acl_xattr.h>, <linux/capability.h>; little endian on every machine.
"""

import errno
from collections.abc import Callable
from struct import Struct, error, pack_into, unpack_from

from vfsd._fuse import lib
from vfsd.core import UNCHANGED, Core
from vfsd.xattrmap import ACLS

CAPABILITY = b"security.capability"

#: struct posix_acl_xattr_header, whose only version this is, and posix_acl_xattr_entry: tag, permissions, id.
ACL_HEADER, ACL_VERSION = Struct("<I"), 2
ACL_ENTRY = Struct("<HHI")
#: <linux/posix_acl.h>: the tags whose entries have an id.
ACL_USER, ACL_GROUP = 0x02, 0x08

#: struct vfs_ns_cap_data of revision 3: its size, where its revision and its rootid are.
CAPABILITY_SIZE, CAPABILITY_REVISION, CAPABILITY_ROOT = 24, 3, 20

#: An id on one side to that on the other.
Translation = Callable[[int], int]


def to_host(core: Core, name: bytes, value: bytes) -> bytes:
    """What the host is to keep for the guest's value. EINVAL for a malformed ACL, EPERM for a forbidden id."""
    if not core.settings.ids:
        return value
    if name in ACLS:
        return acl(value, lambda id: _granted(core, lib.CORE_UID, id), lambda id: _granted(core, lib.CORE_GID, id))
    if name == CAPABILITY:
        return capability(value, lambda id: core.id_to_host(lib.CORE_UID, id))
    return value


def to_guest(core: Core, name: bytes, value: bytes) -> bytes:
    """What the guest is to see of the host's value. What is malformed is shown as it is: its kernel refuses it."""
    if not core.settings.ids:
        return value
    try:
        if name in ACLS:
            return acl(
                value,
                lambda id: core.id_to_guest(lib.CORE_UID, id),
                lambda id: core.id_to_guest(lib.CORE_GID, id),
            )
        if name == CAPABILITY:
            return capability(value, lambda id: core.id_to_guest(lib.CORE_UID, id))
    except OSError:
        pass
    return value


def _granted(core: Core, kind: int, id: int) -> int:
    """An id in an entry. Where everything has one owner no entry can be for another."""
    host = core.id_to_set(kind, id)
    return core.id_to_host(kind, id) if host == UNCHANGED else host


def acl(value: bytes, user: Translation, group: Translation) -> bytes:
    """An ACL with its ids translated, entries in their order. EINVAL for a malformed one.

    An empty value, by which the kernel removes an ACL, stays empty. Entries may end up for the same id.
    """
    if not value:
        return value
    found = bytearray(value)
    try:
        (version,) = ACL_HEADER.unpack_from(found)
        if version != ACL_VERSION or (len(found) - ACL_HEADER.size) % ACL_ENTRY.size:
            raise OSError(errno.EINVAL, "not a POSIX ACL")
        for at in range(ACL_HEADER.size, len(found), ACL_ENTRY.size):
            tag, permissions, id = ACL_ENTRY.unpack_from(found, at)
            if tag in (ACL_USER, ACL_GROUP):
                ACL_ENTRY.pack_into(found, at, tag, permissions, (user if tag == ACL_USER else group)(id))
    except error:
        raise OSError(errno.EINVAL, "not a POSIX ACL") from None
    return bytes(found)


def capability(value: bytes, user: Translation) -> bytes:
    """A file capability with the id of the user namespace's root it is for translated; other revisions have none."""
    if len(value) != CAPABILITY_SIZE or value[3] != CAPABILITY_REVISION:
        return value
    found = bytearray(value)
    (root,) = unpack_from("<I", found, CAPABILITY_ROOT)
    pack_into("<I", found, CAPABILITY_ROOT, user(root))
    return bytes(found)
