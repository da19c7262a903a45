"""The command lines by which virtual machine managers start a virtiofs daemon, as data.

Each means the settings beside it.
"""

import json

import pytest

from vfsd.config import Config, parse
from vfsd.translate import rule
from vfsd.values import IdMap

#: Manager, arguments, settings.
STARTED: list[tuple[str, str, Config]] = [
    ("libvirt", "--fd=26 --shared-dir /srv", Config(shared_dir="/srv", fd=26)),
    (
        "libvirt with every element",
        "--fd=26 --shared-dir /srv --cache always --sandbox chroot --xattr --thread-pool-size=16 --rlimit-nofile=65536 "
        "--log-level debug",
        Config(
            shared_dir="/srv",
            fd=26,
            cache="always",
            sandbox="chroot",
            xattr=True,
            threads=16,
            rlimit_nofile=65536,
            log_level="debug",
        ),
    ),
    (
        "libvirt in a session",
        "--fd=26 --shared-dir /home/u --uid-map=:0:1000:1: --uid-map=:1:100000:65536: --gid-map=:0:1000:1: "
        "--gid-map=:1:100000:65536:",
        Config(
            shared_dir="/home/u",
            fd=26,
            uid_map=(IdMap(0, 1000, 1), IdMap(1, 100000, 65536)),
            gid_map=(IdMap(0, 1000, 1), IdMap(1, 100000, 65536)),
        ),
    ),
    (
        "libvirt, older daemons",
        "--fd=26 -o source=/srv/with,,comma,cache=none,sandbox=namespace,xattr,no_flock,no_posix_lock -d",
        Config(
            shared_dir="/srv/with,comma",
            fd=26,
            cache="never",
            xattr=True,
            log_level="debug",
            posix_lock=False,
            flock=False,
        ),
    ),
    (
        "libvirt, locks on",
        "--fd=26 -o source=/srv,cache=auto,flock,posix_lock",
        Config(shared_dir="/srv", fd=26),
    ),
    (
        "Kata, Go",
        "--syslog --cache=auto --shared-dir=/run/kata/shared --fd=3 --thread-pool-size=1 --announce-submounts",
        Config(shared_dir="/run/kata/shared", fd=3, syslog=True),
    ),
    (
        "Kata, Rust",
        "--socket-path virtiofsd.sock --shared-dir /run/kata/shared --cache never --thread-pool-size=1 "
        "-o announce_submounts --xattr",
        Config(
            shared_dir="/run/kata/shared",
            socket_path="virtiofsd.sock",
            cache="never",
            xattr=True,
        ),
    ),
    (
        "Proxmox",
        "--fd=5 --shared-dir=/mnt/share --xattr --announce-submounts --allow-direct-io --cache=metadata --syslog",
        Config(shared_dir="/mnt/share", fd=5, xattr=True, allow_direct_io=True, cache="metadata", syslog=True),
    ),
    (
        "Proxmox, file handles",
        "--fd=5 --shared-dir=/s --announce-submounts --inode-file-handles=prefer --syslog",
        Config(shared_dir="/s", fd=5, syslog=True),
    ),
    (
        "Talos",
        "--syslog --inode-file-handles=mandatory --announce-submounts --fd 3 --shared-dir /srv --cache always "
        "--sandbox chroot --xattr",
        Config(
            shared_dir="/srv",
            fd=3,
            syslog=True,
            inode_file_handles="mandatory",
            cache="always",
            sandbox="chroot",
            xattr=True,
        ),
    ),
    (
        "virtme-ng",
        "--syslog --no-announce-submounts --readonly --socket-path /tmp/virtmeX --shared-dir / --sandbox none "
        "--cache always",
        Config(
            shared_dir="/",
            socket_path="/tmp/virtmeX",
            syslog=True,
            announce_submounts=False,
            readonly=True,
            sandbox="none",
            cache="always",
        ),
    ),
    (
        "Lima",
        "--socket-path /home/u/.lima/default/virtiofsd-0.sock --shared-dir /home/u",
        Config(shared_dir="/home/u", socket_path="/home/u/.lima/default/virtiofsd-0.sock"),
    ),
    (
        "microvm.nix",
        "--socket-path=vm-virtiofs-store.sock --socket-group=kvm --shared-dir=/nix/store --rlimit-nofile 1048576 "
        "--thread-pool-size 4 --cache=auto --inode-file-handles=never --tag=ro-store --readonly",
        Config(
            shared_dir="/nix/store",
            socket_path="vm-virtiofs-store.sock",
            socket_group="kvm",
            rlimit_nofile=1048576,
            threads=4,
            tag="ro-store",
            readonly=True,
            inode_file_handles="never",
        ),
    ),
    (
        "systemd-vmspawn",
        "--shared-dir /var/lib/machines/m --xattr --fd 6 --no-announce-submounts --log-level=error --modcaps=-mknod",
        Config(
            shared_dir="/var/lib/machines/m",
            fd=6,
            xattr=True,
            announce_submounts=False,
            log_level="error",
            modcaps=((False, 27),),
        ),
    ),
    (
        "systemd-vmspawn, ids",
        "--shared-dir /m --xattr --fd 6 --no-announce-submounts --log-level=error --modcaps=-mknod "
        "--translate-uid map:0:524288:65536 --translate-gid map:0:524288:65536",
        Config(
            shared_dir="/m",
            fd=6,
            xattr=True,
            announce_submounts=False,
            log_level="error",
            modcaps=((False, 27),),
            translate_uid=(rule("map:0:524288:65536"),),
            translate_gid=(rule("map:0:524288:65536"),),
        ),
    ),
    (
        "incus, unprivileged",
        "--fd=3 --cache=metadata --shared-dir=/srv --translate-uid=map:0:100000:65536 "
        "--translate-uid=forbid-guest:65536:4294901759",
        Config(
            shared_dir="/srv",
            fd=3,
            cache="metadata",
            translate_uid=(rule("map:0:100000:65536"), rule("forbid-guest:65536:4294901759")),
        ),
    ),
    (
        "Proxmox, ACLs",
        "--fd=5 --shared-dir=/s --xattr --posix-acl --announce-submounts --syslog",
        Config(shared_dir="/s", fd=5, xattr=True, posix_acl="always", syslog=True),
    ),
    (
        "incus",
        "--fd=3 --cache=never --shared-dir=/srv --posix-acl",
        Config(shared_dir="/srv", fd=3, cache="never", xattr=True, posix_acl="always"),
    ),
    (
        "incus, which has seen the capability",
        "--fd=3 --cache=never --shared-dir=/srv --posix-acl=auto",
        Config(shared_dir="/srv", fd=3, cache="never", posix_acl="auto"),
    ),
    (
        "virtme-ng with ACLs",
        "--syslog --no-announce-submounts --posix-acl --socket-path s --shared-dir / --sandbox none --cache auto",
        Config(
            shared_dir="/",
            socket_path="s",
            sandbox="none",
            announce_submounts=False,
            xattr=True,
            posix_acl="always",
            syslog=True,
        ),
    ),
    (
        "microvm.nix, defaults",
        "--socket-path=s --shared-dir=/srv --thread-pool-size 2 --posix-acl --xattr --cache=auto",
        Config(shared_dir="/srv", socket_path="s", threads=2, xattr=True, posix_acl="always"),
    ),
    (
        "coreos-assembler",
        "--sandbox none --socket-path sock --shared-dir . --modcaps=-mknod:-setfcap",
        Config(shared_dir=".", socket_path="sock", sandbox="none", modcaps=((False, 27), (False, 31))),
    ),
    (
        "bcvk",
        "--socket-path=sock --shared-dir=/ --cache=never --allow-mmap --sandbox=none",
        Config(shared_dir="/", socket_path="sock", cache="never", allow_mmap=True, sandbox="none"),
    ),
    (
        "Cloud Hypervisor",
        "--socket-path /tmp/fs --shared-dir /srv --cache never --thread-pool-size 8",
        Config(shared_dir="/srv", socket_path="/tmp/fs", cache="never", threads=8),
    ),
    (
        "KubeVirt",
        "--socket-path=s --shared-dir=/srv --sandbox=none --cache=auto --migration-on-error=guest-error "
        "--migration-mode=find-paths",
        Config(
            shared_dir="/srv", socket_path="s", sandbox="none", cache="auto", migration_on_error="guest-error"
        ),
    ),
]

FEATURES = ["migrate-precopy", "posix-acl-negotiation-mode", "security-label-negotiation-mode", "separate-options"]

@pytest.mark.parametrize(("arguments", "config"), [row[1:] for row in STARTED], ids=[row[0] for row in STARTED])
def test_started(arguments: str, config: Config) -> None:
    assert parse(arguments.split()) == config


def test_capabilities_are_those_managers_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--print-capabilities"])
    assert caught.value.code == 0
    # What is listed is used: migration must not be.
    assert json.loads(capsys.readouterr().out) == {"type": "fs", "features": FEATURES}
