"""Chroma: a render against the stock pipeline with the mask that it was trained with, its files, and its adapters."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

from freescale import normal
from freescale.backbones.flux import pack, unpack
from stages.denoise import DenoiseStage
from stages.errors import SpecError
from stages.models.describe import describe
from stages.models.load import Models
from stages.models.networks import empty_part
from stages.plan import make_plan
from stages.planner.configurations import configurations, text_weights
from stages.planner.networks import trace_step
from stages.planner.skeleton import Skeleton
from stages.spec import ModelSpec, RunOptions, make_spec
from tests.chroma_folder import chroma_folder
from tests.flux_files import layouts, tensors_in, written
from tests.flux_folder import T5_TOKENS
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path

SHORT, LONG = "a red disc", "a red disc on blue clay of a green box on clay"  # with padding, and without
SIZE = (112, 80)  # an odd grid of tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chroma_folder(tmp_path_factory.mktemp("chroma") / "hd")


def rendered(folder: Path, home: Path, prompt: str, negative: str, guidance: float) -> torch.Tensor:
    from flows.home import Home
    from flows.rendering.job import prepare

    given = {"prompt": prompt, "negative_prompt": negative, "guidance_scale": guidance, "seed": 3}
    given |= {"width": SIZE[0], "height": SIZE[1], "model": {"name": str(folder)}, "method": {"name": "direct"}}
    kept = Home(home)
    job = prepare(make_spec(given), kept)
    session_in(kept.root).render(job)
    call = next(call for call in job.plan.calls if call.stage.name == "base_denoise")
    latents: torch.Tensor = kept.store.read(call.key)["latents"]
    return latents


def stock(folder: Path, prompt: str, negative: str, guidance: float, *, fixed: bool) -> torch.Tensor:
    """Return the stock pipeline's latents; `fixed`: with its masks as truths, which attention does not add."""
    from diffusers import ChromaPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        pipeline = ChromaPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    asked: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    if fixed:
        rows, _, mask, negative_rows, _, negative_mask = pipeline.encode_prompt(
            prompt, negative, do_classifier_free_guidance=True, max_sequence_length=T5_TOKENS
        )
        asked = {"prompt_embeds": rows, "prompt_attention_mask": mask.bool()}
        asked |= {"negative_prompt_embeds": negative_rows, "negative_prompt_attention_mask": negative_mask.bool()}
    made = pipeline(
        **asked,
        latents=pack(normal((1, 4, 10, 14), 3, "init_noise", 0)),
        height=SIZE[1],
        width=SIZE[0],
        num_inference_steps=4,
        guidance_scale=guidance,
        max_sequence_length=T5_TOKENS,
        output_type="latent",
    ).images
    return unpack(made, (10, 14))


@pytest.mark.parametrize(
    ("prompt", "negative", "guidance", "fixed"),
    [
        (SHORT, "", 5.0, True),
        pytest.param(SHORT, "", 0.0, True, marks=pytest.mark.thorough),
        (LONG, LONG, 0.0, False),
        pytest.param(LONG, f"clay {LONG}", 5.0, False, marks=pytest.mark.thorough),
    ],
    ids=["short-guided", "short", "long", "long-guided"],
)
def test_latents_are_those_of_the_stock_pipeline(
    prompt: str, negative: str, guidance: float, fixed: bool, folder: Path, tmp_path: Path
) -> None:
    """Where a prompt fills all tokens, the stock pipeline is right as it is; else it adds its mask to the logits."""
    found = rendered(folder, tmp_path, prompt, negative, guidance)
    torch.testing.assert_close(found, stock(folder, prompt, negative, guidance, fixed=fixed), atol=1e-5, rtol=1e-5)


def test_a_folder_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    info = describe(ModelSpec(name=str(folder)), tmp_path)
    assert (info.backbone, info.guidance_scale, info.takes_guidance, info.grain) == ("flow", 5.0, False, 16)
    assert info.text_tokens == T5_TOKENS
    models = Models(info, "float32", torch.device("cpu"))
    assert text_weights(info, "float32") == sum(each.nbytes for each in models.text_encoder("t5").parameters())


@pytest.mark.thorough
def test_freescale_draws_a_cascade_and_is_planned(folder: Path, tmp_path: Path) -> None:
    """Scale fusion and positions are FLUX.1's; a folded trace counts every block."""
    from flows.home import Home
    from flows.rendering.job import prepare

    given: dict[str, Any] = {"prompt": SHORT, "width": 256, "height": 256, "model": {"name": str(folder)}}
    home = Home(tmp_path / "home")
    job = prepare(make_spec(given | {"method": {"name": "freescale", "positions": "yarn"}, "steps": 2}), home)
    assert len(session_in(home.root).render(job).outputs) == 2
    plan = make_plan(make_spec(given), describe(ModelSpec(name=str(folder)), tmp_path))
    stage = next(call.stage for call in reversed(plan.calls) if isinstance(call.stage, DenoiseStage))
    config, flops = configurations(plan.info, "unet")[0], {}
    for folded in (True, False):
        unet = Skeleton(empty_part(json.loads(config), torch.float32), folded=folded)
        flops[folded] = trace_step(stage, unet, RunOptions(), stage.start + 1, None, 8).flops
    assert flops[True] == flops[False] > 0


@pytest.mark.parametrize("layout", ["original", pytest.param("diffusers", marks=pytest.mark.thorough)])
def test_a_single_file_is_the_folder(layout: str, folder: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "chroma.safetensors", layouts(folder)[layout])
    info = describe(ModelSpec(name=str(file), config=str(folder)), tmp_path)
    one, other = (
        Models(each, "float32", torch.device("cpu")).unet
        for each in (info, describe(ModelSpec(name=str(folder)), tmp_path))
    )
    wanted = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    found = {**dict(one.named_parameters()), **dict(one.named_buffers())}
    assert set(found) == set(wanted) >= set(tensors_in(folder / "transformer"))
    assert all(torch.equal(found[name], each) for name, each in wanted.items())


def test_clip_has_no_place_in_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"model.clip_skip: 2 is for UNets"):
        describe(ModelSpec(name=str(folder), clip_skip=2), tmp_path)
