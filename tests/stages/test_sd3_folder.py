"""Stable Diffusion 3 folders: what they say of themselves, whole renders against the stock pipeline, and refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from freescale import normal
from stages.errors import SpecError
from stages.models.load import Models, describe
from stages.models.networks import empty_network
from stages.plan import make_plan
from stages.planner.configurations import text_weights
from stages.spec import ModelSpec
from tests.flow_folders import PROMPT, changed, check_folded, spec_of
from tests.homes import session_in
from tests.sd3_folder import T5_TOKENS, sd3_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sd3")
    return {"medium": sd3_folder(root / "medium", medium=True), "large": sd3_folder(root / "large", t5=False)}


def info_of(folder: Path, tmp_path: Path) -> Any:
    return describe(ModelSpec(name=str(folder)), tmp_path)


def rendered(spec: Any, tmp_path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What a render leaves, by the stage; of the last level where there are several."""
    from flows.home import Home
    from flows.rendering.job import prepare

    home = Home(tmp_path / "home")
    job = prepare(spec, home)
    session_in(home.root).render(job)
    return {call.stage.name: home.store.read(call.key) for call in job.plan.calls}


def test_a_folder_says_what_it_is(folders: dict[str, Path], tmp_path: Path) -> None:
    large, medium = (info_of(folders[name], tmp_path) for name in ("large", "medium"))
    assert (large.backbone, large.native, large.steps, large.grain) == ("flow", (128, 128), 4, 16)
    assert (medium.text_tokens, large.text_tokens) == (T5_TOKENS, 16), "without T5 the tokens of CLIP count"
    assert (large.guidance_scale, medium.guidance_scale, large.takes_guidance) == (7.0, 4.5, False)
    models = Models(medium, "float32", torch.device("cpu"))
    encoders = [models.text_encoder(part) for part in ("text_encoder", "text_encoder_2", "t5")]
    loaded = [each for encoder in encoders for each in encoder.parameters()]
    assert text_weights(medium, "float32") == sum(each.nbytes for each in loaded)
    assert "t5" not in large.configs


@pytest.mark.parametrize(
    ("name", "guidance"),
    [("medium", 3.0), *(pytest.param("large", scale, marks=pytest.mark.thorough) for scale in (3.0, 0.0))],
)
def test_a_picture_is_that_of_the_stock_pipeline(
    folders: dict[str, Path], name: str, guidance: float, tmp_path: Path
) -> None:
    """The text, the schedule, all steps, guidance and the VAE; an odd grid of tokens; without T5 its rows are zeros."""
    from diffusers import StableDiffusion3Pipeline

    method = {"name": "direct"}
    found = rendered(
        spec_of(folders[name], (112, 80), method=method, guidance_scale=guidance, negative_prompt="a box"), tmp_path
    )
    absent: dict[str, Any] = {} if name == "medium" else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folders[name], **absent)
    pipeline.set_progress_bar_config(disable=True)
    common: dict[str, Any] = {"height": 80, "width": 112, "num_inference_steps": 4, "negative_prompt": "a box"}
    common |= {"guidance_scale": guidance, "latents": normal((1, 4, 10, 14), 3, "init_noise", 0)}
    common["max_sequence_length"] = T5_TOKENS if name == "medium" else 256
    expected = pipeline(PROMPT, output_type="latent", **common).images
    torch.testing.assert_close(found["base_denoise"]["latents"], expected, atol=1e-5, rtol=1e-5)
    image = pipeline.vae.decode(expected / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor)
    torch.testing.assert_close(found["decode"]["image"].float(), image.sample, atol=2e-3, rtol=0)


@pytest.mark.thorough
def test_freescale_draws_a_cascade(folders: dict[str, Path], tmp_path: Path) -> None:
    spec = spec_of(folders["medium"], (256, 256), method={"name": "freescale", "positions": "pi"})
    found = rendered(spec, tmp_path)
    assert found["decode"]["image"].shape == (1, 3, 256, 256)
    assert "detail_pass" in found


@pytest.mark.thorough
def test_freescale_at_the_training_size_is_plain_sampling(folders: dict[str, Path], tmp_path: Path) -> None:
    both = [
        rendered(spec_of(folders["large"], (128, 128), method={"name": name}), tmp_path)
        for name in ("direct", "freescale")
    ]
    assert torch.equal(both[0]["base_denoise"]["latents"], both[1]["base_denoise"]["latents"])


@pytest.mark.parametrize("name", ["medium", pytest.param("large", marks=pytest.mark.thorough)])
def test_a_folded_trace_counts_every_block(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    """Blocks that attend twice, those that attend once, and the last, under scale fusion."""
    spec = spec_of(folders[name], (256, 256), method={"name": "freescale", "positions": "pi"})
    check_folded(spec, info_of(folders[name], tmp_path))


FULL = {
    "3.5 large": (8.06, {"num_layers": 38, "num_attention_heads": 38, "pos_embed_max_size": 192}),
    "3.5 medium": (
        2.24,
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "pos_embed_max_size": 384,
            "dual_attention_layers": list(range(13)),
        },
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", FULL)
def test_published_configurations_have_the_published_size(name: str) -> None:
    billions, own = FULL[name]
    width = 64 * own["num_attention_heads"]
    config = {"joint_attention_dim": 4096, "pooled_projection_dim": 2048, "caption_projection_dim": width}
    network = empty_network("SD3Transformer2DModel", {"qk_norm": "rms_norm", **config, **own})
    assert round(sum(each.numel() for each in network.parameters()) / 1e9, 2) == billions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"size": (256, 192)},
            "size: 256x192 has sides of 16 tokens, and .* for 10, which are 160 pixels; .* pi inter",
        ),
        ({"method": {"name": "direct", "positions": "yarn"}}, "positions is 'yarn', and .* are a table; none, pi work"),
        ({"width": 72}, "width: 72 is not a multiple of 16; the nearest that work are 64 and 80"),
        ({"method": {"name": "demofusion"}}, "method: 'demofusion' is for UNets"),
        (
            {"method": {"name": "cinescale_2026"}},
            "method: 'cinescale_2026' needs rotary positions .*, which .* has not; direct, .* work with it",
        ),
        (
            {"method": {"name": "imax", "positions": "pi"}},
            "'imax' needs text .*, which .* has not; repeat_text false works",
        ),
    ],
    ids=str,
)
def test_what_the_network_has_no_meaning_for_is_refused(
    folders: dict[str, Path], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        make_plan(spec_of(folders["medium"], **fields), info_of(folders["medium"], tmp_path))


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        ("transformer/config.json", "joint_attention_dim", 32, "joint_attention_dim = 32; its T5 gives 24"),
        ("transformer/config.json", "pooled_projection_dim", 8, "= 8; its two CLIP text encoders gives 20"),
        ("transformer/config.json", "in_channels", 16, "in_channels = 16; its VAE gives 4"),
        ("transformer/config.json", "caption_projection_dim", 24, "= 24; its heads gives 32"),
        ("transformer/config.json", "patch_size", 1, "patch_size = 1; for SD3Transformer2DModel it must be 2"),
        ("transformer/config.json", "pos_embed_kind", 1, "pos_embed_kind = 1, which is unknown for SD3Transformer2D"),
        (
            "text_encoder/config.json",
            "_class_name",
            "CLIPTextModel",
            "is of the class CLIPTextModel; CLIPTextModelWith",
        ),
        ("scheduler/scheduler_config.json", "_class_name", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
        ("text_encoder_3/config.json", "num_layers", 3, "does not hold the weights of a T5EncoderModel"),
        ("model_index.json", "controlnet", 1, "controlnet = 1, which is unknown for StableDiffusion3Pipeline"),
    ],
    ids=str,
)
def test_parts_that_do_not_belong_together_are_refused(
    folders: dict[str, Path], file: str, field: str, value: Any, message: str, tmp_path: Path
) -> None:
    folder = changed(folders["medium"], tmp_path / "model", file, **{field: value})
    with pytest.raises(SpecError, match=message):
        info_of(folder, tmp_path)
