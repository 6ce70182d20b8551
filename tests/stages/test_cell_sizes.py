"""Models whose VAE has other than eight pixels to a latent cell: sizes, what is refused, and a whole render."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from flows.home import Home
from flows.rendering.job import prepare
from stages.errors import SpecError
from stages.models.folder import EMBEDDED, cell_of
from stages.models.load import describe
from stages.plan import make_plan
from stages.planner.estimate import MANIFEST, estimate
from stages.spec import ModelSpec, RunOptions, make_spec
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path


def folder_of(root: Path, blocks: int) -> Path:
    """The embedded model with a VAE of other depth and made-up weights: 2 ** (blocks - 1) pixels a cell."""
    from diffusers import AutoencoderKL

    folder = root / f"model-{blocks}"
    folder.mkdir()
    for part in EMBEDDED.iterdir():
        if part.name != "vae" and part.name != "freescale.json":  # the card names a native size
            (folder / part.name).symlink_to(part)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            block_out_channels=(4,) * blocks,
            norm_num_groups=2,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
        )
    vae.save_pretrained(folder / "vae")
    return folder


def spec_of(folder: Path, width: int, height: int, **fields: Any) -> Any:
    named = {"prompt": "a disc", "steps": 3, "model": {"name": str(folder)}, "width": width, "height": height}
    return make_spec(named | fields)


def test_the_factor_is_the_configurations() -> None:
    assert [cell_of({"block_out_channels": [8] * blocks}) for blocks in (3, 4, 5, 6)] == [4, 8, 16, 32]
    assert cell_of({"latent_channels": 4}) == 8


@pytest.mark.parametrize(("blocks", "size"), [(3, (104, 72)), pytest.param(5, (512, 256), marks=pytest.mark.thorough)])
def test_a_render_has_the_size_asked_for(blocks: int, size: tuple[int, int], tmp_path: Path) -> None:
    folder, (width, height) = folder_of(tmp_path, blocks), size
    home = Home(tmp_path / "home")
    job = prepare(spec_of(folder, width, height, method={"name": "freescale", "restart": 0.3}), home)
    cell = 2 ** (blocks - 1)
    native = describe(ModelSpec(name=str(folder)), tmp_path).native
    assert native == (16 * cell, 16 * cell)
    assert len(job.plan.sizes) == 2
    assert all(side % cell == 0 for level in job.plan.sizes for side in level)
    result = session_in(home.root).render(job)
    with Image.open(result.outputs[0]) as picture:
        assert picture.size == size
    latents = next(call for call in reversed(job.plan.calls) if call.stage.part == "unet")
    manifest = home.store.find(latents.key)
    assert manifest is not None
    assert manifest.arrays["latents"].shape == (1, 4, height // cell, width // cell)
    found = estimate(latents, job.plan.info, RunOptions(), "cpu")
    assert found.disk - MANIFEST == 4 * 4 * (height // cell) * (width // cell)


def test_a_side_of_half_a_cell_is_refused_with_the_nearest(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 5)
    info = describe(ModelSpec(name=str(folder)), tmp_path)
    with pytest.raises(SpecError, match=r"width: 328 is not a multiple of 16; the nearest that work are 320 and 336"):
        make_plan(spec_of(folder, 328, 256), info)
    with pytest.raises(SpecError, match=r"cascade: level 168x128 is not in multiples of 16"):
        make_plan(spec_of(folder, 336, 256, cascade=[[168, 128], [336, 256]]), info)


def test_a_side_that_no_model_takes_is_refused_with_what_some_and_what_all_take(tmp_path: Path) -> None:
    says = r"width: 100 is not a multiple of 8; the nearest that work are 96 and 104, with every model 96 and 128"
    with pytest.raises(SpecError, match=says):
        spec_of(tmp_path, 100, 256)


def test_a_network_that_takes_patches_asks_for_sides_of_whole_ones(tmp_path: Path) -> None:
    """Two cells of eight pixels a side: levels in between are of whole patches, too."""
    info = dataclasses.replace(describe(ModelSpec(), tmp_path), patch=2)
    assert info.grain == 2 * info.cell == 16
    plan = make_plan(spec_of(info.folder, 528, 304), info)
    assert len(plan.sizes) > 1
    assert all(side % 16 == 0 for size in plan.sizes for side in size)
    with pytest.raises(SpecError, match=r"width: 328 is not a multiple of 16; the nearest that work are 320 and 336"):
        make_plan(spec_of(info.folder, 328, 256), info)
