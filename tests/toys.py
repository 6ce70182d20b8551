"""What tests of the kernel share: toy UNets beside those of `conftest.py`, levels, whole loops, a perfect denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from freescale.cascade import Level
from freescale.forward_process import normal
from freescale.guidance import Conditioning
from freescale.sampling import Moment, Schedule, denoise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from freescale.methods import Method
    from freescale.views import Views

BASE, TARGET = (64, 80), (136, 160)  # latents 8 x 10 and 17 x 20: odd sides on the way down


def level_at(index: int, size: tuple[int, int] = TARGET, frames: Sequence[int] = (), **changes: Any) -> Level:
    """A level with a made-up reference."""
    if index == 0:
        return Level(0, BASE, BASE)
    shape = (1, 4, *frames, size[0] // 8, size[1] // 8)
    options = {
        "reference": normal(shape, 3, "reference"),
        "noise": normal(shape, 3, "restart_noise", index),
        "anchor": normal((1, 4, *frames, BASE[0] // 8, BASE[1] // 8), 3, "anchor"),
    }
    return Level(index, size, BASE, **options | changes)


def render(
    denoiser: Any, method: Method, level: Level, schedule: Schedule, cuts: Sequence[int] = (), seed: int = 7
) -> Tensor:
    """All steps of a level, the loop left and entered again at each of `cuts`."""
    start = 0 if level.is_base else method.restart_step(schedule)
    latents, history = method.start((1, 4, *level.latent_hw), Moment(level, start, schedule, seed)), ()
    marks = [start, *cuts, len(schedule)]
    for first, stop in pairwise(marks):
        for step in denoise(
            denoiser, latents, schedule, method, level, seed=seed, start=first, stop=stop, history=history
        ):
            latents, history = step.latents.clone(), tuple(x.clone() for x in step.history)
    return latents


class Toward:
    """The perfect denoiser of one picture; its UNet is there to be patched and never runs."""

    window_rows = None
    phase_convs = False

    def __init__(self, truth: Tensor, unet: nn.Module | None = None) -> None:
        self.truth, self.unet = truth, unet or nn.Module()

    def for_views(self, views: Views, batch: int) -> Toward:
        return Toward(views.take(self.truth), self.unet)

    def __call__(self, latents: Tensor, i: int, schedule: Schedule) -> Tensor:
        return (latents - self.truth) / schedule.sigmas[i]


@cache
def sd_unet(version: str) -> Any:
    """A UNet with the topology of Stable Diffusion 1.5 or 2.1 and random weights."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    own = {"1.5": {"attention_head_dim": 2}, "2.1": {"attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True}}
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        norm_num_groups=4,
        cross_attention_dim=32,
        **own[version],
    ).eval()


def sd_text() -> Conditioning:
    """Random text for `sd_unet`."""
    return Conditioning(normal((1, 5, 32), 1), normal((1, 5, 32), 2))


def snapshot(unet: nn.Module) -> dict[str, dict[str, Any]]:
    """Every attribute of every module; dictionaries (hooks, children, parameters) by their content."""
    return {
        name: {key: dict(x) if isinstance(x, Mapping) else x for key, x in vars(module).items()}
        for name, module in unet.named_modules()
    }


def is_same(before: Any, after: Any) -> bool:
    """Whether two snapshots hold the same objects; plain tuples and numbers may be equal."""
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(is_same(before[key], after[key]) for key in before)
    return before is after or (isinstance(before, (tuple, int, str)) and bool(before == after))
