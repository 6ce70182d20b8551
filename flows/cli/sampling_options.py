"""The options of noise levels, of presets, and of what a model predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flows.cli.options import MODEL, SAMPLING, text


@dataclass(frozen=True)
class Levels:
    """How a model is sampled, beyond steps, guidance and solver."""

    preset: Annotated[
        str | None,
        text(
            SAMPLING,
            "NAME[,NAME]",
            "A method with its values: reference (FreeScale), swift or draft, which cost less; `freescale presets` "
            "lists what they cost and lose. Or how a few-step model is sampled: turbo, lightning-1, -2, -4, -8, "
            "hyper-1, -2, -4, -8, hyper-cfg-8, -12, lcm, dmd2 or dmd2-1. One of each may be joined: lightning-4,swift. "
            "Other options win. Default: none.",
        ),
    ] = None
    sigmas: Annotated[
        str | None,
        text(SAMPLING, "NAME", "Noise levels: auto, uniform, karras, exponential or beta. Default: auto, the model's."),
    ] = None
    timestep_spacing: Annotated[
        str | None,
        text(
            SAMPLING,
            "NAME",
            "Of even timesteps: auto, leading, trailing, linspace, sgm_uniform or lcm. Default: auto, the model's.",
        ),
    ] = None
    timesteps: Annotated[
        str | None, text(SAMPLING, "NUMBERS", "Every timestep, falling: 999,749,499,249. Default: by spacing.")
    ] = None
    guidance_interval: Annotated[
        str | None,
        text(SAMPLING, "START:END", "Shares of the steps between which guidance is on: 0.2:0.8. Default: all steps."),
    ] = None
    shift_rule: Annotated[
        str | None,
        text(
            SAMPLING,
            "RULE",
            "Shift of a flow model's noise levels above the training size: cap, sqrt, stock, a number, or one a level: "
            "7,9,11. Default: the method's.",
        ),
    ] = None
    deepcache: Annotated[
        str | None,
        text(SAMPLING, "N", "Run the whole UNet at every N-th step only, 2 or more. Changes pictures. Default: none."),
    ] = None
    deepcache_branch: Annotated[
        str | None,
        text(SAMPLING, "NUMBER", "Skip connection at which the layers begin that run at every step. Default: 2."),
    ] = None
    deepcache_levels: Annotated[
        str | None, text(SAMPLING, "NAME", "Levels with --deepcache: base (level 0) or all. Default: base.")
    ] = None
    todo: Annotated[
        str | None,
        text(
            SAMPLING,
            "FACTOR",
            "Thin keys and values of self-attention by this factor a side; auto: the scale. Changes pictures. "
            "Default: none.",
        ),
    ] = None
    prediction: Annotated[
        str | None,
        text(
            MODEL,
            "NAME",
            "What the UNet predicts: auto, epsilon, v_prediction or sample. Default: what the model says.",
        ),
    ] = None
    ztsnr: Annotated[
        str | None, text(MODEL, "NAME", "Zero terminal SNR: auto, on or off. Default: what the model says.")
    ] = None
