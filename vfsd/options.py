"""The command line as data: one row per option. Parsing, `--help`, docs/options.md and "not built yet" come from it.

Names and meanings are those of Rust virtiofsd 1.14, unless a row says "vfsd only". What virtiofsd has and vfsd has not
built is a word in its row's `unbuilt`: it ends the start by name rather than being ignored.
"""

from vfsd import information, translate, values, xattrmap
from vfsd.migration_options import MIGRATION
from vfsd.option import Option
from vfsd.window_options import WINDOW


def _switch(key: str) -> dict[str, str | None]:
    return {key: "on", f"no_{key}": "off"}


_SWITCH = {"on": True, "off": False}
#: There is nothing to choose: the only word that describes what is done.
_NEVER = {"never": None}
_MODES = {word: word for word in ("never", "auto", "always")}
_ACCEPTED = {"on": None}
_CACHE = {"auto": "auto", "always": "always", "never": "never", "metadata": "metadata", "none": "never"}
_LEVELS = {word: word for word in ("error", "warn", "info", "debug", "trace", "off")} | {"err": "error"}

_SHARE = (
    Option(
        *("--shared-dir", "The directory to share", "shared_dir", "DIR"),
        convert=values.path,
        legacy={"source": None},
    ),
    Option("--readonly", "Let the guest read only", "readonly", words=_SWITCH),
    Option(
        "--tag",
        f"Name of the share in the device's config space, at most {values.TAG_MAX} bytes; QEMU's vhost-user-fs-pci has "
        "a tag= of its own and does not ask",
        *("tag", "TAG"),
        convert=values.tag,
        default="no config space",
    ),
)

_SOCKET = (
    Option(
        "--socket-path --socket",
        "Create this socket and wait for the front-end (QEMU) there; SOCKET.pid exists while the socket does",
        *("socket_path", "SOCKET"),
        convert=values.path,
    ),
    Option(
        *("--socket-group", "Let this group connect too: mode 0660 rather than 0600", "socket_group", "GROUP"),
        convert=values.name,
    ),
    Option(
        *("--fd", "Wait on this inherited, listening socket instead", "fd", "N"),
        convert=values.number,
    ),
    Option(
        "--keep-listening",
        "When a front-end leaves, wait for the next rather than exit with 0 (vfsd only)",
        "keep_listening",
        words=_SWITCH,
    ),
)

_CACHING = (
    Option(
        "--cache",
        "How long the guest trusts what it knows: never; auto: a second; always: a day; metadata: names and attributes "
        "for a day, file data never",
        *("cache", "MODE"),
        words=_CACHE,
        legacy={"cache": None},
    ),
    Option(
        "--entry-timeout",
        "How long the guest trusts that a name is still there, instead of what --cache says; 0.5 is half a second "
        "(vfsd only)",
        *("entry_timeout", "SECONDS"),
        convert=values.seconds,
        default="by --cache",
    ),
    Option(
        *("--attr-timeout", "The same for attributes (vfsd only)", "attr_timeout", "SECONDS"),
        convert=values.seconds,
        default="by --cache",
    ),
    Option(
        "--negative-timeout",
        "How long the guest trusts that a name is not there. Above 0 it asks less often for what programs try in vain, "
        "as along a search path; but a name the host makes may stay unseen for so long (vfsd only)",
        *("negative_timeout", "SECONDS"),
        convert=values.seconds,
        default="0",
    ),
    Option(
        *("", "Both --entry-timeout and --attr-timeout", "timeout", "SECONDS"),
        convert=values.seconds,
        legacy={"timeout": None},
        default="by --cache",
    ),
    Option(
        "--writeback",
        "Let the guest gather writes; only where nobody else changes the files. No effect with --readonly, and with "
        "--cache=never and metadata",
        "writeback",
        words=_SWITCH,
        legacy=_switch("writeback"),
    ),
    Option(
        *("--allow-direct-io", "Pass the guest's O_DIRECT on to the host", "allow_direct_io"),
        words=_SWITCH,
        legacy=_switch("allow_direct_io"),
    ),
    Option(
        "--allow-mmap",
        "Allow shared mappings where file data is not cached (guest from Linux 6.6); the default",
        "allow_mmap",
        words=_SWITCH,
    ),
    Option(
        *("--no-allow-mmap", "Refuse them, as every guest before Linux 6.6 does (vfsd only)", "allow_mmap"),
        constant="off",
        words=_SWITCH,
    ),
    Option(
        "--readdirplus",
        "Send attributes along with directory listings: never, always, or auto, when the guest seems to want them "
        "(vfsd only)",
        *("readdirplus", "MODE"),
        words={word: word for word in ("never", "auto", "always")},
        legacy={"readdirplus": "auto", "no_readdirplus": "never"},
        default="auto, never with --cache=never",
    ),
    Option(
        *("--no-readdirplus", "The same as --readdirplus=never", "readdirplus"),
        constant="never",
        words={"never": "never"},
    ),
    Option(
        *("--thread-pool-size", f"Threads that serve each queue, at most {values.THREADS_MAX}; 0 is 1", "threads", "N"),
        convert=values.threads,
    ),
    Option(
        "--poll-us",
        "How long a thread may watch its queue for the next request before it sleeps, in microseconds, at most "
        f"{values.POLL_MAX}. It does so only while that has paid lately; 0: never (vfsd only)",
        *("poll", "N"),
        convert=values.poll,
    ),
)

_SEMANTICS = (
    Option(
        "--xattr",
        "Offer extended attributes, also where the root of the share has none. virtiofsd offers them only with this "
        "option; vfsd does by itself where the root of the share has them",
        "xattr",
        words=_SWITCH,
        legacy=_switch("xattr"),
        default="where the share has them",
    ),
    Option(
        *("--no-xattr", "Offer no extended attributes (vfsd only; virtiofsd knows -o no_xattr)", "xattr"),
        constant="off",
        words=_SWITCH,
    ),
    Option(
        "--xattrmap",
        "Keep the guest's extended attributes under other names on the host, by rules :TYPE:SCOPE:KEY:PREPEND:, of "
        "which the first that matches counts, as :map::user.virtiofs.: (docs/xattr.md); or by ready-made ones (vfsd "
        "only): overlay, so that the guest's overlayfs can have its upper layer on the share; selinux, so that the "
        "guest's labels are its own; overlay+selinux. Implies --xattr",
        *("xattrmap", "RULES"),
        convert=xattrmap.XattrMap.parse,
        legacy={"xattrmap": None},
    ),
    Option(
        *("--announce-submounts", "Show host mounts below the share as mounts; the default", "announce_submounts"),
        words=_SWITCH,
        legacy=_switch("announce_submounts"),
    ),
    Option(
        *("--no-announce-submounts", "Show the share as one file system", "announce_submounts"),
        constant="off",
        words=_SWITCH,
    ),
    Option(
        *("--preserve-noatime", "Pass the guest's O_NOATIME on to the host", "preserve_noatime"),
        words=_SWITCH,
    ),
    Option(
        *("--posix-lock", "fcntl(2) locks exclude other guests and the host; the default (vfsd only)", "posix_lock"),
        words=_SWITCH,
        legacy=_switch("posix_lock"),
    ),
    Option(
        *("--no-posix-lock", "Leave fcntl(2) locks to the guest, for itself (vfsd only)", "posix_lock"),
        constant="off",
        words=_SWITCH,
    ),
    Option(
        *("--flock", "flock(2) locks exclude other guests and the host; the default (vfsd only)", "flock"),
        words=_SWITCH,
        legacy=_switch("flock"),
    ),
    Option(
        *("--no-flock", "Leave flock(2) locks to the guest, for itself (vfsd only)", "flock"),
        constant="off",
        words=_SWITCH,
    ),
    Option(
        "--posix-acl",
        "POSIX access control lists, which the guest enforces: never; auto: if its kernel offers that (Linux 5.13) and "
        "the root of the share has them; always: a guest that does not offer it can't mount. The guest asks once more "
        "for each file that another than its owner opens, hence the default. always implies --xattr",
        *("posix_acl", "[MODE]"),
        constant="always",
        words=_MODES,
        legacy={"posix_acl": "always", "no_posix_acl": "never"},
    ),
    Option(
        "--security-label",
        "Labels of the guest's SELinux, given to what it makes as it is made: never; auto: if the guest's kernel "
        "offers that (Linux 5.17) and the root of the share takes labels; always: a guest that does not offer it "
        "can't mount. always implies --xattr. See --xattrmap=selinux",
        *("security_label", "[MODE]"),
        constant="always",
        words=_MODES,
        legacy={"security_label": "always", "no_security_label": "never"},
    ),
    Option(
        "--inode-file-handles",
        "How files whose descriptors were closed, since there were too many, are opened again: by file handle where "
        "that is possible, else by name (prefer); by name (never); by file handle or the start fails (mandatory)",
        *("inode_file_handles", "MODE"),
        words={"never": "never", "prefer": "prefer", "fallback": "prefer", "mandatory": "mandatory"},
    ),
    Option(
        "--no-killpriv-v2",
        "Leave it to the guest to take setuid, setgid and file capabilities away from what it modifies: it asks for a "
        "capability before each write then, and truncates in a request of its own",
        "killpriv",
        constant="off",
        words=_SWITCH,
    ),
    Option(
        "--killpriv-v2",
        "Take them away here, on host file systems of any kind; the default (virtiofsd: only when asked for)",
        "killpriv",
        words=_SWITCH,
        legacy=_switch("killpriv_v2"),
    ),
)

_SANDBOX = (
    Option(
        "--sandbox",
        "What keeps the daemon inside the share: namespace (also without privilege), chroot (root only), or none",
        *("sandbox", "MODE"),
        words={word: word for word in ("namespace", "chroot", "none")},
        legacy={"sandbox": None},
    ),
    Option(
        *("--modcaps", "Keep (+) or drop (-) capabilities: --modcaps=+sys_admin:-mknod", "modcaps", "LIST"),
        convert=values.modcaps,
        legacy={"modcaps": None},
        default="those that serving files needs",
    ),
    Option(
        "--uid-map",
        "In the user namespace, COUNT user ids from INSIDE on are OUTSIDE and up on the host; repeatable",
        *("uid_map", ":INSIDE:OUTSIDE:COUNT:"),
        convert=values.id_map,
        repeats=True,
    ),
    Option(
        *("--gid-map", "The same for group ids", "gid_map", ":INSIDE:OUTSIDE:COUNT:"),
        convert=values.id_map,
        repeats=True,
    ),
    Option(
        "--translate-uid",
        "Translate user ids without a user namespace; repeatable. map:GUEST:HOST:COUNT: COUNT ids from GUEST on are "
        "HOST and up on the host; guest:GUEST:HOST:COUNT and host:HOST:GUEST:COUNT do so in one direction; "
        "squash-guest:GUEST:HOST:COUNT and squash-host:HOST:GUEST:COUNT make them one id; forbid-guest:GUEST:COUNT: "
        "the guest may not use them (EPERM). Other ids stay as they are. The ids in POSIX ACLs are translated too",
        *("translate_uid", "RULE"),
        convert=translate.rule,
        repeats=True,
    ),
    Option(
        *("--translate-gid", "The same for group ids", "translate_gid", "RULE"),
        convert=translate.rule,
        repeats=True,
    ),
    Option(
        "--owner",
        "Everything belongs to this user and group of the guest, whoever owns it on the host, and what the guest makes "
        "belongs to the user vfsd runs as. For a vfsd without privilege, which can give files to nobody else; a "
        "guest's chown to another owner fails with EPERM. GID is UID when left out (vfsd only)",
        *("owner", "UID[:GID]"),
        convert=translate.owner,
    ),
    Option(
        "--no-allow-idmap",
        "Refuse idmapped mounts in the guest (from Linux 6.12), for which it leaves out of most requests who asks; "
        "without them, set-id bits go and stay by the caller more exactly as on a local file system (vfsd only)",
        "allow_idmap",
        constant="off",
        words=_SWITCH,
    ),
    Option(
        *("--seccomp", "Filter of system calls; kill, log and trap are not built yet", "", "none"),
        words={"none": None},
        unbuilt=("kill", "log", "trap"),
        default="none",
    ),
)

_PROCESS = (
    Option(
        "--rlimit-nofile",
        f"Limit of open files, at least {values.NOFILE_MIN}; 0 leaves it as it is",
        *("rlimit_nofile", "N"),
        convert=values.descriptors,
        default="1000000, or if less: fs.nr_open, and the hard limit where it may not be raised",
    ),
    Option(
        *("--log-level", "error, warn, info, debug, trace or off", "log_level", "LEVEL"),
        words=_LEVELS,
        legacy={"loglevel": None, "log_level": None},
    ),
    Option(
        *("-d", "The same as --log-level=debug", "log_level"),
        constant="debug",
        words={"debug": "debug"},
        legacy={"debug": "debug"},
    ),
    Option("--syslog", "Log to syslog rather than to standard error", "syslog", words=_SWITCH),
)

_UPGRADE = (
    Option(
        "--upgrade",
        "Start nothing, but have a running daemon give its place to a new program, while the guest notices no more "
        "than a short wait: name its pid file, the socket of its --socket-path, or its pid. If the new program can't "
        "go on, the old one does, and the exit status is not 0 (vfsd only)",
        *("upgrade", "DAEMON"),
        convert=values.path,
    ),
    Option(
        *("--program", "The executable it becomes (vfsd only)", "program", "PATH"),
        convert=values.path,
        default="the one it was started as, as it is installed now",
    ),
)

_COMPATIBILITY = (Option("-f", "No effect: vfsd never leaves the foreground", words=_ACCEPTED),)

_INFORMATION = (
    Option("-h --help", "Show this text"),
    Option("-V --version", "Show the version", prints=information.version),
    Option("--print-capabilities", "Show what managers want to know, as JSON", prints=information.capabilities),
    Option(
        "--print-descriptor",
        "Show the file by which managers find vfsd: put it into /etc/qemu/vhost-user (vfsd only)",
        prints=information.descriptor,
    ),
)

#: The rows, under the titles of `--help`.
GROUPS: dict[str, tuple[Option, ...]] = {
    "what to share": _SHARE,
    "where the guest connects": _SOCKET,
    "caching and data path": _CACHING,
    "DAX window": WINDOW,
    "file-system semantics": _SEMANTICS,
    "sandbox and identity": _SANDBOX,
    "process and log": _PROCESS,
    "upgrade": _UPGRADE,
    "migration": MIGRATION,
    "compatibility": _COMPATIBILITY,
    "information, without privilege": _INFORMATION,
}

OPTIONS: tuple[Option, ...] = tuple(row for rows in GROUPS.values() for row in rows)

#: Every key of an `-o` list: its row, and the text it stands for, or None for what follows "=".
LEGACY: dict[str, tuple[Option, str | None]] = {k: (row, text) for row in OPTIONS for k, text in row.legacy.items()}
