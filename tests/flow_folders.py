"""What the tests of every family of transformers ask of a folder: a spec, the folder with a change, a folded trace."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from stages.denoise import DenoiseStage
from stages.models.networks import empty_part
from stages.plan import make_plan
from stages.planner.configurations import configurations
from stages.planner.networks import trace_step
from stages.planner.skeleton import Skeleton
from stages.spec import RunOptions, make_spec

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = "a red disc on blue clay"


def spec_of(folder: Path, size: tuple[int, int] = (64, 64), **fields: Any) -> Any:
    given = {"prompt": PROMPT, "model": {"name": str(folder)}, "width": size[0], "height": size[1], "seed": 3}
    return make_spec(given | fields)


def changed(folder: Path, to: Path, file: str, **fields: Any) -> Path:
    """The folder with other fields in one of its files."""
    for path in folder.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    content = json.loads((folder / file).read_text()) | fields
    (to / file).unlink()
    (to / file).write_text(json.dumps({name: value for name, value in content.items() if value != "left out"}))
    return to


def check_folded(spec: Any, info: Any) -> None:
    """The last level's step takes of the folded network what it takes of the whole one."""
    plan = make_plan(spec, info)
    stage = next(call.stage for call in reversed(plan.calls) if isinstance(call.stage, DenoiseStage))
    frames = plan.info.latent_frames
    video = None if frames is None else (frames, frames)
    configs, cost = configurations(plan.info, "unet"), {}
    for folded in (True, False):
        unet = Skeleton(empty_part(json.loads(configs[0]), torch.float32), folded=folded)
        cost[folded] = trace_step(stage, unet, RunOptions(), stage.start + 1, video, 8)
    assert cost[True].flops == cost[False].flops
    assert cost[True].activations == pytest.approx(cost[False].activations, rel=1e-3)
