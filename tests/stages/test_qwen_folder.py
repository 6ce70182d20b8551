"""Qwen-Image folders: what they say of themselves, whole renders against the stock pipeline, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from freescale import normal
from freescale.backbones.joint import pack, unpack
from stages.errors import SpecError
from stages.models.load import Models, describe
from stages.models.networks import empty_network
from stages.plan import make_plan
from stages.planner.configurations import text_weights
from stages.planner.estimate import estimate
from stages.spec import ModelSpec, RunOptions
from tests.checkpoints import write_header
from tests.flow_folders import PROMPT, check_folded, spec_of
from tests.homes import session_in
from tests.qwen_folder import qwen_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_folder(tmp_path_factory.mktemp("qwen") / "model")


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


def test_a_folder_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    info = info_of(folder, tmp_path)
    assert (info.backbone, info.native, info.steps, info.grain, info.cell) == ("flow", (128, 128), 4, 16, 8)
    assert (info.text_tokens, info.guidance_scale, info.takes_guidance, info.latent_channels) == (1024, 4.0, False, 4)
    encoder = Models(info, "float32", torch.device("cpu")).text_encoder("qwen2_5_vl")
    assert text_weights(info, "float32") == sum(each.nbytes for each in encoder.parameters())


def check_seconds(spec: Any, tmp_path: Path) -> None:
    """The seconds that are learnt of a render are its own: rows of text are no chunks of CLIP's context."""
    from flows.home import Home
    from flows.rendering.throughput import Throughput

    home = Home(tmp_path / "home")
    plan = make_plan(spec, info_of(Path(spec.model.name), tmp_path))
    made = {call: home.store.find(call.key) for call in plan.calls}
    pace = Throughput(home, plan.info, "cpu", [each for each in made.values() if each is not None])
    denoise = next(call for call in plan.calls if call.stage.part == "unet")
    found, manifest = pace.seconds(denoise, estimate(denoise, plan.info, RunOptions(), "cpu")), made[denoise]
    assert found is not None
    assert manifest is not None
    assert (found.basis, found.seconds) == ("measured", pytest.approx(manifest.seconds, rel=1e-6))


@pytest.mark.parametrize("guidance", [3.0, pytest.param(0.0, marks=pytest.mark.thorough)])
def test_a_picture_is_that_of_the_stock_pipeline(folder: Path, guidance: float, tmp_path: Path) -> None:
    """The text, the schedule, all steps, guidance by a longer prompt, its rescale, the VAE; an odd grid of tokens."""
    from diffusers import QwenImagePipeline

    negative = "a box of green clay on a blue disc"
    fields = {"method": {"name": "direct"}, "guidance_scale": guidance, "negative_prompt": negative}
    spec = spec_of(folder, (112, 80), **fields)
    found = rendered(spec, tmp_path)
    check_seconds(spec, tmp_path)
    pipeline = QwenImagePipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    common: dict[str, Any] = {"height": 80, "width": 112, "num_inference_steps": 4, "true_cfg_scale": guidance}
    common |= {"negative_prompt": negative, "latents": pack(normal((1, 4, 10, 14), 3, "init_noise", 0))}
    expected = pipeline(PROMPT, output_type="latent", **common).images
    torch.testing.assert_close(found["base_denoise"]["latents"], unpack(expected, (10, 14)), atol=1e-5, rtol=1e-5)
    image = pipeline(PROMPT, output_type="pt", **common).images
    picture = found["decode"]["image"].float()
    torch.testing.assert_close((picture / 2 + 0.5).clamp(0, 1), image, atol=2e-3, rtol=0)


@pytest.mark.thorough
def test_freescale_draws_a_cascade(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(folder, (256, 256), method={"name": "freescale", "positions": "yarn"})
    found = rendered(spec, tmp_path)
    assert found["decode"]["image"].shape == (1, 3, 256, 256)
    assert "detail_pass" in found


@pytest.mark.thorough
def test_freescale_at_the_training_size_is_plain_sampling(folder: Path, tmp_path: Path) -> None:
    both = [rendered(spec_of(folder, (128, 128), method={"name": name}), tmp_path) for name in ("direct", "freescale")]
    assert torch.equal(both[0]["base_denoise"]["latents"], both[1]["base_denoise"]["latents"])


def test_a_folded_trace_counts_every_block(folder: Path, tmp_path: Path) -> None:
    check_folded(spec_of(folder, (256, 256)), info_of(folder, tmp_path))


@pytest.mark.thorough
def test_the_published_configuration_has_the_published_size() -> None:
    network = empty_network("QwenImageTransformer2DModel", {"num_layers": 60, "guidance_embeds": False})
    assert round(sum(each.numel() for each in network.parameters()) / 1e9, 1) == 20.4


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("transformer/config.json", {"joint_attention_dim": 32}, "joint_attention_dim = 32; its Qwen2.5-VL gives 24"),
        ("transformer/config.json", {"in_channels": 64}, "in_channels = 64; 2 x 2 latent cells of its VAE gives 16"),
        ("transformer/config.json", {"zero_cond_t": True}, "zero_cond_t = true; for QwenImageTransformer2DModel it"),
        ("transformer/config.json", {"window": 2}, "window = 2, which is unknown for QwenImageTransformer2DModel"),
        ("vae/config.json", {"input_channels": 4}, "input_channels = 4; for AutoencoderKLQwenImage it must be 3"),
        ("vae/config.json", {"attn_scales": [1.0]}, r"attn_scales = \[1.0\]; for AutoencoderKLQwenImage it must be"),
        ("text_encoder/config.json", {"model_type": "qwen3_vl"}, 'model_type = "qwen3_vl"; for Qwen2_5_VLFor'),
        ("text_encoder/config.json", {"text_config": {"use_sliding_window": True}}, "text_config = .* sliding windows"),
        ("model_index.json", {"controlnet": 1}, "controlnet = 1, which is unknown for QwenImagePipeline"),
    ],
    ids=str,
)
def test_parts_that_do_not_belong_together_are_refused(
    folder: Path, file: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    for path in folder.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    changed = json.loads((copy / file).read_text()) | changes
    (copy / file).unlink()
    (copy / file).write_text(json.dumps(changed))
    with pytest.raises(SpecError, match=message):
        info_of(copy, tmp_path)


def test_a_vae_of_another_class_is_refused(folder: Path, tmp_path: Path) -> None:
    file = write_header(tmp_path / "a.safetensors", {"decoder.conv_in.weight": (8, 4, 3, 3)}, hole=True)
    with pytest.raises(SpecError, match=r"vae: '.*a.safetensors' holds no AutoencoderKLQwenImage as .* needs it"):
        describe(ModelSpec(name=str(folder), vae=str(file)), tmp_path)


def test_a_prompt_beyond_what_is_read_is_said(folder: Path, tmp_path: Path) -> None:
    from stages.models.tokens import not_read

    info = info_of(folder, tmp_path)
    assert not_read(info, 511 * "a " + "aa") is None
    assert not_read(info, 512 * "a " + "bc") == (1026, 1024, "bc")
    words, tokens = json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]["vocab"], tmp_path / "words"
    (tokens / "tokenizer").mkdir(parents=True)  # as the published folder has them
    (tokens / "tokenizer/vocab.json").write_text(json.dumps(words))
    (tokens / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    assert not_read(replace(info, words=tokens), 512 * "a " + "bc") == (1026, 1024, "bc")
