"""The command as a process: what it prints, what it needs, how it ends."""

import fcntl
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfsd.information import VERSION

VFSD = [sys.executable, "-m", "vfsd"]

#: Not before the socket exists, and not to answer a question: each takes longer than the whole rest.
HEAVY = {"_cffi_backend", "cffi", "dataclasses", "inspect", "logging", "pyroute2", "vfsd.control", "vfsd.sandbox"}


def run(*arguments: str, check: bool = False, **keywords: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*VFSD, *arguments], capture_output=True, text=True, check=check, timeout=60, **keywords
    )


def one_sentence(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("vfsd: ")
    return line


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    return tmp_path / "share"


# Information


def test_version() -> None:
    assert run("--version", check=True).stdout == run("-V", check=True).stdout == f"vfsd {VERSION}\n"


def test_the_version_is_the_packages() -> None:
    import tomllib

    project = Path(__file__).parents[2] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == VERSION


def test_capabilities_and_descriptor(tmp_path: Path) -> None:
    capabilities = json.loads(run("--print-capabilities", check=True).stdout)
    assert capabilities["type"] == "fs"
    # As the installed command: a script named vfsd that is executable.
    command = tmp_path / "vfsd"
    root = str(Path(__file__).parents[2])
    command.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {root!r})\n"
        "from vfsd.__main__ import main\nsys.exit(main())\n"
    )
    command.chmod(0o755)
    shown = subprocess.run(["./vfsd", "--print-descriptor"], cwd=tmp_path, capture_output=True, check=True).stdout
    descriptor = json.loads(shown)
    assert set(descriptor) == {"description", "type", "binary"}
    assert descriptor["type"] == "fs"
    assert descriptor["binary"] == str(command)
    # What a manager does with it.
    again = subprocess.run([descriptor["binary"], "--print-capabilities"], capture_output=True, check=True).stdout
    assert json.loads(again) == capabilities


def imported(*arguments: str) -> set[str]:
    """The modules that are loaded when the command has done this."""
    program = (
        "import sys\nfrom vfsd.__main__ import main\nsys.argv[1:] = sys.argv[2:]\n"
        "try: main()\nexcept SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--", *arguments], capture_output=True, text=True, check=True
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("argument", ["--version", "--help", "--print-capabilities"])
def test_an_answer_imports_next_to_nothing(argument: str) -> None:
    assert not imported(argument) & HEAVY


def test_nothing_heavy_is_imported_before_the_socket_exists() -> None:
    program = "import sys\nimport vfsd.__main__\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY


@pytest.mark.parametrize("argument", ["--version", "--help", "--print-capabilities"])
def test_an_answer_needs_no_privilege(argument: str) -> None:
    # Loaded first: the interpreter of a test environment may lie where only its owner gets to.
    program = """
import json, locale, os, sys, textwrap
from vfsd.__main__ import main
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", program, argument], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not done.stderr


@pytest.mark.parametrize("argument", ["--version", "--help", "--print-capabilities"])
@pytest.mark.parametrize("reader", ["full disk", "gone"])
def test_an_answer_nobody_takes(argument: str, reader: str) -> None:
    if reader == "gone":
        end, stdout = os.pipe()
        os.close(end)
    else:
        stdout = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run([*VFSD, argument], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    os.close(stdout)
    why = {"gone": "Broken pipe", "full disk": "No space left on device"}[reader]
    assert done.stderr == f"vfsd: the answer can't be written to standard output: {why}\n"
    assert done.returncode == 1


# Refusals


def test_no_argument() -> None:
    done = run()
    assert done.returncode == 2
    assert "usage: vfsd --shared-dir DIR --socket-path SOCKET" in one_sentence(done)


def test_wrong_usage(share: Path, tmp_path: Path) -> None:
    socket_path = f"--socket-path={tmp_path}/s"
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for arguments, status, sentence in (
        ([f"--shared-dir={tmp_path}/nothing", socket_path], 2, "--shared-dir .*nothing does not exist"),
        ([f"--shared-dir={tmp_path}/file", socket_path], 2, "--shared-dir .*file is not a directory"),
        ([f"--shared-dir={tmp_path}/file/below", socket_path], 2, "--shared-dir .*below does not exist"),
        ([f"--shared-dir={tmp_path}/loop", socket_path], 1, "--shared-dir .*loop can't be reached: Too many levels"),
        ([f"--shared-dir={share}", f"--socket-path=/{'x' * 107}"], 2, "--socket-path is longer than 107 bytes"),
        ([f"--shared-dir={share}", f"--socket-path={tmp_path}/no/s"], 2, "--socket-path .*no such directory"),
        ([f"--shared-dir={share}", f"--socket-path={tmp_path}/file"], 2, "--socket-path .*is not a socket"),
        ([f"--shared-dir={share}", "--fd=77"], 2, "--fd 77 is not an open socket"),
        ([f"--shared-dir={share}", socket_path, "--cache=often"], 2, "--cache must be one of"),
        ([f"--shared-dir={share}", socket_path, "--seccomp=kill"], 2, "--seccomp=kill is not built yet"),
    ):
        done = run(*arguments)
        assert done.returncode == status, done.stderr
        assert re.search(sentence, one_sentence(done)), done.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "loop", "share"]


def test_a_refusal_nobody_reads_keeps_its_status(share: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*VFSD, "--cache=often"], stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == 2
    closed = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *VFSD, "--cache=often"], check=False)
    assert closed.returncode == 2


# A life


class Daemon:
    """A started vfsd whose socket exists."""

    def __init__(self, share: Path, *arguments: str, cwd: Path, **keywords: object) -> None:
        self.socket = cwd / "s"
        self.process = subprocess.Popen(  # type: ignore[call-overload]
            [*VFSD, "--shared-dir", str(share), "--socket-path", "s", *arguments],
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=keywords.pop("stderr", subprocess.PIPE),
            text=True,
            **keywords,
        )
        while not (cwd / "s.pid").exists():
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.001)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=30)
        return self.process.returncode, log

    def ready(self) -> str:
        """The log up to the line managers wait for."""
        lines = ""
        assert self.process.stderr
        while "Waiting for vhost-user socket connection..." not in lines:
            line = self.process.stderr.readline()
            assert line, lines
            lines += line
        return lines


@pytest.fixture(params=["none", "namespace", *(["chroot"] if os.geteuid() == 0 else [])])
def sandbox(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def daemon(share: Path, tmp_path: Path, sandbox: str) -> Iterator[Daemon]:
    daemon = Daemon(share, f"--sandbox={sandbox}", cwd=tmp_path)
    yield daemon
    if daemon.process.poll() is None:
        daemon.process.kill()
        daemon.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_told_to_end_while_it_waits(daemon: Daemon, tmp_path: Path, number: int) -> None:
    daemon.ready()
    assert daemon.end(number)[0] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["share"]


def test_told_to_end_by_the_pid_file_at_once(daemon: Daemon, tmp_path: Path) -> None:
    pid = int((tmp_path / "s.pid").read_text())
    assert pid == daemon.process.pid
    # Now: the daemon may still be importing.
    assert daemon.end()[0] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["share"]


def test_a_second_daemon_is_refused(daemon: Daemon, share: Path, tmp_path: Path) -> None:
    daemon.ready()
    done = run("--shared-dir", str(share), "--socket-path", str(tmp_path / "s"), "--sandbox=none")
    assert done.returncode == 1
    assert f"already in use by process {daemon.process.pid}" in one_sentence(done)
    assert daemon.socket.is_socket()


def test_it_ends_with_its_front_end(daemon: Daemon, tmp_path: Path) -> None:
    daemon.ready()
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(daemon.socket))
    _, log = daemon.process.communicate(timeout=30)
    assert daemon.process.returncode == 0, log
    assert log.index("Client connected, servicing requests") < log.index("Client disconnected, shutting down")
    assert [entry.name for entry in tmp_path.iterdir()] == ["share"]


def test_a_daemon_killed_behind_its_launcher(share: Path, tmp_path: Path, sandbox: str) -> None:
    if sandbox == "none":
        return  # It has no launcher.
    daemon = Daemon(share, f"--sandbox={sandbox}", cwd=tmp_path)
    daemon.ready()
    inside = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text()
    os.kill(int(inside), signal.SIGKILL)
    _, log = daemon.process.communicate(timeout=30)
    assert daemon.process.returncode == 1
    assert "ERROR vfsd] the daemon was killed by SIGKILL" in log
    assert [entry.name for entry in tmp_path.iterdir()] == ["share"]


def test_killed_and_started_again(daemon: Daemon, share: Path, tmp_path: Path, sandbox: str) -> None:
    daemon.ready()
    daemon.process.kill()
    daemon.process.communicate()
    assert stat.S_ISSOCK(daemon.socket.stat().st_mode)
    # With walls the launcher was killed; the process inside follows it, and holds the lock until then.
    with (tmp_path / "s.pid").open() as pid_file:
        fcntl.flock(pid_file, fcntl.LOCK_EX)
        Path(pid_file.name).unlink()
    again = Daemon(share, f"--sandbox={sandbox}", cwd=tmp_path)
    again.ready()
    assert again.end()[0] == 1


def test_an_inherited_socket(share: Path, tmp_path: Path, sandbox: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        fd = listening.fileno()
        process = subprocess.Popen(
            [*VFSD, f"--fd={fd}", "--shared-dir", str(share), f"--sandbox={sandbox}"],
            pass_fds=[fd],
            stderr=subprocess.PIPE,
            text=True,
        )
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(tmp_path / "s"))
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    assert (tmp_path / "s").exists()
    assert not (tmp_path / "s.pid").exists()


def test_a_full_pipe_for_its_log_does_not_stop_it(share: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writer, True)
    daemon = Daemon(share, "--sandbox=none", "-d", cwd=tmp_path, stderr=writer)
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(daemon.socket))
    assert daemon.process.wait(timeout=30) == 0
    os.close(reader)
    os.close(writer)


def test_standard_files_may_be_closed(share: Path, tmp_path: Path) -> None:
    command = [*VFSD, "--shared-dir", str(share), "--socket-path", str(tmp_path / "s"), "--sandbox=none"]
    process = subprocess.Popen(["sh", "-c", 'exec "$@" 0<&- >&- 2>&-', "sh", *command])
    while not (tmp_path / "s.pid").exists():
        assert process.poll() is None
        time.sleep(0.001)
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(tmp_path / "s"))
    assert process.wait(timeout=30) == 0
