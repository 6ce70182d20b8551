"""A job: a checked spec with its plan and the name of its run, before anything is loaded or written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.adapters.prompted import with_prompted
from stages.models.load import describe
from stages.plan import make_plan
from stages.planner.method_check import check_methods
from stages.planner.trace_cache import trace_cache
from stages.prompts.reading import syntax_of
from stages.spec import RenderSpec
from storage import PlannedCall, fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from flows.home import Home
    from stages.call import Call
    from stages.models.folder import ModelInfo
    from stages.plan import Known, Plan
    from stages.spec import ModelSpec
    from storage import RunRecord


@dataclass(frozen=True)
class Job:
    """A checked spec with its plan; no model was loaded and nothing was written for it."""

    run: str
    spec: RenderSpec
    plan: Plan
    origin: str | None = None
    origin_stage: str | None = None


def prepare(
    spec: RenderSpec,
    home: Home,
    input_root: Path | None = None,
    origin: str | None = None,
    known: dict[ModelSpec, ModelInfo] | None = None,
    pictures: Known | None = None,
) -> Job:
    """Check a spec against its model and the pictures it names, and return it with its plan and its run's name.

    Pictures outside of `input_root` are refused. `origin` is the run that a redo starts from. `known` keeps what was
    found of each model, for many specs at one time; `pictures` are known and are not read. Raises `SpecError`;
    nothing is written but what the next call then finds in the cache.
    """
    known = {} if known is None else known
    info = _described(spec.model, home, known)
    model = with_prompted(spec.model, spec.prompt, spec.negative_prompt, syntax_of(spec, info))
    plan = make_plan(spec, _described(model, home, known), input_root, pictures)
    with trace_cache(home.root / "cache" / "traces.json"):
        check_methods(plan)
    stage = spec.redo[-1].stage if origin and spec.redo else None
    return Job(run_name(spec, plan), plan.spec, plan, origin, stage)


def _described(model: ModelSpec, home: Home, known: dict[ModelSpec, ModelInfo]) -> ModelInfo:
    if model not in known:
        known[model] = describe(model, home.root)
    return known[model]


def run_name(spec: RenderSpec, plan: Plan) -> str:
    """The name of a run: words of the prompt (40 characters at most), the seed, 8 hex digits of the exports' keys."""
    words = "-".join(re.findall(r"[a-z0-9]+", spec.prompt.lower()))[:40].strip("-") or "picture"
    return f"{words}-{spec.seed}-{fingerprint([call.key for call in plan.exports])[:8]}"


def load(home: Home, run: str) -> tuple[RunRecord, RenderSpec]:
    """The record of a run and its spec. Raises `SpecError` where the home has no such run."""
    record = home.record(run)
    return record, RenderSpec.model_validate(dict(record.spec))


def to_do(plan: Plan, home: Home) -> list[Call]:
    """The calls that still have to be made: the store has neither their artifact nor one that is made from it."""
    needed: list[Call] = []

    def visit(call: Call) -> None:
        """Add a call that is missing, then its parents."""
        if call not in needed and home.store.find(call.key) is None:
            needed.append(call)
            for parent in call.parents.values():
                visit(parent)

    for export in plan.exports:
        visit(export)
    return needed


def planned(plan: Plan) -> tuple[PlannedCall, ...]:
    """The plan as the record of a run keeps it: name, version, level, key and parameters of every stage."""
    return tuple(
        PlannedCall(
            stage=call.stage.name,
            version=call.stage.key_version(),
            level=call.level,
            key=call.key,
            params=call.stage.params(),
            parents={role: parent.key for role, parent in call.parents.items()},
        )
        for call in plan.calls
    )
