"""Socket and pid file: modes, who holds them, and what happens to what is there already."""

import fcntl
import grp
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sandbox.user import REPOSITORY, as_user
from vfsd.config import Config
from vfsd.errors import Failure, UsageError
from vfsd.listen import Listener, listen


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def listener(path: Path) -> Iterator[Listener]:
    listener = listen(at(path))
    yield listener
    listener.close()


def at(path: Path | str, group: str = "") -> Config:
    return Config(shared_dir="/", socket_path=str(path), socket_group=group)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refusal(config: Config) -> Failure:
    with pytest.raises(Failure) as caught:
        listen(config).close()
    assert "\n" not in str(caught.value)
    return caught.value


def another(path: Path, *, lock: bool) -> subprocess.Popen[str]:
    """Another process that listens at `path`, with a pid file if `lock`."""
    program = f"""
import fcntl, os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind({str(path)!r})
listener.listen()
if {lock}:
    file = open({str(path) + ".pid"!r}, "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    print(os.getpid(), file=file, flush=True)
print("ready", flush=True)
listener.setblocking(False)
sys.stdin.read()
try:
    listener.accept()
    print("asked")
except BlockingIOError:
    print("left alone")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_modes(listener: Listener, path: Path) -> None:
    assert path.is_socket()
    assert mode(path) == 0o600
    assert mode(Path(f"{path}.pid")) == 0o600


def test_the_umask_is_left_as_it_was(path: Path) -> None:
    umask = os.umask(0o027)
    try:
        listen(at(path)).close()
    finally:
        assert os.umask(umask) == 0o027


@pytest.mark.parametrize("by_number", [False, True])
def test_group(path: Path, by_number: bool) -> None:
    number = os.getgroups()[0] if os.getgroups() else os.getgid()
    listener = listen(at(path, str(number) if by_number else grp.getgrgid(number).gr_name))
    assert mode(path) == 0o660
    assert path.stat().st_gid == number
    assert mode(Path(f"{path}.pid")) == 0o600
    listener.close()


@pytest.mark.parametrize("group", ["no-such-group", "4294967295", "-1"])
def test_no_such_group(path: Path, group: str) -> None:
    error = refusal(at(path, group))
    assert isinstance(error, UsageError)
    assert f"--socket-group: there is no group {group}" in str(error)
    assert not list(path.parent.iterdir())


def test_a_group_the_user_is_not_in(path: Path) -> None:
    command = [sys.executable, "-m", "vfsd", "--shared-dir=/", f"--socket-path={path}", "--socket-group=0"]
    done = subprocess.run(
        [*as_user(path.parent), *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("vfsd: --socket-group: the socket can't be given to that group (Operation not permit")
    assert done.stderr.count("\n") == 1
    assert not list(path.parent.glob("s*[!d]"))


def test_a_front_end_can_connect(listener: Listener, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(path))
        listener.socket.accept()[0].close()


def test_the_pid_file_tells_the_process_and_is_locked(listener: Listener, path: Path) -> None:
    file = Path(f"{path}.pid")
    assert file.read_text() == f"{os.getpid()}\n"
    with file.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_only_socket_and_pid_file_are_left(listener: Listener, path: Path) -> None:
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["s", "s.pid"]


def test_descriptors_do_not_reach_other_programs(listener: Listener) -> None:
    assert listener.lock is not None
    assert not os.get_inheritable(listener.socket.fileno())
    assert not os.get_inheritable(listener.lock)


def test_both_files_are_removed(listener: Listener, path: Path) -> None:
    listener.close()
    assert not list(path.parent.iterdir())


def test_files_are_removed_from_another_directory_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    listener = listen(at("s"))
    assert path.is_socket()
    monkeypatch.chdir("/")
    listener.close()
    assert not list(path.parent.iterdir())


def test_what_others_put_there_is_not_removed(listener: Listener, path: Path) -> None:
    path.unlink()
    path.write_text("not ours")
    listener.close()
    assert path.read_text() == "not ours"
    assert not Path(f"{path}.pid").exists()


def test_a_process_behind_walls_removes_nothing(listener: Listener, path: Path) -> None:
    listener.detach()
    listener.close()
    assert path.exists()
    path.unlink()
    Path(f"{path}.pid").unlink()


def test_a_forked_process_removes_nothing(listener: Listener, path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        listener.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert path.exists()


def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    Path(f"{path}.pid").write_text("1\n")
    Path(f"{path}.pid.new").write_text("12345678\n")
    listener = listen(at(path))
    assert Path(f"{path}.pid").read_text() == f"{os.getpid()}\n"
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(path))
    listener.close()
    assert not list(path.parent.iterdir())


def test_a_daemon_with_a_pid_file_is_left_alone(path: Path) -> None:
    other = another(path, lock=True)
    try:
        error = refusal(at(path))
    finally:
        answer, _ = other.communicate()
    assert error.exit_status == 1
    assert f"already in use by process {other.pid}" in str(error)
    # A connection would have been taken for a front-end's.
    assert answer == "left alone\n"
    assert not Path(f"{path}.pid.new").exists()


def test_any_other_listener_is_left_alone(path: Path) -> None:
    other = another(path, lock=False)
    try:
        error = refusal(at(path))
    finally:
        other.communicate()
    assert error.exit_status == 1
    assert f"already in use by process {other.pid}" in str(error)


def test_a_listener_too_busy_to_answer_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as waiting:
        other.bind(str(path))
        other.listen(0)
        waiting.connect(str(path))
        assert "already in use by another process" in str(refusal(at(path)))


def test_a_daemon_that_lost_its_socket_is_noticed(listener: Listener, path: Path) -> None:
    path.unlink()
    assert f"already in use by process {os.getpid()}" in str(refusal(at(path)))


def test_a_daemon_that_is_just_starting_is_noticed(path: Path) -> None:
    with Path(f"{path}.pid.new").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("77\n")
        file.flush()
        assert "already in use by process 77" in str(refusal(at(path)))
        assert Path(f"{path}.pid.new").exists()


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_is_no_socket_is_left_alone(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    error = refusal(at(path))
    assert isinstance(error, UsageError)
    assert "exists and is not a socket" in str(error)
    assert [entry.name for entry in path.parent.iterdir()] == ["s"]


def test_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listen(at("x" * 107)).close()
    error = refusal(at("x" * 108))
    assert isinstance(error, UsageError)
    assert "--socket-path is longer than 107 bytes" in str(error)


def test_no_directory(tmp_path: Path) -> None:
    error = refusal(at(tmp_path / "nowhere" / "s"))
    assert isinstance(error, UsageError)
    assert "there is no such directory" in str(error)
    assert isinstance(refusal(at(f"{tmp_path}/")), UsageError)


def in_a_stranger(act: Callable[[], object]) -> Failure:
    """The Failure that `act` raises in a process of an ordinary user, who is not the owner of temporary directories."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        try:
            act()
        except Failure as error:
            os.write(writer, f"{error.exit_status} {error}".encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        status, _, sentence = file.read().partition(" ")
    os.waitpid(pid, 0)
    return (UsageError if status == "2" else Failure)(sentence)


def test_no_permission(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    path.parent.chmod(0o555)
    error = in_a_stranger(lambda: listen(at("s")))
    assert error.exit_status == 1
    assert "--socket-path s can't be created: Permission denied" in str(error)


def test_no_way_to_the_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    hidden = path.parent / "hidden"
    (hidden / "below").mkdir(parents=True)
    hidden.chmod(0)
    error = in_a_stranger(lambda: listen(at("hidden/below/s")))
    hidden.chmod(0o700)
    assert error.exit_status == 1
    assert "Permission denied" in str(error)


# --fd


def test_an_inherited_listening_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as inherited:
        inherited.bind(str(path))
        inherited.listen()
        fd = os.dup(inherited.fileno())
    os.set_inheritable(fd, True)
    listener = listen(Config(shared_dir="/", fd=fd))
    assert listener.socket.fileno() == fd
    assert not os.get_inheritable(fd)
    listener.close()
    # Whoever made it removes it.
    assert path.exists()
    assert not Path(f"{path}.pid").exists()


def test_an_inherited_socket_of_another_kind(tmp_path: Path) -> None:
    pair = socket.socketpair()
    datagrams, network = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_INET)
    with pair[0], pair[1], datagrams, network, (tmp_path / "file").open("w") as file:
        for fd, problem in (
            (1_000_000, "is not an open socket"),
            (file.fileno(), "is not an open socket"),
            (pair[0].fileno(), "does not listen"),
            (datagrams.fileno(), "is not a unix stream socket"),
            (network.fileno(), "is not a unix stream socket"),
        ):
            error = refusal(Config(shared_dir="/", fd=fd))
            assert isinstance(error, UsageError)
            assert f"--fd {fd} {problem}" in str(error)
