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

def inside(share, leash):
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
    sys.exit(sandbox.run(Config(**settings), lambda: None, inside, None))
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


#: Enters a sandbox, logs an exception there in each way there is, and prints what was opened for it. Arguments: mode,
#: share, and the file the exception comes from.
TRACEBACK = """
import json, logging, os, sys, threading
from vfsd import log, sandbox
from vfsd.config import Config

log.setup("error")
code = compile("def fail(*_): raise KeyError('a bug')", sys.argv[3], "exec")
exec(code)
opened = []

class Dying:
    __del__ = fail

def inside(share, leash):
    sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event == "open" else None)
    try:
        fail()
    except KeyError:
        logging.getLogger("test").exception("caught")
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    Dying()
    print(json.dumps(opened))
    sys.stdout.flush()
    return 7

sys.exit(sandbox.run(Config(shared_dir=sys.argv[2], sandbox=sys.argv[1]), lambda: None, inside, None))
"""


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


@pytest.mark.parametrize("mode", ["none", "namespace", pytest.param("chroot", marks=root_only)])
def test_a_traceback_opens_no_file(share: Path, mode: str) -> None:
    """It would be one of the guest's: behind the walls our own path leads into the share."""
    inside = share / "source.py" if mode == "none" else Path("/source.py")
    os.mkfifo(share / "source.py")  # one that opens it would wait for ever
    ended = subprocess.run(
        [sys.executable, "-c", TRACEBACK, mode, str(share), str(inside)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert ended.returncode == 7, ended.stderr
    assert ended.stderr.count("KeyError: 'a bug'") == 3
    assert ended.stderr.count(f'File "{inside}", line 1, in fail') == 3
    assert json.loads(ended.stdout) == []


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
    assert "check --gid-map (gid range [0-65536) -> [0-65536) not allowed)" in ended.stderr
    assert "newgidmap:" not in ended.stderr, "its own words are in the sentence"


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


@pytest.mark.parametrize("wanted", [0, 300])
def test_rlimit_nofile(share: Path, wanted: int) -> None:
    ulimit = ["sh", "-c", 'ulimit -n 400; exec "$@"', "sh"]
    assert look(share, ulimit, sandbox="none", rlimit_nofile=wanted)["nofile"] == [wanted or 400] * 2


@pytest.mark.parametrize("inherited", [20, 255])
@pytest.mark.parametrize("wanted", [0, None])
def test_a_limit_too_small_to_work_with(share: Path, tmp_path: Path, wanted: int | None, inherited: int) -> None:
    ulimit = [*as_user(tmp_path), "sh", "-c", f'ulimit -n {inherited}; exec "$@"', "sh"]
    sentence = complain(share, ulimit, sandbox="none", rlimit_nofile=wanted)
    assert f"the limit of open files is {inherited}, and vfsd needs 256: raise it" in sentence
    assert ("--rlimit-nofile=0" in sentence) == (wanted == 0)


@pytest.mark.parametrize("mode", ["none", "namespace", *(["chroot"] if AS_ROOT else [])])
def test_no_proc(share: Path, mode: str) -> None:
    hidden = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs none /proc; exec "$@"', "sh"]
    assert complain(share, hidden, sandbox=mode).startswith("/proc must be mounted")


@root_only
@pytest.mark.parametrize("permission", [0o700, 0o711, 0o744])
@pytest.mark.parametrize("mode", ["none", "namespace"])
def test_a_share_the_user_can_not_read(tmp_path: Path, mode: str, permission: int) -> None:
    prefix = as_user(tmp_path)
    path = tmp_path / "share"
    path.mkdir()
    path.chmod(permission)
    assert f"--shared-dir {path} can't be read (Permission denied)" in complain(path, prefix, sandbox=mode)


@root_only
@pytest.mark.parametrize("mode", ["none", "namespace", "chroot"])
def test_a_share_that_root_can_not_read_without_its_capabilities(share: Path, mode: str) -> None:
    os.chown(share, UID, UID)
    share.chmod(0o700)
    weak = [(False, mask(name).bit_length() - 1) for name in ("dac_override", "dac_read_search")]
    assert f"--shared-dir {share} can't be read" in complain(share, sandbox=mode, modcaps=weak)


@root_only
@pytest.mark.skipif(not shutil.which("newuidmap"), reason="needs uidmap installed")
def test_a_share_of_a_subordinate_user_can_be_read(share: Path, tmp_path: Path) -> None:
    prefix = as_user(tmp_path, granted=True)
    os.chown(share, RANGE[0] + 999, RANGE[0] + 999)
    share.chmod(0o700)
    assert look(share, prefix)["root"] == ["file"]
    assert "--shared-dir" in complain(share, prefix, sandbox="none")


@root_only
def test_no_new_privs_leave_one_id(share: Path, tmp_path: Path) -> None:
    prefix = [*as_user(tmp_path, granted=True), "setpriv", "--no-new-privs"]
    assert look(share, prefix)["uid_map"] == ["0", str(UID), "1"]
    given = {"uid_map": [(0, UID, 1), (1, *RANGE)], "gid_map": [(0, UID, 1), (1, *RANGE)]}
    assert "no_new_privs is set" in start(share, prefix, **given).stderr


@root_only
def test_root_without_capabilities_has_no_user_namespace(share: Path) -> None:
    sentence = complain(share, ["setpriv", "--bounding-set=-all", "--inh-caps=-all"])
    assert "use --sandbox=none" in sentence and "-map" not in sentence


def test_a_network_that_is_not_empty() -> None:
    # This process's own network has at least the loopback interface up.
    with pytest.raises(sandbox.SandboxError, match="network namespace is not empty"):
        sandbox._finish_check(sandbox._check_network())
