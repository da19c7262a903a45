"""A private FUSE mount that shows files as larger than they can ever be, for front-ends that map them.

QEMU refuses to map what reaches beyond a file's size (hw/virtio/vhost-user.c, VHOST_USER_BACKEND_SHMEM_MAP), so the
last page of most files could not be mapped, nor what a file grows by later. Through this mount it sees no end, and maps
the host's page cache all the same: the kernel passes the file through (FUSE_PASSTHROUGH, Linux 6.9).

Rule 1. The mount is nowhere in the tree of files. Who holds `Padded.root` opens an entry named after one of its own
        descriptors, and gets that descriptor's file.
Rule 2. A process of its own answers, for whoever opens waits for the answer. It shares the descriptor table of the
        control process, keeps CAP_SYS_ADMIN and nothing else, and sees names and numbers only.
Rule 3. When it ends, the mount ends: what was opened stays mapped, and every later open fails.
"""

import errno
import fcntl
import gc
import logging
import os
import signal
from contextlib import suppress
from itertools import count
from typing import Any, NoReturn

from vfsd import capabilities
from vfsd._fuse import ffi, lib
from vfsd._process import ffi as process_ffi
from vfsd._process import lib as process
from vfsd.core import packed

log = logging.getLogger("vfsd.padded")

#: Bytes a file seems to have. Sums with any offset in a window stay below 2^63.
SIZE = 1 << 62
#: Nanoseconds are not told: for ever, as far as an open file is concerned. Seconds.
FOREVER = 1 << 40
#: One read takes one request (fs/fuse/dev.c, fuse_dev_do_read: FUSE_MIN_READ_BUFFER, or max_write and two headers).
BUFFER = 1 << 14
MAX_WRITE = 4096
#: The share may itself be stacked once (overlayfs).
STACK_DEPTH = 2
HEADER = ffi.sizeof("struct fuse_in_header")


class PaddedError(Exception):
    """There can be no such mount. The text says why."""


class Padded:
    """The mount as those see it who open files through it."""

    def __init__(self, device: int) -> None:
        """Mounts, and starts the process that answers through `device`, an open /dev/fuse, which it owns from now on.
        Before capabilities are given up; while there is one thread.

        Raises PaddedError where the host can't do this.
        """
        self.device = device
        self.root = process.process_mount_fuse(device)
        if self.root < 0:
            os.close(device)
            raise PaddedError(f"no private FUSE mount can be made ({os.strerror(-self.root)}): start as root")
        pidfd = process_ffi.new("int *")
        pid = process.process_fork(process.PROCESS_SHARE_FILES, pidfd)
        if pid == 0:
            _run(self.device)
        #: Readable when the process has ended.
        self.pidfd = pidfd[0] if pid > 0 else -1
        self._names = count()
        self._check()

    def open(self, fd: int) -> int:
        """Opens the regular file behind `fd` (read and write) without an end. Raises OSError."""
        # Two threads, or two workers, never open the same name: a name is looked up once.
        name = f"{fd}-{os.getpid()}-{next(self._names)}"
        return os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=self.root)

    def _check(self) -> None:
        fd = os.memfd_create("vfsd-check", os.MFD_CLOEXEC)
        try:
            os.close(self.open(fd))
        except OSError as error:
            self.close()
            raise PaddedError(
                f"the kernel does not pass files through FUSE ({error.strerror}): it takes Linux 6.9 and real root"
            ) from None
        finally:
            os.close(fd)

    def close(self) -> None:
        """Ends the mount, also for those who are waiting in `open`."""
        for fd in (self.device, self.root, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.device = self.root = self.pidfd = -1


def _run(device: int) -> NoReturn:
    """The life of the process that answers. It must not lose the descriptors it shares: nothing is collected here."""
    status = 1
    try:
        gc.disable()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        process.process_set_name(b"vfsd-padded")
        process.process_set_death_signal(signal.SIGKILL)
        keep = capabilities.mask("sys_admin")
        process.process_set_capabilities(keep, keep, 0)
        process.process_set_no_new_privs()
        Server(device).serve()
        status = 0
    except BaseException:
        log.exception("the process that lets files be mapped has failed")
    finally:
        # For all who share it: who waits for an answer gets an error instead.
        with suppress(OSError):
            os.close(device)
        os._exit(status)


class Server:
    """Answers the kernel's requests about one mount. A nodeid stands for one descriptor, looked up once."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._descriptors: dict[int, int] = {}
        self._nodeids = count(lib.FUSE_ROOT_ID + 1)

    def serve(self) -> None:
        """Returns when the mount is gone."""
        while True:
            try:
                request = os.read(self._device, BUFFER)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno == errno.ENOENT:  # the request was taken back
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
                return self._open(self._descriptors[header.nodeid])
            case lib.FUSE_RELEASE:
                backing = ffi.from_buffer("struct fuse_release_in *", body).fh
                fcntl.ioctl(self._device, lib.DEV_IOC_BACKING_CLOSE, int(backing).to_bytes(4, "little"))
                return b""
        raise OSError(errno.ENOSYS, "nobody needs it")

    def _lookup(self, name: bytes) -> bytes:
        number = name.split(b"-")[0]
        if not number.isdigit():
            raise OSError(errno.ENOENT, "no descriptor's name")
        descriptor = int(number)
        nodeid = next(self._nodeids)
        self._descriptors[nodeid] = descriptor
        # An entry that is old at once is forgotten with its last use.
        out = ffi.new("struct fuse_entry_out *", {"nodeid": nodeid, "attr_valid": FOREVER})
        _fill(out.attr, nodeid)
        return packed(out)

    def _open(self, descriptor: int) -> bytes:
        what = bytearray(ffi.buffer(ffi.new("struct wire_backing_map *", {"fd": descriptor})))
        backing = fcntl.ioctl(self._device, lib.DEV_IOC_BACKING_OPEN, what)
        out = ffi.new("struct wire_passthrough_open_out *")
        out.fh, out.open_flags, out.backing_id = backing, lib.FOPEN_PASSTHROUGH, backing
        return packed(out)

    def _forget(self, header: Any, body: bytes) -> None:
        if header.opcode == lib.FUSE_FORGET:
            self._descriptors.pop(header.nodeid, None)
            return
        size = ffi.sizeof("struct fuse_batch_forget_in")
        ones = ffi.from_buffer("struct fuse_forget_one[]", body[size:])
        for one in ones:
            self._descriptors.pop(one.nodeid, None)


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
