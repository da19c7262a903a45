"""A share mounted on the host, by the host's own FUSE and through our rings: programs run on it without a guest.

What the kernel says on /dev/fuse goes down a ring to the daemon, and what comes up the ring goes back to the kernel:
all that virtiofs does in a guest. Takes the right to mount.
"""

import os
import select
import struct
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.frontend import MIB, FrontEnd
from vfsd._fuse import lib
from vfsd._process import lib as process

IN_HEADER = struct.Struct("=IIQ")  # len opcode unique
#: Bytes of the largest request.
REQUEST = 2 * MIB
#: What says how much room it wants: where, in the whole request.
SIZES = {
    lib.FUSE_READ: 56, lib.FUSE_READDIR: 56, lib.FUSE_READDIRPLUS: 56, lib.FUSE_GETXATTR: 40, lib.FUSE_LISTXATTR: 40,
}  # fmt: skip
SILENT = (lib.FUSE_FORGET, lib.FUSE_BATCH_FORGET)
INTERRUPT = 36


class Bridge:
    """`directory` is where the share of the daemon at the other end of `frontend` is, until the end of the `with`."""

    def __init__(self, frontend: FrontEnd, directory: Path) -> None:
        self._frontend, self.directory = frontend, directory
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._over = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run)
        #: Requests brought over, and what failed here.
        self.requests = 0
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        data = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        result = process.process_mount(b"vfsd", os.fsencode(self.directory), b"fuse", 0, data.encode())
        if result < 0:
            raise OSError(-result, f"mount: {os.strerror(-result)}")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        subprocess.run(["umount", *(["--lazy"] if error else []), self.directory])
        os.eventfd_write(self._over, 1)
        self._thread.join()
        os.close(self._device)
        os.close(self._over)
        if self.failure:
            raise self.failure

    def _run(self) -> None:
        try:
            self._carry()
        except BaseException as error:
            self.failure = error
            # Whoever waits for an answer gets an error.
            process.process_umount(os.fsencode(self.directory), 1)

    def _carry(self) -> None:
        queues = [self._frontend.queue(index) for index in (0, 1)]
        poll = select.poll()
        calls = [ring.call for ring in self._frontend.rings[:2]]
        for fd in (self._device, self._over, *calls):
            poll.register(fd, select.POLLIN)
        while True:
            for queue in queues:
                while True:
                    for used in queue.poll():
                        self._answer(used.data)
                    queue.interrupts_on(True)
                    if queue.used[1] == queue.last_used:
                        break
            ready = dict(poll.poll())
            if self._over in ready:
                return
            for fd in calls:
                if fd in ready:
                    os.eventfd_read(fd)
            if self._device in ready:
                self._ask()

    def _answer(self, data: bytes) -> None:
        # Who asked may have been killed, and not wait any more.
        with suppress(FileNotFoundError):
            if data:
                os.write(self._device, data)

    def _ask(self) -> None:
        while True:
            # Others wait with the kernel.
            if any(len(self._frontend.queue(index).free) < 4 for index in (0, 1)):
                return
            try:
                request = os.read(self._device, REQUEST)
            except (BlockingIOError, FileNotFoundError):
                return
            except OSError:
                # It is mounted no more.
                return
            _, opcode, _ = IN_HEADER.unpack_from(request)
            if opcode == INTERRUPT:
                continue
            room = 8192 + (int.from_bytes(request[SIZES[opcode] :][:4], "little") if opcode in SIZES else 0)
            queue = self._frontend.queue(0 if opcode in SILENT else 1)
            queue.add([request], [] if opcode in SILENT else [room])
            queue.kick()
            self.requests += 1


