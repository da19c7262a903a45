"""Options that can't do all that they say, as warnings of the log: the start goes on, as it does with virtiofsd."""

from collections.abc import Iterator

from vfsd.config import Config
from vfsd.facts import Facts
from vfsd.window import SLOTS_SIZE


def warnings(config: Config, facts: Facts) -> Iterator[str]:
    """A sentence for each option that the share, or another option, keeps from its work."""
    if config.writeback and not config.gathers_writes:
        cause = "--readonly" if config.readonly else f"--cache={config.cache}"
        yield f"--writeback has no effect with {cause}: the guest has no writes to gather"
    if config.posix_acl == "always" and not facts.acl:
        yield f"--posix-acl=always: {config.shared_dir} is on a file system without POSIX ACLs"
    if config.security_label == "always" and not config.readonly and not facts.label:
        yield (
            f"--security-label=always: a file made in {config.shared_dir} can't be given {config.label.decode()}, so a "
            "guest with SELinux can make none: use --security-label=auto, or --xattrmap=selinux to keep labels under "
            "another name"
        )
    if config.dax_window > SLOTS_SIZE:
        yield (
            f"--dax-window={config.dax_window}: a guest that is paused with more than seven ranges mapped loses the "
            "share, since QEMU has no memory slots for all of a window of more than 512M; give it 512M to pause it"
        )
