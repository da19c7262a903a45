"""The ops that Python serves, by family. Importing this package fills vfsd.door.OPS."""

from vfsd.ops import attr, dax, file, ioctl, locks, namespace, session, statx, xattr

__all__ = ["attr", "dax", "file", "ioctl", "locks", "namespace", "session", "statx", "xattr"]
