"""The walls around the daemon: everything about its process that is set once, before the first guest request.

Rule 1. The walls go up in the only thread of a process, and behind them nothing is imported and no source is read.
Rule 2. They are a second line. In every mode the operations walk the share by descriptor, one name at a time, and
        follow no symbolic link, so a guest does not get out of the share even where there is no wall.
Rule 3. No descriptor that leads out of the share is kept, but for the proc mount.
"""

import contextlib
import errno
import linecache
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, FrozenImporter

from vfsd import capabilities, facts
from vfsd._fuse import ffi as ffi_fuse
from vfsd._fuse import lib as fuse
from vfsd._process import ffi, lib
from vfsd.config import Config
from vfsd.errors import Failure
from vfsd.launcher import Namespaces, Watching, launch, namespaces
from vfsd.padded import Padded, PaddedError
from vfsd.values import CAPABILITIES, NOFILE_MIN

log = logging.getLogger("vfsd")

#: Flags of mount(2), from <linux/mount.h>.
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_SLAVE = 1, 2, 4, 8, 4096, 16384, 1 << 19
MNT_DETACH = 2


class SandboxError(Failure):
    """A wall that could not be put up; names the option to change."""


@dataclass(frozen=True)
class Share:
    """What the process inside holds of the world."""

    #: O_PATH of the shared directory.
    root_fd: int
    #: O_PATH of a proc mount; `self/fd` in it is the opener's own.
    proc_fd: int
    #: May take the identity of the guest's callers: setuid and setgid are held, and more than one user exists.
    privileged: bool
    #: What the file system at the root of the share is capable of.
    facts: facts.Facts
    #: How files are opened for the DAX window; None: there is none.
    padded: Padded | None = None


def run(
    config: Config,
    preload: Callable[[], object],
    inside: Callable[[Share, socket.socket | None], int],
    watching: Watching,
) -> int:
    """Calls `inside` behind the walls, after `preload` has imported all that is used there; returns its exit status.
    It also gets the way to its launcher, if there is one, which goes about it as `watching` says.

    It returns outside the walls: with `namespace` and `chroot` the caller becomes the launcher. Raises Failure.
    """
    if not os.path.exists("/proc/self/fd"):
        raise SandboxError("/proc must be mounted (mount -t proc proc /proc): vfsd reaches files through it")
    _limit_descriptors(config.rlimit_nofile)
    spaces = namespaces(config)
    if config.sandbox == "none":
        return inside(_enter(config, spaces, preload, lambda: None), None)
    return launch(spaces, lambda settle, leash: inside(_enter(config, spaces, preload, settle), leash), watching)


def _enter(config: Config, spaces: Namespaces, preload: Callable[[], object], settle: Callable[[], None]) -> Share:
    """Puts the walls up around this process, but for the namespaces, which it was cloned into."""
    device = _open_fuse(config)
    if config.sandbox == "namespace":
        checker = _check_network()
        preload()
        _finish_check(checker)
        proc_fd = _pivot(config)
    else:
        preload()
        proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _go_to_share(config)
        if config.sandbox == "chroot":
            _chroot()
    root_fd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir("/")
    settle()
    return share(config, spaces, root_fd, proc_fd, _pad(device))


def share(config: Config, spaces: Namespaces, root_fd: int, proc_fd: int, padded: Padded | None = None) -> Share:
    """What is left to do inside: this process gives up what it does not need. Raises Failure."""
    privileged = _reduce_privileges(config) and spaces.identities
    found = _check_access(config, root_fd)
    if config.inode_file_handles == "mandatory":
        _check_file_handles(config, root_fd, proc_fd)
    forbid_sources()
    return Share(root_fd, proc_fd, privileged, found, padded)


def _open_fuse(config: Config) -> int:
    """What a DAX window takes, and can't be reached later: /dev/fuse. -1 when there is to be no window."""
    if not config.dax_window:
        return -1
    try:
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        log.warning("there is no DAX window: /dev/fuse can't be opened (%s)", error.strerror)
        return -1


def _pad(device: int) -> Padded | None:
    """While there still are capabilities. Without it the share is served all the same."""
    if device < 0:
        return None
    try:
        return Padded(device)
    except PaddedError as error:
        log.warning("there is no DAX window: %s", error)
        return None


def _limit_descriptors(wanted: int | None) -> None:
    """RLIMIT_NOFILE, soft and hard. 0 leaves it; None raises it as far as permitted, to at most a million."""
    if wanted != 0:
        _set_limit(wanted)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit < NOFILE_MIN:
        cause = "the limit of open files" if wanted is None else f"--rlimit-nofile={wanted}: the limit of open files"
        raise SandboxError(f"{cause} is {limit}, and vfsd needs {NOFILE_MIN}: raise it (ulimit -n)")


def _set_limit(wanted: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with open("/proc/sys/fs/nr_open") as file:
        most = int(file.read())
    try:
        limit = wanted or min(1_000_000, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    except (ValueError, OSError):
        if wanted is not None:
            raise SandboxError(
                f"--rlimit-nofile={wanted} is more than is permitted: the hard limit is {hard}, fs.nr_open {most}"
            ) from None
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# Before the roots change


def _check_network() -> int:
    """Starts a process that leaves with 0 when no interface of this network namespace is up; returns its pid.

    A process of its own, because pyroute2 is large and of no use later; it works while we import.
    """
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            logging.disable()  # pyroute2 and asyncio tell everything at level debug
            from pyroute2 import IPRoute

            with IPRoute() as route:
                status = int(any(link["flags"] & 1 for link in route.get_links()))  # IFF_UP, netdevice(7)
        finally:
            os._exit(status)
    return pid


def _finish_check(checker: int) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(checker, 0)[1])
    if status == 1:
        raise SandboxError("the new network namespace is not empty: use --sandbox=chroot or --sandbox=none")
    if status:
        raise SandboxError("the new network namespace could not be looked at (pyroute2 failed): use --sandbox=chroot")


def _pivot(config: Config) -> int:
    """Makes the share the root of the mount namespace and the working directory. Returns the proc descriptor."""
    # Slave, not private: the host's later mounts and unmounts in the share come through, ours never go out.
    _mount("none", "/", None, MS_SLAVE | MS_REC)
    # A container that hides parts of its /proc forbids a new one to a user namespace; the old one serves as well.
    lib.process_mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, ffi.NULL)
    proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _mount(config.shared_dir, config.shared_dir, None, MS_BIND | MS_REC)
    if config.shared_dir == "/":
        # ".." at the root crosses into what was just mounted over it. Our own memory would be a file of the new /proc.
        os.chdir("/..")
        _mount("none", "proc", "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    else:
        _go_to_share(config)
    # pivot_root(2), 'pivot_root(".", ".")': the old root ends up over the new one and is taken off.
    if (result := lib.process_pivot_root(b".", b".")) or (result := lib.process_umount(b".", MNT_DETACH)):
        raise SandboxError(f"{config.shared_dir} can't become the root: {os.strerror(-result)}; use --sandbox=chroot")
    os.chdir("/")
    if config.readonly and (result := lib.process_mount_readonly(b"/")) not in (0, -errno.ENOSYS):
        raise SandboxError(f"{config.shared_dir} can't be mounted read-only: {os.strerror(-result)}")
    return proc_fd


def _go_to_share(config: Config) -> None:
    try:
        os.chdir(config.shared_dir)
    except OSError as error:
        raise _unreadable(config, error) from None


def _unreadable(config: Config, error: OSError) -> SandboxError:
    return SandboxError(
        f"--shared-dir {config.shared_dir} can't be read ({error.strerror}): give the user who starts vfsd read and "
        "search permission on it, or start as a user who has them"
    )


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    kind_bytes = ffi.NULL if kind is None else kind.encode()
    result = lib.process_mount(os.fsencode(source), os.fsencode(target), kind_bytes, flags, ffi.NULL)
    if result < 0:
        raise SandboxError(f"mounting {target} in the sandbox failed: {os.strerror(-result)}; use --sandbox=none")


def _chroot() -> None:
    try:
        os.chroot(".")
    except PermissionError:
        raise SandboxError("no permission for --sandbox=chroot: start as root, or use --sandbox=none") from None


# Inside


def _reduce_privileges(config: Config) -> bool:
    """Groups, umask, capabilities. Returns whether the identity of others may be taken."""
    setids = capabilities.mask("setuid", "setgid")
    if capabilities.effective() & setids == setids:
        # Refused in a user namespace with a single group: there the user keeps the access its groups give.
        with contextlib.suppress(PermissionError):
            os.setgroups([])
    os.umask(0)
    try:
        keep = capabilities.reduce(config.modcaps)
    except OSError as error:
        raise SandboxError(f"capabilities can't be changed ({error.strerror}): check --modcaps") from None
    lib.process_set_no_new_privs()
    last = {number: add for add, number in config.modcaps}
    if missing := [CAPABILITIES[number] for number, add in last.items() if add and not keep >> number & 1]:
        log.warning("--modcaps: vfsd was not given %s, and can't keep it: start as root", ", ".join(missing))
    return keep & setids == setids


def _check_access(config: Config, root_fd: int) -> facts.Facts:
    """Whether the share can be listed and searched, by who we are from now on: a user namespace may give the right to
    it, or take it away. What it is capable of."""
    try:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError as error:
        raise _unreadable(config, error) from None
    found = facts.find(fd, config.label if config.security_label != "never" else b"")
    os.close(fd)
    return found


def _check_file_handles(config: Config, root_fd: int, proc_fd: int) -> None:
    """For --inode-file-handles=mandatory: whether the share's own file system can be served by file handle."""
    own = os.open("self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc_fd)
    encodes = ffi_fuse.new("int *")
    result = fuse.sys_check_file_handles(root_fd, own, encodes)
    os.close(own)
    if result == 0:
        return
    if not encodes[0]:
        cause = f"the file system of {config.shared_dir} has no file handles that can be opened"
    elif result == -errno.EPERM:
        cause = (
            "opening one takes CAP_DAC_READ_SEARCH outside any user namespace: start as root, without --uid-map, "
            "--gid-map and --modcaps=-dac_read_search"
        )
    else:
        cause = f"file handles of {config.shared_dir} can't be opened ({os.strerror(-result)})"
    raise SandboxError(f"--inode-file-handles=mandatory: {cause}, or use --inode-file-handles=prefer")


def forbid_sources() -> None:
    """The module path now leads into the share, whose contents are the guest's: nothing is loaded from there, and no
    traceback opens what it takes for our source (it may be a FIFO, and lines of it would go to the log)."""
    linecache.clearcache()
    linecache.updatecache = lambda filename, module_globals=None: []
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter]
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
