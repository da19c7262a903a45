"""The work of work.py on a share whose workers are killed, or are not: wherever, and mounted on this host."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from tests.chaos.bridge import Bridge
from tests.chaos.storm import Killer, Outcome, known, settled, tree
from tests.daemon.daemon import Daemon, kill_worker, kinds, open_files, spares, until, workers
from tests.frontend import FrontEnd

WORK = Path(__file__).with_name("work.py")
PARTS = ("fsx", "large", "git", "tar", "names")
#: Rounds that nobody gets to.
ENDLESS = dict.fromkeys(PARTS, 1_000_000)
#: Between two reads that are timed, seconds.
PING = 0.002

#: Runs work.py with arguments to its end: its status, and what it has printed.
Run = Callable[[list[str]], tuple[int, str]]


def work(
    run: Run,
    directory: str,
    seed: int,
    rounds: Mapping[str, int],
    stop: Path,
    ended: Path,
    touch: Callable[[Path], object],
) -> Outcome:
    """Lets the parts that have rounds work at once, and end once there is a file `stop`; the reads end when `touch` has
    made the file `ended`. Raises AssertionError with what they complain of."""
    outcome, begun = Outcome(), time.monotonic()
    with ThreadPoolExecutor(len(rounds) + 1) as pool:
        pinging = pool.submit(run, ["ping", directory, str(PING), "0", str(ended)])
        working = {
            part: pool.submit(run, [part, directory, str(seed), str(most), str(stop)]) for part, most in rounds.items()
        }
        try:
            reports = {part: future.result() for part, future in working.items()}
        finally:
            touch(ended)
        reports["ping"] = pinging.result()
    complaints = [f"{part}: {text}" for part, (status, text) in reports.items() if status]
    assert not complaints, "\n".join(complaints)
    outcome.seconds = time.monotonic() - begun
    for part, (_, text) in reports.items():
        report = json.loads(text)
        if part == "ping":
            outcome.reads = [(end, took) for end, took in report["reads"]]
            outcome.steps += len(outcome.reads)
        else:
            outcome.rounds[part] = report["rounds"]
            outcome.steps += report["steps"]
    return outcome


def here(arguments: list[str]) -> tuple[int, str]:
    done = subprocess.run([sys.executable, WORK, *arguments], capture_output=True, text=True)
    return done.returncode, done.stderr if done.returncode else done.stdout


def on_the_host(
    place: Path, kills: int, seed: int, rounds: Mapping[str, int] = ENDLESS, options: tuple[str, ...] = ()
) -> Outcome:
    """On a share that is mounted on this host by way of a front-end of ours. With 0 kills all rounds are gone."""
    place.mkdir()
    share, mount = place / "share", place / "mount"
    share.mkdir()
    mount.mkdir()
    with Daemon(share, place / "vfsd.sock", "--sandbox=none", "--xattr", *options) as daemon:
        with FrontEnd(daemon.socket_path, num=256) as frontend:
            frontend.negotiate()
            frontend.start()
            with Bridge(frontend, mount) as bridge:
                os.stat(mount)
                stop, ended = place / "stop", place / "ended"
                killer = Killer(daemon.control, share, kills, stop.touch, seed)
                with killer if kills else nullcontext():
                    outcome = work(here, str(mount), seed, rounds, stop, ended, Path.touch)
                outcome.kills = killer.moments
                # That forgets every name, and with it every inode.
                subprocess.run(["mount", "-o", "remount", mount], check=True)
                look(outcome, daemon.control, place.name)
                outcome.requests = bridge.requests
        outcome.log = daemon.log
    outcome.tree = tree(share)
    return outcome


def look(outcome: Outcome, control: int, run: str) -> None:
    """At what the daemon holds. What the last worker has left is swept when it dies."""
    outcome.known = settled(lambda: known(control))
    dead = kill_worker(control)
    # Of the next one's spare there is a descriptor, too.
    until(lambda: workers(control) not in ([], [dead]) and spares(control))
    # The name of the run differs, too.
    outcome.descriptors = settled(lambda: sorted(kind.replace(run, "RUN") for kind in kinds(open_files(control))))
