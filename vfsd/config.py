"""The settings of a daemon, and the command line that gives them.

Rule 1. `Config` holds the defaults, and a default is what is really done.
Rule 2. What an option is called, takes and means is a row of `vfsd.options`; the parser here knows no option by name.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

from vfsd.errors import Failure, UsageError
from vfsd.option import Option
from vfsd.options import GROUPS, LEGACY, OPTIONS
from vfsd.translate import Owner, Rule, check
from vfsd.values import POLL_MAX, IdMap
from vfsd.xattrmap import ACLS, NAME_MAX, SELINUX, XattrMap


class Config(NamedTuple):
    """One daemon's settings, frozen. Built by `parse`; tests may build one directly.

    A NamedTuple, since importing dataclasses takes as long as all the rest of the way to the socket.
    """

    #: The directory to share, as the user spelled it; `__main__` replaces it by its real path before it is used.
    shared_dir: str = ""
    #: Name in the device's config space, at most 36 bytes of UTF-8. "": no config space is offered.
    tag: str = ""

    #: Where to create the socket; "" with `fd`. Exactly one of both is set.
    socket_path: str = ""
    #: A listening socket inherited from the manager.
    fd: int | None = None
    #: Group name or number of the socket, whose mode is 0660 then, and 0600 without.
    socket_group: str = ""
    #: Wait for another front-end when one has left, rather than exit 0.
    keep_listening: bool = False

    #: never, metadata, auto or always.
    cache: str = "auto"
    #: How long the guest may trust a name, an attribute, and that there is no such name, in nanoseconds. None: as
    #: long as `timeout` says, which may leave it to `cache`.
    entry_timeout: int | None = None
    attr_timeout: int | None = None
    negative_timeout: int = 0
    timeout: int | None = None
    #: never, auto or always. "": never with `cache` never, where READDIRPLUS gains nothing, and auto otherwise.
    readdirplus: str = ""
    writeback: bool = False
    allow_direct_io: bool = False
    #: Shared mappings of files whose data the guest does not cache.
    allow_mmap: bool = True
    #: Idmapped mounts in the guest, which then names its callers only where it makes something (FUSE_ALLOW_IDMAP).
    allow_idmap: bool = True
    #: None: where the root of the share has them.
    xattr: bool | None = None
    xattrmap: XattrMap | None = None
    #: Take set-id bits and capabilities away here, where the guest can leave that to us (FUSE_HANDLE_KILLPRIV_V2).
    killpriv: bool = True
    #: Locks reach the host; else they are the guest's own.
    posix_lock: bool = True
    flock: bool = True
    #: never, auto or always.
    posix_acl: str = "never"
    #: never, auto or always.
    security_label: str = "never"
    announce_submounts: bool = True
    #: never, prefer or mandatory.
    inode_file_handles: str = "prefer"
    preserve_noatime: bool = False
    readonly: bool = False
    #: Threads lent to each ring, at least 1.
    threads: int = 1
    #: How long a ring is watched for the next request before its thread sleeps, at most, microseconds.
    poll: int = POLL_MAX

    #: Bytes of the DAX window, 0: none.
    dax_window: int = 0
    #: auto, always or never.
    dax_policy: str = "auto"
    #: Sizes of the files that auto offers, in bytes; dax_max_size None: four fifths of the window.
    dax_min_size: int = 1 << 20
    dax_max_size: int | None = None

    #: namespace, chroot or none.
    sandbox: str = "namespace"
    #: Changes to the set of capabilities kept, in order: (add, number).
    modcaps: tuple[tuple[bool, int], ...] = ()
    #: Lines of the user namespace's maps; empty: the sandbox chooses.
    uid_map: tuple[IdMap, ...] = ()
    gid_map: tuple[IdMap, ...] = ()
    #: How ids are translated, and checked not to contradict each other.
    translate_uid: tuple[Rule, ...] = ()
    translate_gid: tuple[Rule, ...] = ()
    #: Whom everything belongs to in the guest; None: whom it belongs to.
    owner: Owner | None = None
    #: RLIMIT_NOFILE to set; 0 leaves it alone; None: the smaller of 1,000,000 and fs.nr_open, as far as permitted.
    rlimit_nofile: int | None = None

    #: No daemon to start, but one to give its place to a new program: its pid file, socket or pid. And which program.
    upgrade: str = ""
    program: str = ""
    #: find-paths or file-handles, where a guest leaves; abort or guest-error, where it arrives.
    migration_mode: str = "find-paths"
    migration_on_error: str = "abort"
    #: Where it leaves: tell file handles; look at every path again.
    migration_verify_handles: bool = False
    migration_confirm_paths: bool = False

    #: error, warn, info, debug, trace or off.
    log_level: str = "info"
    syslog: bool = False

    def validity(self, timeout: int | None) -> int:
        """How long the guest may trust a name or an attribute, in nanoseconds: `timeout` if it is given."""
        for given in (timeout, self.timeout):
            if given is not None:
                return given
        return {"never": 0, "auto": 1, "metadata": 86400, "always": 86400}[self.cache] * 1_000_000_000

    @property
    def label(self) -> bytes:
        """What the host calls a guest's security.selinux; b"" where it is refused, or too long for a name."""
        try:
            name = self.xattrmap.host_name(SELINUX) if self.xattrmap else SELINUX
        except OSError:
            return b""
        return name if len(name) <= NAME_MAX else b""

    @property
    def gathers_writes(self) -> bool:
        """Whether --writeback means anything. Elsewhere a guest that has it gathers nothing, and still trusts its own
        size and times of every file it knows, so that it never sees what the host appends (fs/fuse/inode.c,
        fuse_get_cache_mask)."""
        return self.writeback and not self.readonly and self.cache in ("auto", "always")

    @property
    def readdirplus_mode(self) -> str:
        return self.readdirplus or ("never" if self.cache == "never" else "auto")


class _Take(argparse.Action):
    """Stores what one option gives, by its row."""

    def __init__(self, option_strings: Sequence[str], dest: str, row: Option, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, **kwargs)
        self.row = row

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        _store(namespace, self.row, values if isinstance(values, str) else self.row.constant, option or self.dest)


class _TakeLegacy(argparse.Action):
    """Stores what the items of an `-o` list give: `key` or `key=value`, a comma in a value doubled."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        for item in values.replace(",,", "\0").split(","):
            if not item:
                continue
            key, equals, text = item.replace("\0", ",").partition("=")
            if key not in LEGACY:
                raise UsageError(f"-o {key}: there is no such option; vfsd --help lists them")
            row, meaning = LEGACY[key]
            if bool(equals) != (meaning is None):
                raise UsageError(f"-o {key}: {'takes no value' if equals else f'needs a value: -o {key}=VALUE'}")
            _store(namespace, row, text if meaning is None else meaning, f"-o {key}")


def _store(namespace: argparse.Namespace, row: Option, text: str, name: str) -> None:
    value = row.value(text, name)
    if row.repeats:
        value = (*getattr(namespace, row.setting, ()), value)
    if row.setting:
        setattr(namespace, row.setting, value)


class _Print(argparse.Action):
    """Prints what the row gives, or the help, and ends the program with status 0."""

    def __init__(self, option_strings: Sequence[str], dest: str, row: Option, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)
        self.row = row

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        _show(self.row.prints() if self.row.prints else parser.format_help().rstrip())
        parser.exit()


def _show(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError as error:
        # Without this Python's own last flush fails again, with a notice and a status of its own.
        sys.stdout = None  # type: ignore[assignment]
        raise Failure(f"the answer can't be written to standard output: {error.strerror}") from None


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Breaks lines at spaces only: names are to be found, and copied, in one piece."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _split_lines(self, text: str, width: int) -> list[str]:
        import textwrap

        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(_in_our_words(message.removeprefix("argument ")))


def _in_our_words(message: str) -> str:
    """argparse's complaints, of which some sound as if the start went on, or don't say what to do."""
    name, _, complaint = message.partition(": ")
    if complaint.startswith("ignored explicit argument "):
        return f"{name} takes no value, not {complaint.removeprefix('ignored explicit argument ')}"
    if complaint == "expected one argument":
        return f"{name} needs a value; vfsd --help says which"
    if name == "unrecognized arguments":
        return f"{complaint}: there is no such option; vfsd --help lists them"
    return message


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vfsd",
        usage="vfsd --shared-dir DIR --socket-path SOCKET [option ...]",
        description="Shares a host directory with a QEMU guest through virtiofs: a vhost-user-fs back-end.",
        epilog=EXAMPLES,
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    for title, rows in GROUPS.items():
        group = parser.add_argument_group(title)
        for row in rows:
            if row.names:
                group.add_argument(*row.names, help=describe(row).replace("%", "%%"), **_keywords(row))
    group = parser.add_argument_group("options of older virtiofsds")
    group.add_argument("-o", action=_TakeLegacy, metavar="KEY[=VALUE],...", help=_legacy_help())
    return parser


def _keywords(row: Option) -> dict[str, Any]:
    if row.prints or "--help" in row.names:
        return {"action": _Print, "row": row}
    if not row.metavar:
        return {"action": _Take, "row": row, "nargs": 0}
    if row.metavar.startswith("["):
        return {"action": _Take, "row": row, "nargs": "?", "metavar": row.metavar.strip("[]")}
    return {"action": _Take, "row": row, "metavar": row.metavar}


def describe(row: Option) -> str:
    """The help of a row, with its default."""
    default = row.default or (row.metavar and Config._field_defaults[row.setting])
    return f"{row.help} (default: {default})" if default else row.help


def _legacy_help() -> str:
    keys = [key if text else f"{key}=" for key, (row, text) in LEGACY.items()]
    alone = "".join(f". {', '.join(row.legacy)}: {row.help}" for row in OPTIONS if not row.names)
    return f"The same in one list, a comma in a value doubled: {', '.join(keys)}{alone}"


def parse(argv: Sequence[str]) -> Config:
    """The settings that these arguments (without the program's name) ask for. Looks at nothing but the arguments.

    Raises Failure. Options that only print something print it and raise SystemExit(0).
    """
    parser = _parser()
    if not argv:
        raise UsageError(f"nothing to share; usage: {parser.usage}; vfsd --help explains the options")
    typed = vars(parser.parse_args(argv))
    config = Config(**typed)
    if config.upgrade and typed.keys() - {"upgrade", "program"}:
        raise UsageError("--upgrade takes --program and no other option: the daemon keeps those it was started with")
    if config.program and not config.upgrade:
        raise UsageError("--program needs --upgrade: name the daemon that is to become this program")
    if config.upgrade:
        return config
    if not config.shared_dir:
        raise UsageError("--shared-dir is missing: name the directory to share")
    if config.socket_path and config.fd is not None:
        raise UsageError("--socket-path and --fd exclude each other: leave one out")
    if not config.socket_path and config.fd is None:
        raise UsageError("--socket-path is missing: name the socket to create, or pass a listening one with --fd")
    if config.socket_group and config.fd is not None:
        raise UsageError("--socket-group and --fd exclude each other: whoever made the socket sets its group")
    for name, given in (("--uid-map", config.uid_map), ("--gid-map", config.gid_map)):
        if given and config.sandbox != "namespace":
            raise UsageError(f"{name} needs --sandbox=namespace: only a user namespace has a map")
    for name, rules in (("--translate-uid", config.translate_uid), ("--translate-gid", config.translate_gid)):
        if rules and config.owner:
            raise UsageError(f"--owner and {name} exclude each other: --owner translates every id")
        check(name, rules)
    _check_window(config)
    return _with_xattr(config)


def _check_window(config: Config) -> None:
    if not config.dax_window:
        return
    if config.readonly:
        raise UsageError("--dax-window and --readonly exclude each other: QEMU lets a guest write what it maps")
    if not config.tag:
        raise UsageError("--dax-window needs --tag: the QEMU device that has a window asks us for it")


def _with_xattr(config: Config) -> Config:
    """What goes without saying of extended attributes."""
    for name, implies in (
        ("--xattrmap", config.xattrmap),
        ("--posix-acl", config.posix_acl == "always"),
        ("--security-label", config.security_label == "always"),
    ):
        if implies and config.xattr is False:
            raise UsageError(f"--no-xattr and {name} exclude each other: leave one out")
        if implies:
            config = config._replace(xattr=True)
    if config.xattrmap and config.posix_acl != "never" and not all(map(config.xattrmap.keeps, ACLS)):
        if config.posix_acl == "always":
            raise UsageError(
                "--posix-acl needs ACLs under their own names, which --xattrmap changes or refuses: put a rule "
                ":ok:all:system.posix_acl_:system.posix_acl_: before the others"
            )
        config = config._replace(posix_acl="never")
    if config.security_label == "always" and not config.label:
        raise UsageError("--security-label needs a name for security.selinux, which --xattrmap refuses: leave one out")
    return config


#: What tells a process that it is started for an upgrade, and by which descriptor it learns more (vfsd/upgrade.py).
#: Comes first.
RESUME = "--resume="

EXAMPLES = """\
examples:
  vfsd --shared-dir /srv/data --socket-path /tmp/data.sock
  qemu-system-x86_64 -m 4G ... \\
      -object memory-backend-memfd,id=mem,size=4G,share=on -machine memory-backend=mem \\
      -chardev socket,id=data,path=/tmp/data.sock \\
      -device vhost-user-fs-pci,chardev=data,tag=data,queue-size=1024
and in the guest:
  mount -t virtiofs data /mnt

What virtiofsd has and vfsd has not yet built ends the start with status 2 and its name.
SIGUSR1 makes the daemon log how many requests of each kind it has served.
SIGUSR2 upgrades it, as --upgrade does.
Exit status: 0 the guest left, 1 failed or was told to end (SIGTERM, SIGHUP), 2 wrong usage.
"""
