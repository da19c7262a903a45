"""What the share's file system is capable of, asked once at the root of the share, before the first guest request.

The answers decide what is offered without being asked for. None of them ends the start. File systems mounted below the
root may differ: they answer for themselves, request by request.
"""

import errno
import os
from typing import NamedTuple

#: What a file system says of attributes it does not know at all.
_NOT_THERE = (errno.EOPNOTSUPP, errno.ENOSYS)
#: One of each kind: a file system may have some and not others (tmpfs has user.* since Linux 6.6).
_KINDS = ("user.vfsd", "security.capability", "system.posix_acl_access")


class Facts(NamedTuple):
    #: Extended attributes of one kind at least.
    xattr: bool = False
    #: POSIX access control lists.
    acl: bool = False
    #: Whether the label asked about can be set.
    label: bool = False


#: Of a file system nobody has asked.
NOTHING = Facts()


def find(fd: int, label: bytes = b"") -> Facts:
    """The facts about the file system of an open directory. `label`: the name of a security label, b"": don't ask.

    A label is tried on a file without a name, which nobody sees and which leaves nothing behind.
    """
    kinds = [_knows(fd, name) for name in _KINDS]
    return Facts(xattr=any(kinds), acl=kinds[-1], label=bool(label) and _takes(fd, label))


def _knows(fd: int, name: str) -> bool:
    try:
        os.getxattr(fd, name)
    except OSError as error:
        return error.errno not in _NOT_THERE
    return True


def _takes(fd: int, label: bytes) -> bool:
    """Whether a file that is made in the directory can have this attribute, with the value the directory has for it."""
    try:
        value = os.getxattr(fd, label)
    except OSError:
        value = b"vfsd"
    try:
        file = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=fd)
    except OSError:
        return False
    try:
        os.setxattr(file, label, value)
    except OSError:
        return False
    finally:
        os.close(file)
    return True
