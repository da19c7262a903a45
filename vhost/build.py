"""The cdef of `vhost._virtq`: our own headers, read as they are compiled."""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent


def header(path: Path) -> str:
    """A header of ours as a cdef: its text without preprocessor lines, but with each `#define NAME number`."""
    lines = []
    for line in re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S).splitlines():
        if match := re.match(r"#define\s+(\w+)\s+(\(?-?[0-9]\w*.*|INT64_MIN)$", line):
            lines.append(f"#define {match[1]} ...")
        elif not line.startswith("#"):
            lines.append(line)
    return "\n".join(lines)


ffi = FFI()
ffi.cdef("struct iovec { void *iov_base; size_t iov_len; ...; };")
ffi.cdef(header(HERE / "memory.h"))
ffi.cdef(header(HERE / "pace.h"))
ffi.cdef(header(HERE / "polling.h"))
ffi.cdef(header(HERE / "virtq.h"))
ffi.set_source("vhost._virtq", '#include "virtq.h"\n')
