"""The DAX window between worker and front-end: vfsd.window, with a channel that only records."""

import errno
import os

import pytest

from tests.fuseclient import pack
from tests.ops.windowed import PAGE, RANGE, Channel, Worker, mapped
from vfsd._fuse import lib


def test_a_mapping_is_answered_when_it_is_in_force(worker: Worker) -> None:
    token = worker.setup(7, PAGE, 2 * PAGE)
    worker.work()
    worker.channel.answer()
    assert worker.channel.asked == mapped("file7", 2 * PAGE, PAGE) and worker.answers() == []
    worker.channel.answer(False)  # whatever is said of the configuration space
    assert worker.answers() == [(token, 0)]


def test_what_takes_no_step_is_answered_at_once(worker: Worker) -> None:
    worker.setup(7, 0, 0, 4 * PAGE)
    worker.done()
    again, inside, nothing = worker.setup(7, 0, 0, 4 * PAGE), worker.setup(7, PAGE, PAGE), worker.remove((RANGE, PAGE))
    none, bad = worker.remove(), worker.setup(7, PAGE + 1)
    asked = len(worker.channel.asked)
    worker.work()
    assert worker.answers() == [(1, 0), (again, 0), (inside, 0), (nothing, 0), (none, 0), (bad, -errno.EINVAL)]
    assert len(worker.channel.asked) == asked
    assert worker.files() == ["file7"], "one is enough"


def test_refused(worker: Worker) -> None:
    token = worker.setup(7, 0)
    worker.work()
    worker.channel.answer(False)
    assert worker.answers() == [(token, -errno.EIO)]
    assert worker.files() == [] and worker.channel.asked == mapped("file7", 0, 0)[:1]


def test_a_file_is_open_as_long_as_it_is_mapped(worker: Worker) -> None:
    for nodeid, offset in ((7, 0), (7, PAGE), (8, 2 * PAGE)):
        worker.setup(nodeid, offset)
    worker.done()
    assert worker.files() == ["file7", "file8"] and len(worker.window.descriptors()) == 2
    for offset, left in ((0, ["file7", "file8"]), (PAGE, ["file8"]), (2 * PAGE, [])):
        worker.remove((offset, PAGE))
        worker.done()
        assert worker.files() == left
    worker.setup(7, 0)
    worker.done()
    assert worker.files() == ["file7"]


def test_a_part_is_mapped_again(worker: Worker) -> None:
    worker.setup(7, 0, 0, 3 * PAGE)
    worker.done()
    worker.remove((PAGE, PAGE))
    worker.channel.asked.clear()
    worker.done()
    assert worker.channel.asked == [
        ("unmap", 0, 3 * PAGE), *mapped("file7", 0, 0), *mapped("file7", 2 * PAGE, 2 * PAGE)
    ]  # fmt: skip


def test_forget_and_empty(worker: Worker) -> None:
    for nodeid in (7, 8, 9):
        worker.setup(nodeid, nodeid * PAGE)
    worker.done()
    worker.ask(lib.WINDOW_FORGET, token=0, nodeid=8)
    worker.ask(lib.WINDOW_FORGET, token=0, nodeid=99)
    worker.done()
    assert worker.files() == ["file7", "file9"]
    token = worker.ask(lib.WINDOW_EMPTY)
    worker.answers()
    worker.done()
    assert worker.files() == [] and worker.answers() == [(token, 0)]


def test_the_next_mount_has_other_files(worker: Worker) -> None:
    """By the same nodeids, and asked for while the old mappings are undone."""
    worker.setup(7, 0, name="old")
    worker.done()
    worker.ask(lib.WINDOW_EMPTY)
    worker.setup(7, 0, name="new")
    worker.channel.asked.clear()
    worker.done()
    assert worker.channel.asked == [("unmap", 0, PAGE), *mapped("new", 0, 0)]
    assert worker.files() == ["new"]


def test_a_worker_that_ends(worker: Worker) -> None:
    """What has begun goes on; what has not is forgotten, but for what it only told; and nobody is answered."""
    worker.setup(6, 6 * PAGE)
    worker.done()
    worker.setup(7, 0)
    worker.work()
    worker.setup(8, PAGE)
    worker.setup(9, 2 * PAGE)
    worker.work()
    worker.ask(lib.WINDOW_FORGET, token=0, nodeid=6)
    worker.window.suspend()
    assert worker.padded.flushed == 1
    assert worker.files() == ["file6", "file7"]
    worker.channel.answer_all()
    assert worker.channel.asked[-2:] == mapped("file7", 0, 0), "nothing more while no worker runs"
    worker.resume()
    assert worker.answers() == []
    worker.done()
    assert worker.channel.asked[-1] == ("unmap", 6 * PAGE, PAGE) and worker.files() == ["file7"]
    token = worker.setup(7, 0)
    worker.done()
    assert worker.answers() == [(token, 0)]


def test_a_question_that_nobody_took(worker: Worker) -> None:
    """Its descriptor is swept with what else the worker left."""
    fd = os.memfd_create("stray", os.MFD_CLOEXEC)
    os.write(worker.window.worker_socket, pack("window_question", token=1, kind=lib.WINDOW_SETUP, fd=fd, length=PAGE))
    worker.window.suspend()
    assert fd not in worker.window.descriptors()
    os.close(fd)


@pytest.mark.parametrize("gone", [True, False])
def test_after_a_pause_nothing_is_relied_on(worker: Worker, gone: bool) -> None:
    worker.setup(7, 0)
    worker.done()
    worker.window.suspend()
    worker.resume(paused=True)
    token = worker.setup(7, 0)
    worker.channel.asked.clear()
    worker.work()
    assert worker.channel.asked == [("unmap", 0, PAGE)]
    worker.channel.answer(not gone)
    worker.channel.answer_all()
    assert worker.channel.asked[1:] == mapped("file7", 0, 0)
    assert worker.answers()[-1:] == [(token, 0)]


def test_without_a_channel(worker: Worker) -> None:
    worker.setup(7, 0)
    worker.done()
    worker.answers()
    served, other, gone = worker.setup(7, 0), worker.setup(8, PAGE), worker.remove((0, PAGE))
    worker.window.work(None)
    assert worker.answers() == [(served, 0), (other, -errno.EIO), (gone, 0)]
    assert worker.files() == []


def test_a_front_end_that_leaves(worker: Worker) -> None:
    worker.setup(7, 0)
    worker.done()
    worker.setup(8, PAGE)
    worker.work()
    worker.window.suspend()
    worker.window.clear()
    assert worker.files() == [] and not worker.window.descriptors()
    worker.channel = Channel()
    worker.begin()
    token = worker.setup(8, PAGE)
    worker.done()
    assert worker.channel.asked == mapped("file8", 0, PAGE) and worker.answers() == [(token, 0)]


def test_a_file_that_thrashes_is_told(worker: Worker) -> None:
    said = []
    for number in range(400):
        worker.setup(7, number % 2 * RANGE, number * 5 % 7 * RANGE, RANGE)
        worker.setup(8, number % 2 * RANGE, 0, PAGE) if number == 0 else None
        worker.done()
        said += [(answer.nodeid, answer.thrashes) for answer in worker.all_answers()]
    assert (7, 1) in said and (8, 1) not in said
    first = said.index((7, 1))
    assert all(thrashes for nodeid, thrashes in said[first:] if nodeid == 7), "again and again, should one be lost"
    worker.ask(lib.WINDOW_FORGET, token=0, nodeid=7)
    worker.setup(7, 0, 0, RANGE)
    worker.done()
    assert [answer.thrashes for answer in worker.all_answers()] == [0]
    assert "mapped" in worker.window.statistics()
