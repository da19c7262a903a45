"""POSIX access control lists, as a kernel enforces them."""

import os
from errno import EACCES, EINVAL, ENODATA, EPERM
from os import O_RDONLY, O_RDWR

from tests.conformance.acl import ACCESS, DEFAULT, acl
from tests.conformance.case import case, do, make

#: What each case needs.
NEEDS = "acl kernel"
NAMED = acl("u::rw-,u:1234:r--,g::---,m::r--,o::---")
INHERITED = acl("u::rwx,u:1234:rwx,g::r-x,m::rwx,o::---")

CASES = [
    case(
        "acl and mode",
        make("f", b"", 0o600),
        do("getxattr", "f", ACCESS, fails=ENODATA),
        do("setxattr", "f", ACCESS, NAMED, 0),
        do("getxattr", "f", ACCESS, gives=NAMED),
        # The group's bits of a mode are the mask.
        do("stat", "f", gives={"mode": 0o640}),
        do("chmod", "f", 0o620),
        do("getxattr", "f", ACCESS, gives=acl("u::rw-,u:1234:r--,g::---,m::-w-,o::---")),
        do("removexattr", "f", ACCESS),
        do("stat", "f", gives={"mode": 0o620}),
        # An ACL that says no more than a mode is one.
        do("setxattr", "f", ACCESS, acl("u::r--,g::r--,o::---"), 0),
        do("getxattr", "f", ACCESS, fails=ENODATA),
        do("stat", "f", gives={"mode": 0o440}),
        do("setxattr", "f", ACCESS, NAMED[:-1], 0, fails=EINVAL),
        do("setxattr", "f", DEFAULT, NAMED, 0, fails=EACCES),
        needs=NEEDS,
    ),
    case(
        "default acl",
        do("mkdir", "d", 0o755),
        do("setxattr", "d", DEFAULT, INHERITED, 0),
        do("umask", 0o077, gives=0),
        do("mkdir", "d/sub", 0o755),
        make("d/f", b"", 0o644),
        do("mkdir", "other", 0o755),
        make("other/f", b"", 0o644),
        do("umask", 0, gives=0o077),
        do("getxattr", "d/sub", DEFAULT, gives=INHERITED),
        do("stat", "d/sub", gives={"mode": 0o750}),
        do("stat", "d/f", gives={"mode": 0o640}),
        do("getxattr", "d/f", ACCESS, gives=acl("u::rw-,u:1234:rwx,g::r-x,m::r--,o::---")),
        # Where there is none the umask counts.
        do("stat", "other", gives={"mode": 0o700}),
        do("stat", "other/f", gives={"mode": 0o600}),
        do("removexattr", "d", DEFAULT),
        do("getxattr", "d", DEFAULT, fails=ENODATA),
        needs=NEEDS,
    ),
    case(
        "default acl of a tmpfile",
        do("mkdir", "d", 0o755),
        do("setxattr", "d", DEFAULT, INHERITED, 0),
        do("umask", 0o077),
        do("tmpfile", "d", O_RDWR, 0o660, into="h"),
        do("umask", 0),
        do("fstat", "h", gives={"mode": 0o660}),
        do("close", "h"),
        needs=f"{NEEDS} tmpfile",
    ),
    case(
        "acl and permissions",
        make("f", b"text", 0o600),
        do("setxattr", "f", ACCESS, NAMED, 0),
        do("mkdir", "d", 0o700),
        do("setxattr", "d", ACCESS, acl("u::rwx,g::---,g:99:rwx,m::rwx,o::---"), 0),
        do("become", 1234, 1234),
        do("read", "f", gives=b"text"),
        do("open", "f", O_RDWR, fails=EACCES),
        do("stat", "d/f", fails=EACCES),
        do("setxattr", "f", ACCESS, NAMED, 0, fails=EPERM),
        do("become", 4321, 99),
        do("open", "f", O_RDONLY, fails=EACCES),
        make("d/own"),
        do("access", "d", os.R_OK | os.W_OK | os.X_OK, gives=True),
        do("become", 0, 0),
        do("stat", "d/own", gives={"uid": 4321, "gid": 99}),
        do("chmod", "f", 0o600),
        do("become", 1234, 1234),
        do("open", "f", O_RDONLY, fails=EACCES),
        needs=f"{NEEDS} root",
    ),
    case(
        "acl and sgid",
        make("f", b"", 0o2775),
        do("chown", "f", 1000, 7),
        do("chmod", "f", 0o2775),
        do("setxattr", "f", ACCESS, INHERITED, 0),
        do("stat", "f", gives={"mode": 0o2770}),
        # Its owner is not of the group, and may not keep the bit.
        do("become", 1000, 1000),
        do("setxattr", "f", ACCESS, INHERITED, 0),
        do("stat", "f", gives={"mode": 0o770}),
        needs=f"{NEEDS} root",
    ),
]
