"""A program that locks as it is told, line by line. It runs in guests and on the host, with the standard library only.

    python3 locker.py FILE

A line is "CALL KIND [START LENGTH] [wait]": CALL is fcntl, ofd or flock, KIND is shared, exclusive or none. The answer
is "ok" or the name of the errno. "pid" answers the process id, "holder KIND START LENGTH" who is in the way (F_GETLK).
"""

import errno
import fcntl
import os
import struct
import sys

KINDS = {
    "fcntl": {"shared": fcntl.F_RDLCK, "exclusive": fcntl.F_WRLCK, "none": fcntl.F_UNLCK},
    "flock": {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX, "none": fcntl.LOCK_UN},
}
KINDS["ofd"] = KINDS["holder"] = KINDS["fcntl"]
COMMANDS = {
    ("fcntl", False): fcntl.F_SETLK,
    ("fcntl", True): fcntl.F_SETLKW,
    ("ofd", False): fcntl.F_OFD_SETLK,
    ("ofd", True): fcntl.F_OFD_SETLKW,
    ("holder", False): fcntl.F_GETLK,
}


def serve(fd: int, words: list[str]) -> str:
    call, kind, *rest = words
    wait = rest[-1:] == ["wait"]
    number = KINDS[call][kind]
    if call == "flock":
        fcntl.flock(fd, number | (0 if wait else fcntl.LOCK_NB))
        return "ok"
    start, length = map(int, rest[:2] if len(rest) > 1 else (0, 0))
    lock = struct.pack("hhqqi4x", number, os.SEEK_SET, start, length, 0)
    found = struct.unpack("hhqqi4x", fcntl.fcntl(fd, COMMANDS[call, wait], lock))
    return f"{found[0]} {found[2]} {found[3]} {found[4]}" if call == "holder" else "ok"


def main() -> None:
    fd = os.open(sys.argv[1], os.O_RDWR)
    for line in sys.stdin:
        try:
            answer = str(os.getpid()) if line.strip() == "pid" else serve(fd, line.split())
        except OSError as error:
            # Whose other name is EDEADLOCK.
            answer = "EDEADLK" if error.errno == errno.EDEADLK else errno.errorcode[error.errno or 0]
        print(answer, flush=True)


if __name__ == "__main__":
    main()
