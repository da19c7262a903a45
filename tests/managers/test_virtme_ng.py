"""virtme-ng starts our daemon as its virtiofsd, for the guest's root and for a directory."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from vfsd.guest import kernel

from .conftest import LIMIT, command_lines

VIRTUAL_ENVIRONMENT = Path(sys.executable).parent


def test_virtme_ng(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    (share / "from-host").write_text("hello from the host\n")
    # vng takes the first virtiofsd in PATH whose --version succeeds.
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "virtiofsd").symlink_to(VIRTUAL_ENVIRONMENT / "vfsd")
    environment = {**os.environ, "PATH": f"{programs}:{VIRTUAL_ENVIRONMENT}:/usr/sbin:/usr/bin:/sbin:/bin"}
    inside = "cat /mnt/from-host; grep virtiofs /proc/mounts; echo hello from the guest > /mnt/from-guest"
    command = ["vng", "--run", str(kernel.find().image), "--disable-kvm", "--user", "root", "--memory", "512M"]
    command += [f"--rwdir=/mnt={share}", "--exec", inside]
    with command_lines(share) as seen, command_lines(Path("--shared-dir")) as roots:
        # vng wants a terminal, which script(1) makes.
        done = subprocess.run(
            ["script", "--quiet", "--return", "--command", shlex.join(command), "/dev/null"],
            env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "hello from the host" in done.stdout
    # The root is there the second share of the same daemon: had vng fallen back to 9p, this would say so.
    assert "ROOTFS / virtiofs ro" in done.stdout
    assert " /mnt virtiofs rw" in done.stdout
    assert (share / "from-guest").read_text() == "hello from the guest\n"

    binary = str(programs / "virtiofsd")
    rest = ["--shared-dir", str(share), "--sandbox", "none", "--cache", "auto"]
    assert [words[:4] + words[5:] for words in seen] == [
        [binary, "--syslog", "--no-announce-submounts", "--socket-path", *rest]
    ]
    assert ["--shared-dir", "/", "--sandbox", "none", "--cache", "always"] in [words[-6:] for words in roots]
