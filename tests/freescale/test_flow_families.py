"""Every method for transformers on every family in miniature, with random weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from freescale import Conditioning, Denoiser, Level, Schedule, Step, make_schedule, normal
from freescale.flow_levels import FLOW_CLASS
from freescale.methods import METHODS, Direct, Method
from freescale.moment import Moment
from freescale.unet_patches import patched
from stages.models.card import values_for
from stages.models.flow import FLOW_FAMILIES
from stages.models.flow.methods import condition
from tests.toys import (
    flux2_network,
    flux_network,
    is_same,
    new_chroma,
    new_sd3,
    points,
    qwen_network,
    render,
    run_from,
    snapshot,
    zimage_network,
)

SCHEDULER = {"_class_name": FLOW_CLASS, "sigma_grid": "steps", "use_dynamic_shifting": True}
BASE, SIZE, NEXT = (64, 48), (128, 96), (256, 192)  # pixels: 4 x 3 tokens, 8 x 6, and more above
TEXT, STEPS = 3, 4
WIDTHS = {"ZImagePipeline": 16}  # of a row of text; 24 where nothing is said
POOLED = ("FluxPipeline", "StableDiffusion3Pipeline")
CONDITIONS = {  # of methods with families: what has to be said
    "repeat_text false": {"repeat_text": False},
    "positions none or pi": {"positions": "pi"},
    "repeat_text false, positions none or pi": {"repeat_text": False, "positions": "pi"},
}
CASCADES = [name for name, kind in METHODS.items() if "flow" in kind.backbones and name not in ("direct", "enlarge")]


def built(make: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval().requires_grad_(False)


NETWORKS: dict[str, Any] = {
    "FluxPipeline": flux_network,
    "ChromaPipeline": cache(lambda: built(new_chroma)),
    "Flux2KleinPipeline": flux2_network,
    "StableDiffusion3Pipeline": cache(lambda: built(new_sd3)),
    "QwenImagePipeline": qwen_network,
    "ZImagePipeline": zimage_network,
}
PAIRS = [(name, family) for name in CASCADES for family in NETWORKS if condition(name, family) is not None]


def denoiser(pipeline: str) -> Denoiser:
    embeds, negative = (normal((1, TEXT, WIDTHS.get(pipeline, 24)), side) for side in (1, 2))
    added: Any = ({"pooled_projections": normal((1, 20), side)} if pipeline in POOLED else {} for side in (3, 4))
    return Denoiser(NETWORKS[pipeline](), Conditioning(embeds, negative, *added), 3.0)


def method_of(name: str, pipeline: str, **changes: Any) -> Method:
    """The method as the family has it, with what has to be said."""
    said = CONDITIONS[needed] if (needed := condition(name, pipeline)) else {}
    return METHODS[name](**values_for(name, FLOW_FAMILIES[pipeline].methods) | said | changes)


def level_at(index: int, size: tuple[int, int] = SIZE) -> Level:
    if index == 0:
        return Level(0, BASE, BASE, grows=True)
    cells = size[0] // 8, size[1] // 8
    given = {"reference": normal((1, 4, *cells), 5), "noise": normal((1, 4, *cells), 6)}
    below = normal((1, STEPS, 4, BASE[0] // 8, BASE[1] // 8), 7)
    return Level(index, size, BASE, **given, trajectory=below, sizes=(BASE, SIZE, NEXT))


def walk_of(method: Method, level: int) -> Schedule:
    return method.walk(make_schedule(SCHEDULER, STEPS, tokens=48), level, (BASE, SIZE, NEXT))


def pairs(*kept: tuple[str, str]) -> list[Any]:
    return points(range(len(PAIRS)), kept=lambda number: PAIRS[number] in kept)


def named(number: int) -> str:
    return "-".join(PAIRS[number])


@pytest.mark.parametrize("number", pairs(), ids=named)
def test_at_scale_1_it_is_direct_and_leaves_nothing_behind(number: int) -> None:
    """Level 0, but for steps that a method leaves out; and above it, at the training size, the prediction."""
    name, family = PAIRS[number]
    method, held = method_of(name, family), denoiser(family)
    before = snapshot(held.network)
    method.check_backbone("flow")
    walk = walk_of(method, 0)
    found = render(held, method, level_at(0), walk)
    assert torch.equal(found, render(held, Direct(), Level(0, BASE, BASE), walk))
    latents, above = normal((1, 4, 8, 6), 1), walk_of(method, 1)
    moment = Moment(level_at(1, BASE), 1, above, 7)
    with torch.no_grad():
        with patched(held.network, method.patches(moment)):
            found = method.predict(held, latents, moment)
        assert torch.equal(found, held(latents, 1, above))
    assert is_same(before, snapshot(held.network))


@pytest.mark.parametrize(
    "number",
    pairs(
        ("scalediff", "FluxPipeline"),
        ("scalediff", "ZImagePipeline"),
        ("cinescale_2026", "QwenImagePipeline"),
        ("imax", "StableDiffusion3Pipeline"),
    ),
    ids=named,
)
def test_it_goes_on_from_every_step_and_leaves_nothing_behind(number: int) -> None:
    name, family = PAIRS[number]
    method, held, level = method_of(name, family), denoiser(family), level_at(1)
    before, walk = snapshot(held.network), walk_of(method, 1)
    first = method.restart_step(walk)
    start = method.start((1, 4, *level.latent_hw), Moment(level, first, walk, 7))
    steps = run_from(held, method, level, walk, Step(first - 1, start))
    assert is_same(before, snapshot(held.network))
    assert steps[-1].latents.isfinite().all()
    for step in steps[:-1]:
        again = run_from(held, method, level, walk, step)[-1]
        assert torch.equal(again.latents, steps[-1].latents), step.index


def test_what_works_where() -> None:
    """A table of positions has no rotations; text that is not at one place of the grid is not repeated."""
    found = {name: {family: condition(name, family) for family in NETWORKS} for name in METHODS}
    others = dict.fromkeys(NETWORKS, "")
    for name in ("direct", "freescale", "swift", "draft", "scalediff", "enlarge"):
        assert found[name] == others
    assert found["cinescale_2026"] == others | {"StableDiffusion3Pipeline": None}
    assert found["hiflow"] == found["cinescale"] == others | {"StableDiffusion3Pipeline": "positions none or pi"}
    without, rules = "repeat_text false", "positions none or pi"
    moved = {"QwenImagePipeline": without, "ZImagePipeline": without}
    assert found["imax"] == others | moved | {"StableDiffusion3Pipeline": f"{without}, {rules}"}
    assert found["demofusion"] == dict.fromkeys(NETWORKS)
