"""Plans of Wan 2.1 at its full sizes, from configurations alone: weights, arithmetic, and which cards they fit on."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.wan_folder import write_wan
from stages.models.load import describe
from stages.plan import make_plan
from stages.planner.budget import fit
from stages.planner.estimate import call_flops, estimate, rough_bytes
from stages.planner.trace_cache import trace_cache
from stages.spec import ModelSpec, RunOptions, make_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stages.models.info import ModelInfo
    from stages.plan import Plan

pytestmark = pytest.mark.thorough
GIB, TERA = 1 << 30, 1e12


@pytest.fixture(scope="module")
def info_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Any], ModelInfo]]:
    home = tmp_path_factory.mktemp("home")

    def info(size: Any) -> ModelInfo:
        folder = write_wan(home / size, size)
        return describe(ModelSpec(name=str(folder)), home, has_weights=False)

    with trace_cache(home):
        yield info


def plan_of(info: ModelInfo, width: int, height: int, **fields: Any) -> Plan:
    model = {"name": info.name, "dtype": "bfloat16"}
    return make_plan(make_spec({"prompt": "a fox", "model": model, "width": width, "height": height} | fields), info)


@pytest.mark.parametrize(
    ("size", "width", "height", "billions", "tera"),
    [("1.3B", 832, 480, 1.42, 566.0), ("14B", 1280, 720, 14.29, 13047.0)],
)
def test_weights_and_arithmetic_at_the_training_size(
    info_of: Any, size: str, width: int, height: int, billions: float, tera: float
) -> None:
    """81 frames are 21 latent ones: 32,760 tokens at 832x480, 75,600 at 1280x720."""
    info = info_of(size)
    plan = plan_of(info, width, height)
    call = next(call for call in plan.calls if call.stage.part == "unet")
    assert call.stage.frames == 21
    assert estimate(call, info, RunOptions(), "cuda").weights / 2 == pytest.approx(billions * 1e9, rel=0.01)
    assert call_flops(plan.calls, info, RunOptions()) / TERA == pytest.approx(tera, rel=0.02)


@pytest.mark.parametrize(("size", "card", "by_blocks"), [("1.3B", 24, False), ("14B", 80, False), ("14B", 40, True)])
def test_1440p_fits_with_what_the_plan_takes(info_of: Any, size: str, card: int, by_blocks: bool) -> None:
    """2560x1440, 81 frames: 302,400 tokens."""
    info, taken = info_of(size), set[str]()
    for call in plan_of(info, 2560, 1440).calls:
        if call.stage.part:
            found = fit(call, info, RunOptions(), card * GIB, "cuda")
            assert found.fits, call.label
            assert call.stage.part == "text" or found.estimate.activations <= rough_bytes(call, info)
            taken.update(found.savings)
    assert ("the UNet or transformer block by block" in taken) is by_blocks
    assert "the VAE by exact tiles within 6 GiB" in taken


@pytest.mark.parametrize("upsample", ["latent", "rgb"])
def test_tiles_of_the_vae_take_what_they_are_told(info_of: Any, upsample: str) -> None:
    info = info_of("1.3B")
    method = {"name": "freescale", "upsample": upsample}
    plan = plan_of(info, 2560, 1440, method=method)
    cost = partial(estimate, info=info, device="cuda")
    for call in (call for call in plan.calls if call.stage.part == "vae" and call.size == (1440, 2560)):
        whole, tiled = cost(call, options=RunOptions()), cost(call, options=RunOptions(vae_memory=6 * GIB))
        assert 0.5 * 6 * GIB < tiled.activations < 1.1 * 6 * GIB < whole.activations, call.label
        assert whole.flops < tiled.flops < 4 * whole.flops
