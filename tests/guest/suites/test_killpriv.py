"""What a modification leaves of suid, sgid and a file capability, compared cell by cell with the guest's own ext4."""

import os

import pytest

from tests.killpriv import compare, reasons
from vfsd.guest import Guest, Share

from .conftest import Place


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's daemon acts for more than one user")
def test_privileges(suite_guest: Guest, place: Place) -> None:
    share = Share(place.host, path=place.path)
    place.host.parent.chmod(0o755)  # other users of the guest have to get there
    compare.place_script(share)
    control = compare.native(suite_guest, share)
    seen, real = compare.shared(suite_guest, share)
    assert len(seen) == 1800
    # What the control itself says: the test is none if nothing is ever taken or left.
    assert control["write / other / suid+sgid / cap"] == ""
    assert control["write / root / suid+sgid / cap"] == "suid sgid"

    known = reasons.of_share("auto", suite_guest.release)
    found = set()
    for name in seen:
        if seen[name] != control[name]:
            reason = reasons.explain(known, compare.Cell.of(name), control[name], seen[name])
            assert reason, f"{name}: {control[name] or 'nothing'}; on the share: {seen[name] or 'nothing'}"
            found.add(reason)
    assert len(found) == len(known), "a difference that is expected is none any more"
    assert seen == real, "the guest sees what is not so"
