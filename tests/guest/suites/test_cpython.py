"""CPython's own tests of what works on files (Debian's libpython3.11-testsuite), files on the share.

A test that fails there is run again on the guest's tmpfs: what fails on both is the guest's, not ours.
"""

import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

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
MORE = ["test_dbm", "test_fileio", "test_glob", "test_largefile", "test_pathlib", "test_posix", "test_sqlite3"]
#: The package of CPython's tests of sqlite3, which Debian's lacks: scripts/suites fetches it.
SQLITE = Path(__file__).parents[3] / ".cache/suites/test_sqlite3"


def failures(report: str) -> dict[str, str]:
    """Names and messages of the failed tests in a JUnit report."""
    found = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        for kind in ("failure", "error"):
            for element in case.iter(kind):
                name = case.get("name", "").rpartition(".")[2].split(" ")[0]
                found[name] = "".join(element.itertext())
    return found


@pytest.mark.parametrize("module", [*MODULES, *(pytest.param(name, marks=pytest.mark.long) for name in MORE)])
def test_cpython(place: Place, module: str) -> None:
    log = bytearray()

    def run(directory: str, report: str, more: str = "") -> None:
        script = f"mkdir -p {directory}; export TMPDIR={directory}; cd {directory}; exec 2>&1; "
        resources = "all,-network,-cpu" + ("" if module in MORE else ",-largefile")
        script += f"/usr/bin/python3 -m test -u {resources} --timeout 300 "
        script += f"--tempdir {directory} --junit-xml {report} {more} {module}"
        place.guest.run(script, 1200, stdout=log.extend)

    if module == "test_sqlite3":
        shutil.copytree(SQLITE, place.host / "test_sqlite3")
        place.run("cp -r test_sqlite3 /usr/lib/python3.11/test")
    place.run(f"/usr/bin/python3 -c '{CLOCK}'")
    run(f"{place.path}/work", f"{place.path}/report.xml")
    report = place.host / "report.xml"
    assert report.exists(), log.decode(errors="replace")[-8000:]
    ran = len(list(ElementTree.parse(report).iter("testcase")))
    failed = failures(report.read_text())
    print(f"{module}: {ran} tests, {len(failed)} failed on the share")
    assert ran > 10, log.decode(errors="replace")[-8000:]
    if not failed:
        return
    run("/tmp/control", f"{place.path}/control.xml", " ".join(f"-m {name}" for name in failed))
    control = failures((place.host / "control.xml").read_text())
    ours = {name: text for name, text in failed.items() if name not in control}
    print(f"{module}: on the guest's tmpfs fail too: {sorted(control)}")
    assert not ours, "\n\n".join(f"{name}: {text}" for name, text in ours.items())
