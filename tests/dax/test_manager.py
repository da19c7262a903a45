import errno

import pytest

from dax.manager import Done, Drop, Empty, Fill, Manager, Remove, Setup, State, Statistics
from dax.window import Map, Step, Unmap, Window, WindowError
from tests.dax.test_window import RO, P, mapping, unmap


def manager(*pages: int) -> Manager:
    """With a mapping of four pages of file 1 at each of `pages`."""
    made = Manager(Window(64 * P))
    for page in pages:
        made.ask(0, Setup(mapping(page, 4)))
    run(made)
    made.finished()
    return made


def run(manager: Manager, *refuse: Step) -> list[Step]:
    taken = []
    while step := manager.next():
        manager.answered(step not in refuse)
        taken.append(step)
    return taken


def test_one_step_at_a_time_and_changes_in_order() -> None:
    made = manager()
    made.ask(1, Setup(mapping(0, 4)))
    made.ask(2, Remove(((P, P),)))
    assert made.next() == Map(mapping(0, 4))
    assert made.next() is None and made.finished() == []
    made.answered(True)
    assert made.finished() == [Done(1, 0)]
    assert made.next() == unmap(0, 4)  # planned after the first was done
    made.answered(True)
    assert run(made) == [Map(mapping(0, 1)), Map(mapping(2, 2, 1, 2))]
    assert made.finished() == [Done(2, 0)] and made.finished() == []


def test_what_takes_no_step_is_done_at_once() -> None:
    made = manager(0)
    for token, change in enumerate((Setup(mapping(0, 4, writable=RO)), Remove(((8 * P, P),)), Drop(7))):
        made.ask(token, change)
    assert made.next() is None
    assert made.finished() == [Done(0, 0), Done(1, 0), Done(2, 0)]


def test_a_gap_is_filled_and_nothing_else() -> None:
    made = manager(0)
    for token, page in enumerate((3, 4)):
        made.ask(token, Fill(mapping(page, 2, 7)))
    assert made.files() == {1, 7}
    assert run(made) == [Map(mapping(4, 2, 7))]
    assert made.finished() == [Done(0, 0), Done(1, 0)]


def test_nonsense() -> None:
    made = manager(0)
    made.ask(1, Setup(mapping(63, 2)))
    made.ask(2, Remove(((0, 4 * P), (1, P))))
    made.ask(3, Empty())
    assert run(made) == [unmap(0, 4)]
    assert made.finished() == [Done(1, errno.EINVAL), Done(2, errno.EINVAL), Done(3, 0)]


def test_a_refused_map() -> None:
    made = manager(0)
    made.ask(1, Setup(mapping(0, 4, 2)))
    run(made, Map(mapping(0, 4, 2)))
    assert made.finished() == [Done(1, errno.EIO)] and made.window.mappings == ()


def test_a_refused_piece_keeps_the_others_and_is_an_error() -> None:
    made = manager(0)
    made.ask(1, Setup(mapping(1, 1, 2)))
    run(made, Map(mapping(0, 1)))
    assert made.finished() == [Done(1, errno.EIO)]
    assert made.window.mappings == (mapping(1, 1, 2), mapping(2, 2, 1, 2))


def test_a_refused_unmap_is_tried_once_more() -> None:
    made = manager(0)
    made.ask(1, Setup(mapping(0, 4, 2)))
    assert run(made, unmap(0, 4), unmap(0, 4, True)) == [unmap(0, 4), unmap(0, 4, True), Map(mapping(0, 4, 2))]
    assert made.finished() == [Done(1, 0)] and made.window.mappings == (mapping(0, 4, 2),)


def test_suspension_lets_the_answer_in_and_no_step_out() -> None:
    made = manager()
    made.ask(1, Setup(mapping(0, 4)))
    made.ask(2, Setup(mapping(8, 4)))
    made.next()
    made.suspend()
    made.answered(True)
    assert made.next() is None and made.finished() == [Done(1, 0)]
    made.resume()
    assert made.next() == Map(mapping(8, 4))


def test_doubt_in_the_middle_of_a_change() -> None:
    made = manager(0, 4)
    made.ask(1, Empty())
    assert made.next() == unmap(0, 4)
    made.doubt()
    made.answered(True)
    assert made.next() == unmap(4, 4, True)


def test_a_map_accepted_before_the_doubt_is_made_again() -> None:
    made = manager()
    made.ask(1, Setup(mapping(0, 4)))
    made.next()
    made.doubt()
    made.answered(True)
    assert made.finished() == []
    assert run(made) == [unmap(0, 4, True), Map(mapping(0, 4))]
    assert made.finished() == [Done(1, 0)] and not made.window.is_doubtful(0)


@pytest.mark.parametrize("accepted", [True, False])
def test_a_lost_step_is_taken_again(accepted: bool) -> None:
    made = manager(0)
    made.ask(1, Setup(mapping(0, 4, 2)))
    made.next()
    made.lost()
    assert made.next() == unmap(0, 4, True)
    made.answered(accepted)
    assert made.next() == Map(mapping(0, 4, 2))
    made.lost()
    assert made.next() == unmap(0, 4, True)
    made.answered(accepted)
    assert run(made) == [Map(mapping(0, 4, 2))]
    assert made.finished() == [Done(1, 0)]


def test_clear_ends_the_change_begun() -> None:
    made = manager(0)
    made.ask(1, Setup(mapping(1, 1, 2)))
    made.ask(2, Setup(mapping(8, 1, 3)))
    made.next()
    made.clear()
    assert made.finished() == [Done(1, errno.EAGAIN)] and made.next() is None
    made.answered(False)
    assert run(made) == [Map(mapping(8, 1, 3))] and made.window.mappings == (mapping(8, 1, 3),)


def test_a_map_under_way_when_cleared_is_doubtful() -> None:
    made = manager()
    made.ask(1, Setup(mapping(0, 4)))
    made.next()
    made.clear()
    made.answered(True)
    assert made.window.is_doubtful(0)
    made.ask(2, Setup(mapping(2, 4, 2)))
    assert run(made) == [unmap(0, 4, True), Map(mapping(0, 2)), Map(mapping(2, 4, 2))]


def test_flush_finishes_what_has_begun_and_tells_nobody() -> None:
    made = manager(0)
    made.ask(1, Setup(mapping(1, 1, 2)))
    made.ask(2, Empty())
    made.next()
    made.flush()
    made.answered(True)
    made.ask(3, Setup(mapping(8, 1)))
    assert run(made) == [
        Map(mapping(0, 1)),
        Map(mapping(2, 2, 1, 2)),
        Map(mapping(1, 1, 2)),
        Map(mapping(8, 1)),
    ]
    assert made.finished() == [Done(3, 0)]


def test_files_in_use() -> None:
    made = manager(0)
    made.ask(1, Setup(mapping(1, 1, 2)))
    made.ask(2, Setup(mapping(8, 1, 3)))
    assert made.files() == {1, 2, 3}
    made.next()
    made.answered(True)  # file 1 is not mapped now, but will be again
    assert made.window.mappings == () and made.files() == {1, 2, 3}
    made.flush()
    assert made.files() == {1, 2}


def test_statistics() -> None:
    made = manager(0, 8)
    made.ask(1, Remove(((P, P),)))
    made.ask(2, Setup(mapping(20, 4, 9)))
    run(made, Map(mapping(20, 4, 9)))
    made.ask(3, Drop(1))
    run(made)
    assert made.statistics == Statistics(3, 2, 4, 4, 1, 3, 0, 0)


def restored(made: Manager) -> Manager:
    """Another one that goes on where this one stands."""
    other = Manager(Window(64 * P))
    other.restore(made.state())
    return other


def test_another_manager_goes_on() -> None:
    """Nothing is mapped anew, what nobody waits for is done, and who waits has to ask again."""
    made = manager(0, 8, 16)
    made.window.refused(unmap(8, 4))
    for token, change in ((None, Drop(7)), (1, Empty()), (None, Fill(mapping(0, 1, 9)))):
        made.ask(token, change)
    other = restored(made)
    assert other.window.mappings == made.window.mappings and other.statistics == made.statistics
    assert [other.window.is_doubtful(page * P) for page in (0, 8, 16)] == [False, True, False]
    assert run(other) == [] and other.finished() == []
    assert other.statistics.removals == made.statistics.removals + 1


@pytest.mark.parametrize("taken", range(4))
def test_another_manager_ends_the_change_begun(taken: int) -> None:
    """From any step on, without the answer to that one."""
    made = manager(0)
    made.ask(1, Setup(mapping(1, 1, 2)))
    made.ask(None, Drop(5))
    steps = [unmap(0, 4), Map(mapping(0, 1)), Map(mapping(2, 2, 1, 2)), Map(mapping(1, 1, 2))]
    for step in steps[:taken]:
        assert made.next() == step
        made.answered(True)
    under_way = made.next()
    assert under_way == steps[taken]
    other = restored(made)
    assert other.files() == {1, 2}
    again = [unmap(0, 4, True)] if isinstance(under_way, Unmap) else [_gone(under_way), under_way]
    assert run(other) == [*again, *steps[taken + 1 :]]
    assert other.window.mappings == (mapping(0, 1), mapping(1, 1, 2), mapping(2, 2, 1, 2))
    assert not any(other.window.is_doubtful(page * P) for page in range(4))


def _gone(step: Map) -> Step:
    return Unmap(step.offset, step.length, tolerant=True)


def test_no_manager_goes_on_from_nonsense() -> None:
    none = Statistics(0, 0, 0, 0, 0, 0, 0, 0)
    for pages in ([mapping(0, 4), mapping(3, 4)], [mapping(62, 4)], [mapping(0, 4), mapping(0, 4)]):
        with pytest.raises(WindowError):
            Manager(Window(64 * P)).restore(State(tuple((page, False) for page in pages), (), none))


def test_answers_to_nothing_are_a_bug() -> None:
    for answer in (lambda made: made.answered(True), lambda made: made.lost()):
        with pytest.raises(RuntimeError):
            answer(manager())
