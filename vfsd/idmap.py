"""User and group ids of a user namespace: which ranges to map, and how they get written.

Only user_namespaces(7) matters here: a process without privilege may map its own id and nothing else; more takes
newuidmap(1) and newgidmap(1), which grant what /etc/subuid and /etc/subgid list for the user.
"""

import contextlib
import logging
import os
from collections.abc import Sequence

from vfsd.errors import Failure
from vfsd.values import IdMap

log = logging.getLogger("vfsd")

PROGRAMS = ("newuidmap", "newgidmap")
GRANTS = ("/etc/subuid", "/etc/subgid")

_POWERLESS = "no_new_privs is set (systemd: NoNewPrivileges=), under which newuidmap has no power"


def automatic(
    *, privileged: bool, grants: Sequence[str] = GRANTS, programs: Sequence[str] = PROGRAMS
) -> tuple[tuple[IdMap, ...], tuple[IdMap, ...]]:
    """Maps of users and groups. 0 is the user; then come the user's subordinate ranges, where both files grant one and
    it can be written: `privileged`, or by the `programs`. The log tells why not."""
    own = IdMap(0, os.geteuid(), 1), IdMap(0, os.getegid(), 1)
    ranges = [_granted(file) for file in grants]
    missing = next((program for program in programs if not _find(program)), None)
    if missing and not privileged:
        reason = f"{missing} is not installed (Debian package uidmap)"
    elif _no_new_privs() and not privileged:
        reason = _POWERLESS
    elif not (ranges[0] and ranges[1]):
        reason = f"{' and '.join(grants)} don't both grant the user a range"
    else:
        return (own[0], IdMap(1, *ranges[0])), (own[1], IdMap(1, *ranges[1]))
    log.info("only one user and one group id are mapped, those of the user who starts vfsd: %s", reason)
    return own[:1], own[1:]


def _no_new_privs() -> bool:
    """PR_GET_NO_NEW_PRIVS of prctl(2)."""
    with open("/proc/self/status") as status:
        return any(line.split() == ["NoNewPrivs:", "1"] for line in status)


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


def write(pid: int, uids: Sequence[IdMap], gids: Sequence[IdMap], *, chosen: bool, privileged: bool) -> None:
    """Maps the ids of `pid`, which has just entered a new user namespace. `privileged`: we hold setuid and setgid;
    `chosen`: the user gave a map. Raises Failure."""
    own = len(uids) == len(gids) == 1 and uids[0][1:] == (os.geteuid(), 1) and gids[0][1:] == (os.getegid(), 1)
    if own and not privileged:
        # Without this the kernel refuses an unprivileged gid map: dropping a group could grant access.
        _write(f"/proc/{pid}/setgroups", "deny")
    for kind, ranges in (("gid", gids), ("uid", uids)):
        if privileged or own:
            _write_direct(pid, kind, ranges, chosen)
        else:
            _write_granted(pid, kind, ranges, chosen)


def _write_direct(pid: int, kind: str, ranges: Sequence[IdMap], chosen: bool) -> None:
    try:
        _write(f"/proc/{pid}/{kind}_map", "".join(f"{a} {b} {n}\n" for a, b, n in ranges))
    except OSError as error:
        # Root without the capability setfcap may not even map itself (user_namespaces(7), since Linux 5.12).
        change = f"check --{kind}-map" if chosen else "start with more capabilities, or use --sandbox=none"
        raise Failure(f"the kernel refuses the {kind} map of a user namespace ({error.strerror}): {change}") from error


def _write_granted(pid: int, kind: str, ranges: Sequence[IdMap], chosen: bool) -> None:
    program = f"new{kind}map"
    path = _find(program)
    if path is None:
        raise Failure(
            f"{program} is not installed: a user may map more than the own {kind} only through it "
            "(Debian package uidmap)"
        )
    if _no_new_privs():
        raise Failure(f"{_POWERLESS}: leave --uid-map and --gid-map out, or allow new privileges")
    status, said = _run(path, [program, str(pid), *(str(n) for r in ranges for n in r)])
    if status:
        change = f": check --{kind}-map" if chosen else ""
        raise Failure(
            f"{program} refused the {kind} map: /etc/sub{kind} must grant the user every range of it{change} "
            f"({said.removeprefix(f'{program}: ')})"
        )


def _run(path: str, argv: list[str]) -> tuple[int, str]:
    """The wait status of a short program, and what it said on standard error. (subprocess takes long to import.)"""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.posix_spawn(path, argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 2)])
    finally:
        os.close(writer)
    with open(reader, errors="replace") as answer:
        said = " ".join(answer.read().split())
    return os.waitpid(child, 0)[1], said


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _find(program: str) -> str | None:
    """The path of an installed program. (shutil.which would import the archive formats.)"""
    paths = (f"{directory}/{program}" for directory in os.get_exec_path())
    return next((path for path in paths if os.access(path, os.X_OK)), None)
