"""The vfsd-guest command line, and the Guest that it describes."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vfsd.guest.errors import GuestError
from vfsd.guest.guest import Guest
from vfsd.guest.machine import Settings
from vfsd.guest.progress import Progress
from vfsd.guest.share import Share

_EXIT_CODES = """\
exit status: the command's; 128 + n if signal n ended it; 127 if the guest has no such program; 124 after the time
limit; 125 if there was no guest or it was lost; 2 for wrong usage.
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="vfsd-guest",
        description="Boot a throwaway Linux guest with a host directory mounted by virtiofs, and work in it.",
        epilog=_EXIT_CODES,
    )
    actions = top.add_subparsers(dest="action", required=True)
    shell = actions.add_parser("shell", help="an interactive shell in the directory", epilog=_EXIT_CODES)
    run = actions.add_parser(
        "run",
        help="run one command in the directory",
        usage="%(prog)s [options] DIR -- COMMAND [ARGUMENT ...]",
        epilog=_EXIT_CODES,
    )
    for action in (shell, run):
        action.add_argument("directory", metavar="DIR", help="host directory, mounted on /mnt/share in the guest")
        _add_guest_options(action)
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="kill the command after this time, exit with 124")
    return top


def _add_guest_options(to: argparse.ArgumentParser) -> None:
    def option(group: Any, name: str, metavar: str, text: str, **settings: Any) -> None:
        group.add_argument(name, metavar=metavar, help=text, **settings)

    def repeated(group: Any, name: str, metavar: str, text: str) -> None:
        option(group, name, metavar, text + "; may be repeated", action="append", default=[])

    shares = to.add_argument_group("shares")
    repeated(shares, "--share", "NAME=DIR", "another directory: on /mnt/NAME, or on NAME if that is an absolute path")
    option(shares, "--mount-options", "LIST", "as for mount -o, for every share", default="rw")
    option(shares, "--daemon", "PROGRAM", "another virtiofs daemon, such as /usr/libexec/virtiofsd")
    repeated(
        shares, "--daemon-option", "WORD", "one more argument for the daemons, as in --daemon-option=--cache=never"
    )
    option(shares, "--dax-window", "SIZE", "give each share a DAX window; takes root and QEMU 11.1", default="")
    option(shares, "--queue-size", "N", "entries per virtqueue (%(default)s)", type=int, default=Settings.queue_size)
    option(shares, "--queues", "N", "request queues per share (%(default)s)", type=int, default=Settings.queues)
    guest = to.add_argument_group("guest")
    option(guest, "--kernel", "PATH|VERSION", "a bzImage, or the version of an installed one (the newest installed)")
    option(guest, "--modules", "DIR", "where the kernel's modules.dep is", type=Path)
    repeated(guest, "--module", "NAME", "one more kernel module to load")
    root = "host: the host's programs, read-only under a layer that is thrown away; busybox: nothing else (%(default)s)"
    guest.add_argument("--root", choices=("host", "busybox"), default="host", help=root)
    option(guest, "--memory", "MIB", "(%(default)s)", type=int, default=Settings.memory)
    option(guest, "--cpus", "N", "(2 under KVM, 1 under TCG)", type=int, default=Settings.cpus)
    repeated(guest, "--env", "NAME=VALUE", "a variable for the command")
    repeated(guest, "--kernel-arg", "WORD", "one more word on the kernel's command line")
    qemu = to.add_argument_group("QEMU")
    option(qemu, "--qemu", "PROGRAM", "name or path of any executable (%(default)s)", default=Settings.qemu)
    repeated(qemu, "--qemu-arg", "WORD", "one more argument, as in --qemu-arg=-device --qemu-arg=virtio-rng-pci")
    repeated(qemu, "--qemu-data", "DIR", "a firmware directory, QEMU's -L")
    accel = "auto: KVM where a guest really runs on it, else TCG (%(default)s)"
    qemu.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto", help=accel)
    other = to.add_argument_group("other")
    option(other, "--boot-timeout", "SECONDS", "(%(default)s)", type=float, default=180.0)
    option(other, "--log-dir", "DIR", "keep the logs of guest console, QEMU and daemons here", type=Path)
    other.add_argument("--quiet", action="store_true", help="say nothing but errors")


def guest_of(options: argparse.Namespace, progress: Progress, terminal: bool) -> Guest:
    """The guest that the options describe, not yet booted. Raises GuestError for values that make no sense."""
    settings = Settings(
        qemu=options.qemu,
        qemu_data=options.qemu_data,
        qemu_args=options.qemu_arg,
        memory=options.memory,
        cpus=options.cpus,
        accel=options.accel,
        queue_size=options.queue_size,
        queues=options.queues,
        kernel_args=options.kernel_arg,
    )
    return Guest(
        *shares_of(options),
        settings=settings,
        kernel_name=options.kernel,
        modules=options.modules,
        extra_modules=options.module,
        host_root=options.root == "host",
        slots=1,
        terminal=terminal,
        boot_limit=options.boot_timeout,
        progress=progress,
        log_directory=options.log_dir,
    )


def shares_of(options: argparse.Namespace) -> list[Share]:
    def share(directory: str, tag: str, path: str = "") -> Share:
        words = tuple(options.daemon_option)
        return Share(directory, tag, path, options.mount_options, options.daemon, words, options.dax_window)

    shares = [share(options.directory, "share")]
    for number, word in enumerate(options.share, 1):
        name, equals, directory = word.partition("=")
        if not (name and equals and directory):
            raise GuestError(f"--share {word}: NAME=DIR or /PATH/IN/GUEST=DIR is needed")
        if name.startswith("/"):
            shares.append(share(directory, f"share{number}", os.path.normpath(name)))
        elif re.fullmatch(r"[A-Za-z0-9._-]{1,36}", name):
            shares.append(share(directory, name))
        else:
            raise GuestError(f"--share {word}: a tag is 1 to 36 letters, digits, dots, dashes or underscores")
    return shares


def environment_of(words: Sequence[str]) -> dict[str, str]:
    pairs = dict(word.partition("=")[::2] for word in words)
    for name in pairs:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise GuestError(f"--env {name}: NAME=VALUE is needed")
    return pairs
