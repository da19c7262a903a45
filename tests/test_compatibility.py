"""docs/compatibility.md says of every option, operation and INIT flag what the tables in the code say."""

import re
from itertools import chain
from pathlib import Path

import pytest

from tests.ops.mount import ALL_FLAGS, share
from vfsd._fuse import ffi, lib
from vfsd.options import OPTIONS
from vfsd.settings import Settings

PAGE = (Path(__file__).resolve().parent.parent / "docs/compatibility.md").read_text()

#: Options of virtiofsd 1.14, and of the one in QEMU up to 7.2.
VIRTIOFSD = """
    --shared-dir --tag --socket-path --socket --socket-group --fd --thread-pool-size --xattr --posix-acl --xattrmap
    --sandbox --seccomp --readonly --announce-submounts --no-announce-submounts --inode-file-handles --cache
    --allow-mmap --no-readdirplus --writeback --allow-direct-io --print-capabilities --modcaps --log-level --syslog
    --rlimit-nofile --killpriv-v2 --no-killpriv-v2 --security-label --uid-map --gid-map --translate-uid --translate-gid
    --preserve-noatime --migration-mode --migration-on-error --migration-verify-handles --migration-confirm-paths
    -d -f -h --help -V --version --daemonize
""".split()  # noqa: SIM905
LEGACY = """
    source cache loglevel log_level sandbox xattrmap modcaps xattr no_xattr readdirplus no_readdirplus writeback
    no_writeback allow_direct_io no_allow_direct_io announce_submounts no_announce_submounts killpriv_v2 no_killpriv_v2
    posix_acl no_posix_acl security_label no_security_label posix_lock no_posix_lock flock no_flock timeout debug
""".split()  # noqa: SIM905

#: Operations and INIT flags newer than the system's header, by number and bit.
NEWER_OPS = {"STATX": 52, "COPY_FILE_RANGE_64": 53}
NEWER_FLAGS = {
    "CREATE_SUPP_GROUP": 34, "HAS_EXPIRE_ONLY": 35, "DIRECT_IO_ALLOW_MMAP": 36, "PASSTHROUGH": 37,
    "NO_EXPORT_SUPPORT": 38, "HAS_RESEND": 39, "ALLOW_IDMAP": 40, "OVER_IO_URING": 41, "REQUEST_TIMEOUT": 42,
}  # fmt: skip


def rows(title: str) -> dict[str, list[str]]:
    """The other cells of each thing in the table below a title; a first cell may name several."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    found: dict[str, list[str]] = {}
    for line in table:
        first, *cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for name in first.split(", "):
            assert name not in found, f"{name} is there twice"
            found[name] = cells
    return found


def test_options_of_virtiofsd() -> None:
    """Each is there; what the page calls supported is accepted, and what is partly so names what is not."""
    page = rows("Options")
    keys = {key: row for row in OPTIONS for key in row.legacy}
    names = {name: row for row in OPTIONS for name in row.names}
    written = {f"`{name}`": name for name in VIRTIOFSD}
    for key in LEGACY:
        valued = key in keys and keys[key].legacy[key] is None
        written[f"`-o {key}=`" if valued else f"`-o {key}`"] = key
    assert page.keys() == written.keys()
    for text, name in written.items():
        row = names.get(name) or keys.get(name)
        status, differences = page[text]
        if row is None:
            assert status == "no", text
        elif row.unbuilt:
            assert status == "partly", text
            assert all(f"`{word}`" in differences for word in row.unbuilt), text
        else:
            assert status == "yes", text


def test_options_of_ours() -> None:
    sentence = PAGE.split("Additions of vfsd: ")[1].split("\n\n")[0]
    named = re.findall(r"`(--[\w-]+)`", sentence)
    assert sorted(named) == sorted(set(chain(*(row.names for row in OPTIONS))) - set(VIRTIOFSD))


def test_operations() -> None:
    names = ffi.typeof("enum fuse_opcode").elements.values()
    every = {name.removeprefix("FUSE_") for name in names} - {"CUSE_INIT_BSWAP_RESERVED", "INIT_BSWAP_RESERVED"}
    every |= NEWER_OPS.keys()
    page = rows("FUSE operations")
    assert page.keys() == every
    for name, (status, *_) in page.items():
        number = NEWER_OPS.get(name) or getattr(lib, name if name == "CUSE_INIT" else f"FUSE_{name}")
        assert (status == "yes") == (lib.fuse_row_name(number) != ffi.NULL), name
        assert status in ("yes", "no")


@pytest.fixture
def agreed(tmp_path: Path) -> dict[str, int]:
    """What INIT agrees to with the default settings, and with any."""
    variants = [
        Settings(),
        Settings(writeback=True),
        Settings(posix_acl="always", security_label="always", xattr=True),
        # A descriptor that nobody asks anything through.
        Settings(window=0, dax_policy="auto"),
    ]
    flags = []
    for settings in variants:
        with share(tmp_path, settings, init=False) as mount:
            mount.client.init(minor=45, flags=ALL_FLAGS)
            flags.append(int(mount.core.session.flags))
    return {"default": flags[0], "any": flags[0] | flags[1] | flags[2] | flags[3]}


def test_init_flags(agreed: dict[str, int]) -> None:
    page = rows("INIT flags")
    bits = {}
    for name, (status, *_) in page.items():
        number = 1 << NEWER_FLAGS[name] if name in NEWER_FLAGS else getattr(lib, f"FUSE_{name}")
        assert number & (number - 1) == 0, name
        bits[number] = name
        want = "yes" if agreed["default"] & number else "option" if agreed["any"] & number else "no"
        assert status == want, name
    # Bit 31 is reserved; 42 is the newest of 7.45.
    assert bits.keys() == {1 << bit for bit in range(43)} - {1 << 31}
