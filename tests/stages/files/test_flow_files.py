"""Single files of the transformers beyond FLUX.1 and Chroma: the folder's numbers from every layout, and refusals."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file

from flows.rendering.job import prepare
from stages.errors import SpecError
from stages.models.describe import describe
from stages.models.file_marks import describe_file
from stages.models.files.keys import diffusers_names, unpacked, unpacked_shape
from stages.models.files.transformer_names import LAYOUTS
from stages.models.load import Models
from stages.spec import ModelSpec, make_spec
from tests.checkpoints import packed
from tests.flux2_folder import dev_folder, klein_folder
from tests.flux_files import PREFIX, gguf_file, needs_gguf, original, tensors_in, written
from tests.homes import session_in
from tests.qwen_folder import qwen_folder
from tests.sd3_folder import sd3_folder
from tests.toys import new_flux2, new_sd3, new_wan, new_zimage, points
from tests.wan_folder import wan_folder
from tests.zimage_folder import zimage_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor


CPU = torch.device("cpu")
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "z_image": zimage_folder,
    "qwen": qwen_folder,
    "sd3": sd3_folder,
    "flux2": klein_folder,
    "wan": wan_folder,
}
MODELS = {**FOLDERS, "dev": dev_folder}
NETWORKS: dict[str, Any] = {
    "flux2": new_flux2,
    "sd3": new_sd3,
    "sd3-medium": lambda: new_sd3(medium=True),
    "z_image": new_zimage,
    "wan": new_wan,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the toy folder of a family, written once."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = MODELS[family](tmp_path_factory.mktemp(family) / "model")
        return made[family]

    return folder


def config_of(folder: Path, part: str = "transformer") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / part / "config.json").read_text())
    return found


def files_of(family: str, folder: Path, to: Path) -> dict[str, Path]:
    """The transformer of a folder in every layout that people have files in."""
    own, config = tensors_in(folder / "transformer"), config_of(folder)
    found = {"diffusers": own, "prefixed-diffusers": {PREFIX + name: each for name, each in own.items()}}
    if (layout := LAYOUTS.get(config["_class_name"])) is not None:
        found["original"] = original(own, layout, config)  # type: ignore[arg-type]
        found["prefixed"] = {PREFIX + name: each for name, each in found["original"].items()}
    return {name: written(to / f"{family}-{name}.safetensors", each) for name, each in found.items()}


def info_of(file: Path, home: Path, **fields: Any) -> Any:
    return describe(ModelSpec(name=str(file), **{name: str(each) for name, each in fields.items()}), home)


def is_same(one: Any, other: Any) -> bool:
    found, wanted = one.state_dict(), other.state_dict()
    return set(found) == set(wanted) and all(torch.equal(found[name], each) for name, each in wanted.items())


# --- layouts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", NETWORKS)
def test_the_map_of_names_is_that_of_diffusers_in_both_directions(which: str) -> None:
    network = NETWORKS[which]()
    config, layout = dict(network.config), LAYOUTS[type(network).__name__]
    tensors = {
        name: torch.arange(each.numel(), dtype=torch.float64).reshape(each.shape) + number / 1000
        for number, (name, each) in enumerate(network.state_dict().items())
    }
    stored = original(tensors, layout, config)  # type: ignore[arg-type]
    ends = "transformer_to_diffusers" if layout == "wan" else "transformer_checkpoint_to_diffusers"
    convert = getattr(single_file_utils, f"convert_{layout}_{ends}")
    read = convert(dict(stored))
    assert set(read) == set(tensors)
    assert all(torch.equal(read[name], each) for name, each in tensors.items())
    for given, names in diffusers_names(layout, config, tensors).items():  # type: ignore[arg-type]
        for name in names:
            found = unpacked(layout, config, name, stored[given])  # type: ignore[arg-type]
            assert torch.equal(found, tensors[name])
            shape = unpacked_shape(layout, config, name, tuple(stored[given].shape))  # type: ignore[arg-type]
            assert shape == tuple(tensors[name].shape)


def test_the_map_of_wan_s_vae_is_that_of_diffusers() -> None:
    """Its converter knows the blocks of the released network alone."""
    from diffusers import AutoencoderKLQwenImage

    vae = AutoencoderKLQwenImage(base_dim=2, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=2)
    stored = packed("wan_vae", dict(vae.config), vae.state_dict())
    read = single_file_utils.convert_wan_vae_to_diffusers(dict(stored))
    assert set(read) == set(vae.state_dict())
    assert all(torch.equal(read[name], each) for name, each in vae.state_dict().items())


@pytest.mark.parametrize("family", points(tuple(MODELS), kept=lambda name: name == "z_image"))
def test_the_numbers_are_those_of_the_folder(family: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folders(family)
    wanted = Models(info_of(folder, tmp_path), "float32", CPU).unet
    for file in files_of(family, folder, tmp_path).values():
        assert is_same(Models(info_of(file, tmp_path, config=folder), "float32", CPU).unet, wanted)


@pytest.mark.thorough
@pytest.mark.parametrize("family", FOLDERS)
def test_a_render_is_that_of_the_folder(family: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder, session = folders(family), session_in(tmp_path)
    file = list(files_of(family, folder, tmp_path).values())[-1]
    asked = {"prompt": "a disc", "width": 64, "height": 64, "steps": 1, "seed": 3}
    models = [{"name": str(folder)}, {"name": str(file), "config": str(folder)}]
    made = [session.render(prepare(make_spec(asked | {"model": model}), session.home)) for model in models]
    assert made[0].pixels_sha256 == made[1].pixels_sha256


# --- parts --------------------------------------------------------------------------------------------------------


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: each for name, each in tensors.items()}


def sd3_checkpoint(folder: Path) -> dict[str, Tensor]:
    """A checkpoint of Stable Diffusion 3 with all its networks, as its authors and ComfyUI write it."""
    texts = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}
    found = under(PREFIX, original(tensors_in(folder / "transformer"), "sd3", config_of(folder)))
    found |= under("first_stage_model.", packed("vae", config_of(folder, "vae"), tensors_in(folder / "vae")))
    for name, part in texts.items():
        found |= under(f"text_encoders.{name}.transformer.", tensors_in(folder / part))
        found[f"text_encoders.{name}.logit_scale"] = torch.ones(())
    return found


def without_weights(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors"))
    return to


def test_a_checkpoint_of_stable_diffusion_3_has_all_parts(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """CLIP-L's pooled row is not projected there, whatever projection the file has, as diffusers reads it."""
    folder = folders("sd3")
    bare = without_weights(folder, tmp_path / "bare")
    tensors = sd3_checkpoint(folder)
    whole = Models(info_of(written(tmp_path / "x.safetensors", tensors), tmp_path, config=bare), "float32", CPU)
    plain = Models(info_of(folder, tmp_path), "float32", CPU)
    assert is_same(whole.unet, plain.unet)
    assert is_same(whole.vae, plain.vae)
    for part in ("text_encoder_2", "t5"):
        assert is_same(whole.text_encoder(part), plain.text_encoder(part))
    found, wanted = (each.text_encoder("text_encoder").state_dict() for each in (whole, plain))
    assert torch.equal(found["text_projection.weight"], torch.eye(8))
    assert [name for name, each in wanted.items() if not torch.equal(found[name], each)] == ["text_projection.weight"]
    del tensors["text_encoders.clip_l.transformer.text_projection.weight"]
    assert info_of(written(tmp_path / "y.safetensors", tensors), tmp_path, config=bare).fingerprints
    del tensors[f"{PREFIX}pos_embed"]
    with pytest.raises(SpecError, match=r"1 missing \(model.diffusion_model.pos_embed\)"):
        info_of(written(tmp_path / "y.safetensors", tensors), tmp_path, config=bare)


@pytest.mark.thorough
def test_positions_of_a_file_are_part_of_its_fingerprint(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder, made = folders("sd3"), []
    for factor in (1, 2):
        tensors = original(tensors_in(folder / "transformer"), "sd3", config_of(folder))
        tensors["pos_embed"] = tensors["pos_embed"] * factor
        made.append(info_of(written(tmp_path / f"{factor}.safetensors", tensors), tmp_path, config=folder))
    one, other = (each.fingerprints for each in made)
    assert {part for part in one if one[part] != other[part]} == {"unet"}
    unet = Models(made[1], "float32", CPU).unet
    wanted = tensors_in(folder / "transformer")["pos_embed.pos_embed"] * 2
    assert torch.equal(unet.pos_embed.pos_embed, wanted)


def nested(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VAE of FLUX.2 as its authors write it, with the outermost convolutions inside."""
    sides = {"quant_conv": "encoder.", "post_quant_conv": "decoder."}
    return {sides.get(name.partition(".")[0], "") + name: each for name, each in tensors.items()}


def text_file(family: str, folder: Path) -> dict[str, Tensor]:
    """The text encoder as files for ComfyUI have it."""
    own = tensors_in(folder / "text_encoder")
    if family == "wan":
        return own
    if family == "qwen":
        return {
            name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): each
            for name, each in own.items()
        }
    return own if any(name.startswith("model.") for name in own) else under("model.", own)


def vae_file(family: str, folder: Path) -> dict[str, Tensor]:
    own, config = tensors_in(folder / "vae"), config_of(folder, "vae")
    found = packed("wan_vae" if family in ("qwen", "wan") else "vae", config, own)
    return nested(found) if family == "flux2" else found


@pytest.mark.thorough
@pytest.mark.parametrize("family", ["z_image", "qwen", "flux2", "wan"])
def test_text_encoders_and_vae_come_from_files(family: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folders(family)
    bare = without_weights(folder, tmp_path / "bare")
    file = list(files_of(family, folder, tmp_path).values())[-1]
    texts = written(tmp_path / "texts.safetensors", text_file(family, folder))
    vae = written(tmp_path / "vae.safetensors", vae_file(family, folder))
    found = Models(info_of(file, tmp_path, config=bare, text_encoders=texts, vae=vae), "float32", CPU)
    wanted = Models(info_of(folder, tmp_path), "float32", CPU)
    part = next(name for name in wanted.info.configs if name not in ("unet", "vae"))
    assert is_same(found.text_encoder(part), wanted.text_encoder(part))
    assert is_same(found.vae, wanted.vae)
    ids = torch.arange(6)[None]
    rows = [each.text_encoder(part)(ids, output_hidden_states=True).hidden_states[-1] for each in (found, wanted)]
    assert torch.equal(*rows)
    if family == "qwen":  # as ComfyUI saves it, without the layer that writes text
        written(texts, {name: each for name, each in text_file(family, folder).items() if name != "lm_head.weight"})
        encoder = Models(info_of(file, tmp_path, config=bare, text_encoders=texts, vae=vae), "float32", CPU)
        rows[0] = encoder.text_encoder(part)(ids, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(*rows)
    beside = info_of(folder, tmp_path, vae=vae)  # the folder with the VAE of the file
    assert is_same(Models(beside, "float32", CPU).vae, wanted.vae)
    other = {part for part, each in wanted.info.fingerprints.items() if each != beside.fingerprints[part]}
    assert other == ({"vae", "unet"} if family == "flux2" else {"vae"})  # whose statistics say what latents are
    assert [describe_file(each).kind for each in (file, texts, vae)] == ["model", "text_encoder", "vae"]
    with pytest.raises(SpecError, match=r"is a (T5 )?text encoder, which is no model by itself; give it with --text-"):
        info_of(texts, tmp_path)
    with pytest.raises(SpecError, match=r"is a VAE; give it with --vae"):
        info_of(vae, tmp_path)
    with pytest.raises(SpecError, match=rf"has no {wanted.info.configs[part]['_class_name']}, and .* has no weights"):
        info_of(file, tmp_path, config=bare, vae=vae)
    with pytest.raises(SpecError, match=r"has no VAE, and .* has no weights; --vae FILE gives one of the same family"):
        info_of(file, tmp_path, config=bare, text_encoders=texts)


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("family", FOLDERS)
def test_eight_bits_with_scales_are_the_numbers_that_they_are(
    family: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    """Also a scale of queries, keys and values in one tensor."""
    folder = folders(family)
    file = list(files_of(family, folder, tmp_path).values())[-1]
    few, floats = {}, {}
    for name, each in load_file(file).items():
        floats[name] = few[name] = each
        if name.endswith(".weight") and each.ndim == 2:
            scale = (each.abs().max() / 448).reshape(())
            few[name] = (each / scale).to(torch.float8_e4m3fn)
            few[f"{name.removesuffix('weight')}scale_weight"] = scale
            floats[name] = few[name].float() * scale
    both = [written(tmp_path / f"{n}.safetensors", each) for n, each in enumerate((few, floats))]
    one, other = (Models(info_of(each, tmp_path, config=folder), "float32", CPU).unet for each in both)
    assert is_same(one, other)


@needs_gguf
@pytest.mark.thorough
@pytest.mark.parametrize("family", FOLDERS)
def test_gguf_is_made_into_floats(family: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folders(family)
    tensors = load_file(list(files_of(family, folder, tmp_path).values())[-1])
    floats = gguf_file(tmp_path / "x.gguf", {name.removeprefix(PREFIX): each for name, each in tensors.items()})
    files = [tmp_path / "x.gguf", written(tmp_path / "floats.safetensors", floats)]
    one, other = (Models(info_of(file, tmp_path, config=folder), "float32", CPU).unet for file in files)
    assert is_same(one, other)


# --- what a file is -----------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_file_of_dev_is_told_beside_a_folder_of_klein(folders: Callable[[str], Path], tmp_path: Path) -> None:
    file = files_of("dev", folders("dev"), tmp_path)["original"]
    with pytest.raises(SpecError, match=r"unknown \(guidance_in.in_layer.weight"):
        info_of(file, tmp_path, config=folders("flux2"))


@pytest.mark.thorough
@pytest.mark.parametrize("family", FOLDERS)
def test_files_of_other_families_are_told(family: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folders(family)
    for other in FOLDERS:
        if other != family:
            file = next(iter(files_of(other, folders(other), tmp_path).values()))
            with pytest.raises(SpecError, match=r" is .*, and .* is of a .*; a folder of the same model works"):
                info_of(file, tmp_path, config=folder)
    extra = {**load_file(next(iter(files_of(family, folder, tmp_path).values()))), "layers.9.x": torch.ones(2)}
    with pytest.raises(SpecError, match=r"1 unknown \(layers.9.x\)"):
        info_of(written(tmp_path / "x.safetensors", extra), tmp_path, config=folder)
