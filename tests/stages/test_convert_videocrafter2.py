"""VideoCrafter2's checkpoint: every name at full size, numbers at a small one, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from flows.cli.app import app
from freescale import Conditioning, Denoiser, make_schedule, normal
from stages.errors import SpecError
from stages.models.checkpoint_file import read_checkpoint, shapes_of
from stages.models.convert_videocrafter2 import CARD, INDEX, Architecture, arranged, convert
from stages.models.folder import describe
from stages.models.load import Models
from stages.models.videocrafter import VideoCrafterUNet, empty_networks, load_tokenizer
from stages.prompts.encode import encode_prompts
from stages.spec import ModelSpec
from tests.oracles import lvdm
from tests.toys import EMBEDDED_TOKENIZER

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = lvdm.Sizes(channels=8, head=4, context=16, groups=4, vae=4, text_heads=4, text_mlp=24, tokens=170, length=16)
SMALL_ARCHITECTURE = Architecture(
    unet={
        "sample_size": (8, 10),
        "block_out_channels": (8, 16, 32, 32),
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
        "norm_num_groups": 4,
    },
    vae={"block_out_channels": (4, 8, 16, 16), "norm_num_groups": 4},
    text={
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 23,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
        "vocab_size": 170,
    },
    card=CARD | {"native": [64, 80]},
)


def random_weights(sizes: lvdm.Sizes = SMALL) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, none of them zero or one."""
    weights = {}
    for n, (name, shape) in enumerate(lvdm.checkpoint_shapes(sizes).items()):
        fan = max(1, torch.Size(shape[1:]).numel())
        weights[name] = normal(shape, 11, n) / fan**0.5
    return weights


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def converted(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("converted")
    torch.save({"state_dict": weights, "global_step": 7}, root / "model.ckpt")
    convert(root / "model.ckpt", root / "vc2", EMBEDDED_TOKENIZER, SMALL_ARCHITECTURE)
    assert sorted(path.name for path in root.iterdir()) == ["model.ckpt", "vc2"]
    return root / "vc2"


@pytest.fixture(scope="module")
def models(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    info = describe(ModelSpec(name=str(converted)), tmp_path_factory.mktemp("home"))
    return Models(info, "float32", torch.device("cpu"))


def part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x.double() for name, x in weights.items() if name.startswith(prefix)}


def test_every_name_at_full_size() -> None:
    """The real names and shapes, on the meta device: each has its place, none is left."""
    standard = Architecture()
    networks = empty_networks(standard.unet, standard.vae, standard.text)
    wanted = {name: shapes_of(network) for name, network in networks.items()}
    names = lvdm.unet_shapes()
    assert len(names) == len(wanted["unet"]) == 1484
    assert sum(torch.Size(shape).numel() for shape in names.values()) == 1_413_284_420
    with torch.device("meta"):
        given = {name: torch.empty(shape) for name, shape in lvdm.checkpoint_shapes().items()}
    placed = arranged(given, wanted)
    assert {name: shapes_of_part.keys() for name, shapes_of_part in placed.items()} == {
        name: shapes.keys() for name, shapes in wanted.items()
    }
    assert {name: tuple(x.shape) for name, x in placed["unet"].items()} == wanted["unet"]
    changed = [name for name, shape in names.items() if len(shape) == 3]
    assert changed == ["init_attn.0.proj_in.weight", "init_attn.0.proj_out.weight"]


class TestNumbers:
    """What the converted networks compute is what the checkpoint's own code computes, in float64."""

    @pytest.mark.thorough
    def test_unet(self, weights: dict[str, Tensor], converted: Path) -> None:
        unet = VideoCrafterUNet.from_pretrained(converted / "unet").double().eval()
        x, text = normal((2, 4, 3, 8, 16), 1).double(), normal((2, 16, 16), 2).double()
        t, fps = torch.tensor([700.0, 3.0]).double(), torch.tensor([8.0, 24.0]).double()
        with torch.no_grad():
            output = unet(x, t, text, timestep_cond=fps).sample
            expected = lvdm.UNet(part(weights, "model.diffusion_model."), SMALL)(x, t, text, fps)
        # diffusers makes its sinusoids in float32, so the small difference is theirs
        assert ((output - expected).norm() / expected.norm()).item() < 3e-6
        assert expected.std() > 0.1

    @pytest.mark.thorough
    def test_vae(self, weights: dict[str, Tensor], converted: Path) -> None:
        from diffusers import AutoencoderKL

        vae, own = AutoencoderKL.from_pretrained(converted / "vae").double(), part(weights, "first_stage_model.")
        image, latents = normal((1, 3, 32, 40), 1).double(), normal((1, 4, 4, 5), 2).double()
        with torch.no_grad():
            moments = vae.encode(image).latent_dist.parameters
            assert (moments - lvdm.vae_half(own, "encoder", image, 4)).abs().max() < 1e-9
            decoded = vae.decode(latents).sample
            assert (decoded - lvdm.vae_half(own, "decoder", latents, 4)).abs().max() < 1e-9
        assert vae.config.scaling_factor == 0.18215

    @pytest.mark.thorough
    def test_text(self, weights: dict[str, Tensor], models: Models) -> None:
        """The prompt is filled up with token 0."""
        text = encode_prompts(models, "a blue square", "")
        words = load_tokenizer(EMBEDDED_TOKENIZER, 170)("a blue square").input_ids
        for name, ids in (("prompt_embeds", words), ("negative_embeds", [168, 169])):
            filled = torch.tensor([ids + [0] * (16 - len(ids))])
            expected = lvdm.text_tower(part(weights, "cond_stage_model.model."), filled, SMALL)
            assert (text[name] - expected).abs().max() < 1e-4


@pytest.mark.thorough
def test_the_folder_is_a_model(models: Models, weights: dict[str, Tensor]) -> None:
    """It says what the release says, and takes a step."""
    info = models.info
    assert (info.native, info.frames, info.steps, info.fps, info.motion_fps) == ((64, 80), 16, 50, 10.0, 28.0)
    assert (info.guidance_scale, info.negative_prompt, info.dynamic_scale) == (12.0, "", (0.7, 400))
    assert (info.solver, info.pad_token_id) == ("ddim", 0)
    told = Conditioning(**encode_prompts(models, "a blue square", ""), fps=torch.tensor([28.0]))
    schedule = make_schedule(info.scheduler, 50, info.solver)
    assert schedule.timesteps[0] == 981.0
    with torch.no_grad():
        assert Denoiser(models.unet, told, 12.0)(normal((1, 4, 2, 8, 10), 1), 0, schedule).isfinite().all()
    assert list(info.folder.rglob("*.bin")) == []
    assert (CARD["native"], INDEX["_class_name"]) == ([320, 512], "VideoCrafter2Pipeline")


@pytest.mark.thorough
def test_deepspeeds_form_and_a_plain_one(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"module": {f"_forward_module.{n}": x for n, x in weights.items()}}, tmp_path / "deepspeed.ckpt")
    torch.save(weights, tmp_path / "plain.ckpt", _use_new_zipfile_serialization=False)
    for name in ("deepspeed.ckpt", "plain.ckpt"):
        assert read_checkpoint(tmp_path / name).keys() == weights.keys()


@pytest.mark.thorough
def test_one_error_lists_what_does_not_fit(weights: dict[str, Tensor], tmp_path: Path) -> None:
    names = [f"model.diffusion_model.{name}" for name in ("input_blocks.3.0.op.weight", "out.0.bias", "out.2.bias")]
    broken = dict(weights)
    del broken[names[0]]
    broken[names[1]] = torch.zeros(9)
    broken["cond_stage_model.model.transformer.resblocks.2.attn.in_proj_bias"] = torch.zeros(10)
    broken["first_stage_model.encoder.down.7.block.0.conv1.weight"] = torch.zeros(1)
    broken["something_else"] = torch.zeros(1)
    torch.save({"state_dict": broken}, tmp_path / "broken.ckpt")
    with pytest.raises(SpecError) as error:
        convert(tmp_path / "broken.ckpt", tmp_path / "out", EMBEDDED_TOKENIZER, SMALL_ARCHITECTURE)
    said = str(error.value)
    assert "1 missing (unet.down_blocks.0.downsamplers.0.conv.weight)" in said
    assert "2 unknown (first_stage_model.encoder.down.7.block.0.conv1.weight, something_else)" in said
    assert f"{names[1]} (9,) for unet.conv_norm_out.bias (8,)" in said
    assert "4 of another shape" in said  # the bias and the thirds of q, k and v
    assert "\n" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.ckpt"]


def test_another_model_is_told_apart_shortly(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(SpecError, match="more\\)") as error:
        convert(tmp_path / "other.ckpt", tmp_path / "out", EMBEDDED_TOKENIZER, SMALL_ARCHITECTURE)
    assert len(str(error.value)) < 3000


class Runs:
    """What a hostile pickle is made of."""

    def __reduce__(self) -> Any:
        return (open, ("/tmp/should-not-exist-videocrafter", "w"))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "code": lambda path: torch.save({"state_dict": {"a": Runs()}}, path),
    "a class": lambda path: torch.save({"state_dict": {"a": torch.zeros(1)}, "config": SMALL}, path),
    "a number": lambda path: torch.save({"state_dict": {"a": torch.zeros(1), "b": 3}}, path),
    "a tensor alone": lambda path: torch.save(torch.zeros(3), path),
    "nothing": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "half": lambda path: (torch.save({"a": torch.zeros(5000)}, path), path.write_bytes(path.read_bytes()[:9000])),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_anything_but_tensors_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    WRITERS[kind](path)
    with pytest.raises(SpecError, match="file: ") as error:
        convert(path, tmp_path / "out", EMBEDDED_TOKENIZER, SMALL_ARCHITECTURE)
    assert "\n" not in str(error.value)
    assert "works" in str(error.value)
    assert not Path("/tmp/should-not-exist-videocrafter").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.ckpt"]


class TestTheFolder:
    """Whole or not there."""

    def test_exists_already(self, converted: Path) -> None:
        with pytest.raises(SpecError, match="exists"):
            convert(converted.parent / "model.ckpt", converted, EMBEDDED_TOKENIZER, SMALL_ARCHITECTURE)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(SpecError, match="not a file"):
            convert(tmp_path / "none.ckpt", tmp_path / "out", EMBEDDED_TOKENIZER, SMALL_ARCHITECTURE)

    @pytest.mark.thorough
    def test_nothing_is_left_of_a_failure(
        self, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("stages.models.convert_videocrafter2._write", full)
        (tmp_path / ".out.partial").mkdir()  # of one that was killed
        with pytest.raises(SpecError, match="No space left"):
            convert(converted.parent / "model.ckpt", tmp_path / "out", EMBEDDED_TOKENIZER, SMALL_ARCHITECTURE)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.thorough
    def test_no_room(self, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1024})())
        with pytest.raises(SpecError, match="MiB free"):
            convert(converted.parent / "model.ckpt", tmp_path / "out", EMBEDDED_TOKENIZER, SMALL_ARCHITECTURE)
        assert list(tmp_path.iterdir()) == []


class TestTokenizer:
    """CLIP's, from a folder or from the file that OpenCLIP carries."""

    def test_from_its_merges(self, tmp_path: Path) -> None:
        """A little file in CLIP's form: two merges, 512 bytes, two marks."""
        path = tmp_path / "bpe.txt.gz"
        path.write_bytes(gzip.compress(b"#version\na b</w>\ni n\nq q</w>\n"))
        tokenizer = load_tokenizer(path, 516)
        known = tokenizer.get_vocab()
        assert (known["!"], known["!</w>"], known["ab</w>"], known["in"]) == (0, 256, 512, 513)
        assert (known["<|startoftext|>"], known["<|endoftext|>"]) == (514, 515)
        assert tokenizer("AB  ab!").input_ids == [514, 512, 512, 256, 515]

    @pytest.mark.parametrize("place", ["nowhere", "empty", "noise.gz"])
    def test_none(self, place: str, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "noise.gz").write_bytes(b"noise")
        with pytest.raises(SpecError, match="tokenizer: "):
            load_tokenizer(tmp_path / place, 49408)

    def test_of_another_model(self) -> None:
        with pytest.raises(SpecError, match="has 170 tokens; CLIP's, with 49408, works"):
            load_tokenizer(EMBEDDED_TOKENIZER, 49408)


def test_command(tmp_path: Path) -> None:
    """The command is there, and what it refuses it refuses in one sentence."""
    from typer.testing import CliRunner

    torch.save({"a": torch.zeros(1)}, tmp_path / "model.ckpt")
    arguments = ["convert", "videocrafter2", str(tmp_path / "model.ckpt"), str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--tokenizer", str(EMBEDDED_TOKENIZER)])
    assert isinstance(result.exception, SpecError)
    assert "49408" in str(result.exception)
    assert CliRunner().invoke(app, arguments).exit_code == 2
    assert json.loads((EMBEDDED_TOKENIZER / "tokenizer_config.json").read_text())
