"""Running a program as an ordinary user, whatever user runs the tests."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from vfsd import idmap

REPOSITORY = Path(__file__).resolve().parents[2]

AS_ROOT = os.geteuid() == 0
#: nobody, who has no files of its own.
UID = 65534 if AS_ROOT else os.geteuid()

#: What subuid(5) may grant: a range that no test machine uses.
RANGE = (400000, 65536)


def as_user(place: Path, granted: bool = False) -> list[str]:
    """A command prefix. The user owns `place`, and is granted RANGE if so asked.

    As root this is a mount namespace of its own: /etc/subuid is another file there, and what the user has to reach
    (interpreter, repository, `place`) is reachable also below a private directory, such as /root.
    """
    if not AS_ROOT:
        return []
    os.chown(place, UID, UID)
    subid = place / "subid"
    subid.write_text(f"{UID}:{RANGE[0]}:{RANGE[1]}\n" if granted else "")
    script = ["set -e", *_expose([Path(sys.base_prefix), Path(sys.prefix), REPOSITORY, place], place / "bound")]
    for name in ("/etc/subuid", "/etc/subgid"):
        script.append(f"touch {name}; mount --bind {shlex.quote(str(subid))} {name}")
    script.append(f'exec setpriv --reuid={UID} --regid={UID} --clear-groups -- "$@"')
    return ["unshare", "--mount", "sh", "-c", "\n".join(script), "sh"]


def first_subordinate(granted: bool) -> int | None:
    """The host's id of the guest's user 1 of such a user in a user namespace; None when it has none."""
    if AS_ROOT:
        return RANGE[0] if granted and shutil.which("newuidmap") else None
    maps, _ = idmap.automatic(privileged=False)
    return maps[1].outside if len(maps) > 1 else None


def _expose(wanted: Sequence[Path], scratch: Path) -> list[str]:
    """Shell commands after which others can reach the directories `wanted`."""
    hidden = {path: next((p for p in reversed(path.parents) if not p.stat().st_mode & 1), None) for path in wanted}
    bind, hide, back = [], [], []
    for number, (path, above) in enumerate(hidden.items()):
        if above is None:
            continue
        kept, there = shlex.quote(f"{scratch}/{number}"), shlex.quote(str(path))
        bind.append(f"mkdir -p {kept}; mount --rbind {there} {kept}")
        cover = f"mount -t tmpfs -o mode=755 none {shlex.quote(str(above))}"
        if cover not in hide:
            hide.append(cover)
        # The scratch directory may be covered by now; its mounts are found through a descriptor.
        bind.append(f"exec {3 + number}<{kept}")
        back.append(f"mkdir -p {there}; mount --bind /proc/self/fd/{3 + number} {there}; exec {3 + number}<&-")
    return [*bind, *hide, *back]
