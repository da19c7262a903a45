"""POSIX ACLs as text and as the bytes of system.posix_acl_* (<linux/posix_acl_xattr.h>)."""

import struct

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
TAGS = {"u": (0x01, 0x02), "g": (0x04, 0x08), "m": (0x10, 0), "o": (0x20, 0)}
#: An entry that is about no id.
NO_ID = 0xFFFFFFFF


def acl(text: str) -> bytes:
    """`u::rwx,u:1234:r--,g::r-x,m::rwx,o::r--` as bytes, in the order that the kernel wants."""
    entries = []
    for entry in text.split(","):
        kind, who, letters = entry.split(":")
        permissions = sum(4 >> "rwx".index(letter) for letter in letters if letter != "-")
        entries.append((TAGS[kind][bool(who)], permissions, int(who) if who else NO_ID))
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
