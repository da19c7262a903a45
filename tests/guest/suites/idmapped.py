"""Runs in a guest: makes things through an idmapped mount of a directory, and prints to whom they belong.

    python3 idmapped.py DIRECTORY     (as root; the directory is empty)

The mount shows the file system's users 0 to 9 as 1000 to 1009, and its groups as 2000 to 2009. Each line of the output
is a name, its owner through the mount, and its owner below it. Exits 3 where the file system can't be mounted so.
"""

import ctypes
import errno
import os
import signal
import stat
import struct
import sys
from collections.abc import Callable

OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442  # the same on every machine
AT_FDCWD, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = -100, 0x400, 0x1000
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH, MOUNT_ATTR_IDMAP = 0x1, 0x4, 0x100000
CLONE_NEWUSER = 0x10000000
USER, GROUP = 1000, 2000

libc = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    result: int = getattr(libc, function)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), function)
    return result


def namespace() -> int:
    """A user namespace with the maps of the mount, as a descriptor."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        call("unshare", CLONE_NEWUSER)
        os.write(tell, b"x")
        signal.pause()
    os.read(told, 1)
    for kind, first in (("uid", USER), ("gid", GROUP)):
        with open(f"/proc/{child}/{kind}_map", "w") as file:
            file.write(f"0 {first} 10")
    fd = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return fd


def mount(directory: str, target: str) -> None:
    """mount_setattr(2): MOUNT_ATTR_IDMAP."""
    tree = call("syscall", OPEN_TREE, AT_FDCWD, directory.encode(), OPEN_TREE_CLONE)
    attributes = struct.pack("=4Q", MOUNT_ATTR_IDMAP, 0, 0, namespace())
    call("syscall", MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, len(attributes))
    call("syscall", MOVE_MOUNT, tree, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH)
    os.close(tree)


def attempt(name: str, function: Callable[..., object], *arguments: object) -> None:
    try:
        function(*arguments)
    except OSError as error:
        print(name, errno.errorcode[error.errno or 0])


def become(uid: int, gid: int, *groups: int) -> None:
    os.seteuid(0)
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)


def make(path: str, mode: int = 0o644) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_EXCL, mode))


def nameless(directory: str, name: str) -> None:
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    call("linkat", AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD, name.encode(), AT_SYMLINK_FOLLOW)
    os.close(fd)


def act(at: str) -> None:
    """What is done through the mount, in steps that each may fail."""
    become(USER, GROUP)
    make(f"{at}/file")
    os.mkdir(f"{at}/dir")
    os.symlink("x", f"{at}/link")
    os.mknod(f"{at}/fifo", stat.S_IFIFO | 0o600)
    nameless(at, f"{at}/nameless")
    os.link(f"{at}/file", f"{at}/hard")
    os.rename(f"{at}/nameless", f"{at}/renamed")
    become(USER + 3, GROUP + 4)
    make(f"{at}/other")
    attempt("other's", os.unlink, f"{at}/file")
    attempt("chmod", os.chmod, f"{at}/file", 0o666)
    attempt("write", os.open, f"{at}/file", os.O_WRONLY)
    os.close(os.open(f"{at}/other", os.O_WRONLY | os.O_TRUNC))
    become(USER + 3, GROUP, GROUP + 7)
    make(f"{at}/group/in", 0o2755)
    make(f"{at}/group/locked", 0o2644)
    # Root of the machine is nobody here, though it may do everything else.
    become(0, 0)
    attempt("root makes", make, f"{at}/root")
    attempt("user 3000 makes", lambda: (become(3000, 3000), make(f"{at}/stranger")))
    become(0, 0)
    os.chown(f"{at}/other", USER + 5, GROUP + 6)
    attempt("chown to nobody", os.chown, f"{at}/other", 7, -1)
    os.chmod(f"{at}/file", 0o4755)
    os.truncate(f"{at}/file", 5)
    os.utime(f"{at}/dir", ns=(1, 2))


def main() -> int:
    directory = sys.argv[1]
    os.umask(0)
    os.mkdir(f"{directory}/below", 0o1777)
    os.mkdir(f"{directory}/below/group", 0o777)
    os.chown(f"{directory}/below/group", 0, 7)
    os.chmod(f"{directory}/below/group", 0o2777)
    os.mkdir("/run/idmapped")
    try:
        mount(f"{directory}/below", "/run/idmapped")
    except OSError as error:
        print(error, file=sys.stderr)
        return 3 if error.errno == errno.EINVAL else 1
    act("/run/idmapped")
    for name in ("", *sorted(os.listdir("/run/idmapped")), "group/in", "group/locked"):
        through, below = (os.lstat(f"{at}/{name}") for at in ("/run/idmapped", f"{directory}/below"))
        print(name or ".", oct(through.st_mode), through.st_uid, through.st_gid, below.st_uid, below.st_gid)
        assert through.st_ino == below.st_ino or name == ""
    call("umount", b"/run/idmapped")
    os.rmdir("/run/idmapped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
