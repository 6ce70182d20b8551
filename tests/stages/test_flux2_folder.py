"""FLUX.2 folders: what they say of themselves, a whole render against the stock pipeline, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from freescale import normal
from stages.errors import SpecError
from stages.models.load import Models, describe
from stages.models.networks import empty_network
from stages.models.weights import current
from stages.plan import make_plan
from stages.planner.configurations import text_weights
from stages.spec import ModelSpec
from tests.flow_folders import PROMPT, check_folded, spec_of
from tests.flux2_folder import DEV_TOKENS, dev_folder, klein_folder
from tests.homes import session_in
from tests.stages.test_zimage_folder import changed
from tests.zimage_folder import TOKENS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return klein_folder(tmp_path_factory.mktemp("klein") / "base")


def info_of(folder: Path, home: Path) -> Any:
    return describe(ModelSpec(name=str(folder)), home)


def test_a_folder_says_what_it_is(base: Path, tmp_path: Path) -> None:
    info = info_of(base, tmp_path)
    assert (info.backbone, info.native, info.steps, info.grain) == ("flow", (128, 128), 4, 16)
    assert (info.text_tokens, info.takes_guidance, info.guidance_scale, info.latent_channels) == (TOKENS, False, 4.0, 4)
    loaded = Models(info, "float32", torch.device("cpu")).text_encoder("qwen3")
    assert text_weights(info, "float32") == sum(each.nbytes for each in loaded.parameters())
    other = info_of(changed(base, tmp_path / "other", "vae/config.json", batch_norm_eps=1e-3), tmp_path)
    assert other.fingerprints["unet"] != info.fingerprints["unet"]


@pytest.mark.parametrize("name", ["bn.running_mean", "bn.running_var"])
def test_statistics_that_a_vae_has_learnt_may_not_be_missing(base: Path, name: str, tmp_path: Path) -> None:
    file = "vae/diffusion_pytorch_model.safetensors"
    folder = changed(base, tmp_path / "model", "model_index.json")
    tensors = load_file(base / file)
    del tensors[name]
    (folder / file).unlink()
    save_file(tensors, folder / file)
    with pytest.raises(SpecError, match=rf"does not hold the weights .*: 1 missing \({name}\)"):
        info_of(folder, tmp_path)


def test_a_distilled_model_has_no_guidance(base: Path, tmp_path: Path) -> None:
    distilled = changed(base, tmp_path / "model", "model_index.json", is_distilled=True)
    (distilled / "freescale.json").unlink()
    info = info_of(distilled, tmp_path)
    assert (info.native, info.steps, info.guidance_scale) == ((1024, 1024), 4, 0.0)
    plan = make_plan(spec_of(distilled), info)
    assert next(call.stage.params()["negative_prompt"] for call in plan.calls if call.stage.part == "text") is None
    with pytest.raises(SpecError, match=r"negative_prompt: .* was distilled to work without guidance; leave it out"):
        make_plan(spec_of(distilled, negative_prompt="blurry"), info)
    with pytest.raises(SpecError, match=r"guidance_scale: .* was distilled to work without guidance; 1 or less works"):
        make_plan(spec_of(distilled, guidance_scale=3), info)


@pytest.mark.parametrize(
    ("blocks", "heads", "text", "parameters"),
    [((5, 20), 24, 2560, 3_875_544_576), ((8, 24), 32, 4096, 9_078_581_248)],
    ids=["4B", "9B"],
)
def test_the_released_networks_have_their_parameters(
    blocks: tuple[int, int], heads: int, text: int, parameters: int
) -> None:
    config = {"num_layers": blocks[0], "num_single_layers": blocks[1], "num_attention_heads": heads}
    config |= {"joint_attention_dim": 3 * text, "guidance_embeds": False}
    network = empty_network("Flux2Transformer2DModel", config)
    assert sum(each.numel() for each in network.parameters()) == parameters


def test_a_picture_is_that_of_the_stock_pipeline(base: Path, tmp_path: Path) -> None:
    """The text, the schedule, all steps, guidance and the VAE; an odd grid of tokens."""
    check_picture(base, "Flux2KleinPipeline", TOKENS, tmp_path)


def check_picture(folder: Path, stock: str, tokens: int, tmp_path: Path) -> None:
    """A render by `direct` is that of the class `stock`, with prompts of so many tokens."""
    import diffusers

    from flows.home import Home
    from flows.rendering.job import prepare

    home = Home(tmp_path / "home")
    job = prepare(spec_of(folder, (112, 80), method={"name": "direct"}, guidance_scale=3.0), home)
    session_in(home.root).render(job)
    by_stage = {call.stage.name: home.store.read(call.key) for call in job.plan.calls}
    pipeline: Any = getattr(diffusers, stock).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = pipeline._patchify_latents(normal((1, 4, 10, 14), 3, "init_noise", 0))
    options: dict[str, Any] = {"height": 80, "width": 112, "num_inference_steps": 4, "max_sequence_length": tokens}
    expected = pipeline(prompt=PROMPT, output_type="latent", guidance_scale=3.0, latents=noise, **options).images
    if expected.ndim == 3:  # tokens (1, n, channels), of [dev]
        expected = expected.mT.unflatten(-1, noise.shape[2:])
        expected = expected * (pipeline.vae.bn.running_var + pipeline.vae.bn.eps).sqrt().view(1, -1, 1, 1)
        expected = pipeline._unpatchify_latents(expected + pipeline.vae.bn.running_mean.view(1, -1, 1, 1))
    norm = pipeline.vae.bn
    found = pipeline._patchify_latents(by_stage["base_denoise"]["latents"])
    found = found * (norm.running_var + norm.eps).sqrt().view(1, -1, 1, 1) + norm.running_mean.view(1, -1, 1, 1)
    torch.testing.assert_close(pipeline._unpatchify_latents(found), expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        image = pipeline.vae.decode(expected).sample
    torch.testing.assert_close(by_stage["decode"]["image"].float(), image, atol=2e-3, rtol=1e-3)


@pytest.mark.thorough
def test_dev_is_that_of_its_stock_pipeline(tmp_path: Path) -> None:
    """Mistral 3's rows, and guidance inside the network."""
    folder = dev_folder(tmp_path / "dev")
    check_picture(folder, "Flux2Pipeline", DEV_TOKENS, tmp_path)
    info = info_of(folder, tmp_path)
    assert (info.text_tokens, info.takes_guidance, info.steps, info.guidance_scale) == (DEV_TOKENS, True, 4, 4.0)
    loaded = Models(info, "float32", torch.device("cpu")).text_encoder("mistral3")
    assert text_weights(info, "float32") == sum(each.nbytes for each in loaded.parameters())
    with pytest.raises(SpecError, match=r"negative_prompt: guidance was distilled into"):
        make_plan(spec_of(folder, negative_prompt="blurry"), info)
    for file, field, value, message in (
        ("transformer/config.json", "guidance_embeds", False, "guidance_embeds = false; for Flux2.* it must be true"),
        ("transformer/config.json", "joint_attention_dim", 32, "3 times the width of its Mistral 3 gives 24"),
        ("text_encoder/config.json", "text_config", {"num_hidden_layers": 20}, "of 30 layers or more"),
    ):
        with pytest.raises(SpecError, match=message):
            info_of(changed(folder, tmp_path / field, file, **{field: value}), tmp_path)


@pytest.mark.thorough
def test_early_names_of_mistral_are_read(tmp_path: Path) -> None:
    """The published files have their sides under names of their own."""
    folder = dev_folder(tmp_path / "dev")
    file = folder / "text_encoder" / "model.safetensors"
    names = {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower."}
    names |= {"model.multi_modal_projector.": "multi_modal_projector.", "lm_head.": "language_model.lm_head."}
    early = {}
    for name, each in load_file(file).items():
        now = current(name, "Mistral3ForConditionalGeneration")
        before = next(start for start in names if now.startswith(start))
        early[names[before] + now.removeprefix(before)] = each
    encoders = []
    for _ in range(2):
        encoders.append(Models(info_of(folder, tmp_path), "float32", torch.device("cpu")).text_encoder("mistral3"))
        save_file(early, file)
    one, other = (each.state_dict() for each in encoders)
    assert all(torch.equal(other[name], each) for name, each in one.items())


@pytest.mark.parametrize(
    "fields", [{"upsample": "latent"}, pytest.param({"positions": "yarn"}, marks=pytest.mark.thorough)], ids=str
)
@pytest.mark.thorough
def test_freescale_draws_a_cascade_and_at_the_training_size_what_direct_does(
    base: Path, fields: dict[str, Any], tmp_path: Path
) -> None:
    from flows.home import Home
    from flows.rendering.job import prepare

    home = Home(tmp_path / "home")
    job = prepare(spec_of(base, (256, 256), method={"name": "freescale", **fields}), home)
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


@pytest.mark.thorough
def test_a_folded_trace_counts_every_block(base: Path, tmp_path: Path) -> None:
    """Both kinds of block, under scale fusion."""
    check_folded(spec_of(base, (256, 256)), info_of(base, tmp_path))


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        (
            "transformer/config.json",
            "joint_attention_dim",
            32,
            "joint_attention_dim = 32; 3 times the width of its Qwen3 gives 24",
        ),
        ("transformer/config.json", "in_channels", 128, "in_channels = 128; 2 x 2 latent cells of its VAE gives 16"),
        ("transformer/config.json", "guidance_embeds", True, "guidance_embeds = true; for Flux2.* it must be false"),
        ("transformer/config.json", "num_layers", 3, "does not hold the weights of a Flux2Transformer2DModel"),
        ("text_encoder/config.json", "num_hidden_layers", 20, "must be a whole number from 27 on"),
        ("vae/config.json", "patch_size", [1, 1], "patch_size = .1, 1.; for AutoencoderKLFlux2 it must be"),
        ("vae/config.json", "_class_name", "AutoencoderKL", "is of the class AutoencoderKL; AutoencoderKLFlux2 works"),
        (
            "model_index.json",
            "is_distilled",
            "no",
            'is_distilled = "no"; for Flux2KleinPipeline it must be true, false',
        ),
    ],
    ids=str,
)
def test_parts_that_do_not_belong_together_are_refused(
    base: Path, file: str, field: str, value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        info_of(changed(base, tmp_path / "model", file, **{field: value}), tmp_path)
