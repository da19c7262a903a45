"""Extended attributes under other names: the rules of --xattrmap, in the language of virtiofsd (doc/xattr-mapping.md).

Rule 1. The first rule that matches a name decides. A name from the guest is matched with KEY, one from the host, in a
        list, with PREPEND; each as a prefix.
Rule 2. Every name is decided: a set of rules that leaves some open is refused before the daemon starts.
"""

import errno
import os
from collections.abc import Iterable
from typing import NamedTuple, Self

from vfsd.values import Sentence

#: What a rule may do, besides the shorthand `map`.
TYPES = ("prefix", "ok", "bad", "unsupported")
#: Which names it is for: those from the guest, those from the host.
SCOPES = {"client": (True, False), "server": (False, True), "all": (True, True)}

#: Where POSIX ACLs are found, access and default.
ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")

#: Bytes (XATTR_NAME_MAX).
NAME_MAX = 255

#: What SELinux keeps its labels in.
SELINUX = b"security.selinux"

#: Where the ready-made sets keep a guest's own attributes: names that take no privilege.
PRIVATE = "user.virtiofs."

#: Ready-made sets by name: what of the guest's they keep under private names.
PRESETS = {"overlay": "trusted.overlay.", "selinux": "security.selinux"}


class Rule(NamedTuple):
    """One rule, for one direction."""

    #: A name that starts with this is meant.
    start: bytes
    #: One of TYPES.
    type: str
    #: What `prefix` puts before a guest's name, and takes off a host's.
    prepend: bytes


class XattrMap(NamedTuple):
    """A set of rules. Built by `parse`."""

    client: tuple[Rule, ...]
    server: tuple[Rule, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """The rules, or the ready-made sets, that `text` spells. Raises Sentence, which shows the faulty rule."""
        words = text.split("+")
        rules = _private([PRESETS[word] for word in words]) if set(words) <= set(PRESETS) else _rules(text)
        expanded = [plain for rule in rules for plain in _expand(rule)]
        client = tuple(Rule(key, type, prepend) for type, scope, key, prepend in expanded if SCOPES[scope][0])
        server = tuple(Rule(prepend, type, prepend) for type, scope, _, prepend in expanded if SCOPES[scope][1])
        for whose, found in (("guest", client), ("host", server)):
            if not any(rule.start == b"" for rule in found):
                raise Sentence(
                    f"the rules leave names from the {whose} undecided: end with one for all of them, as :ok:all::: "
                    "(pass the rest through) or :bad:all::: (refuse the rest)"
                )
        return cls(client, server)

    def host_name(self, name: bytes) -> bytes:
        """What the host calls a guest's attribute. OSError: EPERM for a `bad` name, EOPNOTSUPP for an `unsupported`."""
        rule = next(rule for rule in self.client if name.startswith(rule.start))
        if rule.type == "bad":
            raise OSError(errno.EPERM, "this name is refused by --xattrmap")
        if rule.type == "unsupported":
            raise OSError(errno.EOPNOTSUPP, "this name is not supported, by --xattrmap")
        return rule.prepend + name if rule.type == "prefix" else name

    def renamed(self, name: bytes) -> bytes:
        """The host's name for a guest's attribute where it is another one; b"" where it is the same, or refused."""
        try:
            host_name = self.host_name(name)
        except OSError:
            return b""
        return b"" if host_name == name else host_name

    def keeps(self, name: bytes) -> bool:
        """Whether an attribute has the same name on both sides."""
        try:
            return self.host_name(name) == name and self.guest_names([name]) == [name]
        except OSError:
            return False

    def guest_names(self, names: Iterable[bytes]) -> list[bytes]:
        """What the guest calls the host's attributes; what is `bad` or `unsupported` is left out."""
        shown = []
        for name in names:
            rule = next(rule for rule in self.server if name.startswith(rule.start))
            if rule.type == "prefix":
                name = name.removeprefix(rule.prepend)
            if name and rule.type in ("prefix", "ok"):
                shown.append(name)
        return shown


#: type, scope, key, prepend.
_Plain = tuple[str, str, bytes, bytes]


def _private(keys: list[str]) -> list[list[str]]:
    """These are kept under private names, and nobody gets at those in another way; others are passed through."""
    return [
        *(["prefix", "all", key, PRIVATE] for key in keys),
        *(["bad", "server", "", key] for key in keys),  # the host's own of that name
        ["bad", "client", PRIVATE, ""],
        ["ok", "all", "", ""],
    ]


def _rules(text: str) -> list[list[str]]:
    """Each rule's fields, checked."""
    found: list[list[str]] = []
    rest = text.strip()
    while rest:
        rule, rest = _rule(rest, len(found) + 1)
        if found and found[-1][0] == "map":
            raise Sentence(f"rule {len(found)} is a map, and rules follow: one map, as the last rule, is allowed")
        found.append(rule)
    if not found:
        raise Sentence(f"there is no rule: write rules like :map::user.virtiofs.: or one of {', '.join(PRESETS)}")
    return found


def _rule(text: str, number: int) -> tuple[list[str], str]:
    """The fields of the rule that `text` starts with, and what follows it."""
    separator = text[0]
    type = text[1:].split(separator, 1)[0]
    count = 3 if type == "map" else 4
    fields = text[1:].split(separator, count)
    rest = fields[count] if len(fields) > count else ""
    shown = f"rule {number}, {text[: len(text) - len(rest)]!r}"
    if type not in (*TYPES, "map"):
        if separator.isalnum():
            raise Sentence(
                f"there is no set of rules {text!r}, but {', '.join(PRESETS)}; a rule of one's own starts with the "
                "character that separates its fields, as :map::user.virtiofs.:"
            )
        raise Sentence(f"{shown}: there is no type {type!r}, but {', '.join(TYPES)} and map")
    if len(fields) <= count:
        form = ":map:KEY:PREPEND:" if type == "map" else f":{type}:SCOPE:KEY:PREPEND:"
        raise Sentence(f"{shown}, ends too early: its form is {form.replace(':', separator)}")
    if type != "map" and fields[1] not in SCOPES:
        raise Sentence(f"{shown}: there is no scope {fields[1]!r}, but {', '.join(SCOPES)}")
    return fields[:count], rest.lstrip()


def _expand(rule: list[str]) -> list[_Plain]:
    """A rule without shorthand."""
    key, prepend = map(os.fsencode, rule[-2:])
    if rule[0] != "map":
        return [(rule[0], rule[1], key, prepend)]
    if not key:
        return [("prefix", "all", b"", prepend), ("bad", "all", b"", b"")]
    return [
        ("prefix", "all", key, prepend),
        ("bad", "server", b"", key),  # the host's own of that name
        ("bad", "client", prepend, b""),  # a way around the guest's own rules for `key`
        ("ok", "all", b"", b""),
    ]
