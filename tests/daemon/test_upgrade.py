"""Upgrades in place: another build takes over, and the guest does not notice; or it can't, and the old one goes on."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.daemon import REPOSITORY, Daemon, children, guest, name, open_files, polls, spares, until
from tests.daemon.upgrading import build, dies_when_given, dies_when_ready, executable, loaded, replace, upgrade
from tests.fuseclient import ROOT, FuseClient
from tests.sandbox.user import AS_ROOT, as_user

MODES = ["none", "namespace", *(["chroot"] if AS_ROOT else [])]


class Held:
    """What a guest holds, and what must be as it was."""

    def __init__(self, client: FuseClient, share: Path) -> None:
        self.client, self.share = client, share
        for number in range(50):
            (share / f"listed{number:02}").touch()
        (share / "unlinked").write_bytes(b"nobody sees it")
        (share / "locked").write_bytes(b"locked")
        self.hello = client.lookup(ROOT, b"hello").nodeid
        self.unlinked = client.lookup(ROOT, b"unlinked").nodeid
        self.fh = client.open(self.unlinked, os.O_RDWR).fh
        (share / "unlinked").unlink()
        self.locked = client.lookup(ROOT, b"locked").nodeid
        self.lock_fh = client.open(self.locked, os.O_RDWR).fh
        client.setlk(self.locked, self.lock_fh, 77, fcntl.F_WRLCK, 0, 99)
        self.dir_fh = client.opendir(ROOT).fh
        first = client.readdir(ROOT, self.dir_fh, 0, 1024)
        self.offset, self.names = first[-1].off, [entry.name for entry in first]

    def check(self) -> None:
        client = self.client
        assert client.lookup(ROOT, b"hello").nodeid == self.hello, "an inode keeps its nodeid"
        client.forget(self.hello)
        assert client.read(self.unlinked, self.fh, 100) == b"nobody sees it"
        with open(self.share / "locked", "r+b") as file, pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 0)
        client.setlk(self.locked, self.lock_fh, 78, fcntl.F_WRLCK, 50, 60, expect=errno.EAGAIN)
        names, offset = [*self.names], self.offset
        while entries := client.readdir(ROOT, self.dir_fh, offset, 1024):
            offset = entries[-1].off
            names += [entry.name for entry in entries]
        wanted = {b"listed%02d" % number for number in range(50)}
        assert len(names) == len(set(names))
        assert wanted < set(names), "a listing goes on where it was"


@pytest.mark.parametrize("mode", MODES)
def test_back_and_forth_under_load(start: Callable[..., Daemon], share: Path, tmp_path: Path, mode: str) -> None:
    programs = [build(tmp_path, "8.1"), build(tmp_path, "8.2")]
    daemon = start(f"--sandbox={mode}")
    pid_file = daemon.socket_path.with_suffix(".sock.pid")
    with loaded(daemon) as (_, client, loads):
        held = Held(client, share)
        for number in range(4):
            before = [load.done for load in loads]
            done = upgrade(daemon.socket_path, f"--program={programs[number % 2]}")
            assert (done.returncode, done.stderr) == (0, f"process {daemon.process.pid} is upgraded\n")
            daemon.logged(f"this is vfsd 8.{number % 2 + 1}-0.1.0 in the place of", times=number // 2 + 1)
            held.check()
            until(lambda before=before: all(load.done > then + 5 for load, then in zip(loads, before, strict=True)))
            assert int(pid_file.read_text()) == daemon.process.pid
        assert name(daemon.process.pid) == "vfsd-8.2"
    assert daemon.wait() == 0
    assert not daemon.socket_path.exists()
    assert not pid_file.exists()


def test_a_signal_will_do(daemon: Daemon) -> None:
    """And the program is the one that was started, by the arguments it was started with."""
    with guest(daemon) as (_, client):
        until(lambda: daemon.workers)
        daemon.process.send_signal(signal.SIGUSR2)
        daemon.logged("this is vfsd 0.1.0 in the place of 0.1.0")
        assert client.lookup(ROOT, b"hello").attr.size == 9
    assert daemon.wait() == 0


def test_asked_for_when_the_worker_has_died(start: Callable[..., Daemon]) -> None:
    """What it brings may get the number that a descriptor of the worker had a moment ago."""
    daemon = start("--sandbox=namespace")
    with guest(daemon) as (_, client):
        control, worker = daemon.control, daemon.worker
        os.kill(control, signal.SIGSTOP)
        os.kill(worker, signal.SIGKILL)

        def go_on() -> None:
            until(lambda: len(children(daemon.process.pid)) == 2)
            time.sleep(0.1)
            os.kill(control, signal.SIGCONT)

        todo = [go_on]
        done = upgrade(daemon.socket_path, meanwhile=lambda: todo.pop()() if todo else time.sleep(0.01))
        assert done.returncode == 0, daemon.log
        assert client.lookup(ROOT, b"hello").attr.size == 9


@pytest.mark.parametrize("mode", MODES)
def test_signals_and_status_after_it(start: Callable[..., Daemon], mode: str) -> None:
    daemon = start(f"--sandbox={mode}")
    with guest(daemon):
        assert upgrade(daemon.process.pid).returncode == 0
        daemon.process.send_signal(signal.SIGUSR1)
        daemon.logged("requests served: 1 INIT")
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 1
        daemon.logged("SIGTERM: shutting down")
    assert not daemon.socket_path.exists()


@pytest.mark.parametrize("mode", MODES)
def test_nothing_outlives_who_was_started(start: Callable[..., Daemon], mode: str) -> None:
    daemon = start(f"--sandbox={mode}")
    with guest(daemon) as (_, client):
        assert upgrade(daemon.socket_path).returncode == 0
        client.lookup(ROOT, b"hello")
        family = [child for pid in children(daemon.process.pid) for child in (pid, *children(pid))]
        assert len(family) >= 2
        daemon.process.kill()
        until(lambda: not any(name(pid) for pid in family))


@pytest.mark.parametrize("mode", MODES)
def test_between_front_ends(start: Callable[..., Daemon], mode: str) -> None:
    daemon = start(f"--sandbox={mode}", "--keep-listening")
    for _ in range(2):
        assert upgrade(daemon.socket_path).returncode == 0
        with guest(daemon) as (_, client):
            assert client.lookup(ROOT, b"hello").attr.size == 9
            assert upgrade(daemon.socket_path).returncode == 0
            assert client.getattr(ROOT).attr.nlink > 1
        daemon.logged("Client disconnected, waiting for the next one")


def test_no_descriptor_is_lost_or_left(start: Callable[..., Daemon], share: Path) -> None:
    daemon = start("--sandbox=none")
    with guest(daemon) as (_, client):
        counts = []
        for number in range(4):
            assert upgrade(daemon.socket_path).returncode == 0
            client.lookup(ROOT, b"hello", expect=0)
            (control,) = children(daemon.process.pid)
            until(lambda control=control: sorted(map(name, children(control))) == ["vfsd-spare", "vfsd-worker"])
            # Until it waits it has descriptors of its own.
            until(lambda control=control: polls(*spares(control)))
            counts.append(len(open_files(control)))
            assert len(open_files(daemon.process.pid)) < 16, "the launcher holds nothing of the guest's"
            assert number == 0 or counts[-1] == counts[-2]


@pytest.mark.parametrize("mode", MODES)
def test_what_the_starter_left_open(start: Callable[..., Daemon], mode: str) -> None:
    """It has the number of what may be a guest's."""
    code = "import os, sys; os.dup2(0, 251); os.execv(sys.argv[1], sys.argv[1:])"
    daemon = start(f"--sandbox={mode}", prefix=[sys.executable, "-c", code])
    assert 251 in open_files(daemon.process.pid)
    with guest(daemon) as (_, client):
        for _ in range(2):
            done = upgrade(daemon.socket_path)
            assert done.returncode == 0, done.stderr
            assert client.lookup(ROOT, b"hello").attr.size == 9
        assert 251 not in open_files(daemon.process.pid)


@pytest.mark.parametrize("keep", [[], ["--keep-listening"]])
def test_a_socket_of_the_managers(tmp_path: Path, share: Path, keep: list[str]) -> None:
    """The manager's socket serves the next daemon, unless the first one keeps listening."""
    path = tmp_path / "manager.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as manager:
        manager.bind(str(path))
        manager.listen()
        os.dup2(manager.fileno(), 90)
        code = "import sys; sys.path.insert(0, {!r}); from vfsd.__main__ import main; sys.exit(main())"
        program = executable(tmp_path / "vfsd-fd", code.format(str(REPOSITORY)))
        log = tmp_path / "log"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [program, "--fd=90", f"--shared-dir={share}", "--sandbox=none", *keep], pass_fds=[90], stderr=file
            )
        os.close(90)
        try:
            until(lambda: b"Waiting" in log.read_bytes())
            for number in range(2):
                assert upgrade(process.pid).returncode == 0
                until(lambda number=number: log.read_bytes().count(b"in the place of") == 2 * number + 1)
                # Those of the program before may be at their end.
                until(lambda: {name(pid) for pid in (process.pid, *children(process.pid))} == {"vfsd-fd"})
                if number and not keep:
                    break
                daemon = type("At", (), {"socket_path": path})
                with guest(daemon) as (_, client):  # type: ignore[arg-type]
                    assert upgrade(process.pid).returncode == 0
                    assert client.lookup(ROOT, b"hello").attr.size == 9
                if not keep:
                    assert process.wait(20) == 0
                    break
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(not AS_ROOT, reason="tests/sandbox tells what an ordinary user is")
def test_an_ordinary_users_daemon(start: Callable[..., Daemon], tmp_path: Path, share: Path) -> None:
    os.chown(share, 65534, 65534)
    daemon = start(prefix=as_user(tmp_path, granted=True))
    with guest(daemon) as (_, client):
        nodeid = client.lookup(ROOT, b"hello").nodeid
        fh = client.open(nodeid).fh
        (share / "hello").unlink()
        for _ in range(2):
            assert upgrade(daemon.socket_path).returncode == 0, daemon.log
            assert client.read(nodeid, fh, 100) == b"hi there\n"
            client.mkdir(ROOT, b"made")
            client.rmdir(ROOT, b"made")


def version_1(tree: Path) -> None:
    """What went from one process to another before DAX windows did."""
    replace(tree / "vfsd/legible.py", "VERSION = 3\n", "VERSION = 1\n")
    replace(tree / "vfsd/legible.py", "READABLE = (1, 2, 3)", "READABLE = (1,)")
    replace(tree / "vfsd/giver.py", '"padded": len(givings.padded), ', "")
    replace(tree / "vfsd/control.py", '            "window": self._window.save(packed) if self._window else {},\n', "")


@pytest.mark.parametrize("mode", ["none", "namespace"])
def test_from_version_1(start: Callable[..., Daemon], share: Path, tmp_path: Path, mode: str) -> None:
    """Its state can be read. It can't read ours."""
    older, ours = build(tmp_path, "7.9", version_1), build(tmp_path, "8.1")
    daemon = start(f"--sandbox={mode}", program=[str(older)])
    with loaded(daemon, queues=1) as (_, client, (load,)):
        held = Held(client, share)
        assert upgrade(daemon.socket_path, f"--program={ours}").returncode == 0
        daemon.logged("this is vfsd 8.1-0.1.0 in the place of 7.9-0.1.0")
        held.check()
        refused = "the old program's state is no use to this one: its state has version 3, and this one reads 1"
        assert refused in upgrade(daemon.socket_path, f"--program={older}").stderr
        then = load.done
        until(lambda: load.done > then + 5)
        held.check()


def raises(tree: Path) -> None:
    replace(tree / "vfsd/worker.py", "import errno\n", 'raise RuntimeError("broken build")\n')


def version_9(tree: Path) -> None:
    replace(tree / "vfsd/legible.py", "VERSION = 3\n", "VERSION = 9\n")
    replace(tree / "vfsd/legible.py", "READABLE = (1, 2, 3)", "READABLE = (9,)")


def other_records(tree: Path) -> None:
    replace(tree / "vfsd/legible.py", '"inode": _fuse.lib.INODE_RECORD', '"inode": 64')


def forgets_a_feature(tree: Path) -> None:
    replace(tree / "vfsd/device.py", "Feature.EVENT_IDX | ", "")


BROKEN = {
    raises: "the other process has ended; the new program ended with status 1",
    version_9: "the old program's state is no use to this one: its state has version 3, and this one reads 9",
    other_records: "the old program's state is no use to this one: its records differ (inode)",
    dies_when_given: "the other process has ended",
    dies_when_ready: "the other process has ended",
    forgets_a_feature: "features: 0x20000000 was negotiated, which this program does not offer",
}


@pytest.mark.parametrize("mode", ["none", "namespace"])
@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_a_broken_build(
    start: Callable[..., Daemon], share: Path, tmp_path: Path, change: Callable[[Path], None], mode: str
) -> None:
    program = build(tmp_path, "8.3", change)
    daemon = start(f"--sandbox={mode}")
    with loaded(daemon, queues=1) as (_, client, (load,)):
        held = Held(client, share)
        done = upgrade(daemon.socket_path, f"--program={program}")
        assert done.returncode == 1
        assert done.stderr == f"vfsd: no upgrade: {BROKEN[change]}; the old program goes on\n"
        daemon.logged("this program goes on")
        then = load.done
        held.check()
        until(lambda: load.done > then + 5)
        assert upgrade(daemon.socket_path).returncode == 0, "and another attempt is welcome"
        held.check()


@pytest.mark.parametrize("mode", ["none", "namespace"])
def test_what_is_no_vfsd(start: Callable[..., Daemon], tmp_path: Path, mode: str) -> None:
    daemon = start(f"--sandbox={mode}")
    other = executable(tmp_path / "other", "raise SystemExit(7)")
    with guest(daemon) as (_, client):
        done = upgrade(daemon.socket_path, f"--program={other}")
        assert "the new program ended with status 7" in done.stderr
        other.write_text("#!/nowhere\n")
        assert (
            f"{other} can't be executed: No such file or directory"
            in upgrade(daemon.socket_path, f"--program={other}").stderr
        )
        assert client.lookup(ROOT, b"hello").attr.size == 9
        until(lambda: all(name(pid) for pid in children(daemon.process.pid)))


def test_a_build_that_hangs(start: Callable[..., Daemon], tmp_path: Path) -> None:
    impatient = "import sys, vfsd.giver, vfsd.__main__; vfsd.giver.STARTING = 3.0; sys.exit(vfsd.__main__.main())"
    daemon = start("--sandbox=namespace", program=["-c", impatient])
    hangs = executable(tmp_path / "hangs", "import time; time.sleep(1000)")
    with guest(daemon) as (_, client):
        begun = time.monotonic()
        done = upgrade(daemon.socket_path, f"--program={hangs}")
        assert "the new program is not ready after 3 s" in done.stderr
        assert time.monotonic() - begun >= 3
        assert client.lookup(ROOT, b"hello").attr.size == 9
        (control,) = children(daemon.process.pid)
        assert control == daemon.control

        def upgraded() -> bool:
            done = upgrade(daemon.socket_path)
            # Which a build that does not hang may be, too, on a busy machine.
            assert done.returncode == 0 or "is not ready after 3 s" in done.stderr
            return done.returncode == 0

        until(upgraded)


def test_wrong_targets(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("nonsense")
    for target, sentence in {
        tmp_path / "missing": "No such file or directory; name a pid file, a socket of vfsd, or a pid",
        tmp_path / "pid": "there is no pid in it",
        os.getpid(): "is no vfsd that can be upgraded",
        1 << 22: "has ended",
    }.items():
        done = upgrade(target)
        assert done.returncode in (1, 2)
        assert sentence in done.stderr
