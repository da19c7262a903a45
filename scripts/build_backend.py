"""PEP 517 back-end of this tree: emit the cffi C files, then let setuptools do the rest.

The extensions are listed in pyproject.toml; this file only makes the generated source each of them starts with.
"""

import sys
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the remaining PEP 517 hooks)

ROOT = Path(__file__).resolve().parent.parent


def _emit() -> None:
    sys.path.insert(0, str(ROOT))
    from vfsd.build import fuse, process
    from vhost.build import ffi

    ffi.emit_c_code(str(ROOT / "vhost/_virtq.c"))
    fuse.emit_c_code(str(ROOT / "vfsd/_fuse.c"))
    process.emit_c_code(str(ROOT / "vfsd/_process.c"))


def build_wheel(*args: Any, **kwargs: Any) -> str:
    _emit()
    return build_meta.build_wheel(*args, **kwargs)


def build_editable(*args: Any, **kwargs: Any) -> str:
    _emit()
    return build_meta.build_editable(*args, **kwargs)
