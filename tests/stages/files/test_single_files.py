"""A checkpoint in one file: the folder's numbers, every tensor checked by name, an identity for each part."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import torch
from safetensors.torch import save_file

from flows.rendering.job import prepare
from stages.errors import SpecError, StageError
from stages.models.files.header import read_header, read_numbers
from stages.models.files.open import load_network
from stages.models.files.strict import misfit
from stages.models.folder import EMBEDDED, describe
from stages.models.load import Models
from stages.prompts.encode import encode_prompts
from stages.spec import ModelSpec, make_spec
from tests.checkpoints import shapes_original, write_header
from tests.homes import session_in
from tests.toys import points

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from stages.models.folder import ModelInfo

CPU = torch.device("cpu")
Numbers: TypeAlias = "dict[str, dict[str, Tensor]]"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model `shapes` in the original layout."""
    file = tmp_path_factory.mktemp("files") / "shapes-original.safetensors"
    save_file(shapes_original(), file, {"modelspec.title": "shapes"})
    os.utime(file, (1, 1))
    return file


def spec_of(file: Path, **fields: Any) -> ModelSpec:
    return ModelSpec(name=str(file), **{"config": str(EMBEDDED), **fields})


def info_of(file: Path, home: Path, **fields: Any) -> ModelInfo:
    return describe(spec_of(file, **fields), home)


def edited(to: Path, metadata: dict[str, str] | None = None, **changes: Any) -> Path:
    """Write the tensors of `shapes`, each changed as `changes` say: None takes it away."""
    tensors = {**shapes_original(), **changes}
    save_file({name: each for name, each in tensors.items() if each is not None}, to, metadata)
    return to


def test_its_networks_are_those_of_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    models = [Models(each, "float32", CPU) for each in (info_of(checkpoint, tmp_path), describe(ModelSpec(), tmp_path))]
    for part in ("unet", "vae"):
        one, other = (getattr(each, part) for each in models)
        assert all(not each.requires_grad for each in one.parameters())
        assert not one.training
        found, wanted = one.state_dict(), other.state_dict()
        assert set(found) == set(wanted)
        assert all(torch.equal(found[name], each) for name, each in wanted.items())
        assert all(one.config[name] == value for name, value in other.config.items() if not name.startswith("_"))
    one, other = (encode_prompts(each, "a red circle!", "grey") for each in models)
    assert set(one) == set(other)
    assert all(torch.equal(one[name], each) for name, each in other.items())


def test_no_buffer_of_a_text_encoder_is_left_without_numbers(checkpoint: Path, tmp_path: Path) -> None:
    """A network with buffers on the meta device runs without an error, and returns tensors without numbers."""
    models = Models(info_of(checkpoint, tmp_path), "float32", CPU)
    for part in ("text_encoder", "text_encoder_2"):
        encoder = models.text_encoder(part)
        positions = [each for name, each in encoder.named_buffers() if name.endswith("position_ids")]
        assert [each.tolist() for each in positions] == [[list(range(16))]]


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.thorough)])
def test_numbers_are_cast_as_a_folder_casts_them(dtype: str, checkpoint: Path, tmp_path: Path) -> None:
    one = Models(info_of(checkpoint, tmp_path), dtype, CPU).unet.state_dict()
    other = Models(describe(ModelSpec(), tmp_path), dtype, CPU).unet.state_dict()
    assert all(torch.equal(one[name], each) for name, each in other.items())


def test_a_single_file_makes_the_picture_of_the_folder_with_sockets_blocked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    asked = {"prompt": "a red circle", "width": 192, "height": 128, "steps": 2}
    file = {"name": str(checkpoint), "config": str(EMBEDDED)}
    session = session_in(tmp_path)
    made = [session.render(prepare(make_spec(asked | {"model": m}), session.home)) for m in ({"name": "shapes"}, file)]
    assert made[0].pixels_sha256 == made[1].pixels_sha256
    assert not any(outcome.reused for outcome in made[1].outcomes)


# --- every tensor counts ------------------------------------------------------------------------------------------


def networks_in(file: Path, home: Path) -> Any:
    return list(info_of(file, home).networks.values())


def test_every_tensor_that_is_gone_is_named(checkpoint: Path, tmp_path: Path) -> None:
    networks, header = networks_in(checkpoint, tmp_path), read_header(checkpoint)
    assert misfit(header, networks, (), {}) == ""
    wrong = {name: each._replace(shape=(*each.shape, 2)) for name, each in header.tensors.items()}
    assert f"{len(wrong)} of another shape" in misfit(replace(header, tensors=wrong), networks, (), {})
    for network in networks:
        own = {name: each for name, each in header.tensors.items() if name.startswith(network.prefix)}
        for name in own:
            rest = replace(header, tensors={n: each for n, each in own.items() if n != name})
            assert misfit(rest, [network], (), {}) == f"1 missing ({name})"


def test_what_is_gone_is_an_error_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    name = "model.diffusion_model.out.2.bias"
    file = edited(tmp_path / "x.safetensors", **{name: None})
    with pytest.raises(SpecError, match=rf"1 missing \({name}\)"):
        info_of(file, tmp_path)


KNOWN = (
    "model_ema.decay",
    "model_ema.diffusion_modelinput_blocks00weight",
    "alphas_cumprod",
    "betas",
    "sqrt_recip_alphas_cumprod",
    "posterior_variance",
    "denoiser.sigmas",
    "global_step",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
    "conditioner.embedders.1.model.logit_scale",
    "first_stage_model.loss.logvar",
    "v_pred",
)


@pytest.mark.parametrize("name", points(KNOWN, kept=lambda name: name in KNOWN[::3]))
def test_what_files_carry_beside_networks_is_no_error_and_decides_nothing(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    file = edited(tmp_path / "x.safetensors", **{name: torch.ones(3)})
    assert info_of(file, tmp_path).fingerprints == info_of(checkpoint, tmp_path).fingerprints


def test_a_tensor_of_no_place_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    file = edited(tmp_path / "x.safetensors", **{"model.diffusion_model.extra.weight": torch.ones(3)})
    with pytest.raises(SpecError, match=r"1 unknown \(model.diffusion_model.extra.weight\)"):
        info_of(file, tmp_path)


def test_a_file_that_changes_after_the_check_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    file = edited(tmp_path / "x.safetensors")
    network = info_of(file, tmp_path).networks["vae"]
    edited(file, **{"first_stage_model.quant_conv.bias": None})
    with pytest.raises(StageError, match=r"without first_stage_model\.quant_conv\.bias"):
        load_network(network, torch.float32)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32]
)
def test_the_numbers_of_a_small_tensor_are_read_without_the_others(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file(
        {"global_step": torch.tensor([110000 if dtype.itemsize > 2 else 1.5]).to(dtype)}, tmp_path / "x.safetensors"
    )
    header = read_header(tmp_path / "x.safetensors")
    assert read_numbers(header, "global_step") == [110000.0 if dtype.itemsize > 2 else 1.5]
    assert read_numbers(header, "nowhere") is None
    alone = write_header(tmp_path / "y.safetensors", {"global_step": (1,)})
    assert read_numbers(read_header(alone, is_whole=False), "global_step") is None


# --- one identity for each part -----------------------------------------------------------------------------------


def test_metadata_and_the_order_of_tensors_change_nothing(checkpoint: Path, tmp_path: Path) -> None:
    before = info_of(checkpoint, tmp_path).fingerprints
    file = edited(tmp_path / "x.safetensors", {"modelspec.trigger_phrase": "sks"})
    assert info_of(file, tmp_path).fingerprints == before
    tensors = shapes_original()
    shapes = {name: tensors[name] for name in sorted(tensors, reverse=True)}
    raw = write_header(tmp_path / "y.safetensors", {name: tuple(each.shape) for name, each in shapes.items()})
    with raw.open("ab") as out:
        for each in shapes.values():
            out.write(each.contiguous().numpy().tobytes())
    assert info_of(raw, tmp_path).fingerprints == before


PARTS = {
    "unet": "model.diffusion_model.out.2.bias",
    "vae": "first_stage_model.decoder.conv_out.bias",
    "text": "conditioner.embedders.1.model.ln_final.bias",
}


@pytest.mark.parametrize("part", PARTS)
def test_another_tensor_is_another_part_and_no_other(part: str, checkpoint: Path, tmp_path: Path) -> None:
    before = info_of(checkpoint, tmp_path).fingerprints
    tensor = shapes_original()[PARTS[part]].clone()
    tensor[0] += 1
    after = info_of(edited(tmp_path / "x.safetensors", **{PARTS[part]: tensor}), tmp_path).fingerprints
    assert {name for name in before if before[name] != after[name]} == {part}


def test_a_file_is_hashed_once(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stages.models.hashes as module

    monkeypatch.setattr(module, "SETTLED_SECONDS", -1.0)
    info_of(checkpoint, tmp_path)

    def read(*_: object) -> None:
        raise AssertionError("the file was read again")

    monkeypatch.setattr("stages.models.files.fingerprints.tensor_digests", read)
    monkeypatch.setattr("stages.models.files.strict.wanted_tensors", read)
    info_of(checkpoint, tmp_path)
    checkpoint.touch()
    with pytest.raises(AssertionError, match="read again"):
        info_of(checkpoint, tmp_path)


# --- parts from elsewhere -----------------------------------------------------------------------------------------


def parted(prefixes: tuple[str, ...], *, within: bool) -> dict[str, Tensor]:
    return {name: each for name, each in shapes_original().items() if name.startswith(prefixes) == within}


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The parts of `shapes` in files of their own: with and without prefixes, in both namings."""
    folder = tmp_path_factory.mktemp("pieces")
    files: Mapping[str, Mapping[str, Tensor]] = {
        "unet": parted(("model.diffusion_model.",), within=True),
        "bare-unet": {n.removeprefix("model.diffusion_model."): t
                      for n, t in parted(("model.diffusion_model.",), within=True).items()},
        "vae": {n.removeprefix("first_stage_model."): t
                for n, t in parted(("first_stage_model.",), within=True).items()},
        "no-vae": parted(("first_stage_model.",), within=False),
        "texts": parted(("conditioner.",), within=True),
    }  # fmt: skip
    found = {name: folder / f"{name}.safetensors" for name in files}
    for name, tensors in files.items():
        save_file({n: t.contiguous() for n, t in tensors.items()}, found[name])
    found["diffusers-unet"] = EMBEDDED / "unet" / "diffusion_pytorch_model.safetensors"
    found["diffusers-vae"] = EMBEDDED / "vae" / "diffusion_pytorch_model.safetensors"
    found["folder"] = EMBEDDED
    return found


@pytest.fixture(scope="module")
def folder_numbers(tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    """The weights of the folder's UNet and VAE, and the rows of a prompt."""
    models = Models(describe(ModelSpec(), tmp_path_factory.mktemp("home")), "float32", CPU)
    return {**{part: getattr(models, part).state_dict() for part in ("unet", "vae")},
            "text": encode_prompts(models, "a blue", None)}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("unet", "texts", "vae"),
    [
        pytest.param("unet", "texts", "vae", marks=pytest.mark.thorough),
        pytest.param("bare-unet", "texts", "diffusers-vae", marks=pytest.mark.thorough),
        ("diffusers-unet", "folder", "vae"),
        pytest.param("no-vae", None, "diffusers-vae", marks=pytest.mark.thorough),
    ],
)
def test_parts_come_from_files_of_their_own(
    unet: str, texts: str | None, vae: str, pieces: dict[str, Path], folder_numbers: Numbers, tmp_path: Path
) -> None:
    given = {} if texts is None else {"text_encoders": str(pieces[texts])}
    info = info_of(pieces[unet], tmp_path, vae=str(pieces[vae]), **given)
    models = Models(info, "float32", CPU)
    for part, wanted in folder_numbers.items():
        found = encode_prompts(models, "a blue", None) if part == "text" else getattr(models, part).state_dict()
        assert all(torch.equal(found[name], each) for name, each in wanted.items())


def test_another_vae_leaves_the_other_parts_in_use(checkpoint: Path, pieces: dict[str, Path], tmp_path: Path) -> None:
    own, other = info_of(checkpoint, tmp_path), info_of(checkpoint, tmp_path, vae=str(pieces["vae"]))
    assert other.fingerprints == own.fingerprints, "the VAE of the file is the one that is given"
    changed = {n: t + 1 for n, t in shapes_original().items() if n.startswith("first_stage_model.")}
    save_file(changed, tmp_path / "other.safetensors")
    other = info_of(checkpoint, tmp_path, vae=str(tmp_path / "other.safetensors"))
    assert {part for part in own.fingerprints if own.fingerprints[part] != other.fingerprints[part]} == {"vae"}


def test_a_folder_takes_a_vae_from_a_file(pieces: dict[str, Path], tmp_path: Path) -> None:
    folder, info = describe(ModelSpec(), tmp_path), describe(ModelSpec(vae=str(pieces["vae"])), tmp_path)
    assert {p for p in PARTS if info.fingerprints[p] != folder.fingerprints[p]} == {"vae"}
    one, other = (Models(each, "float32", CPU).vae.state_dict() for each in (info, folder))
    assert all(torch.equal(one[name], each) for name, each in other.items())


@pytest.mark.parametrize(
    ("unet", "given", "said"),
    [
        ("unet", {}, "has no text encoder for it; --text-encoders gives them"),
        ("no-vae", {}, "has no VAE; --vae FILE gives one"),
        ("no-vae", {"vae": "texts"}, "texts.safetensors has no VAE"),
        ("no-vae", {"vae": "folder"}, "is a folder; the .safetensors file in it works"),
        ("unet", {"vae": "vae", "text_encoders": "vae"}, "vae.safetensors has no text encoder"),
        ("vae", {}, "is a VAE; give it with --vae"),
    ],
)
def test_a_part_that_is_missing_is_told(
    unet: str, given: dict[str, str], said: str, pieces: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as error:
        info_of(pieces[unet], tmp_path, **{name: str(pieces[file]) for name, file in given.items()})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["text_encoders", "config"])
def test_a_folder_takes_no_other_parts(field: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"^model.{field}: .* is for a model in a single file"):
        describe(ModelSpec(**{field: str(EMBEDDED)}), tmp_path)
