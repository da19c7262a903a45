"""Rules that give an id another number on the other side: --translate-uid, --translate-gid, and --owner.

Numbers only, and no user namespace: the host's side is what the daemon sees, which behind --uid-map is the inside of
its namespace. The two directions are independent. The rules are those of Rust virtiofsd 1.14 (its README.md).
"""

from collections.abc import Sequence
from typing import NamedTuple

from vfsd.errors import UsageError

#: The largest id there is; the number after it, (uid_t)-1, stands for none.
ID_MAX = 0xFFFFFFFE

#: What each form of a rule takes after its word.
FORMS = {
    "guest": ("GUEST", "HOST", "COUNT"),
    "host": ("HOST", "GUEST", "COUNT"),
    "squash-guest": ("GUEST", "HOST", "COUNT"),
    "squash-host": ("HOST", "GUEST", "COUNT"),
    "forbid-guest": ("GUEST", "COUNT"),
    "map": ("GUEST", "HOST", "COUNT"),
}
FORM = ", ".join(":".join((word, *parts)) for word, parts in FORMS.items())


class Range(NamedTuple):
    """Ids of one side, and what they are on the other: struct core_id_range."""

    first: int
    last: int
    #: The counterpart of `first`.
    to: int
    #: shift: each id has its own counterpart; squash: all have `to`; forbid: none.
    how: str


class Rule(NamedTuple):
    """One rule, as the user gave it and as ranges; both None when it is about no id."""

    text: str
    to_host: Range | None
    to_guest: Range | None


class Owner(NamedTuple):
    """Whom the guest sees as owner and group of everything."""

    uid: int
    gid: int


class Ids(NamedTuple):
    """Every range in force, user ids first and then group ids, sorted and apart: struct core_ids."""

    to_host: tuple[tuple[Range, ...], tuple[Range, ...]]
    to_guest: tuple[tuple[Range, ...], tuple[Range, ...]]
    #: A file's owner can't be changed: all that the guest may ask for is the one it sees anyway.
    one_owner: bool = False


def rule(text: str) -> Rule:
    """A rule from its text; its word in any case. ValueError as those of vfsd.values.

    As in virtiofsd, what follows the word may be another separator than the colon.
    """
    word, *given = text.split(next((letter for letter in text if not letter.isalnum() and letter not in "-_"), ":"))
    word = word.lower()
    if word not in FORMS or len(given) != len(FORMS[word]) or not all(map(_is_number, given)):
        raise ValueError(f"one of {FORM}")
    first, *rest, count = map(int, given)
    to = rest[0] if rest else first
    how, _, side = word.rpartition("-")
    if max(first + count - 1, to, 0 if how else to + count - 1) > ID_MAX:
        raise ValueError(f"about ids from 0 to {ID_MAX}")
    if count == 0:
        return Rule(text, None, None)
    there = Range(first, first + count - 1, to, how or "shift")
    back = Range(to, to + count - 1, first, "shift")
    return Rule(text, there if side != "host" else None, {"host": there, "map": back}.get(side))


def owner(text: str) -> Owner:
    """UID or UID:GID. ValueError as those of vfsd.values."""
    given = text.split(":")
    if len(given) > 2 or not all(_is_number(number) and int(number) <= ID_MAX for number in given):
        raise ValueError("a user id of the guest, or UID:GID")
    return Owner(int(given[0]), int(given[-1]))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def check(option: str, rules: Sequence[Rule]) -> None:
    """Raises UsageError when two rules say something about the same id."""
    for direction, side, other in (("to_host", "guest", "host"), ("to_guest", "host", "guest")):
        before: tuple[Range, Rule] | None = None
        for here, rule in sorted((found, rule) for rule in rules if (found := getattr(rule, direction))):
            if before and here.first <= before[0].last:
                raise UsageError(
                    f"{option}: {before[1].text} and {rule.text} both say what the {side}'s id {here.first} is on the "
                    f"{other}: let each id be in one rule"
                )
            before = here, rule


def tables(uid_rules: Sequence[Rule], gid_rules: Sequence[Rule], owner: Owner | None, own: Owner) -> Ids | None:
    """What is in force; None: every id is the same on both sides. `own`: who the daemon is."""
    if owner:
        everyone = [(_everyone(to),) for to in (*own, *owner)]
        return Ids((everyone[0], everyone[1]), (everyone[2], everyone[3]), one_owner=True)
    if not uid_rules and not gid_rules:
        return None
    return Ids(
        (_sorted(uid_rules, "to_host"), _sorted(gid_rules, "to_host")),
        (_sorted(uid_rules, "to_guest"), _sorted(gid_rules, "to_guest")),
    )


def _everyone(to: int) -> Range:
    return Range(0, ID_MAX, to, "squash")


def _sorted(rules: Sequence[Rule], direction: str) -> tuple[Range, ...]:
    return tuple(sorted(found for rule in rules if (found := getattr(rule, direction))))
