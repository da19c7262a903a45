"""The work of work.py on a share whose workers are killed, or are not."""

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
from tests.chaos.storm import Killer, Outcome, known, numbered, settled, tree
from tests.daemon.daemon import Daemon, open_files, until
from tests.frontend import FrontEnd

WORK = Path(__file__).with_name("work.py")
PARTS = ("fsx", "git", "tar", "names")
#: Rounds that nobody gets to.
ENDLESS = dict.fromkeys(PARTS, 1_000_000)
#: Between two reads that are timed, seconds.
PING = 0.002

#: Runs a command to its end: its status, and what it has printed.
Run = Callable[[list[str]], tuple[int, str]]


def work(
    run: Run, program: str, directory: str, seed: int, rounds: Mapping[str, int], stop: Path, seen: str
) -> Outcome:
    """Lets all parts work at once. `seen` is the directory of `stop` as the programs see it. Raises AssertionError with
    what they complain of."""
    outcome, begun = Outcome(), time.monotonic()
    ended = stop.with_name("ended")
    with ThreadPoolExecutor() as pool:
        pinging = pool.submit(run, [program, "ping", directory, str(PING), "0", f"{seen}/{ended.name}"])
        working = {
            part: pool.submit(run, [program, part, directory, str(seed), str(rounds[part]), f"{seen}/{stop.name}"])
            for part in PARTS
        }
        try:
            reports = {part: future.result() for part, future in working.items()}
        finally:
            ended.touch()
        reports["ping"] = pinging.result()
    complaints = [f"{part}: {text}" for part, (status, text) in reports.items() if status]
    assert not complaints, "\n".join(complaints)
    outcome.seconds = time.monotonic() - begun
    for part, (_, text) in reports.items():
        report = json.loads(text)
        if part == "ping":
            outcome.steps += report["pings"]
            outcome.ping, outcome.pauses = report["median"], report["longest"]
        else:
            outcome.rounds[part] = report["rounds"]
            outcome.steps += report["steps"]
    return outcome


def here(arguments: list[str]) -> tuple[int, str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
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
                killer = Killer(lambda: daemon.workers if any(share.iterdir()) else [], kills, place / "stop", seed)
                with killer if kills else nullcontext():
                    outcome = work(here, str(WORK), str(mount), seed, rounds, place / "stop", str(place))
                outcome.kills = len(killer.killed)
                # That forgets every name, and with it every inode.
                subprocess.run(["mount", "-o", "remount", mount], check=True)
                look(outcome, daemon.control, share, daemon.kill_worker)
                until(lambda: daemon.workers)
                outcome.requests = bridge.requests
        outcome.log = daemon.log
    outcome.tree = tree(share)
    return outcome


def look(outcome: Outcome, control: int, share: Path, kill: Callable[[], int]) -> None:
    """At what the daemon holds. What the last worker has left is swept when it dies."""
    outcome.known = settled(lambda: known(control))
    kill()
    outcome.descriptors = settled(lambda: numbered(open_files(control), share.parent))
