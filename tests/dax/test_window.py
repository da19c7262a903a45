import pytest

from dax.window import Map, Mapping, Step, Unmap, Window, WindowError

P = 4096
RW, RO = True, False


def mapping(page: int, pages: int, file: int = 1, file_page: int = 0, writable: bool = RW) -> Mapping:
    return Mapping(page * P, pages * P, file, file_page * P, writable)


def window(*mappings: Mapping) -> Window:
    made = Window(64 * P)
    for each in mappings:
        take(made, made.setup(each))
    return made


def take(window: Window, steps: list[Step]) -> None:
    for step in steps:
        window.done(step)


def unmap(page: int, pages: int, tolerant: bool = False) -> Unmap:
    return Unmap(page * P, pages * P, tolerant)


def test_a_free_range_is_just_mapped_and_a_plan_changes_nothing() -> None:
    made = window()
    assert made.setup(mapping(4, 2)) == [Map(mapping(4, 2))]
    assert made.mappings == () and made.mapped == 0


@pytest.mark.parametrize(
    "wanted",
    [
        mapping(4, 4, 1, 10),
        mapping(4, 4, 1, 10, RO),
        mapping(5, 2, 1, 11),
        mapping(7, 1, 1, 13, RO),
    ],
)
def test_what_is_there_takes_no_step(wanted: Mapping) -> None:
    assert window(mapping(4, 4, 1, 10)).setup(wanted) == []


def test_upgrade_in_place() -> None:
    made = window(mapping(4, 4, writable=RO))
    assert made.setup(mapping(4, 4)) == [unmap(4, 4), Map(mapping(4, 4))]


@pytest.mark.parametrize("wanted", [mapping(4, 4, 2, 10), mapping(4, 4, 1, 11)])
def test_another_file_or_file_offset_replaces(wanted: Mapping) -> None:
    assert window(mapping(4, 4, 1, 10)).setup(wanted) == [unmap(4, 4), Map(wanted)]


def test_replacing_a_middle_keeps_both_ends() -> None:
    assert window(mapping(4, 8, 1, 10)).setup(mapping(6, 2, 2)) == [
        unmap(4, 8),
        Map(mapping(4, 2, 1, 10)),
        Map(mapping(8, 4, 1, 14)),
        Map(mapping(6, 2, 2)),
    ]


def test_replacing_several_unmaps_all_of_them_first() -> None:
    made = window(mapping(0, 4), mapping(4, 4, 2), mapping(8, 4, 3), mapping(12, 4, 4))
    assert made.setup(mapping(2, 8, 5)) == [
        unmap(0, 4),
        unmap(4, 4),
        unmap(8, 4),
        Map(mapping(0, 2)),
        Map(mapping(10, 2, 3, 2)),
        Map(mapping(2, 8, 5)),
    ]


def test_remove_of_wholes_parts_spans_and_nothing() -> None:
    made = window(mapping(0, 4), mapping(8, 8, 2))
    assert made.remove([(20 * P, 4 * P)]) == []
    assert made.remove([(0, 4 * P)]) == [unmap(0, 4)]
    assert made.remove([(0, 64 * P)]) == [unmap(0, 4), unmap(8, 8)]
    assert made.remove([(2 * P, 8 * P)]) == [unmap(0, 4), unmap(8, 8), Map(mapping(0, 2)), Map(mapping(10, 6, 2, 2))]


def test_remove_unmaps_once_what_several_ranges_cut() -> None:
    made = window(mapping(0, 10))
    ranges = [(6 * P, P), (2 * P, 2 * P), (3 * P, 2 * P), (2 * P, 2 * P)]
    assert made.remove(ranges) == [
        unmap(0, 10),
        Map(mapping(0, 2)),
        Map(mapping(5, 1, 1, 5)),
        Map(mapping(7, 3, 1, 7)),
    ]


def test_ranges_beyond_a_mapping_leave_its_tail() -> None:
    made = window(mapping(4, 4), mapping(20, 4, 2))
    assert made.remove([(0, 6 * P), (20 * P, 4 * P)]) == [unmap(4, 4), unmap(20, 4), Map(mapping(6, 2, 1, 2))]


def test_neighbours_are_not_merged() -> None:
    made = window(mapping(0, 2), mapping(2, 2, 1, 2))
    assert made.mappings == (mapping(0, 2), mapping(2, 2, 1, 2))
    assert made.everything() == [unmap(0, 2), unmap(2, 2)]


def test_drop_takes_one_file() -> None:
    made = window(mapping(0, 2), mapping(2, 2, 2), mapping(8, 2, 1, 9))
    assert made.drop(1) == [unmap(0, 2), unmap(8, 2)]
    take(made, made.drop(1))
    assert made.mappings == (mapping(2, 2, 2),) and made.mapped == 2 * P
    assert made.overlapping(0, 2 * P) == () and made.overlapping(P, 2 * P) == (mapping(2, 2, 2),)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (-P, P), (0, -P), (1, P), (0, P + 1), (64 * P, P), (60 * P, 5 * P), (1 << 64, P), ((1 << 64) - P, 2 * P)],
)
def test_ranges_that_no_window_has(offset: int, length: int) -> None:
    with pytest.raises(WindowError):
        window().setup(Mapping(offset, length, 1, 0, RW))
    with pytest.raises(WindowError):
        window().remove([(0, P), (offset, length)])


@pytest.mark.parametrize("file_offset", [-P, 1, P - 1, (1 << 64) - P])
def test_ranges_that_no_file_has(file_offset: int) -> None:
    with pytest.raises(WindowError):
        window().setup(Mapping(0, 2 * P, 1, file_offset, RW))


def test_the_alignment_is_the_page_of_the_window() -> None:
    with pytest.raises(WindowError):
        Window(1 << 21, 1 << 16).setup(mapping(1, 16))
    for size, page in ((0, P), (P + 1, P), (P, 0), (3 * P, 3 * P), (P, 2 * P)):
        with pytest.raises(ValueError):
            Window(size, page)


def test_a_doubtful_mapping_is_unmapped_tolerantly_and_made_anew() -> None:
    made = window(mapping(0, 4), mapping(8, 4, 2))
    made.doubt()
    assert made.setup(mapping(0, 4)) == [unmap(0, 4, True), Map(mapping(0, 4))]
    assert made.setup(mapping(1, 2, 1, 1)) == [unmap(0, 4, True), Map(mapping(0, 4))]  # not in three pieces
    assert made.setup(mapping(1, 2, 3)) == [
        unmap(0, 4, True),
        Map(mapping(0, 1)),
        Map(mapping(3, 1, 1, 3)),
        Map(mapping(1, 2, 3)),
    ]
    assert made.remove([(0, 64 * P)]) == made.everything() == [unmap(0, 4, True), unmap(8, 4, True)]
    made.refused(unmap(0, 4, True))
    made.done(Map(mapping(0, 4)))
    assert made.setup(mapping(0, 4)) == [] and made.drop(2) == [unmap(8, 4, True)]


def test_outcomes() -> None:
    made = window(mapping(0, 4))
    made.refused(Map(mapping(8, 4)))
    assert len(made) == 1
    made.refused(unmap(0, 4))
    assert made.is_doubtful(0) and len(made) == 1
    made.refused(unmap(0, 4, True))
    assert not made.is_doubtful(0) and len(made) == 0
    made.lost(Map(mapping(8, 4)))
    assert made.is_doubtful(8 * P)
    made.clear()
    assert made.mappings == () and made.mapped == 0 and not made.is_doubtful(8 * P)
    made.done(unmap(0, 4))  # under way when the window was cleared
    made.lost(unmap(0, 4))
    assert made.mappings == ()


def test_a_step_that_was_never_planned_is_a_bug() -> None:
    with pytest.raises(ValueError):
        window(mapping(0, 4)).done(Map(mapping(3, 4)))
