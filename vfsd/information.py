"""What managers ask a daemon before they use it: version, capabilities, and the descriptor they find it by.

The forms are those of QEMU's docs/interop/vhost-user.json. Answered without privilege, and without importing more than
the command line does.
"""

import os
import sys
from collections.abc import Callable

from vfsd.errors import Failure

Text = Callable[[], str]

VERSION = "0.1.0"

#: For libvirt: "migrate-precopy", a guest can move to another host; "separate-options", options need not be packed into
#: one `-o` list. For incus: "…-negotiation-mode", the option takes never, auto or always.
FEATURES = ("migrate-precopy", "posix-acl-negotiation-mode", "security-label-negotiation-mode", "separate-options")

TEMPLATE = os.path.join(os.path.dirname(__file__), "data", "50-vfsd.json")


def version() -> str:
    return f"vfsd {VERSION}"


def capabilities() -> str:
    import json

    return json.dumps({"type": "fs", "features": FEATURES}, indent=2)


def descriptor() -> str:
    import json

    with open(TEMPLATE, encoding="utf-8") as template:
        return json.dumps(json.load(template) | {"binary": _binary()}, indent=2)


def _binary() -> str:
    """The absolute path of the `vfsd` command, also when this runs as `python -m vfsd`."""
    command = os.path.abspath(sys.argv[0])
    if os.path.basename(command) == "__main__.py":
        command = os.path.join(os.path.dirname(os.path.abspath(sys.executable)), "vfsd")
    if not os.access(command, os.X_OK):
        raise Failure(f"there is no executable {command}: install vfsd, and call its command vfsd")
    return command
