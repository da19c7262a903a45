"""CPython's own tests of os, shutil, tempfile, mmap and fcntl (Debian's libpython3.11-testsuite), files on the share.

A test that fails there is run again on the guest's tmpfs: what fails on both is the guest's, not ours.
"""

import xml.etree.ElementTree as ElementTree

import pytest

from .conftest import Place

# test_os compares a file's time, which is the host's, with the guest's clock, which starts at a full second.
CLOCK = """
import os, time
open("clock", "w").close()
for _ in range(3):
    before = time.time()
    os.utime("clock")
    middle = (before + time.time()) / 2
    time.clock_settime(time.CLOCK_REALTIME, time.time() + os.stat("clock").st_mtime - middle)
"""
MODULES = ["test_fcntl", "test_mmap", "test_os", "test_shutil", "test_tempfile"]


def failures(report: str) -> dict[str, str]:
    """Names and messages of the failed tests in a JUnit report."""
    found = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        for kind in ("failure", "error"):
            for element in case.iter(kind):
                name = case.get("name", "").rpartition(".")[2].split(" ")[0]
                found[name] = "".join(element.itertext())
    return found


@pytest.mark.parametrize("module", MODULES)
def test_cpython(place: Place, module: str) -> None:
    log = bytearray()

    def run(directory: str, report: str, more: str = "") -> None:
        script = f"mkdir -p {directory}; export TMPDIR={directory}; cd {directory}; exec 2>&1; "
        script += "/usr/bin/python3 -m test -u all,-largefile,-network,-cpu --timeout 300 "
        script += f"--tempdir {directory} --junit-xml {report} {more} {module}"
        place.guest.run(script, 600, stdout=log.extend)

    place.run(f"/usr/bin/python3 -c '{CLOCK}'")
    run(f"{place.path}/work", f"{place.path}/report.xml")
    report = place.host / "report.xml"
    assert report.exists(), log.decode(errors="replace")[-8000:]
    ran = len(list(ElementTree.parse(report).iter("testcase")))
    assert ran > 10, log.decode(errors="replace")[-8000:]
    failed = failures(report.read_text())
    if not failed:
        return
    run("/tmp/control", f"{place.path}/control.xml", " ".join(f"-m {name}" for name in failed))
    control = failures((place.host / "control.xml").read_text())
    ours = {name: text for name, text in failed.items() if name not in control}
    assert not ours, "\n\n".join(f"{name}: {text}" for name, text in ours.items())
