"""A DAX window goes on in another process, or what came is refused. Here both processes are this one."""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.ops.windowed import BASE, PAGE, RANGE, SIZE, Worker, mapped
from tests.vhost.test_resume import nonsense
from vfsd._fuse import lib
from vfsd.window import Window
from vhost.saved import Packed, StateError, Unpacked


def carried(window: Window) -> tuple[Any, list[int]]:
    """What arrives in another process."""
    packed = Packed()
    data = json.loads(json.dumps(window.save(packed)))
    return data, [os.dup(fd) for fd in packed.fds]


def go_on(worker: Worker) -> None:
    """The window is another one from now on, with another worker. The front-end is the same."""
    worker.window.suspend()
    data, fds = carried(worker.window)
    worker.window.clear()
    worker.window = Window(SIZE, worker.padded)  # type: ignore[arg-type]
    worker.window.restore(data, Unpacked(fds))
    worker.channel.asked.clear()
    # What the front-end was asked and has not begun to read is withdrawn (vhost/channel.py).
    worker.channel.done.clear()
    worker.memory.shown.clear()
    worker.resume()


@pytest.fixture
def busy(worker: Worker) -> Iterator[Worker]:
    """With all there can be: mappings, sure and not, a change begun, and what is due."""
    for nodeid, offset in ((7, 0), (8, RANGE), (9, 40 * PAGE), (9, 50 * PAGE)):
        worker.setup(nodeid, offset, length=4 * PAGE)
    worker.done()
    worker.remove((PAGE, PAGE))
    worker.work()
    worker.ask(lib.WINDOW_FORGET, token=0, nodeid=9)
    worker.setup(5, 0)
    worker.work()
    worker.window.suspend()
    yield worker


def test_nothing_is_mapped_anew(worker: Worker) -> None:
    worker.setup(7, PAGE, 2 * PAGE, 4 * PAGE)
    worker.setup(8, RANGE)
    worker.done()
    before, shown = str(worker.window.statistics()), worker.memory.names()
    for _ in range(3):
        go_on(worker)
        token = worker.setup(7, PAGE, 2 * PAGE, 4 * PAGE)
        worker.work()
        assert worker.answers() == [(token, 0)] and worker.channel.asked == []
        assert worker.files() == ["file7", "file8"] and worker.memory.names() == shown
        assert shown[BASE + PAGE, 4 * PAGE, 2 * PAGE] == "file7"
    assert worker.window.statistics().split("mappings")[1] == before.split("mappings")[1]
    assert worker.window.statistics() == before.replace("setups=3", "setups=6")


def test_what_was_begun_and_what_is_due(busy: Worker) -> None:
    go_on(busy)
    busy.done()
    assert busy.channel.asked == [
        ("unmap", 0, 4 * PAGE), *mapped("file7", 0, 0), *mapped("file7", 2 * PAGE, 2 * PAGE, 2 * PAGE),
        ("unmap", 40 * PAGE, 4 * PAGE), ("unmap", 50 * PAGE, 4 * PAGE),
    ]  # fmt: skip
    assert busy.files() == ["file7", "file8"] and busy.answers() == []


def test_a_doubtful_mapping_stays_so(worker: Worker) -> None:
    worker.setup(7, 0)
    worker.done()
    worker.window.suspend()
    worker.resume(paused=True)
    worker.done()
    go_on(worker)
    worker.setup(7, 0)
    worker.done()
    assert worker.channel.asked == [("unmap", 0, PAGE), *mapped("file7", 0, 0)]


def test_the_next_file_has_a_number_of_its_own(worker: Worker) -> None:
    worker.setup(7, 0)
    worker.done()
    worker.ask(lib.WINDOW_EMPTY)
    worker.done()
    go_on(worker)
    worker.setup(7, 0, name="other")
    worker.setup(8, PAGE, name="another")
    worker.done()
    assert worker.files() == ["another", "other"]


def test_a_file_that_thrashes_still_does(worker: Worker) -> None:
    for number in range(400):
        worker.setup(7, number % 2 * RANGE, number * 5 % 7 * RANGE, RANGE)
        worker.done()
    assert worker.all_answers()[-1].thrashes
    go_on(worker)
    worker.setup(7, RANGE)
    worker.done()
    assert [bool(answer.thrashes) for answer in worker.all_answers()] == [True]


def test_a_front_end_that_never_told_is_asked_after_the_next_stop(worker: Worker) -> None:
    """And not before: that it was asked is known."""
    worker.window.clear()
    worker.channel.asked.clear()
    worker.begin(None)
    go_on(worker)
    worker.done()
    assert worker.channel.asked == []
    worker.window.suspend()
    worker.resume(paused=True)
    worker.done()
    assert worker.channel.asked[0] == mapped("vfsd-probe", 0, 0)[0]


def test_nonsense_is_refused(busy: Worker) -> None:
    """Anything in the place of anything: it is taken for what it is, or refused in one phrase, and nothing else."""
    refused = 0
    data, fds = carried(busy.window)
    for fd in fds:
        os.close(fd)
    for changed in nonsense(data, 5):
        _, fds = carried(busy.window)
        window = Window(SIZE, busy.padded)  # type: ignore[arg-type]
        try:
            window.restore(changed, Unpacked(fds))
            window.work(None)
            window.suspend()
        except StateError as error:
            assert str(error)
            refused += 1
        finally:
            for fd in fds:
                if os.path.exists(f"/proc/self/fd/{fd}"):
                    os.close(fd)
    assert refused > 100


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"size": 2 * SIZE}, f"its DAX window has {2 * SIZE} bytes, and this one's {SIZE}"),
        ({"files": []}, "2 mapped files did not come along"),
        ({"next": 2}, "a file has a number that another one will have"),
        ({"placing": {"base": BASE + PAGE, "next": -1}}, f"no window of {SIZE} bytes lies at {BASE + PAGE:#x}"),
    ],
)
def test_what_does_not_fit_is_refused(worker: Worker, changes: dict[str, Any], sentence: str) -> None:
    for nodeid in (7, 8):
        worker.setup(nodeid, nodeid * PAGE)
    worker.done()
    worker.window.suspend()
    data, fds = carried(worker.window)
    with pytest.raises(StateError) as refusal:
        Window(SIZE, worker.padded).restore({**data, **changes}, Unpacked(fds))  # type: ignore[arg-type]
    assert str(refusal.value) == sentence
    for fd in fds:
        os.close(fd)
