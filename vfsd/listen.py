"""The listening socket, and the pid file beside it.

Rule 1. `SOCKET.pid` exists only while the daemon listens, is locked (flock(2)) as long as one of its processes lives,
        and holds the pid of the process the user started. A file without a lock is left over and is replaced, and so is
        a socket nobody listens on; what is alive, and what is no socket, is left alone.
Rule 2. `SOCKET.pid.new` is the same file before the socket is ready. Its lock settles which of two daemons started at
        the same moment gets the path.
"""

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from struct import Struct
from typing import Any, NamedTuple, Self

from vfsd import descriptors
from vfsd.config import Config
from vfsd.errors import Failure, UsageError
from vhost.saved import Packed, Unpacked, field

#: sizeof(sockaddr_un.sun_path), with the final NUL (unix(7)).
PATH_MAX = 108

#: A daemon serves one front-end; a second one waits.
BACKLOG = 1

#: struct ucred: pid, uid, gid.
_UCRED = Struct("=iII")


class Listener:
    """A listening socket, and what must go with it when the daemon ends.

    Made by `listen` in the process the user started, and only that process removes the files: `__main__` closes the
    listener when `sandbox.run` returns or raises, SystemExit included.
    """

    def __init__(self, sock: socket.socket, directory: int | None = None) -> None:
        self.socket = sock
        #: The locked pid file, or None with --fd.
        self.lock: int | None = None
        self._directory = directory
        self._owner = os.getpid()
        self._files: dict[str, tuple[int, int]] = {}

    def detach(self) -> None:
        """Closes the way to the socket's directory, which lies outside the share. For a process that is about to serve
        a guest behind walls, while the launcher waits to remove the files. The pid file stays open: its lock tells that
        we live."""
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None

    def close(self) -> None:
        """Removes socket and pid file, unless somebody has replaced them, and closes everything. Never raises."""
        if self._directory is not None and os.getpid() == self._owner:
            for name, identity in self._files.items():
                with contextlib.suppress(OSError):
                    if self._identity(name) == identity:
                        os.unlink(name, dir_fd=self._directory)
        self.detach()
        self.socket.close()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def refuse_others(self) -> None:
        """Who connects from now on is told at once, rather than left waiting."""
        if self.lock is not None:
            # Closing would not do: the launcher has the socket too.
            self.socket.shutdown(socket.SHUT_RDWR)
        elif (fd := self.socket.detach()) >= 0:
            # The manager's socket may serve the next daemon.
            descriptors.blank(fd)

    def save(self, packed: Packed, files: bool = True) -> dict[str, Any]:
        """For the program that goes on in this process's place, or without `files`, inside the walls."""
        return {
            "socket": packed.put(self.socket.fileno()),
            "lock": packed.put(-1 if self.lock is None else self.lock),
            "directory": packed.put(-1 if self._directory is None or not files else self._directory),
            "files": self._files if files else {},
        }

    @classmethod
    def resume(cls, data: Any, unpacked: Unpacked) -> Self:
        """What another process has saved. Raises StateError."""
        fd, lock, directory = (unpacked.take(data, name) for name in ("socket", "lock", "directory"))
        # The manager's socket may be with the next daemon: then there is none that is ours.
        sock = socket.socket(fileno=fd) if fd >= 0 else socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener = cls(sock, directory if directory >= 0 else None)
        listener.lock = lock if lock >= 0 else None
        listener._files = {name: tuple(identity) for name, identity in field(data, "files", dict).items()}
        return listener

    def bind(self, path: str, group: int | None) -> None:
        """Makes the socket and listens, and then gives the pid file, which is `lock`, its final name."""
        assert self.lock is not None
        umask = os.umask(0o177)
        try:
            self.socket.bind(path)
        finally:
            os.umask(umask)
        self._files[os.path.basename(path)] = self._identity(os.path.basename(path))
        if group is not None:
            _give(path, group)
        os.fchmod(self.lock, 0o600)
        os.truncate(self.lock, 0)
        os.pwrite(self.lock, f"{self._owner}\n".encode(), 0)
        self.socket.listen(BACKLOG)
        # Ours before it has the name: a signal may come right after.
        self._files[os.path.basename(path) + ".pid"] = _identity(os.fstat(self.lock))
        os.rename(f"{path}.pid.new", f"{path}.pid")

    def _identity(self, name: str) -> tuple[int, int]:
        return _identity(os.stat(name, dir_fd=self._directory, follow_symlinks=False))


def listen(config: Config) -> Listener:
    """Listens where `config` says. Raises Failure."""
    if config.fd is not None:
        return Listener(_inherited(config.fd))
    path = config.socket_path
    if len(os.fsencode(path)) >= PATH_MAX:
        raise UsageError(f"--socket-path is longer than {PATH_MAX - 1} bytes: choose a shorter one, or a relative one")
    if not os.path.basename(path):
        raise UsageError(f"--socket-path {path} is a directory: name a socket in it")
    group = _group(config.socket_group) if config.socket_group else None
    listener = Listener(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), _directory(path))
    try:
        with _claimed(path) as listener.lock:
            _make_room(path)
            listener.bind(path, group)
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError):
            raise Failure(f"--socket-path {path} can't be created: {error.strerror}") from error
        raise
    return listener


def _directory(path: str) -> int:
    """O_PATH of the directory that `path` is in."""
    try:
        return os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"--socket-path {path}: there is no such directory: make it, or choose another") from None
    except OSError as error:
        raise Failure(f"--socket-path {path} can't be reached: {error.strerror}") from None


@contextlib.contextmanager
def _claimed(path: str) -> Iterator[int]:
    """The locked pid file of `path`, under its first name. Raises Failure if the path is another daemon's."""
    first = f"{path}.pid.new"
    while True:
        file = os.open(first, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if not take_lock(file):
            with os.fdopen(file):
                raise _taken(path, _pid(file))
        with contextlib.suppress(FileNotFoundError):
            if _identity(os.stat(first)) == _identity(os.fstat(file)):
                break
        # Between our open and our lock its owner gave it the final name, or removed it.
        os.close(file)
    if os.fstat(file).st_uid != os.geteuid():
        os.close(file)
        raise Failure(f"{first} belongs to another user: remove it, or choose another --socket-path")
    try:
        yield file
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(first)
        raise


def _make_room(path: str) -> None:
    """Removes a socket that nobody listens on any more. Raises Failure for anything else at `path`."""
    # The lock first: a daemon that is asked for a connection takes it for its front-end.
    with contextlib.suppress(FileNotFoundError), open(f"{path}.pid", "rb", opener=_no_follow) as old:
        if not take_lock(old.fileno()):
            raise _taken(path, _pid(old.fileno()))
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise UsageError(f"--socket-path {path} exists and is not a socket: remove it, or choose another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except BlockingIOError:
            raise _taken(path, "") from None
        else:
            raise _taken(path, str(peer(probe).pid))
    os.unlink(path)


class Peer(NamedTuple):
    """Whose the other end of a socket is (unix(7), SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


def peer(sock: socket.socket) -> Peer:
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def _taken(path: str, pid: str) -> Failure:
    by = f"process {pid}" if pid else "another process"
    return Failure(f"--socket-path {path} is already in use by {by}: end it, or choose another path")


def take_lock(file: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Takes a lock of flock(2) without waiting. False when another has it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _pid(file: int) -> str:
    text = os.pread(file, 16, 0).strip()
    return text.decode() if text.isdigit() else ""


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _group(text: str) -> int:
    """The number of a group given by name or number."""
    import grp

    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        if text.isascii() and text.isdigit() and int(text) < (1 << 32) - 1:
            return int(text)
    raise UsageError(f"--socket-group: there is no group {text}: name one of /etc/group, or its number")


def _give(path: str, group: int) -> None:
    """Lets the group connect to the socket at `path`."""
    try:
        os.chown(path, -1, group)
    except OSError as error:
        raise Failure(
            f"--socket-group: the socket can't be given to that group ({error.strerror}): name one that the user who "
            "starts vfsd is in, or start as root"
        ) from None
    os.chmod(path, 0o660)


def _inherited(fd: int) -> socket.socket:
    """The socket the manager passed as descriptor `fd`, if it is one a front-end can connect to."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        raise UsageError(f"--fd {fd} is not an open socket: pass a listening unix stream socket") from None
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        problem = "is not a unix stream socket"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        problem = "does not listen"
    else:
        sock.set_inheritable(False)
        return sock
    sock.detach()
    raise UsageError(f"--fd {fd} {problem}: pass a listening unix stream socket")
