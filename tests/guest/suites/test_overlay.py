"""The guest's overlayfs with its upper layer on the share, as container engines use it."""

import os
import stat
from pathlib import Path

from .conftest import Place

SCRIPT = (Path(__file__).parent / "overlay.sh").read_bytes()
PRIVATE = "user.virtiofs.trusted.overlay."
#: In the guest: the errno of setting one by its name on the host, and the names a list shows to a user.
ANOTHER_WAY = f"""
import os
try:
    os.setxattr("upper/upper/d2", "{PRIVATE}opaque", b"n")
except OSError as error:
    print(error.errno, [name for name in os.listxattr("upper/upper/d2") if name.startswith("user.")])
"""


def test_an_upper_layer_on_the_share(place: Place) -> None:
    """It gives the same as one in the guest's own memory, and survives the mount."""
    place.guest.run(["sh", "-c", "cat >/tmp/overlay.sh"], stdin=SCRIPT).check()
    layers = "mkdir -p {0} upper; sh /tmp/overlay.sh {1} {0}/lower {0}/merged"
    control = place.run(layers.format("/tmp/overlay-native", "/tmp/overlay-native")).check().text
    here = place.run(layers.format("/tmp/overlay-share", '"$PWD/upper"')).check().text
    assert here == control
    upper = place.host / "upper" / "upper"
    # A whiteout is a device 0:0; what overlayfs notes of a directory is under a name that takes no privilege.
    whiteout = (upper / "link").lstat()
    assert stat.S_ISCHR(whiteout.st_mode) and whiteout.st_rdev == 0
    assert os.getxattr(upper / "d2", f"{PRIVATE}opaque") == b"y"
    assert os.getxattr(upper / "d3", f"{PRIVATE}redirect") == b"d1"
    # Nobody in the guest gets at those names in another way.
    assert place.run(f"python3 -c '{ANOTHER_WAY}'").text == "1 []"
