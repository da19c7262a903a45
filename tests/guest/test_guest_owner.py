"""A guest of a user without privilege, whose own user has another number: --owner, and --translate-uid beside it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conformance.acl import ACCESS, acl
from tests.guest.conftest import KERNEL, QEMU
from tests.sandbox.user import AS_ROOT, REPOSITORY, UID, as_user

#: Run as the user: boots a guest on two shares and runs the script of its standard input there.
PROGRAM = """
import sys
from vfsd.guest import Guest, Settings, Share
first, second, uid, qemu, kernel = sys.argv[1:]
rules = (f"squash-guest:0:{uid}:1500", f"host:{uid}:1000:1", "map:2000:3000:10")
options = [f"--translate-{kind}={rule}" for kind in ("uid", "gid") for rule in rules]
shares = [Share(first, daemon_options=["--owner=1000:1001"]),
          Share(second, "second", "/mnt/second", daemon_options=["--sandbox=none", "--posix-acl", *options])]
with Guest(*shares, settings=Settings(qemu=qemu), kernel_name=kernel or None) as guest:
    result = guest.run(sys.stdin.read(), 120)
sys.stdout.buffer.write(result.stdout)
sys.stderr.buffer.write(result.stderr)
sys.exit(result.status)
"""

SCRIPT = r"""
set -e
as() { id=$1; shift; setpriv --reuid=$id --regid=$id --clear-groups -- "$@"; }
show() { stat -c '%n %u:%g %a' "$@"; }
refused() { if "$@" 2>/dev/null; then echo "NOT REFUSED: $*"; fi; }

# The user's own repository is the user's: git trusts it, ssh would.
as 1000 sh -c 'umask 022; mkdir repository private; chmod 700 private; echo mine >private/file; ln -s file private/link'
as 1000 sh -c 'export HOME=/tmp GIT_COMMITTER_NAME=u GIT_AUTHOR_NAME=u EMAIL=u@u; cd repository; git init -q .
    git commit -q --allow-empty -m x'
as 1000 git -C repository log --format=%s
show . from-host private private/file private/link

# Root's are the user's too; archives come out as they went in.
echo root >root; chmod 640 root
tar -c private | (mkdir out; cd out; tar -xp)
show root out/private/file

# Changes of owner: to whom it belongs, and to nobody else.
chown 1000:1001 private/file root from-host
as 1000 chown 1000 private/file
refused chown 0:0 private/file
refused chown 1000:1000 private/file
refused chgrp 0 root
show private/file

# Permissions are the guest's to enforce, by the owner it sees.
refused as 1234 cat private/file
refused as 1234 touch stranger
as 1000 chmod 600 root
as 1000 cat root

# Everybody's files are the user's on the host and 1000's in the guest; others are named in ACLs.
cd /mnt/second
as 1000 sh -c 'mkdir mine; echo x >mine/file'
echo x >root
show . mine mine/file root
chmod 640 mine/file
as 1000 setfacl -m u:2005:r,g:2006:rw mine/file
as 1000 getfacl -cn mine/file
as 2005 cat mine/file
refused as 2004 cat mine/file
refused as 2005 touch mine/file
setpriv --reuid=1234 --regid=2006 --clear-groups -- sh -c 'echo y >>mine/file'
"""

EXPECTED = """\
x
. 1000:1001 755
from-host 1000:1001 644
private 1000:1001 700
private/file 1000:1001 644
private/link 1000:1001 777
root 1000:1001 640
out/private/file 1000:1001 644
private/file 1000:1001 644
root
. 1000:1000 755
mine 1000:1000 755
mine/file 1000:1000 644
root 1000:1000 644
user::rw-
user:2005:r--
group::r--
group:2006:rw-
mask::rw-
other::---

x
"""


def test_an_ordinary_users_guest(tmp_path: Path) -> None:
    prefix = as_user(tmp_path)
    shares = [tmp_path / "first", tmp_path / "second"]
    for share in shares:
        share.mkdir(mode=0o755)
        (share / "from-host").touch(mode=0o644)
        if AS_ROOT:
            os.chown(share, UID, UID)
    (tmp_path / "home").mkdir(mode=0o777)
    (tmp_path / "home").chmod(0o777)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path / "home"),
                   "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home")}  # fmt: skip
    command = [*prefix, sys.executable, "-c", PROGRAM, *map(str, shares), str(UID), QEMU, KERNEL or ""]
    ended = subprocess.run(command, input=SCRIPT, capture_output=True, text=True, env=environment, cwd="/")
    assert ended.stdout == EXPECTED, ended.stderr[-4000:]
    assert ended.returncode == 0
    assert os.getxattr(shares[1] / "mine/file", ACCESS) == acl("u::rw-,u:3005:r--,g::r--,g:3006:rw-,m::rw-,o::---")
    assert (shares[1] / "mine/file").read_text() == "x\ny\n"
    # On the host it is all the user's, from-host apart, which root made.
    for share in shares:
        for directory, directories, files in os.walk(share):
            for name in (*directories, *files):
                if name != "from-host":
                    assert Path(directory, name).lstat().st_uid == UID, name
