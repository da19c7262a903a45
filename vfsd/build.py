"""The cdefs of `vfsd._fuse` and `vfsd._process`.

Wire structs are not ours: the compiler's own <linux/fuse.h> is turned into the cdef, so none is typed in twice.
"""

import re
import subprocess
from pathlib import Path

from cffi import FFI

from vhost.build import ffi as virtq
from vhost.build import header

HERE = Path(__file__).resolve().parent


def system_header(name: str) -> Path:
    """Where the compiler finds <name>."""
    rule = subprocess.run(
        ["cc", "-E", "-M", "-"], input=f"#include <{name}>\n", capture_output=True, text=True, check=True
    ).stdout
    return Path(next(word for word in rule.split() if word.endswith(name)))


def uapi(path: Path) -> str:
    """A kernel header's structs, enums and numeric defines, as cffi reads them."""
    text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
    text = text.replace("\\\n", " ")
    text = re.sub(r"#ifdef __KERNEL__.*?#else\n(.*?)#endif", r"\1", text, flags=re.S)
    lines = []
    for line in text.splitlines():
        if match := re.match(r"#\s*define\s+(\w+)\s+\(?[0-9]", line):
            lines.append(f"#define {match[1]} ...")
        elif not line.startswith("#"):
            lines.append(re.sub(r"__counted_by\(\w+\)", "", line))
    return "\n".join(lines)


fuse = FFI()
fuse.include(virtq)
fuse.cdef(uapi(system_header("linux/fuse.h")))
fuse.cdef(header(HERE / "fuse" / "newer.h"))
fuse.cdef(header(HERE / "fuse" / "memo.h"))
fuse.cdef(header(HERE / "fuse" / "config.h"))
fuse.cdef(header(HERE / "fuse" / "core.h"))
for function in ("fuse_door", "fuse_refused"):
    fuse.cdef(f'extern "Python" int64_t {function}(struct core *core, struct fuse_request *request);')
fuse.cdef('extern "Python" int fuse_lend(struct core *core, uint32_t work);')
fuse.set_source("vfsd._fuse", '#include "core.h"\n')

process = FFI()
process.cdef(header(HERE / "process.h"))
process.set_source("vfsd._process", '#include "process.h"\n')
