"""FLUX.1 in single files: the folder's picture from each layout, parts from elsewhere, few bits, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers.loaders import single_file_utils

from flows.rendering.job import prepare
from stages.errors import SpecError
from stages.models.describe import describe
from stages.models.files.header import read_header
from stages.models.files.keys import diffusers_names, unpacked, unpacked_shape
from stages.models.files.strict import misfit
from stages.models.files.transformers import TRANSFORMERS
from stages.models.flow import FLOW_FAMILIES
from stages.models.folder import IMAGE_KINDS, VIDEO_KINDS
from stages.models.load import Models
from stages.models.networks import empty_network
from stages.plan import make_plan
from stages.spec import ModelSpec, make_spec
from tests.checkpoints import packed, write_header
from tests.flux_files import (
    PREFIX,
    gguf_file,
    layouts,
    needs_gguf,
    original,
    tensors_in,
    texts,
    vae,
    whole,
    written,
)
from tests.flux_folder import flux_folder
from tests.homes import session_in
from tests.toys import points

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
LAYOUTS = ("original", "prefixed", "diffusers", "prefixed-diffusers")
ASKED: dict[str, Any] = {"prompt": "a (red:1.3) disc on blue clay", "width": 64, "height": 64, "steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux_folder(tmp_path_factory.mktemp("flux") / "dev", embedded=True)


@pytest.fixture(scope="module")
def files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The transformer in each layout, the whole checkpoint, and each other part in a file of its own."""
    root = tmp_path_factory.mktemp("files")
    (root / "texts").mkdir()
    found = {name: written(root / f"{name}.safetensors", each) for name, each in layouts(folder).items()}
    found |= {name: written(root / "texts" / f"{name}.safetensors", each) for name, each in texts(folder).items()}
    found["vae"] = written(root / "ae.safetensors", vae(folder))
    found["whole"] = written(root / "whole.safetensors", whole(folder))
    return found


@pytest.fixture(scope="module")
def configurations(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder without a weight."""
    bare = tmp_path_factory.mktemp("bare") / "dev"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    return bare


def info_of(file: Path, home: Path, **fields: Any) -> Any:
    return describe(ModelSpec(name=str(file), **{name: str(each) for name, each in fields.items()}), home)


def refused(file: Path, home: Path, **fields: Any) -> str:
    with pytest.raises(SpecError) as error:
        info_of(file, home, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- layouts ------------------------------------------------------------------------------------------------------


def full_rows(kind: str) -> dict[str, Tensor]:
    """Every tensor of a transformer of full width, two blocks and one column: numbers that are all different."""
    config: dict[str, Any] = {"num_layers": 2, "num_single_layers": 2}
    config |= {"guidance_embeds": True} if kind.startswith("Flux") else {"approximator_layers": 2}
    found, at = {}, 0
    for name, each in empty_network(kind, config).state_dict().items():
        rows = each.shape[0]
        found[name] = torch.arange(at, at + rows, dtype=torch.int64).reshape(rows, *[1] * (each.ndim - 1))
        at += rows
    return found


@pytest.mark.parametrize(
    "kind", ["FluxTransformer2DModel", pytest.param("ChromaTransformer2DModel", marks=pytest.mark.thorough)]
)
def test_the_map_of_names_is_that_of_diffusers_in_both_directions(kind: str) -> None:
    tensors = full_rows(kind)
    stored = original(tensors)
    family = "flux" if kind.startswith("Flux") else "chroma"
    convert = getattr(single_file_utils, f"convert_{family}_transformer_checkpoint_to_diffusers")
    read = convert({PREFIX + name: each for name, each in stored.items()})
    assert set(read) == set(tensors)
    assert all(torch.equal(read[name], each) for name, each in tensors.items())
    for given, names in diffusers_names("flux", {}, tensors).items():
        for name in names:
            assert torch.equal(unpacked("flux", {}, name, stored[given]), tensors[name])
            assert unpacked_shape("flux", {}, name, tuple(stored[given].shape)) == tuple(tensors[name].shape)


@pytest.mark.parametrize("layout", points(LAYOUTS, kept=lambda layout: layout in ("original", "diffusers")))
def test_the_numbers_are_those_of_the_folder(layout: str, folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    info = info_of(files[layout], tmp_path, config=folder)
    found, wanted = Models(info, "float32", CPU).unet.state_dict(), tensors_in(folder / "transformer")
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], each) for name, each in wanted.items())


@pytest.mark.parametrize("some", [("whole",), pytest.param((), marks=pytest.mark.thorough)], ids=["whole", "each"])
def test_a_render_from_each_layout_is_that_of_the_folder(
    some: tuple[str, ...], folder: Path, files: dict[str, Path], configurations: Path, tmp_path: Path
) -> None:
    """Text encoders and VAE from the folder, from the file of the transformer, and from files of their own."""
    session = session_in(tmp_path)
    beside = {"vae": str(files["vae"]), "text_encoders": str(files["clip_l"].parent)}
    models: dict[str, dict[str, str]] = {
        "folder": {"name": str(folder)},
        **{each: {"name": str(files[each]), "config": str(folder)} for each in LAYOUTS},
        "whole": {"name": str(files["whole"]), "config": str(configurations)},
        "whole-and-texts": {"name": str(files["whole"]), "config": str(configurations), "text_encoders": str(folder)},
        "whole-and-t5": {"name": str(files["whole"]), "config": str(configurations),
                         "text_encoders": str(files["t5xxl"])},
        "parts": {"name": str(files["original"]), "config": str(configurations), **beside},
        "diffusers-texts": {"name": str(files["original"]), "config": str(configurations), "vae": str(files["vae"]),
                            "text_encoders": str(folder)},
    }  # fmt: skip
    made = {
        name: session.render(prepare(make_spec(ASKED | {"model": model}), session.home))
        for name, model in models.items()
        if not some or name in ("folder", *some)
    }
    assert {each.pixels_sha256 for each in made.values()} == {made["folder"].pixels_sha256}


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_a_render_in_another_dtype_is_that_of_the_folder(
    dtype: str, folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    session = session_in(tmp_path)
    models = [{"name": str(folder)}, {"name": str(files["original"]), "config": str(folder)}]
    made = [
        session.render(prepare(make_spec(ASKED | {"model": {**model, "dtype": dtype}}), session.home))
        for model in models
    ]
    assert made[0].pixels_sha256 == made[1].pixels_sha256


# --- numbers ------------------------------------------------------------------------------------------------------


def stored_as(tensors: dict[str, Tensor], spelling: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return tensors as a file holds them in fewer bits, and the numbers that they then are in float32."""
    if spelling in ("float16", "bfloat16"):
        found = {name: each.to(getattr(torch, spelling)) for name, each in tensors.items()}
        return found, {name: each.float() for name, each in found.items()}
    found, floats = dict(tensors), dict(tensors)
    for name, each in tensors.items():
        if not name.endswith(".weight") or each.ndim != 2:
            continue
        scale = torch.ones(()) if spelling == "fp8" else (each.abs().max() / 448).reshape(())
        found[name] = (each / scale).to(FP8)
        floats[name] = found[name].float() * scale
        if spelling != "fp8":
            found[f"{name.removesuffix('weight')}{spelling}"] = scale
    if spelling == "scale_weight":
        found["scaled_fp8"] = torch.empty(0, dtype=FP8)
    return found, floats


@pytest.mark.parametrize(
    "spelling",
    points(("float16", "bfloat16", "fp8", "scale_weight", "weight_scale"), kept=lambda each: each == "scale_weight"),
)
def test_fewer_bits_are_read_as_the_numbers_that_they_are(
    spelling: str, folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """Also a scale of queries, keys and values in one tensor; what a scale lost would be noise and no error."""
    found, floats = stored_as(layouts(folder)["original"], spelling)
    few, all_bits = written(tmp_path / "few.safetensors", found), written(tmp_path / "all.safetensors", floats)
    one, other = (Models(info_of(each, tmp_path, config=folder), "float32", CPU).unet for each in (few, all_bits))
    wanted = other.state_dict()
    assert all(torch.equal(each, wanted[name]) for name, each in one.state_dict().items())


def test_eight_bits_of_a_file_stay_the_eight_bits_that_they_are(folder: Path, tmp_path: Path) -> None:
    found, _ = stored_as(layouts(folder)["original"], "fp8")
    file = written(tmp_path / "fp8.safetensors", found)
    unet = Models(info_of(file, tmp_path, config=folder), "float8_e4m3fn", CPU).unet
    stored = unet.transformer_blocks[0].ff.net[2].parametrizations.weight.original
    assert torch.equal(stored.float(), found["double_blocks.0.img_mlp.2.weight"].float())
    assert unet.transformer_blocks[0].ff.net[2].weight.dtype == torch.bfloat16


@needs_gguf
def test_gguf_is_made_into_floats(folder: Path, tmp_path: Path) -> None:
    floats = gguf_file(tmp_path / "flux.gguf", layouts(folder)["original"])
    other = written(tmp_path / "floats.safetensors", floats)
    one, two = (
        Models(info_of(file, tmp_path, config=folder), "float32", CPU).unet.state_dict()
        for file in (tmp_path / "flux.gguf", other)
    )
    assert all(torch.equal(one[name], each) for name, each in two.items())


# --- what a file is -----------------------------------------------------------------------------------------------


def test_every_tensor_counts(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    """Missing, misshapen and left-over tensors are told by name."""
    network, header = (
        info_of(files["prefixed"], tmp_path, config=folder).networks["unet"],
        read_header(files["prefixed"]),
    )
    assert misfit(header, [network], (), {}) == ""
    for name, each in header.tensors.items():
        rest = replace(header, tensors={n: other for n, other in header.tensors.items() if n != name})
        assert misfit(rest, [network], (), {}) == f"1 missing ({name})"
        longer = {**header.tensors, name: each._replace(shape=(each.shape[0] + 1, *each.shape[1:]))}
        assert name in misfit(replace(header, tensors=longer), [network], (), {})
    tensors = layouts(folder)["original"]
    extra = written(tmp_path / "x.safetensors", {**tensors, "double_blocks.0.extra": torch.ones(3)})
    assert "1 unknown (double_blocks.0.extra)" in refused(extra, tmp_path, config=folder)


@pytest.mark.thorough
def test_a_part_of_one_file_is_another_part_and_no_other(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    one = info_of(files["whole"], tmp_path, config=folder).fingerprints
    for part, name in (
        ("unet", f"{PREFIX}img_in.bias"),
        ("vae", "vae.decoder.conv_out.bias"),
        ("text", "text_encoders.t5xxl.transformer.encoder.final_layer_norm.weight"),
    ):
        changed = {**whole(folder), name: whole(folder)[name] + 1}
        other = info_of(written(tmp_path / "x.safetensors", changed), tmp_path, config=folder).fingerprints
        assert {each for each in one if one[each] != other[each]} == {part}


def test_a_header_alone_can_be_planned_with(configurations: Path, files: dict[str, Path], tmp_path: Path) -> None:
    header = read_header(files["whole"])
    alone = write_header(tmp_path / "alone.safetensors", {n: each.shape for n, each in header.tensors.items()})
    model = ModelSpec(name=str(alone), config=str(configurations))
    info = describe(model, tmp_path, has_weights=False)
    assert [each.key for each in make_plan(make_spec(ASKED | {"model": model.model_dump()}), info).calls]


def test_a_folder_takes_a_vae_from_a_file(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    one, other = info_of(folder, tmp_path), info_of(folder, tmp_path, vae=files["vae"])
    assert {part for part in one.fingerprints if one.fingerprints[part] != other.fingerprints[part]} == {"vae"}
    found, wanted = (Models(each, "float32", CPU).vae.state_dict() for each in (other, one))
    assert all(torch.equal(found[name], each) for name, each in wanted.items())


def test_parts_that_are_missing_or_no_parts_are_told(
    configurations: Path, folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    transformer, bare = files["original"], {"config": configurations}
    assert "is FLUX.1; --config FOLDER gives" in refused(transformer, tmp_path)
    assert "has no VAE, and " in refused(transformer, tmp_path, text_encoders=folder, **bare)
    assert "has no CLIPTextModel, and " in refused(transformer, tmp_path, vae=files["vae"], **bare)
    said = refused(transformer, tmp_path, vae=files["vae"], text_encoders=files["t5xxl"], **bare)
    assert "has no CLIPTextModel" in said
    assert "holds no AutoencoderKL" in refused(transformer, tmp_path, vae=files["t5xxl"], **bare)
    assert "holds no CLIPTextModel or T5EncoderModel" in refused(
        transformer, tmp_path, text_encoders=files["vae"], **bare
    )
    assert "is a VAE; give it with --vae" in refused(files["vae"], tmp_path)
    assert "is a T5 text encoder" in refused(files["t5xxl"], tmp_path)
    assert "holds no transformer" in refused(files["vae"], tmp_path, **bare)
    (tmp_path / "texts").mkdir()
    for name in ("t5-fp16", "t5-fp8"):
        shutil.copy(files["t5xxl"], tmp_path / "texts" / f"{name}.safetensors")
    said = refused(transformer, tmp_path, vae=files["vae"], text_encoders=tmp_path / "texts", **bare)
    assert "has t5-fp16.safetensors and t5-fp8.safetensors, which are both a T5EncoderModel" in said


def test_a_configuration_of_another_model_is_told(folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    schnell = flux_folder(tmp_path / "schnell", embedded=False)
    assert "unknown (guidance_in.in_layer.bias" in refused(files["original"], tmp_path, config=schnell)
    deeper = tmp_path / "deeper"
    shutil.copytree(folder, deeper)
    config = json.loads((deeper / "transformer/config.json").read_text()) | {"num_layers": 3}
    (deeper / "transformer/config.json").write_text(json.dumps(config))
    assert "missing (double_blocks.2." in refused(files["original"], tmp_path, config=deeper)


# --- other families -----------------------------------------------------------------------------------------------

NO_TRANSFORMERS = """
v1 v2 xl_base xl_refiner upscale controlnet controlnet_xl controlnet_xl_large controlnet_xl_mid playground-v2-5
inpainting instruct-pix2pix clip clip_sdxl clip_sd3 open_clip open_clip_sdxl open_clip_sdxl_refiner open_clip_sd3
animatediff animatediff_v2 animatediff_sdxl_beta animatediff_scribble animatediff_rgb autoencoder-dc
autoencoder-dc-sana wan_vae flux chroma
"""
TOLD = {
    "stable_cascade_stage_b": "Stable Cascade",
    "stable_cascade_stage_c": "Stable Cascade",
    "sd3": "Stable Diffusion 3",
    "sd35_large": "Stable Diffusion 3",
    "auraflow": "AuraFlow",
    "ltx-video": "LTX-Video",
    "ltx2": "LTX-2",
    "mochi-1-preview": "Mochi",
    "hunyuan-video": "HunyuanVideo",
    "lumina2": "Lumina 2",
    "z-image-turbo": "Z-Image",
    "z-image-turbo-controlnet": "ControlNet of Z-Image",
    "z-image-turbo-controlnet-2.x": "ControlNet of Z-Image",
    "minimax-h3": "MiniMax H3",
    "sana": "Sana",
    "wan": "Wan",
    "wan_vace": "Wan",
    "wan_animate": "Wan",
    "hidream": "HiDream",
    "cosmos-1.0": "Cosmos",
    "cosmos-2.0": "Cosmos",
    "flux2": "FLUX.2",
    "flux3": "FLUX.3",
    "flux3-distilled": "FLUX.3",
    "qwen-image-2.1": "Qwen-Image 2.1",
    "krea2": "Krea 2",
}


def test_every_family_that_diffusers_reads_from_a_file_is_told_by_its_name(tmp_path: Path) -> None:
    """By the names that diffusers itself tells them by."""
    marks = single_file_utils.CHECKPOINT_KEY_NAMES
    assert set(marks) == {*NO_TRANSFORMERS.split(), *TOLD}
    for kind, name in TOLD.items():
        given = marks[kind] if isinstance(marks[kind], list) else [marks[kind]]
        has_all = kind.startswith(("cosmos", "auraflow", "sana"))
        sets = [given] if has_all else [[each] for each in given if "vae." not in each]
        for names in sets:
            file = write_header(tmp_path / "x.safetensors", dict.fromkeys(names, (2, 2)))
            with pytest.raises(SpecError) as error:
                describe(ModelSpec(name=str(file)), tmp_path, has_weights=False)
            assert f" {name}" in str(error.value), kind
            is_read = kind in ("sd3", "sd35_large", "z-image-turbo", "flux2")
            says = "; --config FOLDER gives" if is_read else "not read from a single file; Stable Diffusion 1.x, "
            assert says in str(error.value)


def test_a_file_of_another_family_is_told_beside_a_folder_of_flux(
    configurations: Path, folder: Path, tmp_path: Path
) -> None:
    chroma = write_header(tmp_path / "c.safetensors", {"distilled_guidance_layer.in_proj.bias": (2,)})
    with pytest.raises(SpecError, match=r"is Chroma, and .* is of a FluxTransformer2DModel; a folder of the same"):
        describe(ModelSpec(name=str(chroma), config=str(configurations)), tmp_path, has_weights=False)
    qwen = write_header(
        tmp_path / "q.safetensors", dict.fromkeys(("txt_norm.weight", "img_in.bias", "txt_in.bias"), (2,))
    )
    with pytest.raises(SpecError, match=r"is Qwen-Image, and .* is of a FluxTransformer2DModel; a folder of the same"):
        describe(ModelSpec(name=str(qwen), config=str(configurations)), tmp_path, has_weights=False)
    wan = write_header(tmp_path / "w.safetensors", dict.fromkeys(("patch_embedding.weight", "blocks.0.x"), (2,)))
    with pytest.raises(SpecError, match=r"is Wan .*, which is not read from a single file; Stable Diffusion 1.x"):
        describe(ModelSpec(name=str(wan), config=str(configurations)), tmp_path, has_weights=False)


@pytest.mark.parametrize(("width", "said"), [(384, "FLUX.1 Fill, an inpainting model"), (128, "FLUX.1 Canny or Depth")])
def test_members_that_read_a_picture_are_told(width: int, said: str, configurations: Path, tmp_path: Path) -> None:
    shapes = {"double_blocks.0.img_attn.qkv.weight": (96, 32), "img_in.weight": (32, width)}
    file = write_header(tmp_path / "x.safetensors", shapes)
    with pytest.raises(SpecError, match=said):
        describe(ModelSpec(name=str(file), config=str(configurations)), tmp_path, has_weights=False)


def test_every_other_pipeline_of_diffusers_is_refused_by_its_name(tmp_path: Path) -> None:
    import diffusers

    every = [name for name in dir(diffusers) if name.endswith("Pipeline") and name != "DiffusionPipeline"]
    works = (*IMAGE_KINDS, *VIDEO_KINDS, *FLOW_FAMILIES)
    assert len(every) > 150
    for name in sorted({*every} - {*works}):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        wanted = f"model: {tmp_path} is a {name}; what can be rendered is {', '.join(works)}"
        assert refused(tmp_path, tmp_path) == wanted


def test_no_family_hides_another() -> None:
    """Each kind is found by each of its own sets of names."""
    from stages.models.files.transformers import transformer_of

    for each in TRANSFORMERS:
        assert transformer_of(each.marks[0]) in TRANSFORMERS[: TRANSFORMERS.index(each) + 1]
        assert any(transformer_of(marks) is each for marks in each.marks), each.name


def test_original_tensors_hold_several_of_diffusers(folder: Path) -> None:
    tensors = tensors_in(folder / "transformer")
    counts = {len(names) for names in diffusers_names("flux", {}, tensors).values()}
    assert counts == {1, 3, 4}
    assert set(packed("flux", {}, tensors)) == set(layouts(folder)["original"])
