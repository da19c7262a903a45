"""The laws of the architecture that a machine can check. They read the sources, and nothing else but the op tables."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("vhost", "dax", "vfsd")
EMITTED = {"_virtq.c", "_fuse.c", "_process.c"}
#: What a package may import of ours, besides itself.
BELOW: dict[str, set[str]] = {"vhost": set(), "dax": set(), "vfsd": {"vhost", "dax"}}
MAX_LINES = 400


def sources(*patterns: str) -> list[Path]:
    """Files of the repository; not what cffi emits."""
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.name not in EMITTED)


PYTHON = [path for package in PACKAGES for path in sources(f"{package}/**/*.py")]
C = [path for package in PACKAGES for path in sources(f"{package}/**/*.[ch]")]
WRITTEN = [*PYTHON, *C, *sources("tests/**/*.py", "tests/**/*.[ch]", "scripts/**/*.py")]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Full names of what a module imports, inside functions too; types for the checker alone are no arrows."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            # What is imported from a package may be a module of it.
            yield from (f"{prefix}.{name.name}" for name in node.names)


def code(path: Path) -> str:
    """A C file without its comments and strings."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.S)
    return re.sub(r'"(\\.|[^"\\])*"', '""', text)


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PYTHON, ids=short)
def test_imports_go_down(path: Path) -> None:
    own = module_name(path).partition(".")[0]
    ours = {name.partition(".")[0] for name in imported(path)} & {*PACKAGES, "tests", "scripts"}
    assert ours <= {own} | BELOW[own]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_cycles_in_a_package(package: str) -> None:
    modules = {module_name(path): path for path in sources(f"{package}/**/*.py")}
    arrows: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for target in imported(path):
            # `from package.module import name`, or `from package import module`.
            found = target if target in modules else target.rpartition(".")[0]
            if found in modules and found not in (name, package):
                arrows[name].add(found)
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("path", WRITTEN, ids=short)
def test_length(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", sources("vhost/*.[ch]"), ids=short)
def test_only_barrier_h_spells_an_atomic(path: Path) -> None:
    spelled = re.findall(r"\b(__atomic\w*|__sync\w*|_Atomic|atomic_\w+|volatile|__volatile__)\b", code(path))
    assert bool(spelled) == (path.name == "barrier.h")


@pytest.mark.parametrize("path", C, ids=short)
def test_c_makes_no_threads(path: Path) -> None:
    assert not re.findall(r"\b(pthread_create|thrd_create)\b", code(path))


@pytest.mark.parametrize("path", sources("vfsd/fuse/*.[ch]"), ids=short)
def test_only_cred_c_changes_an_identity(path: Path) -> None:
    calls = r"\b(SYS_)?(set(res|re|fs)?[ug]id|setgroups|initgroups|capset|cap_set_\w+)\b"
    assert not re.findall(calls, code(path)) or path.name == "cred.c"


def test_every_op_has_one_body() -> None:
    """Rows without a function in C are exactly Python's OPS."""
    import vfsd.ops  # noqa: F401  (registers them)
    from vfsd._fuse import ffi, lib
    from vfsd.door import OPS

    rows = {opcode for opcode in range(4096) if lib.fuse_row_name(opcode) != ffi.NULL}
    assert rows, "the table is empty"
    assert {opcode for opcode in rows if not lib.fuse_row_in_c(opcode)} == set(OPS)


def test_the_door_is_narrow() -> None:
    """Rule 4 at the seam: one header of functions, under 150 lines. What a core is made of is data: config.h."""
    assert len((ROOT / "vfsd/fuse/core.h").read_text().splitlines()) < 150
