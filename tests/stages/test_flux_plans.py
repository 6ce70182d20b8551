"""Plans of FLUX.1 at its full size, from its configuration alone: weights, arithmetic, and which cards it fits on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.flux_folder import TRANSFORMER, write_flux
from stages.models.load import describe
from stages.models.networks import empty_network
from stages.plan import make_plan
from stages.planner.budget import fit
from stages.planner.estimate import call_flops, estimate
from stages.planner.trace_cache import trace_cache
from stages.spec import ModelSpec, RunOptions, make_spec
from tests.checkpoints import write_header
from tests.flux_files import original

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stages.models.info import ModelInfo
    from stages.plan import Plan

pytestmark = pytest.mark.thorough
GIB, TERA = 1 << 30, 1e12


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelInfo]:
    home = tmp_path_factory.mktemp("home")
    folder = write_flux(home / "dev")
    with trace_cache(home):
        yield describe(ModelSpec(name=str(folder)), home, has_weights=False)


def plan_of(info: ModelInfo, side: int, dtype: str = "bfloat16") -> Plan:
    model = {"name": info.name, "dtype": dtype}
    return make_plan(make_spec({"prompt": "a red fox", "model": model, "width": side, "height": side}), info)


def test_it_has_twelve_billion_weights_and_74_tflop_a_call(info: ModelInfo) -> None:
    """A call at 1024x1024: 19 double and 38 single blocks over 4,096 tokens of the image and 512 of text."""
    plan = plan_of(info, 1024)
    call = next(call for call in plan.calls if call.stage.part == "unet")
    assert estimate(call, info, RunOptions(), "cuda").weights / 2 == pytest.approx(11.9e9, rel=2e-3)
    assert call_flops(plan.calls, info, RunOptions()) / TERA == pytest.approx(74.4, rel=0.01)


@pytest.mark.parametrize(
    ("side", "dtype", "card", "by_blocks"),
    [
        (1024, "bfloat16", 24, False),
        (4096, "bfloat16", 24, True),
        (4096, "float8_e4m3fn", 16, True),
        (4096, "bfloat16", 48, False),
    ],
)
def test_a_card_is_enough_with_what_the_plan_takes(
    info: ModelInfo, side: int, dtype: str, card: int, by_blocks: bool
) -> None:
    taken = set[str]()
    for call in plan_of(info, side, dtype).calls:
        if call.stage.part:
            found = fit(call, info, RunOptions(), card * GIB, "cuda")
            assert found.fits, call.label
            assert found.estimate.memory <= card * GIB
            taken.update(found.savings)
    assert ("the UNet or transformer block by block" in taken) is by_blocks


def test_a_file_of_8_bits_fits_on_a_card_of_16_gib(info: ModelInfo, tmp_path: Path) -> None:
    """The transformer at its full size in the names of Black Forest Labs, beside the configurations alone."""
    network = empty_network("FluxTransformer2DModel", TRANSFORMER)
    shapes = {name: tuple(each.shape) for name, each in original(network.state_dict()).items()}
    file = write_header(tmp_path / "flux1-dev-fp8.safetensors", shapes, dtypes=dict.fromkeys(shapes, "F8_E4M3"))
    found = describe(ModelSpec(name=str(file), config=str(info.folder)), tmp_path, has_weights=False)
    for dtype, by_blocks in (("float8_e4m3fn", True), ("bfloat16", True)):
        fits = [fit(call, found, RunOptions(), 16 * GIB, "cuda") for call in plan_of(found, 4096, dtype).calls
                if call.stage.part]  # fmt: skip
        assert all(each.fits and each.estimate.memory <= 16 * GIB for each in fits)
        taken = {saving for each in fits for saving in each.savings}
        assert ("the UNet or transformer block by block" in taken) is by_blocks


def test_8192_pixels_fit_on_a_card_of_40_gib(info: ModelInfo) -> None:
    call = plan_of(info, 8192).calls[-2]
    assert (call.stage.name, call.size) == ("decode", (8192, 8192))
    assert fit(call, info, RunOptions(), 40 * GIB, "cuda").fits
