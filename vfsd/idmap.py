"""User and group ids of a user namespace: which ranges to map, and how they get written.

Only user_namespaces(7) matters here: a process without privilege may map its own id and nothing else; more takes
newuidmap(1) and newgidmap(1), which grant what /etc/subuid and /etc/subgid list for the user.
"""

import contextlib
import os
from collections.abc import Sequence

from vfsd.errors import Failure
from vfsd.values import IdMap


def automatic(own: int, subordinate: str, program: str) -> tuple[IdMap, ...]:
    """0 is the user; then the user's subordinate range, when the file grants one and `program` is there to write it."""
    granted = _granted(subordinate)
    if granted and _find(program):
        return IdMap(0, own, 1), IdMap(1, *granted)
    return (IdMap(0, own, 1),)


def _granted(subordinate: str) -> tuple[int, int] | None:
    """The first range (start, count) that subuid(5) or subgid(5) grants this user, by name or by number."""
    uid = os.geteuid()
    try:
        with open(subordinate) as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    import pwd

    owners = {str(uid)}
    with contextlib.suppress(KeyError):
        owners.add(pwd.getpwuid(uid).pw_name)
    for line in lines:
        owner, _, rest = line.partition(":")
        start, _, count = rest.partition(":")
        if owner in owners and start.isdigit() and count.isdigit() and int(count) > 0:
            return int(start), int(count)
    return None


def write(pid: int, uids: Sequence[IdMap], gids: Sequence[IdMap], *, privileged: bool) -> None:
    """Maps the ids of `pid`, which has just entered a new user namespace. `privileged`: we hold setuid and setgid."""
    own = len(uids) == len(gids) == 1 and uids[0][1:] == (os.geteuid(), 1) and gids[0][1:] == (os.getegid(), 1)
    if own and not privileged:
        # Without this the kernel refuses an unprivileged gid map: dropping a group could grant access.
        _write(f"/proc/{pid}/setgroups", "deny")
    for kind, ranges in (("gid", gids), ("uid", uids)):
        if privileged or own:
            _write_direct(pid, kind, ranges)
        else:
            _write_granted(pid, kind, ranges)


def _write_direct(pid: int, kind: str, ranges: Sequence[IdMap]) -> None:
    try:
        _write(f"/proc/{pid}/{kind}_map", "".join(f"{a} {b} {n}\n" for a, b, n in ranges))
    except OSError as error:
        raise Failure(f"the {kind} map is refused by the kernel ({error.strerror}): check --{kind}-map") from error


def _write_granted(pid: int, kind: str, ranges: Sequence[IdMap]) -> None:
    program = f"new{kind}map"
    path = _find(program)
    if path is None:
        raise Failure(
            f"{program} is not installed: a user may map more than the own {kind} only through it "
            "(Debian package uidmap)"
        )
    child = os.posix_spawn(path, [program, str(pid), *(str(n) for r in ranges for n in r)], os.environ)
    _, status = os.waitpid(child, 0)
    if status:
        raise Failure(f"{program} refused the {kind} map: /etc/sub{kind} must grant the user every range of it")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _find(program: str) -> str | None:
    """The path of an installed program. (shutil.which would import the archive formats.)"""
    paths = (f"{directory}/{program}" for directory in os.get_exec_path())
    return next((path for path in paths if os.access(path, os.X_OK)), None)
