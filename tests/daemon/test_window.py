"""The DAX window through the whole daemon: every byte of it, and of the files, against a model over random operations.

VFSD_TEST_SCALE multiplies the number of operations.
"""

import errno
import fcntl
import os
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon, children, guest, kinds, name, open_files, settled_files, until
from tests.daemon.storm import Storm
from tests.daemon.windowed import FLAGS, Guest, Model
from tests.fuseclient import HEADER, REPLY_HEADER, ROOT, FuseClient, pack, unpack
from tests.sandbox.user import as_user
from tests.shmem import PAGE
from vfsd._fuse import lib
from vhost.message import BackendRequest, ProtocolFeature

OPERATIONS = 1500 * int(os.environ.get("VFSD_TEST_SCALE", "1"))
WINDOW = 2 << 20
OPTIONS = ("--tag=fs", f"--dax-window={WINDOW}", "--dax-policy=always")
NONE = "there is no DAX window"


@pytest.fixture
def begin(start: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """Starts a daemon with a window, and these options."""

    def begin(*options: str) -> Daemon:
        daemon = start(*OPTIONS, *options)
        daemon.logged("Waiting")
        if NONE in daemon.log:
            pytest.skip(f"a window takes root and Linux 6.9: {daemon.log}")
        return daemon

    return begin


@pytest.fixture
def windowed(begin: Callable[..., Daemon]) -> Daemon:
    return begin("--sandbox=none")


def unused(path: Path) -> bool:
    """Nobody has the file open for writing, not even the kernel on behalf of a mapping."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def settled(daemon: Daemon, client: FuseClient) -> list[str]:
    """What the daemon has open when a worker has just begun and the strays of the last one are swept."""
    daemon.kill_worker()
    client.lookup(ROOT, b"hello")
    client.forget(client.lookup(ROOT, b"hello").nodeid, 2)
    return sorted(kinds(settled_files(daemon)))


def padded(daemon: Daemon) -> int:
    """The pid of the process that opens files so that they can be mapped."""
    return next(pid for pid in children(daemon.control) if name(pid) == "vfsd-padded")


@pytest.mark.parametrize(("seed", "announces"), [(1, "after"), (2, "before")])
@pytest.mark.timeout(120 + OPERATIONS)
def test_every_byte(windowed: Daemon, share: Path, seed: int, announces: str) -> None:
    vm = Guest(windowed)
    vm.fe.announces = announces
    try:
        baseline, keeper = settled(windowed, vm.client), padded(windowed)
        kept = kinds(open_files(keeper))
        model = Model(vm, share, seed)
        storm = Storm(model)
        storm.run(OPERATIONS)
        for file in list(model.files):
            model.close_handles(file)
            model.forget(file)
            model.check_file(file)
            storm.end(file)
        assert not vm.fe.window[0].mappings
        model.check()
        until(lambda: settled(windowed, vm.client) == baseline)
        assert kinds(open_files(keeper)) == kept, "the process that opens files keeps none"
        for file in model.files:
            until(lambda file=file: unused(share / file.name))
        maps = Counter((request.name, bool(why)) for request, _, why in vm.fe.handled)
        print(f"{OPERATIONS} operations: {model.compared >> 20} MiB compared, {dict(maps)}, late {vm.fe.late}")
        print(dict(storm.count), "workers killed", windowed.log.count("killed by SIGKILL"))
        assert maps["SHMEM_MAP", False] > OPERATIONS // 10 and maps["SHMEM_UNMAP", False] > OPERATIONS // 10
        assert storm.count["refused"] and windowed.log.count("killed by SIGKILL") > 2
    finally:
        vm.close()
    assert "Traceback" not in windowed.log


def test_what_is_stored_at_once_is_not_lost(vm: Guest, model: Model) -> None:
    """QEMU answers before the mapping is in force."""
    (file,) = model.files
    vm.fe.lag = 0.1
    assert model.setup(file, 0, 2 * PAGE, 0) == 0
    vm.fe.window[0].write(100, b"at once")
    model.write(file, 100, b"at once")
    model.check_file(file)
    model.check()


def test_an_upgrade_takes_no_step(vm: Guest, model: Model) -> None:
    (file,) = model.files
    assert model.setup(file, 0, 4 * PAGE, 0, write=False) == 0
    assert model.setup(file, 0, 4 * PAGE, 0, write=True) == 0
    assert model.setup(file, PAGE, PAGE, PAGE, write=True) == 0
    assert [request for request, _, _ in vm.fe.handled] == [BackendRequest.SHMEM_MAP]


@pytest.mark.parametrize("sandbox", ["namespace", "chroot"])
def test_behind_walls(begin: Callable[..., Daemon], share: Path, sandbox: str) -> None:
    vm = Guest(begin(f"--sandbox={sandbox}"))
    model = Model(vm, share, 1)
    file = model.add("a", 3 * PAGE + 5)
    assert model.setup(file, 0, 4 * PAGE, PAGE) == 0
    model.check()
    vm.kill()
    assert model.setup(file, PAGE, PAGE, 8 * PAGE) == 0
    model.check()
    vm.close()


def test_the_last_handle_of_a_deleted_file(vm: Guest, model: Model) -> None:
    (file,) = model.files
    model.open(file, os.O_RDWR)
    assert model.setup(file, 0, 2 * PAGE, 0) == 0
    file.host = model.host_fd(file)
    vm.client.unlink(ROOT, b"a")
    model.check()
    file.linked = False
    model.close_handles(file)
    model.forget(file)
    assert not vm.fe.window[0].mappings
    deleted = [what for what in open_files(vm.daemon.control).values() if "deleted" in what and "/share/" in what]
    assert deleted == [], "its blocks are kept"
    model.lose(file)


def test_a_forget_outlives_the_worker_that_told_it(vm: Guest, model: Model) -> None:
    """Nobody tells it again: the guest got no answer to wait for."""
    (file,) = model.files
    assert model.setup(file, 0, 2 * PAGE, 0) == 0
    os.kill(vm.daemon.control, signal.SIGSTOP)
    vm.client.forget(file.nodeid, file.lookups)
    vm.kill()
    os.kill(vm.daemon.control, signal.SIGCONT)
    until(lambda: not vm.fe.window[0].mappings)


def test_a_nodeid_is_another_file_after_a_reset(vm: Guest, model: Model, share: Path) -> None:
    (file,) = model.files
    assert model.setup(file, 0, 8 * PAGE, 0) == 0
    before = file.nodeid
    (share / "a").unlink()
    vm.fe.reset()
    vm.fe.start()
    vm.client.init(flags=FLAGS)
    model.gone()
    other = model.add("b", 8 * PAGE)
    assert model.known(other) == before, "or this shows nothing"
    assert model.setup(other, 0, 8 * PAGE, 0) == 0
    model.check()


@pytest.mark.parametrize("kill", [False, True])
def test_the_window_is_empty_when_the_next_mount_begins(vm: Guest, model: Model, kill: bool) -> None:
    (file,) = model.files
    vm.fe.delay = 0.005
    for page in range(0, 20, 2):
        assert model.setup(file, 0, PAGE, page * PAGE) == 0
    if kill:
        vm.disturb = vm.caught(vm.kill)
    vm.client.init(flags=FLAGS)
    assert not vm.fe.window[0].mappings
    model.gone()
    model.check()


def test_all_ranges_of_a_long_list(vm: Guest, model: Model) -> None:
    (file,) = model.files
    assert model.setup(file, 0, PAGE, WINDOW - PAGE) == 0
    most = ((128 << 10) - 4) // 16
    assert model.remove([(0, PAGE)] * (most - 1) + [(WINDOW - PAGE, PAGE)]) == 0
    assert not vm.fe.window[0].mappings
    model.check()


def ask_at_once(vm: Guest, count: int) -> list[tuple[int, int]]:
    """(unique, head) of REMOVEMAPPINGs that are all on the ring before any is served."""
    queue, asked = vm.fe.queue(1), []
    body = pack("fuse_removemapping_in", count=1) + pack("fuse_removemapping_one", moffset=0, len=PAGE)
    for _ in range(count):
        unique = next(vm.client.uniques)
        head = pack("fuse_in_header", len=HEADER + len(body), opcode=lib.FUSE_REMOVEMAPPING, unique=unique, nodeid=ROOT)
        asked.append((unique, queue.add([head + body], [REPLY_HEADER])))
    queue.kick()
    return asked


def test_every_question_is_answered(windowed: Daemon, share: Path) -> None:
    """More than a socket holds, while the first one takes its time; and the worker is stopped for a moment."""
    vm = Guest(windowed, num=1024)
    model = Model(vm, share, 1)
    assert model.setup(model.add("a", PAGE), 0, PAGE, 0) == 0
    vm.fe.gate.clear()
    asked = ask_at_once(vm, 900)
    until(lambda: vm.fe.received == 3)
    worker = windowed.worker
    os.kill(worker, signal.SIGSTOP)
    threading.Timer(0.3, os.kill, (worker, signal.SIGCONT)).start()
    vm.fe.gate.set()
    for unique, head in asked:
        answer = unpack("fuse_out_header", vm.fe.queue(1).wait(head).data)
        assert (answer.unique, answer.error) == (unique, 0)
    assert "does not read" not in windowed.log
    vm.close()


def test_a_front_end_that_closes_the_channel(vm: Guest, model: Model) -> None:
    """It lives on, and maps nothing more: who asks is told so."""
    (file,) = model.files
    assert model.setup(file, 0, PAGE, 0) == 0
    assert vm.fe.channel
    vm.fe.channel.shutdown(2)
    for _ in range(3):
        vm.client.setupmapping(file.nodeid, PAGE, PAGE, PAGE, expect=errno.EIO)
    vm.client.removemapping((0, PAGE))
    assert vm.client.getattr(file.nodeid).attr.size == len(file.data)
    # A next worker knows of no window.
    vm.kill()
    vm.client.setupmapping(file.nodeid, PAGE, PAGE, PAGE, expect=errno.ENOSYS)


def test_without_the_process_that_opens_files(vm: Guest, model: Model) -> None:
    (file,) = model.files
    assert model.setup(file, 0, 4 * PAGE, 0) == 0
    os.kill(padded(vm.daemon), signal.SIGKILL)
    vm.daemon.logged("files can't be mapped any more")
    for _ in range(2):
        vm.client.setupmapping(file.nodeid, 4 * PAGE, PAGE, 8 * PAGE, expect=errno.ENOTCONN)
        vm.fe.window[0].write(0, b"guest")
        model.write(file, 0, b"guest")
        model.check()
        model.check_file(file)
        vm.kill()
    # What is left of it can be mapped again if the kernel need not ask for the file's size.
    assert model.remove([(0, PAGE)]) in (0, errno.EIO)
    model.check()
    vm.pause()
    assert vm.client.getattr(file.nodeid).attr.size == len(file.data)
    assert vm.daemon.log.count("files can't be mapped any more") == 1
    assert "Traceback" not in vm.daemon.log


def test_a_file_that_thrashes_is_offered_no_more(begin: Callable[..., Daemon], share: Path) -> None:
    vm = Guest(begin("--dax-policy=auto", "--dax-max-size=1G"))
    os.truncate(share / "hello", 8 * WINDOW)
    nodeid = vm.client.lookup(ROOT, b"hello").nodeid
    assert vm.client.getattr(nodeid).attr.flags & lib.FUSE_ATTR_DAX
    source = random.Random(1)

    def offered() -> bool:
        vm.client.setupmapping(nodeid, source.randrange(8) * WINDOW, WINDOW, 0)
        return bool(vm.client.getattr(nodeid).attr.flags & lib.FUSE_ATTR_DAX)

    assert any(not offered() for _ in range(500))
    vm.kill()
    assert not vm.client.getattr(nodeid).attr.flags & lib.FUSE_ATTR_DAX, "a next worker knows, too"
    vm.close()


# Where there is no window.


def served_without(daemon: Daemon) -> None:
    """A guest that would like one."""
    with guest(daemon, init=False) as (_, client):
        assert not client.init(flags=FLAGS).flags & lib.FUSE_MAP_ALIGNMENT
        entry = client.lookup(ROOT, b"hello")
        assert not entry.attr.flags & lib.FUSE_ATTR_DAX
        client.setupmapping(entry.nodeid, 0, PAGE, 0, expect=errno.ENOSYS)
        client.removemapping((0, PAGE), expect=errno.ENOSYS)
        assert client.read(entry.nodeid, client.open(entry.nodeid).fh, 100) == b"hi there\n"
        for _ in range(2):
            daemon.kill_worker()
            assert client.getattr(entry.nodeid).attr.size == 9


NO_FUSE = """set -e
mount -t tmpfs none /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/urandom c 1 9
exec "$@"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take /dev/fuse away")
@pytest.mark.parametrize("sandbox", ["namespace", "none"])
def test_without_dev_fuse(start: Callable[..., Daemon], sandbox: str) -> None:
    daemon = start(*OPTIONS, f"--sandbox={sandbox}", prefix=["unshare", "--mount", "sh", "-c", NO_FUSE, "sh"])
    served_without(daemon)
    assert [line for line in daemon.log.splitlines() if NONE in line and "/dev/fuse" in line]
    assert daemon.log.count(NONE) == 1


@pytest.mark.parametrize("sandbox", ["namespace", "none"])
def test_an_ordinary_user(start: Callable[..., Daemon], share: Path, tmp_path: Path, sandbox: str) -> None:
    if sandbox == "namespace" and not shutil.which("newuidmap"):
        pytest.skip("takes newuidmap")
    share.chmod(0o755)
    daemon = start(*OPTIONS, f"--sandbox={sandbox}", prefix=as_user(tmp_path))
    served_without(daemon)
    assert daemon.log.count(NONE) == 1


@pytest.mark.parametrize("lacks", [ProtocolFeature.SHMEM, ProtocolFeature.CONFIG, ProtocolFeature.BACKEND_REQ])
def test_a_front_end_without_shared_memory(begin: Callable[..., Daemon], lacks: ProtocolFeature) -> None:
    daemon = begin("--sandbox=none", "--keep-listening")
    for number in range(1, 3):
        vm = Guest(daemon, without=lacks)
        entry = vm.client.lookup(ROOT, b"hello")
        vm.client.setupmapping(entry.nodeid, 0, PAGE, 0, expect=errno.ENOSYS)
        vm.kill()
        assert vm.client.getattr(entry.nodeid).attr.size == 9
        vm.close()
        daemon.logged("Client disconnected", number)
        assert daemon.log.count(f"{NONE}: this front-end has no shared memory") == number
