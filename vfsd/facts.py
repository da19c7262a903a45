"""What the share's file system is capable of, asked once at the root of the share, before the first guest request.

The answers decide what is offered without being asked for. None of them ends the start. File systems mounted below the
root may differ: they answer for themselves, request by request.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
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
    #: What we write keeps its set-id bits: we have CAP_FSETID, and the file system goes by it.
    keeps_set_id: bool = False


#: Of a file system nobody has asked.
NOTHING = Facts()


def find(fd: int, label: bytes = b"") -> Facts:
    """The facts about the file system of an open directory. `label`: the name of a security label, b"": don't ask.

    What has to be tried is tried on a file without a name, which nobody sees and which leaves nothing behind.
    """
    kinds = [_knows(fd, name) for name in _KINDS]
    return Facts(
        xattr=any(kinds),
        acl=kinds[-1],
        label=bool(label) and _takes(fd, label),
        keeps_set_id=_keeps_set_id(fd),
    )


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
        with _unnamed(fd) as file:
            os.setxattr(file, label, value)
    except OSError:
        return False
    return True


def _keeps_set_id(fd: int) -> bool:
    """Where no file without a name can be made (NFS, a read-only mount) the answer is no."""
    try:
        with _unnamed(fd) as file:
            os.fchmod(file, 0o6711)
            os.write(file, b"x")
            return os.fstat(file).st_mode & 0o6000 == 0o6000
    except OSError:
        return False


@contextmanager
def _unnamed(fd: int) -> Iterator[int]:
    """A file in the directory that nobody sees."""
    file = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=fd)
    try:
        yield file
    finally:
        os.close(file)
