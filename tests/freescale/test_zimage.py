"""Z-Image in miniature, with random weights: against the stock pipeline, and scale fusion against a slow one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from freescale import Conditioning, Denoiser, Level, denoise, make_schedule, normal
from freescale.backbones.zimage import Rotations, ZImage
from freescale.flow_levels import FLOW_CLASS
from freescale.frequency import gaussian_taps
from freescale.heads import project
from freescale.methods import Direct, FreeScale
from freescale.scale_fusion import Fusion
from freescale.unet_patches import patched
from tests.oracles import row_fusion as oracle
from tests.toys import goes_on, is_same, snapshot, zimage_network

SCHEDULER = {"_class_name": FLOW_CLASS, "sigma_grid": "steps", "shift": 3.0}
FLOW: dict[str, Any] = {"dilate": False, "channel_blur": False, "freeu": None, "blur_border": "renormalize"}
LONG, SHORT = 40, 5  # tokens of two captions: 64 and 32 once they are filled up


def caption(side: str) -> Tensor:
    return normal((LONG if side == "positive" else SHORT, 16), 1, side)


def conditioning() -> Conditioning:
    """Both captions with their masks, the second with rows that nobody may read."""
    short = F.pad(caption("negative"), (0, 0, 0, LONG - SHORT), value=9.0)
    mask = torch.arange(LONG) < SHORT
    added = {"text_mask": torch.ones(1, LONG, dtype=torch.bool)}, {"text_mask": mask[None]}
    return Conditioning(caption("positive")[None], short[None], *added)


@pytest.mark.parametrize(
    ("guidance", "cells", "truncation", "interval"),
    [
        (3.0, (10, 14), 1.0, None),
        pytest.param(0.0, (8, 8), 1.0, None, marks=pytest.mark.thorough),
        pytest.param(3.0, (8, 8), 0.3, (0.0, 0.6), marks=pytest.mark.thorough),
    ],
    ids=["guided", "turbo", "truncated"],
)
def test_latents_are_those_of_the_stock_pipeline(
    guidance: float, cells: tuple[int, int], truncation: float, interval: tuple[float, float] | None
) -> None:
    """Captions of two lengths, and a grid of 35 tokens, which is filled up by 29.

    The pipeline ends guidance where 1 - sigma is above `cfg_truncation`, here after three of five steps.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    network, noise = zimage_network(), normal((2, 4, *cells), 0)
    parts: Any = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipeline: Any = ZImagePipeline(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), transformer=network, **parts)
    pipeline.set_progress_bar_config(disable=True)
    size = 8 * cells[0], 8 * cells[1]
    expected = pipeline(
        prompt_embeds=[caption("positive")] * 2,
        negative_prompt_embeds=[caption("negative")] * 2,
        latents=noise,
        height=size[0],
        width=size[1],
        num_inference_steps=5,
        guidance_scale=guidance,
        cfg_truncation=truncation,
        output_type="latent",
    ).images
    schedule = make_schedule(SCHEDULER, 5)
    denoiser = Denoiser(network, conditioning(), 1.0 + guidance, guidance_interval=interval)
    *_, last = denoise(denoiser, noise, schedule, Direct(), Level(0, size, size), seed=0)
    torch.testing.assert_close(last.latents, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(last.latents, noise, atol=0.1)


def test_a_grid_beyond_the_table_is_computed() -> None:
    """As by a network whose table is longer; and nothing of that is left."""
    network, latents = zimage_network(), normal((1, 4, 8, 34), 0)
    longer = copy.deepcopy(network)
    longer.rope_embedder.axes_lens, longer.rope_embedder.freqs_cis = [256, 12, 17], None
    before, schedule = snapshot(network), make_schedule(SCHEDULER, 3)
    with torch.no_grad():
        found, expected = (
            Denoiser(each, conditioning()).passes(latents, 1, schedule, "positive")[0] for each in (network, longer)
        )
    torch.testing.assert_close(found, expected)
    assert is_same(before, snapshot(network))


def test_half_a_patch_and_a_guidance_inside_are_refused() -> None:
    schedule, given = make_schedule(SCHEDULER, 2), conditioning()
    with pytest.raises(ValueError, match="latents are 6 x 7 cells, allowed: multiples of 2"):
        Denoiser(zimage_network(), given)(normal((1, 4, 6, 7), 0), 0, schedule)
    inside = Conditioning(given.prompt_embeds, guidance=3.5)
    with pytest.raises(ValueError, match=r"guidance is 3.5, allowed: None"):
        Denoiser(zimage_network(), inside)(normal((1, 4, 6, 6), 0), 0, schedule)


GRID, WINDOW, TIME, OTHERS = (8, 6), (4, 3), 33, 48  # tokens; 16 fill up the picture, and 32 are the caption's


def double() -> Any:
    return copy.deepcopy(zimage_network()).double()


def called(attn: Any, network: Any, hidden: Tensor, fusion: Fusion | None) -> Tensor:
    """One attention module; fused where asked, else as the network has it."""
    changes = [] if fusion is None else [ZImage(network).fused(fusion, (16, 12))]
    with torch.no_grad(), patched(network, changes):
        output: Tensor = attn(hidden, freqs_cis=network.rope_embedder(ids())[None])
        return output


def ids() -> Tensor:
    """Positions of the image, of what fills it up, and of the caption."""
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, GRID), indexing="ij"))
    image = torch.stack([torch.full_like(rows, TIME), rows, columns], 1)
    words = torch.stack([torch.arange(1, 33), *torch.zeros(2, 32, dtype=torch.int64)], 1)
    return torch.cat([image, torch.zeros(16, 3, dtype=torch.int64), words])


def angles_at(place: Tensor) -> Tensor:
    """Angles (tokens, size / 2) of positions, in float64."""
    parts = [
        place[:, axis, None].double() * 256.0 ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
        for axis, dims in enumerate((4, 6, 6))
    ]
    return torch.cat(parts, 1)


def fusion(**changes: Any) -> Fusion:
    given = {"scale": (2.0, 2.0), "taps": gaussian_taps(3), "channel_blur": False, "blur_border": "renormalize"}
    return Fusion(**(given | changes))


@pytest.mark.parametrize("block", ["layers", pytest.param("noise_refiner", marks=pytest.mark.thorough)])
def test_fusion_is_the_formula(block: str) -> None:
    network = double()
    attn, hidden = getattr(network, block)[1].attention, normal((1, 48 + OTHERS, 32), 0).double()
    found = called(attn, network, hidden, fusion())
    origins = [(top, left) for top in (0, 2, 4) for left in (0, 1, 2, 3)]
    with torch.no_grad():
        rows = tuple(x[0] for x in project(attn, hidden))
        expected = oracle.fused(
            *((rows[0], rows[1], rows[2]), angles_at(ids()), list(range(48)), GRID, WINDOW, origins),
            at=lambda r, c: angles_at(torch.tensor([[TIME, r, c]]))[0],
            kernel=3,
        )
        expected = attn.to_out[0](expected)
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)  # the network turns in float32
    plain = called(attn, network, hidden, None)
    torch.testing.assert_close(found[:, 48:], plain[:, 48:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[:, :48], plain[:, :48], atol=1e-3)
    alike = called(attn, network, hidden, fusion(bands="global"))
    torch.testing.assert_close(alike, plain, atol=1e-5, rtol=1e-5)


def test_a_rule_of_positions_leaves_time_and_what_reads_text_alone() -> None:
    network, seen = copy.deepcopy(zimage_network()), list[Tensor]()
    handle = network.context_refiner[-1].register_forward_hook(lambda _m, _a, output: seen.append(output))
    run = ZImage(network)
    denoiser, schedule = Denoiser(network, conditioning()), make_schedule(SCHEDULER, 3)
    outputs = {}
    for rule in ("none", "pi", "yarn"):
        with torch.no_grad(), patched(network, [run.positioned(rule, (16, 12), (8, 6))]):
            table = network.rope_embedder(ids())
            (outputs[rule],) = denoiser.passes(normal((1, 4, 16, 12), 0), 1, schedule, "positive")
        if rule == "pi":
            slowed = torch.polar(torch.ones(()).double(), angles_at(ids().double() / torch.tensor([1, 2, 2])))
            torch.testing.assert_close(table, slowed.to(table), atol=1e-5, rtol=1e-5)
    handle.remove()
    for rule, text in zip(("pi", "yarn"), seen[1:], strict=True):
        torch.testing.assert_close(text, seen[0], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(outputs[rule], outputs["none"], atol=1e-4)
    assert Rotations.of(network)(ids()).dtype == torch.complex64


@pytest.mark.parametrize(
    "changes", [{"positions": "yarn", "temperature": "entropy"}, pytest.param({}, marks=pytest.mark.thorough)], ids=str
)
def test_a_render_goes_on_where_it_was_cut_and_leaves_nothing_behind(changes: dict[str, Any]) -> None:
    denoiser, schedule = Denoiser(zimage_network(), conditioning(), 3.0), make_schedule(SCHEDULER, 4)
    reference, noise = normal((1, 4, 16, 12), 5), normal((1, 4, 16, 12), 6)
    before = snapshot(denoiser.network)
    level = Level(1, (128, 96), (64, 48), reference=reference, noise=noise)
    steps = goes_on(denoiser, FreeScale(**FLOW | changes), level, schedule)
    assert is_same(before, snapshot(denoiser.network))
    assert steps[-1].latents.isfinite().all()
