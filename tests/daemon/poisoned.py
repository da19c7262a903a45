"""`vfsd`, but for requests that kill their worker, and say so in what they carry: python -m tests.daemon.poisoned

"@SIGSEGV" anywhere in a request (a name, or eight bytes of a number) kills by that signal before it is looked at; and
"#SIGSEGV" when it has come as far as Python's op, which may be in the pool. "@exit" leaves with a status, "#memory"
finds none, and "@sleep" takes a while. "@wait" says in a file "waits" and its process id that it has come so far, and
takes until there is a file "over", both in the shared directory.
"""

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vfsd import worker
from vfsd.__main__ import main
from vfsd._fuse import ffi, lib
from vfsd.core import Core
from vfsd.door import Op, Request

#: How long "@sleep" takes, seconds.
NAP = 0.3


def die(how: str) -> None:
    if how == "sleep":
        time.sleep(NAP)
    elif how == "wait":
        share = Path(sys.argv[sys.argv.index("--shared-dir") + 1])
        (share / f"waits{os.getpid()}").touch()
        while not (share / "over").exists():
            time.sleep(0.005)
    elif how == "memory":
        raise MemoryError
    elif how == "exit":
        os._exit(7)
    else:
        signal.pthread_kill(threading.get_ident(), signal.Signals[how])
        time.sleep(60)


def obey(sign: bytes, data: bytes) -> None:
    if found := re.search(sign + rb"(SIG[A-Z]+|exit|sleep|wait|memory)", data):
        die(found[1].decode())


@ffi.callback("int64_t(void *, struct virtq_chain *)")  # type: ignore[untyped-decorator, unused-ignore]
def serve(core: Any, chain: Any) -> int:
    buffers = chain.__getattribute__("in")
    obey(b"@", b"".join(ffi.buffer(buffers[i].iov_base, buffers[i].iov_len)[:] for i in range(chain.in_count)))
    return int(lib.fuse_serve(core, chain))


def run(self: Op, core: Core, request: Request, body: bytes) -> tuple[int, bytes]:
    inner = self.function

    def function(*arguments: Any) -> bytes:
        obey(b"#", body)
        return inner(*arguments)

    object.__setattr__(self, "function", function)
    try:
        return plain(self, core, request, body)
    finally:
        object.__setattr__(self, "function", inner)


def addressof(library: Any, name: str) -> Any:
    return serve if name == "fuse_serve" else ffi.addressof(library, name)


plain = Op.run
if __name__ == "__main__":
    Op.run = run  # type: ignore[method-assign]
    worker.fuse_ffi = SimpleNamespace(addressof=addressof)
    sys.exit(main())
