"""The C of scripts/bench, compiled on demand into .cache/bench: a benchmark is no part of what is installed."""

import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from vhost.build import ffi as virtq
from vhost.build import header

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = [HERE / name for name in ("driver.c", "ring.c", "reply.c", "alone.c", "bare.c")]
HEADERS = [HERE / name for name in ("driver.h", "ring.h", "alone.h", "bare.h")]
#: What those are compiled with.
BELOW = [ROOT / "vhost" / name for name in ("virtq.h", "memory.h", "barrier.h", "clock.h", "build.py")]
FLAGS = ["-shared", "-fPIC", "-pthread", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra",
         "-Wno-unused-parameter", "-DPy_LIMITED_API"]  # fmt: skip


def _compile(name: str, path: Path) -> None:
    from cffi import FFI

    ffi = FFI()
    ffi.include(virtq)
    ffi.cdef(header(HERE / "driver.h") + header(HERE / "alone.h") + header(HERE / "bare.h"))
    ffi.set_source(name, '#include "driver.h"\n#include "alone.h"\n#include "bare.h"\n')
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        emitted, made = Path(directory, f"{name}.c"), Path(directory, path.name)
        with redirect_stdout(sys.stderr):
            ffi.emit_c_code(str(emitted))
        include = [f"-I{place}" for place in (HERE, ROOT / "vhost", sysconfig.get_paths()["include"])]
        subprocess.run(["cc", *FLAGS, *include, "-o", made, emitted, *SOURCES], check=True)
        os.replace(made, path)


def load() -> tuple[Any, Any]:
    """(ffi, lib) of the extension, which is compiled when its sources, or Python, are others than last time."""
    state = hashlib.sha256(sysconfig.get_config_var("SOABI").encode())
    for source in (*SOURCES, *HEADERS, *BELOW, Path(__file__)):
        state.update(source.read_bytes())
    name = f"_bench_{state.hexdigest()[:16]}"
    path = ROOT / ".cache/bench" / f"{name}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _compile(name, path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ffi, module.lib


ffi, lib = load()
