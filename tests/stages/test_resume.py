"""What a checkpoint of a long stage holds, and what comes back from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from freescale import Step, normal
from stages.resume import Progress, resumed, save
from storage import ArtifactStore, Checkpoints, fingerprint

if TYPE_CHECKING:
    from pathlib import Path


def test_a_step_comes_back_with_all_it_needs(tmp_path: Path) -> None:
    checkpoints = Checkpoints(ArtifactStore(tmp_path), fingerprint({"a": 1}))
    latents, history = normal((1, 4, 3, 3), 0), (normal((1, 4, 3, 3), 1), normal((1, 4, 3, 3), 2))
    extra = {"before3": normal((1, 4, 3, 3), 3), "features": normal((2, 5), 4).bfloat16()}
    save(checkpoints, Progress(Step(7, latents, history, extra)))
    step = resumed(checkpoints)
    assert step is not None
    assert step.index == 7
    assert torch.equal(step.latents, latents)
    assert all(map(torch.equal, step.history, history))
    assert step.extra.keys() == extra.keys()
    assert all(torch.equal(step.extra[name], extra[name]) for name in extra)


def test_a_checkpoint_without_extra_tensors_is_read(tmp_path: Path) -> None:
    """As every release before had it."""
    checkpoints = Checkpoints(ArtifactStore(tmp_path), fingerprint({"a": 1}))
    checkpoints.save(2, {"latents": torch.zeros(1, 4, 3, 3), "history0": torch.ones(1, 4, 3, 3)})
    step = resumed(checkpoints)
    assert step is not None
    assert (step.index, len(step.history), dict(step.extra)) == (2, 1, {})
