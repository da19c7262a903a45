"""A private FUSE mount that shows files as larger than they can ever be, for front-ends that map them.

QEMU refuses to map what reaches beyond a file's size (hw/virtio/vhost-user.c, VHOST_USER_BACKEND_SHMEM_MAP), so the
last page of most files could not be mapped, nor what a file grows by later. Through this mount it sees no end, and maps
the host's page cache all the same: the kernel passes the file through (FUSE_PASSTHROUGH, Linux 6.9).

Rule 1. The mount is nowhere in the tree of files. Who holds `Padded.root` sends a file with a name that nobody guesses,
        opens the entry of that name, and gets that file.
Rule 2. A process of its own answers, for whoever opens waits for the answer. It keeps CAP_SYS_ADMIN and nothing else,
        and sees names and files that it can't reach by itself.
Rule 3. It alone holds the device. When it ends, however it does, the mount ends: what was opened stays mapped, and who
        opens or looks at what was opened (fstat asks the process) gets an error, and waits for nobody.
Rule 4. It ends when nobody holds the other end of its socket. It does not end with the control process that started it:
        another one may have taken its place (vfsd/taker.py).
"""

import errno
import fcntl
import gc
import logging
import os
import resource
import select
import signal
import socket
from contextlib import suppress
from itertools import count
from typing import Any, NoReturn, Self

from vfsd import capabilities
from vfsd._fuse import ffi, lib
from vfsd._process import ffi as process_ffi
from vfsd._process import lib as process
from vfsd.child import settle
from vfsd.core import packed

log = logging.getLogger("vfsd.padded")

#: Bytes a file seems to have. Sums with any offset in a window stay below 2^63.
SIZE = 1 << 62
#: Bytes of the file that is always open.
PROBE_SIZE = 4096
#: Nanoseconds are not told: for ever, as far as an open file is concerned. Seconds.
FOREVER = 1 << 40
#: One read takes one request (fs/fuse/dev.c, fuse_dev_do_read: FUSE_MIN_READ_BUFFER, or max_write and two headers).
BUFFER = 1 << 14
MAX_WRITE = 4096
#: The share may itself be stacked once (overlayfs).
STACK_DEPTH = 2
HEADER = ffi.sizeof("struct fuse_in_header")
#: Sent in place of a file.
FLUSH = b"flush"
#: Descriptors that are all there is to a Padded.
PARTS = 4


class PaddedError(Exception):
    """There can be no such mount. The text says why."""


class Padded:
    """The mount as those see it who open files through it."""

    def __init__(self, device: int) -> None:
        """Mounts, and starts the process that answers through `device`, an open /dev/fuse, which is its own from now
        on. Before capabilities are given up; while there is one thread.

        Raises PaddedError where the host can't do this.
        """
        #: O_PATH of the mount.
        self.root = process.process_mount_fuse(device)
        if self.root < 0:
            os.close(device)
            raise PaddedError(f"no private FUSE mount can be made ({os.strerror(-self.root)}): start as root")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pidfd = process_ffi.new("int *")
        pid = process.process_fork(0, pidfd)
        if pid == 0:
            _run(device, theirs)
        os.close(device)
        theirs.close()
        #: Readable when the process has ended.
        self.pidfd = pidfd[0] if pid > 0 else -1
        #: An empty file, opened.
        self.probe = -1
        self._check()

    @classmethod
    def of(cls, root: int, sock: int, pidfd: int, probe: int) -> Self:
        """The `parts` of one that another process made."""
        padded = cls.__new__(cls)
        padded.root, padded._socket, padded.pidfd, padded.probe = root, socket.socket(fileno=sock), pidfd, probe
        return padded

    @property
    def parts(self) -> tuple[int, int, int, int]:
        """Descriptors."""
        return self.root, self._socket.fileno(), self.pidfd, self.probe

    def open(self, fd: int) -> int:
        """Opens the regular file behind `fd` (read and write) without an end. Raises OSError, ENOTCONN when the
        process has ended."""
        name = os.urandom(16).hex()
        try:
            socket.send_fds(self._socket, [name.encode()], [fd])
        except ConnectionError:
            raise OSError(errno.ENOTCONN, "nobody opens files any more") from None
        return os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=self.root)

    def flush(self) -> None:
        """Nobody opens anything at the moment: what was sent and not opened, by who died, can be let go."""
        with suppress(OSError):
            self._socket.send(FLUSH, socket.MSG_DONTWAIT)

    def _check(self) -> None:
        fd = os.memfd_create("vfsd-probe", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, PROBE_SIZE)
            # The first close of all tells the kernel that nobody wants to hear of one: from then on none waits for us.
            os.close(self.open(fd))
            self.probe = self.open(fd)
        except OSError as error:
            self.close()
            raise PaddedError(
                f"the kernel does not pass files through FUSE ({error.strerror}): it takes Linux 6.9 and real root"
            ) from None
        finally:
            os.close(fd)

    def close(self) -> None:
        """Ends the process, and the mount."""
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
            os.close(self.pidfd)
        if self.probe >= 0:
            os.close(self.probe)
        os.close(self.root)
        self._socket.close()
        self.root = self.pidfd = self.probe = -1


def _run(device: int, files: socket.socket) -> NoReturn:
    """The life of the process that answers."""
    status = 1
    try:
        # What was inherited may own descriptors by numbers that mean ours soon.
        gc.disable()
        low, high = sorted((device, files.fileno()))
        for first, last in ((3, low), (low + 1, high), (high + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])):
            os.closerange(first, last)
        settle(b"vfsd-padded", outlives=True)
        keep = capabilities.mask("sys_admin")
        process.process_set_capabilities(keep, keep, 0)
        process.process_set_no_new_privs()
        Server(device, files).serve()
        status = 0
    except BaseException:
        log.exception("the process that lets files be mapped has failed")
    finally:
        os._exit(status)


class Server:
    """Answers the kernel's requests about one mount. A nodeid stands for one file, looked up and opened once."""

    def __init__(self, device: int, files: socket.socket) -> None:
        files.setblocking(False)
        os.set_blocking(device, False)
        self._device, self._files = device, files
        #: Files that were sent, by name; and those that were looked up and not opened yet, by nodeid.
        self._sent: dict[bytes, int] = {}
        self._found: dict[int, int] = {}
        self._nodeids = count(lib.FUSE_ROOT_ID + 1)

    def serve(self) -> None:
        """Returns when the mount is gone."""
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        poll.register(self._files, select.POLLIN)
        while True:
            poll.poll()
            if not self._receive():
                return
            try:
                request = os.read(self._device, BUFFER)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # the request was taken back
                    continue
                return
            self._serve(request)

    def _serve(self, request: bytes) -> None:
        header = ffi.from_buffer("struct fuse_in_header *", request)
        body = request[HEADER : header.len]
        if header.opcode in (lib.FUSE_FORGET, lib.FUSE_BATCH_FORGET):
            self._forget(header, body)
            return
        try:
            answer, error = self._answer(header, body), 0
        except OSError as refusal:
            answer, error = b"", -(refusal.errno or errno.EIO)
        out = ffi.new("struct fuse_out_header *")
        out.len = ffi.sizeof("struct fuse_out_header") + len(answer)
        out.error, out.unique = error, header.unique
        try:
            os.write(self._device, packed(out) + answer)
        except OSError as failure:
            if failure.errno != errno.ENOENT:  # who asked is gone
                raise

    def _answer(self, header: Any, body: bytes) -> bytes:
        match header.opcode:
            case lib.FUSE_INIT:
                return _init(ffi.from_buffer("struct fuse_init_in *", body))
            case lib.FUSE_LOOKUP:
                return self._lookup(body)
            case lib.FUSE_GETATTR:
                out = ffi.new("struct fuse_attr_out *", {"attr_valid": FOREVER})
                _fill(out.attr, header.nodeid)
                return packed(out)
            case lib.FUSE_OPEN:
                return self._open(header.nodeid)
            case lib.FUSE_RELEASE:
                backing = ffi.from_buffer("struct fuse_release_in *", body).fh
                fcntl.ioctl(self._device, lib.DEV_IOC_BACKING_CLOSE, int(backing).to_bytes(4, "little"))
                return b""
        raise OSError(errno.ENOSYS, "nobody needs it")

    def _lookup(self, name: bytes) -> bytes:
        self._receive()
        fd = self._sent.pop(name.rstrip(b"\0"), -1)
        if fd < 0:
            raise OSError(errno.ENOENT, "no file of this name was sent")
        nodeid = next(self._nodeids)
        self._found[nodeid] = fd
        # An entry that is old at once is forgotten with its last use.
        out = ffi.new("struct fuse_entry_out *", {"nodeid": nodeid, "attr_valid": FOREVER})
        _fill(out.attr, nodeid)
        return packed(out)

    def _receive(self) -> bool:
        """Takes what was sent. False when nobody will send anything any more."""
        with suppress(BlockingIOError):
            while True:
                name, fds, _, _ = socket.recv_fds(self._files, 64, 1)
                if not name:
                    return False
                self._sent.update((name, fd) for fd in fds)
                if name == FLUSH:
                    self._flush()
        return True

    def _flush(self) -> None:
        for left in (self._sent, self._found):
            for fd in left.values():
                os.close(fd)
            left.clear()

    def _open(self, nodeid: int) -> bytes:
        fd = self._found.pop(nodeid, -1)
        if fd < 0:
            raise OSError(errno.ESTALE, "a file is opened once")
        try:
            what = bytearray(ffi.buffer(ffi.new("struct wire_backing_map *", {"fd": fd})))
            backing = fcntl.ioctl(self._device, lib.DEV_IOC_BACKING_OPEN, what)
        finally:
            # The kernel holds the file by itself, until it is released.
            os.close(fd)
        out = ffi.new("struct wire_passthrough_open_out *")
        out.fh, out.open_flags, out.backing_id = backing, lib.FOPEN_PASSTHROUGH, backing
        return packed(out)

    def _forget(self, header: Any, body: bytes) -> None:
        nodeids = [header.nodeid]
        if header.opcode == lib.FUSE_BATCH_FORGET:
            ones = body[ffi.sizeof("struct fuse_batch_forget_in") :]
            nodeids = [one.nodeid for one in ffi.from_buffer("struct fuse_forget_one[]", ones)]
        for nodeid in nodeids:
            if (fd := self._found.pop(nodeid, -1)) >= 0:
                os.close(fd)


def _init(asked: Any) -> bytes:
    out = ffi.new("struct fuse_init_out *")
    out.major, out.minor = lib.FUSE_KERNEL_VERSION, asked.minor
    out.flags = lib.FUSE_INIT_EXT
    out.flags2 = lib.FUSE_PASSTHROUGH >> 32
    out.max_write, out.time_gran = MAX_WRITE, 1
    answer = bytearray(ffi.buffer(out))
    answer[lib.INIT_OUT_MAX_STACK_DEPTH] = STACK_DEPTH
    return bytes(answer)


def _fill(attr: Any, nodeid: int) -> None:
    directory = nodeid == lib.FUSE_ROOT_ID
    attr.ino, attr.nlink, attr.blksize = nodeid, 1, 4096
    attr.mode, attr.size = (0o40700, 0) if directory else (0o100600, SIZE)
