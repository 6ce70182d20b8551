"""The only file of `tests/golden` that imports the project: when a module moves, these lines follow it.

Everything else goes through the command line or through what these functions return: plain values.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.batch.jobs_file import read_jobs
from flows.batch.runner import Night
from flows.compare.layout import prepare_comparison
from flows.evaluate.layout import prepare_evaluation
from flows.home import Home
from flows.rendering.session import load, planned, prepare
from freescale.methods import METHODS
from freescale.methods.ablations import CHANGES as ABLATIONS
from stages.errors import StageError
from stages.metrics.grid import make_grid
from stages.metrics.spec import make_evaluation
from stages.spec import Redo, Region, RenderSpec, RunOptions, make_spec
from storage import Checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).resolve().parent
METHOD_NAMES = (*METHODS, *ABLATIONS)
SPEC_FIELDS = {"spec": RenderSpec, "redo": Redo, "region": Region}

__all__ = [
    "ABLATIONS",
    "GOLDEN",
    "METHOD_NAMES",
    "ROOT",
    "SPEC_FIELDS",
    "Checkpoints",
    "Home",
    "Told",
    "comparison_names",
    "evaluation_calls",
    "fail_at",
    "freescale",
    "load",
    "plan_calls",
    "record_calls",
]


@dataclass(frozen=True)
class Told:
    """How a command ended: its exit code, the object that `--json` printed last, and all it said."""

    code: int
    json: Any
    said: str


def freescale(*words: str | Path) -> Told:
    """Run the command line in this process, by the console script that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["freescale"].partition(":")
    main = getattr(importlib.import_module(module), function)
    out, err, before, code = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = ["freescale", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    lines = out.getvalue().splitlines()
    found = json.loads(lines[-1]) if "--json" in words and lines and lines[-1][:1] in "[{" else None
    return Told(code, found, out.getvalue() + err.getvalue())


def plan_calls(values: dict[str, Any], home: Path, root: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """A spec's run name, and its planned calls by label: stage, version, level, key, params, parents.

    Pictures and masks are looked for under `root`. Raises `SpecError`.
    """
    job = prepare(make_spec(values), Home(home), root)
    return job.run, _labelled(call.model_dump(mode="json") for call in planned(job.plan))


def record_calls(run: str, home: Path, root: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A stored run's name as it is computed today, its calls as planned today, and as its record has them."""
    record, spec = load(Home(home), run)
    job = prepare(spec, Home(home), root, record.origin)
    today = _labelled(call.model_dump(mode="json") for call in planned(job.plan))
    return job.run, today, _labelled(call.model_dump(mode="json") for call in record.plan)


def evaluation_calls(values: dict[str, Any], home: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """An evaluation's name, and the calls that read its pictures by label. Raises `SpecError`."""
    evaluation = prepare_evaluation(make_evaluation(values), Home(home))
    calls = {
        f"{picture.name} {role}": {
            "stage": call.stage.name,
            "version": call.stage.version,
            "key": call.key,
            "params": call.stage.params(),
            "parents": {parent: made.key for parent, made in call.parents.items()},
        }
        for picture in evaluation.pictures
        for role, call in picture.readings.items()
    }
    return evaluation.name, calls


def comparison_names(values: dict[str, Any], home: Path) -> tuple[str, list[str]]:
    """A comparison's name and the names of its runs. Raises `SpecError`."""
    comparison = prepare_comparison(make_grid(values), Home(home))
    return comparison.name, [order.job.run for order in comparison.orders]


def fail_at(jobs: Path, home: Path, name: str, step: int) -> None:
    """Work through a jobs file as a night does; the job `name` fails at a step, with a checkpoint of the one before."""
    watcher = _Failing(step)
    night = Night(Home(home), RunOptions(device="cpu", threads=1, checkpoint_every=0), watcher)

    def wrap(order: Any, work: Callable[[], Any]) -> Any:
        watcher.fails = order.name == name
        return work()

    night.wrap = wrap
    night.run(read_jobs(jobs, Home(home)).jobs)


class _Failing:
    """Watches a render, and raises after a step where told to."""

    def __init__(self, step: int) -> None:
        self.step, self.fails = step, False

    def started(self, call: Any, resumed_at: int | None) -> None:
        pass

    def stepped(self, call: Any, step: int) -> None:
        if self.fails and step == self.step:
            raise StageError(f"step {step}: made to fail, for a record of a job that was set aside")

    def finished(self, outcome: Any) -> None:
        pass


def _labelled(calls: Any) -> dict[str, dict[str, Any]]:
    """By stage and level; calls of one name and level are numbered in the order of the plan."""
    found, seen = dict[str, dict[str, Any]](), Counter[str]()
    for call in calls:
        label = f"{call['stage']} {call['level']}"
        seen[label] += 1
        found[label if seen[label] == 1 else f"{label} #{seen[label]}"] = call
    return found
