"""Results as JSON, so that nothing is lost when a run is interrupted, and a page can be made again."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.cause import Cause
from tests.bench.idle import Idle
from tests.bench.measure import Figure, Plan, Results, Setting
from tests.bench.profile import Profile
from tests.bench.share import file_system
from tests.bench.stall import Stall, Stalls

ROOT = Path(__file__).resolve().parents[2]


class Measured(NamedTuple):
    """What tables are made of."""

    plan: Plan
    results: Results
    #: That the shares were on.
    file_system: str
    #: Of the tree that was measured.
    commit: str = ""


def commit() -> str:
    """With a mark when the tree was not as it was committed."""
    argv = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _write(path: Path, what: Any) -> None:
    """All of it, or what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(what))
    new.replace(path)


def save(path: Path, plan: Plan, results: Results) -> None:
    figures = [
        {"workload": name, "setting": setting, "daemon": daemon, "figures": rounds}
        for (name, setting), row in results.figures.items()
        for daemon, rounds in row.items()
    ]
    _write(path, {
        "plan": {**plan._asdict(), "where": str(plan.where)}, "figures": figures, "memory": results.memory,
        "failures": results.failures, "file_system": file_system(plan.where),
        "commit": commit(),
    })  # fmt: skip


def load(path: Path) -> Measured:
    """Raises FileNotFoundError."""
    found = json.loads(path.read_text())
    plan = Plan(**found["plan"])
    plan = plan._replace(settings=[Setting(*each) for each in plan.settings], where=Path(plan.where))
    results = Results({}, found["memory"], found["failures"])
    for each in found["figures"]:
        row = results.figures.setdefault((each["workload"], Setting(*each["setting"])), {})
        row[each["daemon"]] = [Figure(*figure) for figure in each["figures"]]
    return Measured(plan, results, found["file_system"], found["commit"])


def save_stalls(path: Path, stalls: Stalls) -> None:
    _write(path, stalls)


def load_stalls(path: Path) -> Stalls:
    found = json.loads(path.read_text())
    return {name: [(Stall(*without), Stall(*beside)) for without, beside in rounds] for name, rounds in found.items()}


def save_idles(path: Path, idles: dict[str, Idle], shares: int) -> None:
    _write(path, {"shares": shares, "idles": idles})


def load_idles(path: Path) -> tuple[dict[str, Idle], int]:
    found = json.loads(path.read_text())
    return {name: Idle(*each) for name, each in found["idles"].items()}, found["shares"]


def save_causes(path: Path, causes: Sequence[Cause]) -> None:
    _write(path, {"commit": commit(), "causes": causes})


def load_causes(path: Path) -> tuple[list[Cause], str]:
    """With the commit that was looked into."""
    found = json.loads(path.read_text())
    causes = [Cause(*each) for each in found["causes"]]
    return [
        each._replace(
            setting=Setting(*each.setting),
            ours=_profile(each.ours),
            theirs=_profile(each.theirs) if each.theirs else None,
        )
        for each in causes
    ], found["commit"]


def _profile(kept: Sequence[Any]) -> Profile:
    profile = Profile(*kept)
    return profile._replace(functions=[(name, part) for name, part in profile.functions])
