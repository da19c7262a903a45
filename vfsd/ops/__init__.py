"""The ops that Python serves, by family. Importing this package fills vfsd.door.OPS."""

from vfsd.ops import access, dax, ioctl, locks, session, statx, tmpfile, xattr

__all__ = ["access", "dax", "ioctl", "locks", "session", "statx", "tmpfile", "xattr"]
