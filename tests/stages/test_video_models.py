"""Video models from local folders: what they say of themselves, their prompts, their UNets."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from freescale import METHODS, Conditioning, Denoiser, Level, Moment, denoise, make_schedule, normal
from stages.errors import SpecError
from stages.models.folder import VIDEO, describe
from stages.models.load import Models
from stages.planner.skeleton import skeleton, weight_bytes
from stages.prompts.encode import encode_prompts
from stages.spec import ModelSpec
from tests.oracles import videos as oracle
from tests.toys import VIDEO_FRAMES, VIDEO_KINDS, VIDEO_SIZE, points, video_folder, video_unet

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: video_folder(root, kind) for kind in VIDEO_KINDS}


def copied(folder: Path, to: Path) -> Path:
    """A copy of a model folder within `to`."""
    return shutil.copytree(folder, to / folder.name)


def models_of(folder: Path, home: Path) -> Models:
    return Models(describe(ModelSpec(name=str(folder)), home), "float32", torch.device("cpu"))


def rewritten(folder: Path, **card: Any) -> None:
    (folder / "freescale.json").write_text(json.dumps(card))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", points(VIDEO_KINDS, kept=lambda kind: kind in ("videocrafter2", "animatediff")))
def test_describe(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    info = describe(ModelSpec(name=str(folders[kind])), tmp_path)
    assert (info.native, info.frames, info.steps, info.is_video) == (VIDEO_SIZE, VIDEO_FRAMES, 4, True)
    assert (info.solver, info.negative_prompt, info.latent_channels) == ("ddim", "", 4)
    assert info.method_defaults == VIDEO
    is_vc2 = kind == "videocrafter2"
    assert (info.motion_fps, info.pad_token_id) == ((28.0, 0) if is_vc2 else (None, None))
    assert info.dynamic_scale == info.scheduler.get("dynamic_scale") == ((0.7, 400) if is_vc2 else None)
    expected = {"videocrafter2": (12.0, 10.0), "modelscope": (9.0, 8.0), "animatediff": (7.5, 8.0)}
    assert (info.guidance_scale, info.fps) == expected.get(kind, (5.0, 8.0))
    make_schedule(info.scheduler, 50, info.solver)


@pytest.mark.parametrize("kind", points(VIDEO_KINDS, kept=lambda kind: kind in ("videocrafter2", "animatediff")))
def test_render_a_step(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """The loaded UNet takes the encoded prompt, and gives what the UNet that was saved gives."""
    models = models_of(folders[kind], tmp_path)
    text = encode_prompts(models, "a blue square", "")
    assert text["prompt_embeds"].shape == text["negative_embeds"].shape == (1, 16, 32)
    assert not torch.equal(text["prompt_embeds"], text["negative_embeds"])
    added: list[dict[str, torch.Tensor]] = [{}, {}]
    if models.info.size_ids:
        ids = torch.tensor([[64.0, 80.0, 0.0, 0.0, 64.0, 80.0]])
        rows = (text["text_embeds"], text["negative_text_embeds"])
        added = [{"text_embeds": row, "time_ids": ids} for row in rows]
    fps = None if models.info.motion_fps is None else torch.tensor([models.info.motion_fps])
    told = Conditioning(text["prompt_embeds"], text["negative_embeds"], *added, fps=fps)
    schedule = make_schedule(models.info.scheduler, 4, models.info.solver)
    latents = normal((1, 4, 3, 8, 10), 1)
    with torch.no_grad():
        output = Denoiser(models.unet, told, 3.0)(latents, 0, schedule)
        saved = Denoiser(video_unet(kind), told, 3.0)(latents, 0, schedule)
    assert output.shape == latents.shape
    assert torch.equal(output, saved)
    assert models.unet_samples == 2
    assert models.vae.decode(latents[:, :, 0]).sample.shape == (1, 3, *VIDEO_SIZE)


def test_padding_is_token_0(folders: dict[str, Path], tmp_path: Path) -> None:
    """VideoCrafter2's UNet attends to the padding, so its tokens matter; a card may name another."""
    given = models_of(folders["videocrafter2"], tmp_path)
    encoder = given._load(__import__("transformers").CLIPTextModel, "text_encoder", torch.float32)
    ids = torch.tensor([[168, 169, *[0] * 14]])
    with torch.no_grad():
        assert torch.equal(encode_prompts(given, "", None)["prompt_embeds"], encoder(ids).last_hidden_state)
    long = encode_prompts(given, "a blue square moving left over sand " * 4, None)["prompt_embeds"]
    assert long.shape == (1, 16, 32)


def test_a_card_decides(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["videocrafter2"], tmp_path)
    plain = describe(ModelSpec(name=str(folder)), tmp_path)
    card = {"native": [64, 128], "fps": 12, "motion_fps": 8, "dynamic_scale": [0.9, 100], "method": {"dilate": False}}
    rewritten(folder, frames=4, **card)
    info = describe(ModelSpec(name=str(folder)), tmp_path)
    assert (info.native, info.fps, info.motion_fps, info.dynamic_scale) == ((64, 128), 12.0, 8.0, (0.9, 100))
    assert info.method_defaults == {**VIDEO, "freescale": {**VIDEO["freescale"], "dilate": False}}
    assert info.fingerprints["unet"] != plain.fingerprints["unet"]  # the noise levels decide bytes
    assert info.fingerprints["vae"] == plain.fingerprints["vae"]
    rewritten(folder, frames=4, dynamic_scale=None)
    assert describe(ModelSpec(name=str(folder)), tmp_path).dynamic_scale is None


@pytest.mark.parametrize(
    ("kind", "card", "said"),
    [
        ("videocrafter2", {"dynamic_scale": [2, 400]}, "dynamic scale"),
        ("videocrafter2", {"dynamic_scale": "much"}, "dynamic scale"),
        ("videocrafter2", {"frames": 0}, "frames"),
        ("animatediff", {"frames": 9}, "1 to 8"),
        ("modelscope", {"native": [8, 8]}, "native size"),
    ],
)
def test_a_card_that_cannot_be(
    kind: str, card: dict[str, Any], said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(folders[kind], tmp_path)
    rewritten(folder, **card)
    with pytest.raises(SpecError, match=said):
        describe(ModelSpec(name=str(folder)), tmp_path)


@pytest.mark.thorough
def test_a_motion_adapter_beside_a_picture_model(folders: dict[str, Path], tmp_path: Path) -> None:
    """A Stable Diffusion folder whose card names an adapter is AnimateDiff."""
    from diffusers import MotionAdapter, UNet2DConditionModel

    from tests.toys import sd_unet

    folder = copied(folders["animatediff"], tmp_path)
    unet: UNet2DConditionModel = sd_unet("1.5")
    unet.save_pretrained(folder / "unet")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    torch.manual_seed(1)
    adapter = MotionAdapter(
        block_out_channels=(8, 16, 32, 32),
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        motion_max_seq_length=8,
    )
    adapter.save_pretrained(tmp_path / "adapter")
    rewritten(folder, motion_adapter="../adapter")
    models = models_of(folder, tmp_path)
    assert (models.info.frames, models.info.guidance_scale) == (8, 7.5)
    told = Conditioning(**encode_prompts(models, "a blue square", ""))
    schedule = make_schedule(models.info.scheduler, 4)
    with torch.no_grad():
        video = Denoiser(models.unet, told, 3.0)(normal((1, 4, 2, 8, 8), 1), 0, schedule)
    assert video.isfinite().all()
    planned = skeleton(models.info, "unet", "float32")
    assert planned.weights == weight_bytes(models.unet)
    before = models.info.fingerprints["unet"]
    (tmp_path / "adapter" / "note.json").write_text("{}")
    assert describe(ModelSpec(name=str(folder)), tmp_path).fingerprints["unet"] == before, "no file that is loaded"
    config = tmp_path / "adapter" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert describe(ModelSpec(name=str(folder)), tmp_path).fingerprints["unet"] != before


def test_a_unet_that_does_not_belong(folders: dict[str, Path], tmp_path: Path) -> None:
    """Refused when the folder is looked at, before anything is loaded."""
    folder = copied(folders["modelscope"], tmp_path)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"_class_name": "I2VGenXLUNet"}))
    with pytest.raises(SpecError, match="I2VGenXLUNet; UNet2DConditionModel, VideoCrafterUNet"):
        describe(ModelSpec(name=str(folder)), tmp_path)
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(SpecError, match="UNet3DConditionModel; UNet2DConditionModel would work"):
        describe(ModelSpec(name=str(folder)), tmp_path)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "AnimateDiffPipeline"}))
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(SpecError, match="motion_adapter"):
        describe(ModelSpec(name=str(folder)), tmp_path)


def test_shapes_motion_is_named_or_missed(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stages.models.locate as module

    monkeypatch.setattr(module, "EMBEDDED_MODELS", {"shapes-motion": folders["videocrafter2"]})
    assert describe(ModelSpec(name="shapes-motion"), tmp_path).frames == VIDEO_FRAMES
    monkeypatch.setattr(module, "EMBEDDED_MODELS", {"shapes-motion": tmp_path / "nowhere"})
    with pytest.raises(SpecError, match="not in this installation"):
        describe(ModelSpec(name="shapes-motion"), tmp_path)
    assert list(module.available(tmp_path)) == []


@pytest.mark.thorough
@pytest.mark.parametrize("kind", points(VIDEO_KINDS[2:], kept=lambda kind: kind == "animatediff-sdxl"))
def test_a_folder_that_diffusers_saved(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """The stock pipeline's own folder, its motion adapter and empty parts included."""
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    given, names = folders[kind], {"text_encoder": CLIPTextModel, "tokenizer": CLIPTokenizer}
    if kind == "animatediff-sdxl":
        names |= {"text_encoder_2": CLIPTextModelWithProjection, "tokenizer_2": CLIPTokenizer}
    parts = {name: cls.from_pretrained(given / name) for name, cls in names.items()}
    is_xl = kind == "animatediff-sdxl"
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16, 32) if is_xl else (8, 16, 32, 32),
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        motion_max_seq_length=8,
        use_motion_mid_block=not is_xl,
    )
    stock = diffusers.AnimateDiffSDXLPipeline if is_xl else diffusers.AnimateDiffPipeline
    pipeline = stock(
        vae=diffusers.AutoencoderKL.from_pretrained(given / "vae"),
        unet=video_unet(kind),
        scheduler=diffusers.DDIMScheduler.from_pretrained(given / "scheduler"),
        motion_adapter=adapter,
        **parts,
    )
    pipeline.save_pretrained(tmp_path / kind)
    models, plain = models_of(tmp_path / kind, tmp_path), models_of(given, tmp_path)
    assert (models.info.frames, models.info.unet_class, models.info.steps) == (8, "UNetMotionModel", 50)
    text = encode_prompts(models, "a blue square", "a red one")
    assert all(torch.equal(x, text[name]) for name, x in encode_prompts(plain, "a blue square", "a red one").items())
    saved, own = models.unet.state_dict(), video_unet(kind).state_dict()
    assert all(torch.equal(saved[name], x) for name, x in own.items())


@pytest.mark.thorough
@pytest.mark.parametrize("kind", points(VIDEO_KINDS[1:], kept=lambda kind: kind == "modelscope"))
def test_direct_render_is_the_stock_pipeline(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """From words to latents, guided, with DDIM; VideoCrafter2 has no stock pipeline (`test_vc2_by_hand`)."""
    import diffusers

    names = {
        "modelscope": "TextToVideoSDPipeline",
        "animatediff": "AnimateDiffPipeline",
        "animatediff-sdxl": "AnimateDiffSDXLPipeline",
    }
    components: dict[str, Any] = {} if kind == "modelscope" else {"motion_adapter": None}
    components |= {"unet": video_unet(kind)}
    stock = getattr(diffusers, names[kind]).from_pretrained(folders[kind], **components)
    stock.set_progress_bar_config(disable=True)
    models, shape = models_of(folders[kind], tmp_path), (1, 4, 3, 8, 10)
    output = stock(
        "a blue square",
        negative_prompt="a red one",
        num_frames=3,
        height=64,
        width=80,
        num_inference_steps=3,
        guidance_scale=5.0,
        latents=normal(shape, 7, "init_noise", 0),
        output_type="latent",
    ).frames
    text, added = encode_prompts(models, "a blue square", "a red one"), list[dict[str, torch.Tensor]]([{}, {}])
    if models.info.size_ids:
        ids = torch.tensor([[64.0, 80.0, 0.0, 0.0, 64.0, 80.0]])
        added = [{"text_embeds": text[n], "time_ids": ids} for n in ("text_embeds", "negative_text_embeds")]
    told = Conditioning(text["prompt_embeds"], text["negative_embeds"], *added)
    schedule = make_schedule(models.info.scheduler, 3, models.info.solver)
    direct = direct_render(Denoiser(models.unet, told, 5.0), schedule, shape)
    torch.testing.assert_close(direct, output, atol=2e-4, rtol=2e-4)


def direct_render(denoiser: Denoiser, schedule: Any, shape: tuple[int, ...]) -> torch.Tensor:
    level = Level(0, VIDEO_SIZE, VIDEO_SIZE, frames=VIDEO_FRAMES)
    start = METHODS["direct"]().start(shape, Moment(level, 0, schedule, 7))
    return list(denoise(denoiser, start, schedule, METHODS["direct"](), level, seed=7))[-1].latents


@pytest.mark.thorough
def test_vc2_by_hand(folders: dict[str, Path], tmp_path: Path) -> None:
    """VideoCrafter2's loop as its release has it: two passes, guidance 12, DDIM under the dynamic scale."""
    models, shape = models_of(folders["videocrafter2"], tmp_path), (1, 4, 3, 8, 10)
    text, fps = encode_prompts(models, "a blue square", ""), torch.tensor([28.0])
    told = Conditioning(text["prompt_embeds"], text["negative_embeds"], fps=fps)
    direct = direct_render(
        Denoiser(models.unet, told, 12.0), make_schedule(models.info.scheduler, 3, models.info.solver), shape
    )
    unet = video_unet("videocrafter2")

    def model(x: torch.Tensor, t: int) -> torch.Tensor:
        sides = [text["negative_embeds"], text["prompt_embeds"]]
        negative, positive = (unet(x.float(), t, side, timestep_cond=fps).sample for side in sides)
        return (negative + 12.0 * (positive - negative)).double()

    with torch.no_grad():
        expected = oracle.ddim(normal(shape, 7, "init_noise", 0).double(), model, 3)
    assert ((direct - expected).norm() / expected.norm()).item() < 1e-4
