"""stress-ng's file-system stressors on the share, five minutes in all, and a guest kernel that has nothing to say."""

import time

import pytest

from tests.guest.complaints import complaints, kernel_log
from vfsd.guest.channel import Result
from vfsd.guest.errors import TimeLimitError
from vfsd.guest.guest import Guest

from .conftest import Place

#: `stress-ng --class filesystem?` less what makes no use of the directory (binderfs, bind-mount, eventfd, ioprio,
#: procfs, dup), and the I/O stressors of other classes that work on files.
STRESSORS = """\
    access chattr chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify fallocate fanotify fcntl fiemap
    file-ioctl filename flock fpunch fsize fstat getdent handle hdd inode-flags inotify io iomix lease link locka lockf
    lockofd mknod open rename symlink sync-file touch utime verity xattr
    aio aiol io-uring readahead revio seek sendfile splice
"""
#: lockf's parent waits for a child that it has sent an alarm, and that waits for a lock of its parent's. No signal ends
#: such a wait on a share (docs/options.md), so the two would wait for ever.
MORE = {"lockf": "--lockf-nonblock"}
TOTAL = 300
#: stress-ng(1): a stressor failed its verification, was killed, or ended early.
FAILED = (2, 5, 6)


def stress(guest: Guest, name: str, seconds: int, directory: str) -> Result:
    command = f"stress-ng --{name} 2 {MORE.get(name, '')} --timeout {seconds} --verify --temp-path {directory}"
    # Into a file, since a stressor that can't be killed would keep a pipe open.
    log = f"/tmp/{name}{directory.replace('/', '-')}.log"
    try:
        return guest.run(f"{command} >{log} 2>&1; status=$?; tail -n 40 {log}; exit $status", seconds + 120, cwd="/")
    except TimeLimitError as error:
        return Result(5, str(error).encode(), b"")


@pytest.mark.long
def test_stress(place: Place, control: str, scale: int) -> None:
    guest, stressors = place.guest, STRESSORS.split()
    seconds = max(2, TOTAL * scale // len(stressors))
    before = len(kernel_log(guest))
    worse, same, without = {}, [], []
    start = time.monotonic()
    for name in stressors:
        result = stress(guest, name, seconds, place.path)
        if result.status in FAILED:
            native = stress(guest, name, seconds, control)
            if native.status in FAILED:
                same.append(name)
            else:
                worse[name] = f"status {result.status}, {native.status} on ext4\n{result.text[-3000:]}"
        elif result.status:
            without.append(f"{name} ({result.status})")
    print(f"{len(stressors)} stressors of {seconds} s in {time.monotonic() - start:.0f} s; fail on ext4 too: {same}")
    print(f"not run (3: no resource, 4: not implemented): {without}")
    complained = complaints(guest, before)
    assert not complained, "\n".join(complained)
    assert not worse, "\n\n".join(f"{name}: {text}" for name, text in worse.items())
    assert place.run("echo alive >after; cat after").text == "alive"
