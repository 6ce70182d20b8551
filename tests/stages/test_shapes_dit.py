"""`shapes-dit`, the embedded transformer: what it is, what it draws, and FreeScale above its training size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from flows.home import Home
from flows.rendering.job import prepare
from stages.metrics.grid import FIRST_SCENE
from stages.models.folder import EMBEDDED_MODELS
from stages.models.load import describe
from stages.shapes.metrics import judge
from stages.shapes.scenes import sample_scene
from stages.spec import ModelSpec, make_spec
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path

    from stages.shapes.metrics import Verdict

AREA = 256 * 256


def drawn(caption: str, home: Path, side: int, **fields: object) -> Verdict:
    """Render a caption and read the picture."""
    values = {"prompt": caption, "model": {"name": "shapes-dit"}, "width": side, "height": side, **fields}
    job = prepare(make_spec(values), Home(home))
    session_in(home).render(job)
    (key,) = [call.key for call in job.plan.calls if call.label == f"decode {len(job.plan.sizes) - 1}"]
    return judge(Home(home).store.read(key)["image"][0].float(), caption, base_area=AREA)


def test_it_is_a_folder_of_flux_1(tmp_path: Path) -> None:
    info = describe(ModelSpec(name="shapes-dit"), tmp_path)
    assert (info.pipeline, info.backbone, info.native) == ("FluxPipeline", "flow", (256, 256))
    assert (info.steps, info.guidance_scale, info.text_tokens, info.takes_guidance) == (12, 3.0, 16, False)
    size = sum(path.stat().st_size for path in EMBEDDED_MODELS["shapes-dit"].rglob("*") if path.is_file())
    assert size < 16e6


def test_it_draws_one_object_as_asked(tmp_path: Path) -> None:
    """The captions of scenes that training never saw."""
    found = drawn(sample_scene(FIRST_SCENE + 2).caption, tmp_path, 256, steps=6)
    assert (found.count, found.color_ok, found.background_ok) == (1, True, True)


@pytest.mark.thorough
def test_scale_fusion_draws_one_object_at_twice_the_size(tmp_path: Path) -> None:
    found = [
        drawn(sample_scene(FIRST_SCENE + n).caption, tmp_path, 512, method={"name": "freescale"}) for n in range(3)
    ]
    assert sum(verdict.count == 1 for verdict in found) >= 2


@pytest.mark.thorough
def test_its_pictures_are_those_of_the_stock_pipeline(tmp_path: Path) -> None:
    """Text, schedule, guidance and network at two steps."""
    from diffusers import FluxPipeline

    from freescale import normal
    from freescale.backbones.flux import pack, unpack

    pipeline = FluxPipeline.from_pretrained(EMBEDDED_MODELS["shapes-dit"], dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    noise = normal((1, 4, 16, 16), 5, "init_noise", 0)
    options = {"true_cfg_scale": 3.0, "negative_prompt": "", "num_inference_steps": 2, "max_sequence_length": 16}
    prompt = "a red disc on sand"
    expected = pipeline(prompt, height=128, width=128, latents=pack(noise), output_type="latent", **options).images
    values = {"prompt": prompt, "model": {"name": "shapes-dit"}, "width": 128, "height": 128, "seed": 5, "steps": 2}
    job = prepare(make_spec({**values, "method": {"name": "direct"}}), Home(tmp_path))
    session_in(tmp_path).render(job)
    (key,) = [call.key for call in job.plan.calls if call.label == "base_denoise 0"]
    found = Home(tmp_path).store.read(key)["latents"]
    torch.testing.assert_close(found, unpack(expected, (16, 16)), atol=1e-4, rtol=1e-4)
