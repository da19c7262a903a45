"""The rules of --xattrmap. The documented examples of virtiofsd's doc/xattr-mapping.md are among them."""

import errno
import re

import pytest

from vfsd.settings import Settings
from vfsd.values import Sentence
from vfsd.xattrmap import PRESETS, XattrMap

#: A name for what `bad` and `unsupported` do.
EPERM, ENOTSUP = errno.EPERM, errno.EOPNOTSUPP

PREFIX_ALL = ":prefix:all::user.virtiofs.::bad:all:::"
PREFIX_TRUSTED = """/prefix/all/trusted./user.virtiofs./
                    /bad/server//trusted./
                    /bad/client/user.virtiofs.//
                    /ok/all///"""
HIDE_SECURITY = "/bad/all/security./security./ /ok/all///"

#: Rules; a name from the guest, and what it is on the host or the errno.
CLIENT: list[tuple[str, bytes, bytes | int]] = [
    (":ok:all:::", b"user.a", b"user.a"),
    (PREFIX_ALL, b"user.a", b"user.virtiofs.user.a"),
    (PREFIX_ALL, b"security.capability", b"user.virtiofs.security.capability"),
    (PREFIX_ALL, b"user.virtiofs.a", b"user.virtiofs.user.virtiofs.a"),
    (PREFIX_TRUSTED, b"trusted.a", b"user.virtiofs.trusted.a"),
    (PREFIX_TRUSTED, b"user.virtiofs.trusted.a", EPERM),
    (PREFIX_TRUSTED, b"user.a", b"user.a"),
    (HIDE_SECURITY, b"security.selinux", EPERM),
    (HIDE_SECURITY, b"user.a", b"user.a"),
    (":unsupported:client:security.:: :ok:all:::", b"security.selinux", ENOTSUP),
    # The first rule that matches counts, even with better ones behind.
    (":ok:client:user.:: :bad:client:user.a:: :bad:all:::", b"user.a", b"user.a"),
    (":bad:client:user.a:: :ok:client:user.:: :bad:all:::", b"user.abc", EPERM),
    # A rule of the other scope does not match.
    (":bad:server::: :ok:client:::", b"user.a", b"user.a"),
    # PREPEND of `ok` and `bad` says nothing about names from the guest.
    (":ok:client:user.:trusted.: :bad:all:::", b"user.a", b"user.a"),
    (":prefix:client:trusted.:user.virtiofs.::ok:all:::", b"trusted.a", b"user.virtiofs.trusted.a"),
]

#: Rules; a list of names from the host, and what the guest sees of it.
SERVER: list[tuple[str, list[bytes], list[bytes]]] = [
    (":ok:all:::", [b"user.a", b"trusted.b"], [b"user.a", b"trusted.b"]),
    (":bad:all:::", [b"user.a"], []),
    (":unsupported:all:::", [b"user.a"], []),
    (PREFIX_ALL, [b"user.virtiofs.user.a", b"user.b", b"security.selinux"], [b"user.a"]),
    (PREFIX_ALL, [b"user.virtiofs.", b"user.virtiofs.x"], [b"x"]),
    (PREFIX_TRUSTED, [b"user.virtiofs.trusted.a", b"trusted.a", b"user.b"], [b"trusted.a", b"user.b"]),
    (HIDE_SECURITY, [b"security.selinux", b"user.a"], [b"user.a"]),
    (":prefix:server::user.virtiofs.: :ok:all:::", [b"user.virtiofs.a", b"user.b"], [b"a", b"user.b"]),
    (":ok:server::security.: :bad:all:::", [b"security.selinux", b"user.a"], [b"security.selinux"]),
    (":bad:server::security.: :ok:all:::", [b"security.selinux", b"user.a"], [b"user.a"]),
    # KEY says nothing about names from the host.
    (":bad:server:user.:: :ok:all:::", [b"user.a"], []),
]

#: Shorthand, and what it stands for.
SAME = [
    (":map::user.virtiofs.:", PREFIX_ALL),
    ("/map/trusted./user.virtiofs./", PREFIX_TRUSTED),
    (" \t:ok:all:::\n ", ":ok:all:::"),
    # Any character separates, in each rule another.
    ("xokxallxxx", ":ok:all:::"),
    ("äokäalläää", ":ok:all:::"),
    ("/ok/client/user.// =bad=all===", ":ok:client:user.:::bad:all:::"),
    (":ok:client:user.::\n:map:trusted.:user.t.:", ":ok:client:user.::" + "/prefix/all/trusted./user.t./"
     "/bad/server//trusted.//bad/client/user.t.///ok/all///"),
    ("overlay", "/map/trusted.overlay./user.virtiofs./"),
    ("selinux", "/map/security.selinux/user.virtiofs./"),
]  # fmt: skip

#: What is wrong, and what the sentence says.
REFUSED = [
    ("", "there is no rule"),
    ("  \n", "there is no rule"),
    ("overlays", "there is no set of rules 'overlays', but overlay, selinux; a rule of one's own starts with"),
    ("overlay+trusted", "there is no set of rules 'overlay+trusted', but overlay, selinux"),
    (":", "rule 1, ':': there is no type ''"),
    (":ok", "rule 1, ':ok', ends too early: its form is :ok:SCOPE:KEY:PREPEND:"),
    (":ok:all::", "ends too early"),
    ("/map/a/", "rule 1, '/map/a/', ends too early: its form is /map/KEY/PREPEND/"),
    (":prefix:all:trusted.:user.vm.", "rule 1, ':prefix:all:trusted.:user.vm.', ends too early"),
    (":ok:all::: :maybe:all:::", "rule 2, ':maybe:all:::': there is no type 'maybe', but prefix, ok, bad, unsupported"),
    (":bad:guest:user.:: :ok:all:::", "rule 1, ':bad:guest:user.::': there is no scope 'guest', but client, server"),
    (":BAD:all:::", "there is no type 'BAD'"),
    (":map:a:b: :map:c:d:", "rule 1 is a map, and rules follow"),
    (":map:a:b: :ok:all:::", "rule 1 is a map, and rules follow"),
    (":prefix:all:trusted.:user.virtiofs.:", "leave names from the guest undecided"),
    (":ok:client:::", "leave names from the host undecided"),
    (":ok:server:::", "leave names from the guest undecided"),
]


@pytest.mark.parametrize(("rules", "name", "expected"), CLIENT)
def test_names_from_the_guest(rules: str, name: bytes, expected: bytes | int) -> None:
    xattrmap = XattrMap.parse(rules)
    if isinstance(expected, bytes):
        assert xattrmap.host_name(name) == expected
        return
    with pytest.raises(OSError) as caught:
        xattrmap.host_name(name)
    assert caught.value.errno == expected


@pytest.mark.parametrize(("rules", "names", "expected"), SERVER)
def test_names_from_the_host(rules: str, names: list[bytes], expected: list[bytes]) -> None:
    assert XattrMap.parse(rules).guest_names(names) == expected


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_in_other_words(one: str, other: str) -> None:
    assert XattrMap.parse(one) == XattrMap.parse(other)


@pytest.mark.parametrize(("rules", "sentence"), REFUSED)
def test_refused(rules: str, sentence: str) -> None:
    with pytest.raises(Sentence, match=re.escape(sentence)) as caught:
        XattrMap.parse(rules)
    assert "\n" not in str(caught.value)


def test_ready_made_rules_add_up() -> None:
    both = XattrMap.parse("overlay+selinux")
    for name in (b"trusted.overlay.opaque", b"security.selinux"):
        assert both.host_name(name) == b"user.virtiofs." + name
        assert both.guest_names([name, b"user.virtiofs." + name, b"user.x"]) == [name, b"user.x"]
    assert both.host_name(b"trusted.other") == b"trusted.other"
    with pytest.raises(OSError):
        both.host_name(b"user.virtiofs.security.selinux")
    assert set(PRESETS) == {"overlay", "selinux"}


@pytest.mark.parametrize(
    ("rules", "host_name"),
    [
        (":map::user.virtiofs.:", b"user.virtiofs.security.capability"),
        ("/prefix/client/security./trusted./ /ok/all///", b"trusted.security.capability"),
        ("overlay", b""),
        (":bad:all:::", b""),
    ],
)
def test_the_name_of_a_capability(rules: str, host_name: bytes) -> None:
    """What must be removed by hand from a file that is written to."""
    assert Settings(xattrmap=XattrMap.parse(rules)).capability == host_name
    assert Settings().capability == b""


def test_names_are_bytes() -> None:
    rules = b":prefix:all:\xff:user.\xfe.: :ok:all:::".decode(errors="surrogateescape")
    assert XattrMap.parse(rules).host_name(b"\xff.a") == b"user.\xfe.\xff.a"
