"""What a case is, and how one runs on an executor.

A case is a name, steps, and what it needs of the place it runs in:

    root        to change owners, make devices and act as somebody else
    xattr       user.* attributes
    trusted     trusted.* attributes (CAP_SYS_ADMIN, which a daemon does without)
    acl         POSIX access control lists, enforced
    tmpfile     O_TMPFILE (Linux 6.1 in a guest)
    flags       inode flags (FS_IOC_SETFLAGS), which not every file system has
    kernel      a kernel between caller and file system: permission checks, path walking with symlinks
    fuse        the FUSE client: what a kernel would not send, or answers itself

The steps' vocabulary is the methods of syscalls.Syscalls.
"""

import errno
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol


class Step(NamedTuple):
    call: str
    args: tuple[Any, ...]
    #: errno to fail with, or 0.
    fails: int
    #: The result: a value, the wanted part of a dict, a predicate, or None for any.
    gives: Any
    #: Name under which a descriptor is kept for later steps.
    into: str


class Case(NamedTuple):
    name: str
    needs: frozenset[str]
    steps: tuple[Step, ...]


def do(call: str, *args: Any, fails: int = 0, gives: Any = None, into: str = "") -> Step:
    return Step(call, args, fails, gives, into)


def make(path: str, data: bytes = b"", mode: int = 0o644) -> Step:
    """A file with contents, in one step."""
    return do("make", path, data, mode)


def case(name: str, *steps: Step, needs: str = "") -> Case:
    return Case(name, frozenset(needs.split()), steps)


class Executor(Protocol):
    """Does steps. Its methods are named after the calls; what they return is compared with what the step gives."""

    def enter(self, case: str) -> None:
        """Makes a fresh directory, which the paths of the following steps are relative to."""

    def leave(self) -> None:
        """Closes what a case left open and becomes the first user again."""


def run(executor: Executor, case: Case, number: int) -> str:
    """ "" when the case passed, else what went wrong where."""
    executor.enter(f"{number:03}")
    try:
        for index, step in enumerate(case.steps, 1):
            if wrong := check(executor, step):
                return f"step {index}, {step.call}{step.args!r:.80}: {wrong}"
    finally:
        executor.leave()
    return ""


def check(executor: Executor, step: Step) -> str:
    """ "" when the step went as it should."""
    call: Callable[..., Any] = getattr(executor, step.call)
    try:
        got = call(*step.args, into=step.into) if step.into else call(*step.args)
    except OSError as error:
        if error.errno == step.fails:
            return ""
        return f"{name_of(error.errno)} instead of {name_of(step.fails) if step.fails else 'success'}"
    if step.fails:
        return f"no {name_of(step.fails)}, but {got!r:.80}"
    want = step.gives
    if want is None:
        return ""
    if callable(want):
        return "" if want(got) else f"got {got!r:.200}"
    if isinstance(want, dict):
        got = {key: got[key] for key in want}
    return "" if got == want else f"got {got!r:.200}, want {want!r:.200}"


def name_of(number: int | None) -> str:
    return errno.errorcode.get(number or 0, str(number))
