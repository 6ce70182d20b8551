"""FLUX folders: what they say of themselves, a whole render against the stock pipeline, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from freescale import normal
from freescale.backbones.joint import pack, unpack
from stages.errors import SpecError
from stages.models.load import Models, describe
from stages.plan import make_plan
from stages.planner.configurations import text_weights
from stages.spec import ModelSpec
from tests.flow_folders import PROMPT, changed, check_folded, spec_of
from tests.flux_folder import T5_TOKENS, flux_folder
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flux")
    return {"plain": flux_folder(root / "plain"), "dev": flux_folder(root / "dev", embedded=True)}


def info_of(folder: Path, tmp_path: Path, **model: Any) -> Any:
    return describe(ModelSpec(name=str(folder), **model), tmp_path)


def test_a_folder_says_what_it_is(folders: dict[str, Path], tmp_path: Path) -> None:
    plain, dev = (info_of(folders[name], tmp_path) for name in ("plain", "dev"))
    assert (plain.backbone, plain.native, plain.steps, plain.grain) == ("flow", (128, 128), 4, 16)
    assert plain.text_tokens == T5_TOKENS
    assert (plain.takes_guidance, dev.takes_guidance, dev.guidance_scale) == (False, True, 3.5)
    models = Models(plain, "float32", torch.device("cpu"))
    loaded = [*models.text_encoder("text_encoder").parameters(), *models.text_encoder("t5").parameters()]
    assert text_weights(plain, "float32") == sum(each.nbytes for each in loaded)


@pytest.mark.parametrize("name", ["plain", "dev"])
def test_a_picture_is_that_of_the_stock_pipeline(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    """The text, the schedule, all steps, guidance and the VAE; an odd grid of tokens."""
    from diffusers import FluxPipeline

    from flows.home import Home
    from flows.rendering.job import prepare

    size, guidance = (112, 80), {"plain": 3.0, "dev": 3.5}[name]
    home = Home(tmp_path / "home")
    method = {"name": "direct"}
    job = prepare(spec_of(folders[name], size, method=method, guidance_scale=guidance, negative_prompt=""), home)
    session_in(home.root).render(job)
    by_stage = {call.stage.name: home.store.read(call.key) for call in job.plan.calls}
    pipeline = FluxPipeline.from_pretrained(folders[name])
    pipeline.set_progress_bar_config(disable=True)
    noise = normal((1, 4, 10, 14), 3, "init_noise", 0)
    options: dict[str, Any] = {"guidance_scale": guidance}
    if name == "plain":
        options = {"true_cfg_scale": guidance, "negative_prompt": ""}
    common: dict[str, Any] = {"height": 80, "width": 112, "num_inference_steps": 4, "max_sequence_length": T5_TOKENS}
    expected = pipeline(PROMPT, latents=pack(noise), output_type="latent", **common, **options).images
    found = by_stage["base_denoise"]["latents"]
    torch.testing.assert_close(found, unpack(expected, (10, 14)), atol=1e-5, rtol=1e-5)
    image = pipeline(PROMPT, latents=pack(noise), output_type="pt", **common, **options).images
    picture = by_stage["decode"]["image"].float()
    torch.testing.assert_close((picture / 2 + 0.5).clamp(0, 1), image, atol=2e-3, rtol=0)


def test_freescale_draws_a_cascade(folders: dict[str, Path], tmp_path: Path) -> None:
    from flows.home import Home
    from flows.rendering.job import prepare

    home = Home(tmp_path / "home")
    job = prepare(spec_of(folders["plain"], (256, 256), method={"name": "freescale", "positions": "yarn"}), home)
    assert job.plan.sizes == ((128, 128), (256, 256))
    result = session_in(home.root).render(job)
    assert [path.name for path in result.outputs] == ["level-1-256x256.png", "level-0-128x128.png"]


def test_a_folded_trace_counts_every_block(tmp_path: Path, folders: dict[str, Path]) -> None:
    """Both kinds of block, under scale fusion: the folded network takes what the whole one does."""
    check_folded(spec_of(folders["plain"], (256, 256)), info_of(folders["plain"], tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": {"name": "demofusion"}}, "method: 'demofusion' is for UNets, and .* is none; direct, freescale"),
        ({"method": {"name": "freescale", "dilate": True}}, "method: dilate is True, allowed: False with flow models"),
        ({"solver": "ddim"}, "solver is 'ddim' with a flow model, allowed: euler, dpmpp_2m, unipc, heun"),
        ({"width": 72}, "width: 72 is not a multiple of 16; the nearest that work are 64 and 80"),
        ({"prompt_syntax": "a1111"}, "prompt_syntax: 'a1111' is for UNets"),
        ({"timestep_spacing": "trailing"}, "timestep_spacing: 'trailing' is for UNets"),
        ({"model": {"clip_skip": 2}}, "model.clip_skip: 2 is for UNets"),
    ],
    ids=str,
)
def test_what_a_transformer_has_no_meaning_for_is_refused(
    folders: dict[str, Path], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    fields = {**fields, "model": {"name": str(folders["plain"]), **fields.get("model", {})}}
    spec = spec_of(folders["plain"], **fields)
    with pytest.raises(SpecError, match=message):
        make_plan(spec, describe(spec.model, tmp_path))


def test_a_distilled_model_reads_no_negative_prompt(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="negative_prompt: guidance was distilled into"):
        make_plan(spec_of(folders["dev"], negative_prompt="blurry"), info_of(folders["dev"], tmp_path))
    plan = make_plan(spec_of(folders["dev"]), info_of(folders["dev"], tmp_path))
    assert next(call.stage.params()["negative_prompt"] for call in plan.calls if call.stage.part == "text") is None


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        ("transformer/config.json", "joint_attention_dim", 32, "joint_attention_dim = 32; its T5 gives 24"),
        ("transformer/config.json", "patch_size", 2, "patch_size = 2; for FluxTransformer2DModel it must be 1"),
        ("scheduler/scheduler_config.json", "_class_name", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
        ("scheduler/scheduler_config.json", "invert_sigmas", True, "invert_sigmas = true"),
        ("text_encoder_2/config.json", "num_layers", 3, "does not hold the weights of a T5EncoderModel"),
        ("freescale.json", "native", [72, 64], r"native size \[72, 64\]; sides in multiples of 16 work"),
    ],
    ids=str,
)
def test_parts_that_do_not_belong_together_are_refused(
    folders: dict[str, Path], file: str, field: str, value: Any, message: str, tmp_path: Path
) -> None:
    folder = changed(folders["plain"], tmp_path / "model", file, **{field: value})
    with pytest.raises(SpecError, match=message):
        info_of(folder, tmp_path)
