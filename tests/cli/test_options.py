"""Every row of the option table, as text and as settings."""

import re
from typing import Any

import pytest

from vfsd.config import Config, parse
from vfsd.errors import UsageError
from vfsd.option import Option
from vfsd.options import LEGACY, OPTIONS
from vfsd.settings import Settings
from vfsd.translate import Owner, rule
from vfsd.values import IdMap
from vfsd.xattrmap import XattrMap

LEAST = ["--shared-dir", "/srv", "--socket-path", "/run/s"]
BASE = Config(shared_dir="/srv", socket_path="/run/s")

#: Arguments, and what they change in BASE.
ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("--shared-dir=/data", {"shared_dir": "/data"}),
    ("--shared-dir /data", {"shared_dir": "/data"}),
    ("--shared-dir /a --shared-dir /b", {"shared_dir": "/b"}),
    ("--readonly", {"readonly": True}),
    ("--tag home", {"tag": "home"}),
    ("--tag home --dax-window 1G", {"tag": "home", "dax_window": 1 << 30}),
    ("--tag home --dax-window=2m", {"tag": "home", "dax_window": 2 << 20}),
    ("--tag home --dax-window=4194304", {"tag": "home", "dax_window": 4 << 20}),
    *((f"--dax-policy={policy}", {"dax_policy": policy}) for policy in ("auto", "always", "never")),
    ("--dax-min-size 4K --dax-max-size=1T", {"dax_min_size": 4096, "dax_max_size": 1 << 40}),
    (f"--tag {'x' * 36}", {"tag": "x" * 36}),
    (f"--tag {'ä' * 18}", {"tag": "ä" * 18}),
    ("--socket-path=other", {"socket_path": "other"}),
    ("--socket /old/name", {"socket_path": "/old/name"}),
    ("--socket-group kvm", {"socket_group": "kvm"}),
    ("--keep-listening", {"keep_listening": True}),
    ("--cache never", {"cache": "never"}),
    ("--cache=NEVER", {"cache": "never"}),
    ("--cache none", {"cache": "never"}),
    ("--cache metadata", {"cache": "metadata"}),
    ("--cache Auto", {"cache": "auto"}),
    ("--cache always", {"cache": "always"}),
    ("--cache never --cache always", {"cache": "always"}),
    ("--writeback", {"writeback": True}),
    ("--allow-direct-io", {"allow_direct_io": True}),
    ("--entry-timeout=10", {"entry_timeout": 10_000_000_000}),
    ("--attr-timeout=0.25", {"attr_timeout": 250_000_000}),
    ("--negative-timeout .5", {"negative_timeout": 500_000_000}),
    ("--negative-timeout=0", {"negative_timeout": 0}),
    ("--entry-timeout=0.0000000019", {"entry_timeout": 1}),
    ("-o timeout=2.5", {"timeout": 2_500_000_000}),
    *((f"--inode-file-handles={mode}", {"inode_file_handles": mode}) for mode in ("never", "prefer", "mandatory")),
    ("--inode-file-handles FALLBACK", {"inode_file_handles": "prefer"}),
    ("--allow-mmap", {"allow_mmap": True}),
    ("--no-allow-mmap", {"allow_mmap": False}),
    ("--no-allow-idmap", {"allow_idmap": False}),
    ("--no-allow-mmap --allow-mmap", {}),
    ("--no-readdirplus", {"readdirplus": "never"}),
    *((f"--readdirplus={mode}", {"readdirplus": mode}) for mode in ("never", "auto", "always")),
    ("--thread-pool-size 0", {"threads": 1}),
    ("--thread-pool-size=1", {"threads": 1}),
    ("--thread-pool-size=64", {"threads": 64}),
    ("--poll-us=0", {"poll": 0}),
    ("--poll-us 50", {}),
    ("--xattr", {"xattr": True}),
    ("--no-xattr", {"xattr": False}),
    ("--posix-acl=auto", {"posix_acl": "auto"}),
    ("--posix-acl=auto --no-xattr", {"posix_acl": "auto", "xattr": False}),
    ("--posix-acl --xattrmap overlay", {"posix_acl": "always", "xattr": True, "xattrmap": XattrMap.parse("overlay")}),
    ("-o posix_acl", {"posix_acl": "always", "xattr": True}),
    ("--security-label", {"security_label": "always", "xattr": True}),
    ("--security-label=auto", {"security_label": "auto"}),
    ("-o security_label", {"security_label": "always", "xattr": True}),
    ("--security-label -o no_security_label", {"security_label": "never"}),
    ("--posix-acl -o no_posix_acl", {"posix_acl": "never"}),
    (
        "--posix-acl=auto --xattrmap :map::user.virtiofs.:",
        {"posix_acl": "never", "xattr": True, "xattrmap": XattrMap.parse(":map::user.virtiofs.:")},
    ),
    ("--no-xattr --xattr", {"xattr": True}),
    ("--xattrmap=:map::user.virtiofs.:", {"xattr": True, "xattrmap": XattrMap.parse(":map::user.virtiofs.:")}),
    ("--xattrmap overlay", {"xattr": True, "xattrmap": XattrMap.parse("overlay")}),
    ("-o xattrmap=:ok:all:::", {"xattr": True, "xattrmap": XattrMap.parse(":ok:all:::")}),
    (
        "-o xattrmap=/bad/client/a,,b///ok/all///,xattr",
        {"xattr": True, "xattrmap": XattrMap.parse("/bad/client/a,b///ok/all///")},
    ),
    ("--announce-submounts", {"announce_submounts": True}),
    ("--no-announce-submounts", {"announce_submounts": False}),
    ("--no-announce-submounts --announce-submounts", {"announce_submounts": True}),
    ("--preserve-noatime", {"preserve_noatime": True}),
    ("--posix-acl=never --security-label never --seccomp=none", {}),
    ("--no-killpriv-v2", {"killpriv": False}),
    ("--no-killpriv-v2 --killpriv-v2", {"killpriv": True}),
    ("-o killpriv_v2", {}),
    ("--sandbox chroot", {"sandbox": "chroot"}),
    ("--sandbox=none", {"sandbox": "none"}),
    ("--sandbox=Namespace", {"sandbox": "namespace"}),
    ("--modcaps=-mknod", {"modcaps": ((False, 27),)}),
    ("--modcaps=+CAP_SYS_ADMIN:-chown", {"modcaps": ((True, 21), (False, 0))}),
    ("--uid-map=:0:1000:1:", {"uid_map": (IdMap(0, 1000, 1),)}),
    ("--uid-map /0/1000/1/", {"uid_map": (IdMap(0, 1000, 1),)}),
    (
        "--gid-map :0:1000:1: --gid-map=:1:100000:65536:",
        {"gid_map": (IdMap(0, 1000, 1), IdMap(1, 100000, 65536))},
    ),
    ("--translate-uid map:0:1000:1", {"translate_uid": (rule("map:0:1000:1"),)}),
    (
        "--translate-gid=MAP:0:1000:1 --translate-gid=squash-guest:5:7:3",
        {"translate_gid": (rule("MAP:0:1000:1"), rule("squash-guest:5:7:3"))},
    ),
    ("--owner 1000", {"owner": Owner(1000, 1000)}),
    ("--owner=1000:100", {"owner": Owner(1000, 100)}),
    ("--rlimit-nofile 0", {"rlimit_nofile": 0}),
    ("--rlimit-nofile=256", {"rlimit_nofile": 256}),
    ("--rlimit-nofile=1048576", {"rlimit_nofile": 1048576}),
    *((f"--log-level {level}", {"log_level": level}) for level in ("error", "warn", "info", "debug", "trace", "off")),
    ("--log-level DEBUG", {"log_level": "debug"}),
    ("-d", {"log_level": "debug"}),
    ("-d --log-level error", {"log_level": "error"}),
    ("--syslog", {"syslog": True}),
    ("--migration-mode find-paths --migration-on-error=abort", {}),
    (
        "--migration-mode=File-Handles --migration-on-error guest-error",
        {"migration_mode": "file-handles", "migration_on_error": "guest-error"},
    ),
    ("--migration-verify-handles", {"migration_verify_handles": True}),
    ("--migration-confirm-paths", {"migration_confirm_paths": True}),
    ("-f", {}),
    ("-o source=/data", {"shared_dir": "/data"}),
    ("-o source=/with,,comma,xattr", {"shared_dir": "/with,comma", "xattr": True}),
    ("-osource=/a=b", {"shared_dir": "/a=b"}),
    ("-o cache=none", {"cache": "never"}),
    ("-o cache=always,cache=auto", {"cache": "auto"}),
    ("-o loglevel=err", {"log_level": "error"}),
    ("-o log_level=debug", {"log_level": "debug"}),
    ("-o debug", {"log_level": "debug"}),
    ("-o sandbox=chroot,modcaps=+sys_admin", {"sandbox": "chroot", "modcaps": ((True, 21),)}),
    ("-o xattr -o no_xattr", {"xattr": False}),
    ("-o no_xattr --xattr", {"xattr": True}),
    ("-o no_readdirplus", {"readdirplus": "never"}),
    ("--no-readdirplus -o readdirplus", {"readdirplus": "auto"}),
    ("-o writeback,allow_direct_io", {"writeback": True, "allow_direct_io": True}),
    ("-o no_writeback,no_allow_direct_io", {}),
    ("-o announce_submounts", {}),
    ("-o no_announce_submounts", {"announce_submounts": False}),
    ("-o no_killpriv_v2,no_posix_acl,no_security_label", {"killpriv": False}),
    ("--no-posix-lock", {"posix_lock": False}),
    ("--no-posix-lock --posix-lock", {}),
    ("--no-flock", {"flock": False}),
    ("--no-flock --flock", {}),
    ("-o no_posix_lock,no_flock", {"posix_lock": False, "flock": False}),
    ("-o posix_lock,flock", {}),
    ("-o xattr,", {"xattr": True}),
]

#: Arguments, and what the sentence must say.
REFUSED = [
    ("--shared-dir=", "--shared-dir must be a path"),
    ("--shared-dir", "--shared-dir needs a value"),
    ("--tag=", "--tag must be 1 to 36 bytes"),
    *(
        (f"--tag x --dax-window={size}", "--dax-window must be a power of two from 2M to 64G")
        for size in ("0", "3M", "1M", "128G")
    ),
    ("--tag x --dax-window=", "--dax-window must be a size, as 512K, 64M or 4G"),
    ("--tag x --dax-window=1GiB", "--dax-window must be a size, as 512K, 64M or 4G"),
    ("--dax-window=1G", "--dax-window needs --tag"),
    ("--tag x --dax-window=1G --readonly", "--dax-window and --readonly exclude each other"),
    ("--dax-policy=on", "--dax-policy must be"),
    ("--dax-min-size=-1", "--dax-min-size must be a size"),
    (f"--tag {'x' * 37}", "--tag must be 1 to 36 bytes"),
    (f"--tag {'ä' * 19}", "--tag must be 1 to 36 bytes"),
    ("--socket-path=", "--socket-path must be a path"),
    ("--socket-group=", "--socket-group must be"),
    ("--fd 3", "--socket-path and --fd exclude each other"),
    ("--fd=-1", "--fd must be a number"),
    ("--fd=x", "--fd must be a number"),
    ("--fd=4294967296", "--fd must be a number"),
    ("--cache=sometimes", "--cache must be one of auto, always, never, metadata"),
    *(
        (f"--{kind}-timeout={text}", f"--{kind}-timeout must be seconds")
        for kind, text in (("entry", "-1"), ("attr", "1s"), ("negative", "1."), ("attr", ""), ("entry", "9" * 10))
    ),
    ("-o timeout=soon", "-o timeout must be seconds"),
    ("-o timeout", "-o timeout: needs a value"),
    ("--readdirplus=sometimes", "--readdirplus must be one of never, auto, always"),
    ("--thread-pool-size=-1", "--thread-pool-size must be a number from 0 to 256"),
    ("--thread-pool-size=257", "--thread-pool-size must be a number from 0 to 256"),
    ("--thread-pool-size=many", "--thread-pool-size"),
    ("--poll-us=51", "--poll-us must be a number of microseconds from 0 to 50"),
    ("--poll-us=-1", "--poll-us"),
    ("--thread-pool-size=٣", "--thread-pool-size"),
    ("--no-xattr --posix-acl", "--no-xattr and --posix-acl exclude each other"),
    ("--posix-acl --xattrmap=:map::user.virtiofs.:", "--posix-acl needs ACLs under their own names"),
    ("--posix-acl --xattrmap=/bad/client/system.///ok/all///", "--posix-acl needs ACLs under their own names"),
    ("--no-xattr --security-label", "--no-xattr and --security-label exclude each other"),
    ("--security-label --xattrmap=:bad:all:::", "--security-label needs a name for security.selinux"),
    ("--security-label=maybe", "--security-label must be one of never, auto, always"),
    ("--xattrmap=", "--xattrmap: there is no rule"),
    ("--xattrmap=:no:all:::", "--xattrmap: rule 1, ':no:all:::': there is no type 'no'"),
    ("-o xattrmap=:ok:client:::", "-o xattrmap: the rules leave names from the host undecided"),
    ("--no-xattr --xattrmap=overlay", "--no-xattr and --xattrmap exclude each other"),
    ("-o no_xattr,xattrmap=overlay", "--no-xattr and --xattrmap exclude each other"),
    ("--sandbox=jail", "--sandbox must be one of namespace, chroot, none"),
    ("--modcaps=mknod", "--modcaps must be a list"),
    ("--modcaps=+no_such_capability", "--modcaps must be a list"),
    ("--modcaps=", "--modcaps must be a list"),
    ("--uid-map=0:1000:1", "--uid-map must be of the form"),
    ("--uid-map=:0:1000:", "--uid-map must be of the form"),
    ("--uid-map=:0:1000:1", "--uid-map must be of the form"),
    ("--uid-map=:a:1000:1:", "--uid-map must be of the form"),
    ("--uid-map=", "--uid-map must be of the form"),
    ("--gid-map=:0:1000:0:", "--gid-map must be a range"),
    ("--gid-map=:0:4294967295:2:", "--gid-map must be a range"),
    ("--uid-map=:0:1000:1: --sandbox=none", "--uid-map needs --sandbox=namespace"),
    ("--gid-map=:0:1000:1: --sandbox=chroot", "--gid-map needs --sandbox=namespace"),
    ("--translate-uid=0:1000:1", "--translate-uid must be one of guest:GUEST:HOST:COUNT, "),
    ("--translate-gid=", "--translate-gid must be one of guest:GUEST:HOST:COUNT, "),
    ("--translate-uid=map:0:0:4294967296", "--translate-uid must be about ids from 0 to 4294967294"),
    (
        "--translate-uid=map:0:1000:5 --translate-uid=guest:4:5:1",
        "--translate-uid: map:0:1000:5 and guest:4:5:1 both say what the guest's id 4 is on the host",
    ),
    (
        "--translate-gid=map:5:1004:1 --translate-gid=map:0:1000:5",
        "--translate-gid: map:0:1000:5 and map:5:1004:1 both say what the host's id 1004 is on the guest",
    ),
    ("--owner=1000 --translate-uid=map:0:1000:5", "--owner and --translate-uid exclude each other"),
    ("--translate-gid=map:0:1000:5 --owner=1000", "--owner and --translate-gid exclude each other"),
    ("--owner=guest", "--owner must be a user id of the guest, or UID:GID"),
    ("--owner=4294967295", "--owner must be a user id of the guest, or UID:GID"),
    ("--owner=1:2:3", "--owner must be a user id of the guest, or UID:GID"),
    *((f"--rlimit-nofile={n}", "--rlimit-nofile must be 0, or a number from 256 to 2147483647") for n in (1, 255, "x")),
    ("--log-level=loud", "--log-level must be one of error, warn"),
    ("--readonly=yes", "--readonly takes no value, not 'yes'"),
    ("--no-killpriv-v2=1", "--no-killpriv-v2 takes no value, not '1'"),
    ("--cache", "--cache needs a value"),
    ("--seccomp=maybe", "--seccomp must be one of none"),
    ("--posix-acl=maybe", "--posix-acl must be one of never, auto, always"),
    ("--no-such-option", "--no-such-option: there is no such option"),
    ("--read", "--read: there is no such option"),
    ("somewhere", "somewhere: there is no such option"),
    ("-o nonsense", "-o nonsense: there is no such option"),
    ("-o cache", "-o cache: needs a value"),
    ("-o xattr=on", "-o xattr: takes no value"),
    ("-o cache=sometimes", "-o cache must be one of"),
    ("-o source=", "-o source must be a path"),
    ("-o", "-o needs a value"),
]


#: What starts no daemon, and takes none of the options that a daemon has.
ALONE = [
    ("--upgrade /run/s.pid", {"upgrade": "/run/s.pid"}),
    ("--upgrade=4711 --program=/opt/vfsd", {"upgrade": "4711", "program": "/opt/vfsd"}),
]


@pytest.mark.parametrize(("arguments", "changes"), ALONE, ids=[arguments for arguments, _ in ALONE])
def test_alone(arguments: str, changes: dict[str, Any]) -> None:
    assert parse(arguments.split()) == Config()._replace(**changes)
    with pytest.raises(UsageError, match="--upgrade takes --program and no other option"):
        parse([*arguments.split(), "--readonly"])


def test_a_program_is_for_an_upgrade() -> None:
    with pytest.raises(UsageError, match="--program needs --upgrade"):
        parse([*LEAST, "--program=/opt/vfsd"])


@pytest.mark.parametrize(("arguments", "changes"), ACCEPTED, ids=[arguments for arguments, _ in ACCEPTED])
def test_accepted(arguments: str, changes: dict[str, Any]) -> None:
    assert parse([*LEAST, *arguments.split()]) == BASE._replace(**changes)


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED, ids=[arguments for arguments, _ in REFUSED])
def test_refused(arguments: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)) as caught:
        parse([*LEAST, *arguments.split()])
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)


def test_every_option_is_tried() -> None:
    tried = " ".join(arguments for arguments, _ in [*ACCEPTED, *ALONE])
    for row in OPTIONS:
        if not row.prints and "--help" not in row.names and "--fd" not in row.names:
            assert all(re.search(rf"(^| ){name}\b", tried) for name in row.names), row.names
            assert all(re.search(rf"[ ,]{key}\b", tried) for key, text in row.legacy.items() if text != "always"), row


@pytest.mark.parametrize("row", [row for row in OPTIONS if row.unbuilt], ids=lambda row: row.spellings)
def test_a_value_not_built_says_so_by_name(row: Option) -> None:
    (name,) = row.names
    for word in row.unbuilt:
        with pytest.raises(UsageError, match=f"^{name}(={word})? is not built yet in vfsd"):
            parse([*LEAST, f"{name}={word}"])


def test_a_share_and_a_socket_are_required() -> None:
    for arguments, missing in (
        ([], "--shared-dir"),
        (["--socket-path", "s"], "--shared-dir"),
        (["--shared-dir", "/srv"], "--socket-path"),
    ):
        with pytest.raises(UsageError, match=missing):
            parse(arguments)


def test_an_inherited_socket_stands_for_a_path() -> None:
    assert parse(["--fd=7", "-o", "source=/srv"]) == Config(shared_dir="/srv", fd=7)
    with pytest.raises(UsageError, match="--socket-group and --fd"):
        parse(["--fd=7", "--shared-dir=/srv", "--socket-group=kvm"])


def test_a_path_may_be_of_any_bytes() -> None:
    path = b"/srv/\xff".decode(errors="surrogateescape")
    assert parse(["--shared-dir", path, "--fd=3"]).shared_dir == path


def test_validity_follows_the_cache_mode() -> None:
    for mode, seconds in {"never": 0, "auto": 1, "metadata": 86400, "always": 86400}.items():
        settings = Settings.of(BASE._replace(cache=mode), privileged=False)
        assert (settings.entry_ns, settings.attr_ns, settings.negative_ns) == (seconds * 10**9, seconds * 10**9, 0)
        assert settings.readdirplus == ("never" if mode == "never" else "auto")


def test_a_validity_of_its_own_comes_before_the_common_one() -> None:
    given = BASE._replace(cache="always", timeout=7, attr_timeout=0, negative_timeout=3, readdirplus="always")
    settings = Settings.of(given, privileged=False)
    assert (settings.entry_ns, settings.attr_ns, settings.negative_ns) == (7, 0, 3)
    assert Settings.of(given._replace(cache="never"), privileged=False).readdirplus == "always"


def test_the_table_agrees_with_the_settings() -> None:
    assert {row.setting for row in OPTIONS if row.setting} == set(Config._fields)
    assert len(LEGACY) == sum(len(row.legacy) for row in OPTIONS)
    names = [name for row in OPTIONS for name in row.names]
    assert len(names) == len(set(names))


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    shown = " ".join(text.split())
    for row in OPTIONS:
        assert all(name in shown for name in row.names), row.names
        assert " ".join(row.help.split())[:30] in shown
    # What other tools look for, as they do: without wrapping.
    for name in ("--readonly", "--sandbox", "--inode-file-handles", "--translate-uid"):
        assert name in text
    for word in " ".join(row.help for row in OPTIONS if row.names).split():
        assert word in text, f"{word} is broken into two lines"
    assert "kill, log and trap are not built yet" in shown
    assert "(default: auto)" in shown and "(default: namespace)" in shown
    assert "-device vhost-user-fs-pci" in text and "share=on" in text
    assert max(map(len, text.splitlines())) <= 100
