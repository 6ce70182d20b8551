"""Z-Image folders: what they say of themselves, a whole render against the stock pipeline, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from freescale import normal
from stages.errors import SpecError
from stages.models.load import Models, describe
from stages.models.networks import empty_network
from stages.planner.configurations import text_weights
from stages.spec import ModelSpec
from tests.flow_folders import PROMPT, changed, check_folded, spec_of
from tests.homes import session_in
from tests.zimage_folder import TOKENS, zimage_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zimage_folder(tmp_path_factory.mktemp("zimage") / "base")


def info_of(folder: Path, home: Path) -> Any:
    return describe(ModelSpec(name=str(folder)), home)


def test_a_folder_says_what_it_is(base: Path, tmp_path: Path) -> None:
    info = info_of(base, tmp_path)
    assert (info.backbone, info.native, info.steps, info.grain) == ("flow", (128, 128), 4, 16)
    assert (info.text_tokens, info.takes_guidance, info.guidance_scale) == (TOKENS, False, 5.0)
    loaded = Models(info, "float32", torch.device("cpu")).text_encoder("qwen3")
    assert text_weights(info, "float32") == sum(each.nbytes for each in loaded.parameters())
    turbo = changed(base, tmp_path / "turbo", "scheduler/scheduler_config.json", shift=3.0)
    (turbo / "freescale.json").unlink()
    info = info_of(turbo, tmp_path)
    assert (info.native, info.steps, info.guidance_scale) == ((1024, 1024), 8, 0.0)


def test_the_released_network_has_its_parameters() -> None:
    network = empty_network("ZImageTransformer2DModel", {"axes_lens": [1536, 512, 512]})
    assert sum(each.numel() for each in network.parameters()) == 6_154_908_736


def test_a_picture_is_that_of_the_stock_pipeline(base: Path, tmp_path: Path) -> None:
    """The text, the schedule, all steps, guidance and the VAE; an odd grid of tokens."""
    from diffusers import ZImagePipeline

    from flows.home import Home
    from flows.rendering.job import prepare

    home = Home(tmp_path / "home")
    given = {"method": {"name": "direct"}, "guidance_scale": 4.0, "negative_prompt": "clay"}
    job = prepare(spec_of(base, (112, 80), **given), home)
    session_in(home.root).render(job)
    by_stage = {call.stage.name: home.store.read(call.key) for call in job.plan.calls}
    pipeline = ZImagePipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    noise = normal((1, 4, 10, 14), 3, "init_noise", 0)
    options: dict[str, Any] = {"height": 80, "width": 112, "num_inference_steps": 4, "max_sequence_length": TOKENS}
    options |= {"guidance_scale": 3.0, "negative_prompt": "clay", "latents": noise}
    expected = pipeline(PROMPT, output_type="latent", **options).images
    torch.testing.assert_close(by_stage["base_denoise"]["latents"], expected, atol=1e-5, rtol=1e-5)
    latents = expected / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    with torch.no_grad():
        image = pipeline.vae.decode(latents).sample
    picture = by_stage["decode"]["image"].float()
    torch.testing.assert_close(picture.clamp(-1, 1), image.clamp(-1, 1), atol=4e-3, rtol=0)


def test_freescale_draws_a_cascade_and_at_the_training_size_what_direct_does(base: Path, tmp_path: Path) -> None:
    from flows.home import Home
    from flows.rendering.job import prepare

    home = Home(tmp_path / "home")
    job = prepare(spec_of(base, (256, 256), method={"name": "freescale", "positions": "yarn"}), home)
    assert job.plan.sizes == ((128, 128), (256, 256))
    result = session_in(home.root).render(job)
    assert [path.name for path in result.outputs] == ["level-1-256x256.png", "level-0-128x128.png"]
    direct = prepare(spec_of(base, (128, 128), method={"name": "direct"}), home)
    session_in(home.root).render(direct)
    latents = [
        home.store.read(next(call.key for call in each.plan.calls if call.stage.name == "base_denoise"))["latents"]
        for each in (job, direct)
    ]
    assert torch.equal(*latents)


def test_a_folded_trace_counts_every_block(base: Path, tmp_path: Path) -> None:
    """Blocks over the image, over the text and over both, under scale fusion."""
    check_folded(spec_of(base, (256, 256)), info_of(base, tmp_path))


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        ("transformer/config.json", "cap_feat_dim", 32, "cap_feat_dim = 32; its Qwen3 gives 16"),
        ("transformer/config.json", "in_channels", 16, "in_channels = 16; its VAE gives 4"),
        ("transformer/config.json", "siglip_feat_dim", 1152, "siglip_feat_dim = 1152; for ZImage.* it must be null"),
        ("transformer/config.json", "all_patch_size", [4], "all_patch_size = .4.; for ZImage.* it must be"),
        (
            "transformer/config.json",
            "n_layer",
            3,
            "n_layer = 3, which is unknown .* the nearest that is known is n_layers",
        ),
        ("transformer/config.json", "n_layers", 3, "does not hold the weights of a ZImageTransformer2DModel"),
        ("text_encoder/config.json", "rope_scaling", {"type": "yarn"}, "rope_scaling = .* it must be null"),
        (
            "text_encoder/config.json",
            "model_type",
            "qwen2",
            "model_type = \"qwen2\"; for Qwen3Model it must be 'qwen3'",
        ),
        ("text_encoder/config.json", "intermediate_size", 32, "does not hold the weights of a Qwen3Model"),
        ("scheduler/scheduler_config.json", "stochastic_sampling", True, "stochastic_sampling = true"),
        (
            "model_index.json",
            "siglip",
            ["transformers", "Siglip2VisionModel"],
            "siglip = .* unknown for ZImagePipeline",
        ),
        ("freescale.json", "native", [72, 64], r"native size \[72, 64\]; sides in multiples of 16 work"),
    ],
    ids=str,
)
def test_parts_that_do_not_belong_together_are_refused(
    base: Path, file: str, field: str, value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        info_of(changed(base, tmp_path / "model", file, **{field: value}), tmp_path)


def test_a_tokenizer_without_a_template_is_refused_and_a_long_prompt_is_told(base: Path, tmp_path: Path) -> None:
    from stages.models.tokens import not_read

    folder = changed(base, tmp_path / "model", "tokenizer/tokenizer_config.json")
    (folder / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(SpecError, match=r"tokenizer has no chat_template.jinja and no chat_template in"):
        info_of(folder, tmp_path)
    info = info_of(base, tmp_path)
    assert not_read(info, "a" * (TOKENS - 8)) is None
    assert not_read(info, "a" * (TOKENS - 8) + "bc") == (TOKENS - 6, TOKENS - 8, "bc")
