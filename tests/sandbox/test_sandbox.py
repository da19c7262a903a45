"""What the process behind the walls is and may do, asked from inside."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.sandbox.user import AS_ROOT, RANGE, REPOSITORY, UID, as_user
from vfsd import sandbox
from vfsd.capabilities import NEEDED, mask

#: Enters a sandbox and prints what it finds there. Arguments: settings, as JSON.
PROGRAM = """
import json, os, resource, sys, logging
from vfsd import capabilities, sandbox
from vfsd.config import Config
from vfsd.errors import Failure

logging.basicConfig(format="%(message)s")
settings = json.loads(sys.argv[1])
settings["modcaps"] = tuple(map(tuple, settings.get("modcaps", ())))
for name in ("uid_map", "gid_map"):
    settings[name] = tuple(__import__("vfsd.values").values.IdMap(*line) for line in settings.get(name, ()))

def inside(share):
    def proc(name):
        fd = os.open(name, os.O_RDONLY, dir_fd=share.proc_fd)
        with open(fd) as file:
            return file.read()
    def attempt(what):
        try:
            what()
        except Exception as error:
            return getattr(error, "errno", None) or type(error).__name__
        return 0
    def make():
        os.close(os.open("made", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666, dir_fd=share.root_fd))
    found = {
        "pid": os.getpid(), "uids": os.getresuid(), "gids": os.getresgid(), "groups": os.getgroups(),
        "privileged": share.privileged, "effective": capabilities.effective(),
        "root": sorted(os.listdir("/")), "made": attempt(make), "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
        "imported": attempt(lambda: __import__("asyncio")),
        "devices": [line.split(":")[0].strip() for line in proc("self/net/dev").splitlines()[2:]],
        "mounts": [line.split()[4:6] for line in proc("self/mountinfo").splitlines()],
        "uid_map": proc("self/uid_map").split(),
        "status": dict(line.split(":\\t", 1) for line in proc("self/status").splitlines()),
        "proc": os.listdir("/proc") if os.path.isdir("/proc") else None,
    }
    print(json.dumps(found))
    sys.stdout.flush()
    return 7

try:
    sys.exit(sandbox.run(Config(**settings), lambda: None, inside))
except Failure as failure:
    print(failure, file=sys.stderr)
    sys.exit(failure.exit_status)
"""


@pytest.fixture
def share(tmp_path: Path) -> Path:
    path = tmp_path / "share"
    path.mkdir()
    path.chmod(0o777)
    (path / "file").write_text("")
    return path


def start(share: Path | str, prefix: Sequence[str] = (), **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-c", PROGRAM, json.dumps({"shared_dir": str(share), **settings})],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def look(share: Path | str, prefix: Sequence[str] = (), **settings: Any) -> dict[str, Any]:
    """What is found inside."""
    ended = start(share, prefix, **settings)
    assert (ended.returncode, ended.stderr) == (7, "")
    found: dict[str, Any] = json.loads(ended.stdout)
    assert found["status"]["NoNewPrivs"] == "1"
    assert int(found["status"]["Umask"], 8) == 0
    assert found["imported"] == "ModuleNotFoundError"
    return found


def complain(share: Path | str, prefix: Sequence[str] = (), **settings: Any) -> str:
    """The sentence that a start which fails ends with."""
    ended = start(share, prefix, **settings)
    assert ended.returncode == 1 and not ended.stdout
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


root_only = pytest.mark.skipif(not AS_ROOT, reason="tests what root gets")


@root_only
@pytest.mark.parametrize("mode", ["none", "chroot", "namespace"])
def test_root_keeps_nine_capabilities(share: Path, mode: str) -> None:
    found = look(share, sandbox=mode)
    assert found["effective"] == mask(*NEEDED)
    assert found["privileged"] and found["groups"] == []
    kept = f"{mask(*NEEDED):016x}"
    assert [found["status"][name] for name in ("CapPrm", "CapEff", "CapBnd")] == [kept] * 3
    assert [int(found["status"][name], 16) for name in ("CapInh", "CapAmb")] == [0, 0]


@root_only
def test_modcaps(share: Path) -> None:
    admin, mknod = (mask(name).bit_length() - 1 for name in ("sys_admin", "mknod"))
    found = look(share, modcaps=[(True, admin), (False, mknod)])
    assert found["effective"] == mask(*NEEDED, "sys_admin") & ~mask("mknod")


@pytest.mark.parametrize("readonly", [False, True])
def test_namespaces(share: Path, readonly: bool) -> None:
    found = look(share, readonly=readonly)
    assert found["pid"] == 1
    assert [target for target, _ in found["mounts"]] == ["/"]
    assert found["devices"] == ["lo"]
    assert found["root"] == ["file"]
    assert found["made"] == (errno.EROFS if readonly else 0)


@root_only
def test_chroot(share: Path) -> None:
    assert look(share, sandbox="chroot")["root"] == ["file"]


def test_the_root_directory_as_share_has_an_empty_proc() -> None:
    found = look("/", readonly=True)
    assert "etc" in found["root"] and found["proc"] == []


@root_only
def test_root_may_map_ids(share: Path) -> None:
    found = look(share, uid_map=[(0, *RANGE)], gid_map=[(0, *RANGE)])
    assert found["uids"] == found["gids"] == [0, 0, 0]
    assert found["privileged"]
    assert (share / "made").stat().st_uid == RANGE[0]


def test_a_user_alone_is_root_inside(share: Path, tmp_path: Path) -> None:
    found = look(share, as_user(tmp_path), uid_map=[(0, UID, 1)], gid_map=[(0, UID, 1)])
    assert found["uids"] == [0, 0, 0] and found["pid"] == 1
    assert found["uid_map"] == ["0", str(UID), "1"]
    assert not found["privileged"], "there is nobody else to be"
    assert (share / "made").stat().st_uid == UID


@root_only
def test_a_user_without_subordinate_ids_is_alone(share: Path, tmp_path: Path) -> None:
    assert look(share, as_user(tmp_path))["uid_map"] == ["0", str(UID), "1"]


@root_only
@pytest.mark.skipif(not shutil.which("newuidmap"), reason="needs uidmap installed")
def test_a_user_with_subordinate_ids(share: Path, tmp_path: Path) -> None:
    found = look(share, as_user(tmp_path, granted=True))
    assert found["uid_map"] == [str(n) for n in (0, UID, 1, 1, *RANGE)]
    assert found["privileged"] and found["groups"] == []
    assert found["effective"] == mask(*NEEDED)


@root_only
@pytest.mark.skipif(not shutil.which("newuidmap"), reason="needs uidmap installed")
def test_a_user_may_not_map_what_is_not_granted(share: Path, tmp_path: Path) -> None:
    ended = start(share, as_user(tmp_path), uid_map=[(0, 0, 65536)], gid_map=[(0, 0, 65536)])
    assert ended.returncode == 1
    assert "newgidmap refused the gid map: /etc/subgid must grant the user every range of it" in ended.stderr


def test_a_user_without_walls_has_no_capability(share: Path, tmp_path: Path) -> None:
    found = look(share, as_user(tmp_path), sandbox="none")
    assert found["effective"] == 0 and not found["privileged"]
    assert found["uids"] == [UID] * 3


def test_a_user_may_not_chroot(share: Path, tmp_path: Path) -> None:
    assert "start as root, or use --sandbox=none" in complain(share, as_user(tmp_path), sandbox="chroot")


def test_no_permission_for_namespaces(share: Path) -> None:
    forbidden = ["unshare", "-Ur", "sh", "-c", 'echo 0 >/proc/sys/user/max_pid_namespaces; exec "$@"', "sh"]
    assert "use --sandbox=none" in complain(share, forbidden)


def test_more_descriptors_than_permitted(share: Path, tmp_path: Path) -> None:
    assert "--rlimit-nofile=" in complain(share, as_user(tmp_path), rlimit_nofile=1 << 31, sandbox="none")


@pytest.mark.parametrize("wanted", [0, 100])
def test_rlimit_nofile(share: Path, wanted: int) -> None:
    ulimit = ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh"]
    assert look(share, ulimit, sandbox="none", rlimit_nofile=wanted)["nofile"] == [wanted or 200] * 2


def test_a_network_that_is_not_empty() -> None:
    # This process's own network has at least the loopback interface up.
    with pytest.raises(sandbox.SandboxError, match="network namespace is not empty"):
        sandbox._finish_check(sandbox._check_network())
