"""Ask a checkpoint that does not say what it predicts, once, before it renders for the first time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from flows.rendering.job import prepare
from stages.device import pick_device
from stages.models.load import Models, describe
from stages.models.prediction import NOISE_SHARE, remember
from stages.models.probe import correlation
from stages.spec import ModelSpec

if TYPE_CHECKING:
    from flows.home import Home
    from flows.rendering.job import Job
    from stages.models.load import ModelInfo
    from stages.spec import RunOptions

log = logging.getLogger(__name__)


def is_open(info: ModelInfo) -> bool:
    """Return whether nothing says what a model predicts, so that a probe has to."""
    return info.prediction is not None and not info.prediction.is_sure


def probed(job: Job, home: Home, options: RunOptions) -> Job:
    """Return the job, planned anew if a probe had to say what its model predicts. The answer is kept in the home."""
    if not is_open(job.plan.info):
        return job
    _ask(job.plan.info, job.spec.model.dtype, home, options)
    return prepare(job.spec, home, origin=job.origin)


def probe_model(name: str, home: Home, options: RunOptions) -> str:
    """Return in words what a model predicts by a probe, and keep the answer for one that does not say it itself.

    Raises `SpecError` for a model that cannot serve.
    """
    info = describe(ModelSpec(name=name), home.root)
    if info.is_video:
        return "a video model, which says what it predicts"
    answer = _ask(info, "float32", home, options)
    found = "the noise (epsilon)" if answer > NOISE_SHARE else "not the noise, so v or the picture"
    said = info.prediction
    doubt = ""
    if said is not None and said.is_sure and (said.type == "epsilon") != (answer > NOISE_SHARE):
        doubt = f"; {said.why} says {said.type}"
    return f"{answer:.4f} of the noise came back: it predicts {found}{doubt}"


def _ask(info: ModelInfo, dtype: str, home: Home, options: RunOptions) -> float:
    """Run the probe of a model, and keep its answer."""
    log.info("asking %s what it predicts", info.name)
    answer = correlation(Models(info, dtype, pick_device(options.device)))
    assert info.prediction is not None
    home.make()
    remember(home.root, info.prediction.unet, answer)
    return answer
