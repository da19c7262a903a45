"""The rules of --translate-uid: what each says, against a plain reading of virtiofsd's README."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd.errors import UsageError
from vfsd.translate import FORMS, ID_MAX, Ids, Owner, Range, check, owner, rule, tables

OWN = Owner(1001, 100)


@pytest.mark.parametrize(
    ("text", "to_host", "to_guest"),
    [
        ("guest:10:1000:5", Range(10, 14, 1000, "shift"), None),
        ("host:1000:10:5", None, Range(1000, 1004, 10, "shift")),
        ("map:10:1000:5", Range(10, 14, 1000, "shift"), Range(1000, 1004, 10, "shift")),
        ("squash-guest:0:1001:4294967295", Range(0, ID_MAX, 1001, "squash"), None),
        ("squash-host:5:0:1", None, Range(5, 5, 0, "squash")),
        ("forbid-guest:7:2", Range(7, 8, 7, "forbid"), None),
        ("Squash-Host:5:0:1", None, Range(5, 5, 0, "squash")),
        ("map:4294967294:0:1", Range(ID_MAX, ID_MAX, 0, "shift"), Range(0, 0, ID_MAX, "shift")),
        # Any separator, as in virtiofsd; in one rule always the same.
        ("squash-guest/7/8/2", Range(7, 8, 8, "squash"), None),
        ("guest,1,2,3", Range(1, 3, 2, "shift"), None),
        # A manager may compute a count.
        *((f"{word}:{':'.join('7' * (len(parts) - 1))}:0", None, None) for word, parts in FORMS.items()),
    ],
)
def test_rules(text: str, to_host: Range | None, to_guest: Range | None) -> None:
    assert rule(text)[1:] == (to_host, to_guest)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "map", "0:1000:1", ":0:1000:1:", "map:0:1000", "map:0:1000:1:", "map:0:1000:1:1", "forbid-guest:1"),
        *("forbid-guest:1:2:3", "forbid-host:1:2", "guest::5:1", "guest:0x1:5:1", "guest:-1:5:1", "guest:+1:5:1"),
        *("guest:\u0661:5:1", "guest: 1:5:1", "map:0:1000:1 map:5:6:1", "map:0/1000:1"),
    ],
)
def test_no_rules(text: str) -> None:
    with pytest.raises(ValueError, match=r"^one of guest:GUEST:HOST:COUNT, .*map:GUEST:HOST:COUNT$"):
        rule(text)


@pytest.mark.parametrize(
    "text",
    [
        *("map:0:4294967295:1", "map:4294967295:0:1", "map:0:4294967294:2", "map:4294967294:0:2"),
        *("guest:0:4294967290:6", "host:0:4294967290:6", "squash-guest:0:4294967295:1", "squash-host:1:0:4294967295"),
        *("forbid-guest:4294967295:1", "forbid-guest:0:4294967296", f"map:{'9' * 40}:0:1"),
    ],
)
def test_no_ids(text: str) -> None:
    with pytest.raises(ValueError, match=r"^about ids from 0 to 4294967294$"):
        rule(text)


def test_neighbours_and_opposite_directions_do_not_overlap() -> None:
    texts = ("guest:0:5:5", "forbid-guest:5:5", "host:0:5:5", "squash-host:5:0:5", "map:20:20:1")
    check("--translate-uid", [rule(text) for text in texts])


@pytest.mark.parametrize("other", ["guest:9:0:1", "forbid-guest:0:11", "squash-guest:14:0:100", "map:12:0:1"])
def test_overlaps(other: str) -> None:
    for pair in (["map:10:1000:5", other], [other, "map:10:1000:5"]):
        rules = [rule(text) for text in pair]
        if other == "guest:9:0:1":
            check("--translate-gid", rules)
            continue
        with pytest.raises(UsageError, match=r"^--translate-gid: .* both say what the guest's id \d+ is on the host"):
            check("--translate-gid", rules)


IDS = st.integers(0, 30)
TEXTS = st.lists(
    st.one_of(
        st.builds("{}:{}:{}:{}".format, st.sampled_from([w for w in FORMS if w != "forbid-guest"]), IDS, IDS, IDS),
        st.builds("forbid-guest:{}:{}".format, IDS, IDS),
    ),
    max_size=5,
)


@given(TEXTS)
def test_ranges_are_what_the_words_say(texts: list[str]) -> None:
    """One dictionary of ids for each direction, as a reader would fill it in."""
    to_host: dict[int, int | None] = {}
    to_guest: dict[int, int | None] = {}
    clash = False
    for text in texts:
        word, *numbers = text.split(":")
        first, count = int(numbers[0]), int(numbers[-1])
        for n in range(count):
            to = None if word == "forbid-guest" else int(numbers[1]) + (0 if "squash" in word else n)
            for table, key, value in (
                *([(to_host, first + n, to)] if word in ("guest", "map", "squash-guest", "forbid-guest") else []),
                *([(to_guest, first + n, to)] if word in ("host", "squash-host") else []),
                *([(to_guest, to, first + n)] if word == "map" else []),
            ):
                clash |= key in table
                table[key] = value
    rules = [rule(text) for text in texts]
    if clash:
        with pytest.raises(UsageError):
            check("--translate-uid", rules)
        return
    check("--translate-uid", rules)
    ids = tables(rules, (), None, OWN)
    if not texts:
        assert ids is None
        return
    assert ids is not None and ids.to_host[1] == ids.to_guest[1] == () and not ids.one_owner
    for ranges, table in ((ids.to_host[0], to_host), (ids.to_guest[0], to_guest)):
        assert list(ranges) == sorted(ranges)
        for n in range(100):
            assert [_apply(found, n) for found in ranges if found.first <= n <= found.last] == (
                [table[n]] if n in table else []
            )


def _apply(found: Range, id: int) -> int | None:
    return {"shift": found.to + id - found.first, "squash": found.to, "forbid": None}[found.how]


def test_one_owner() -> None:
    everyone = [(Range(0, ID_MAX, to, "squash"),) for to in (1001, 100, 1000, 10)]
    assert tables((), (), owner("1000:10"), OWN) == Ids(
        (everyone[0], everyone[1]), (everyone[2], everyone[3]), one_owner=True
    )
