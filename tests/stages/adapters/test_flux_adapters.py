"""Adapters of FLUX.1 in every layout: what they make of the weights, against diffusers' own reading of the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin

from stages.adapters.merge import merge
from stages.adapters.spellings import UNET, targets
from stages.errors import SpecError
from stages.models.describe import describe, networks_of
from stages.models.files.transformer_keys import transformer_name
from stages.models.folder import EMBEDDED_MODELS
from stages.models.load import Models
from stages.spec import ModelSpec
from tests.adapter_files import KOHYA, PEFT, SHAPES, lora_file, low_rank
from tests.flux_folder import flux_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CPU = torch.device("cpu")
XLABS = {"down": "down.weight", "up": "up.weight", "alpha": "none"}
DIFFUSERS = (
    "transformer_blocks.1.attn.to_q",
    "transformer_blocks.0.attn.add_v_proj",
    "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.0.norm1.linear",
    "single_transformer_blocks.1.proj_mlp",
    "single_transformer_blocks.0.proj_out",
    "x_embedder",
    "norm_out.linear",
)
ORIGINAL = (
    "double_blocks.0.img_attn.qkv",
    "double_blocks.1.txt_attn.qkv",
    "double_blocks.1.txt_attn.proj",
    "double_blocks.0.img_mlp.2",
    "double_blocks.0.txt_mod.lin",
    "single_blocks.1.linear2",
    "single_blocks.0.modulation.lin",
)
OF_XLABS = (
    "double_blocks.0.processor.qkv_lora1",
    "double_blocks.0.processor.qkv_lora2",
    "double_blocks.1.processor.proj_lora1",
    "double_blocks.1.processor.proj_lora2",
    "single_blocks.0.processor.qkv_lora",
    "single_blocks.1.processor.proj_lora",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux_folder(tmp_path_factory.mktemp("flux") / "dev", embedded=True)


@pytest.fixture(scope="module")
def unet(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    info = describe(ModelSpec(name=str(folder)), tmp_path_factory.mktemp("home"))
    return Models(info, "float32", CPU).unet


@pytest.fixture(scope="module")
def shapes(unet: Any) -> dict[str, tuple[int, ...]]:
    """The shape of the weight of every spelling."""
    return {name: target.shape for name, target in targets({UNET: unet}).items()}


def merged(folder: Path, file: Path, home: Path, weight: float = 1.0) -> dict[str, Tensor]:
    info = describe(ModelSpec(name=str(folder), loras=[{"file": str(file), "weight": weight}]), home)
    found: dict[str, Tensor] = Models(info, "float32", CPU).unet.state_dict()
    return found


def by_diffusers(unet: Any, file: Path, weight: float = 1.0) -> dict[str, Tensor]:
    """Return the weights with the changes that diffusers reads from a file: W + weight * alpha / rank * B A."""
    state, alphas, *_ = FluxLoraLoaderMixin.lora_state_dict(str(file), return_alphas=True)
    wanted = {name: each.clone() for name, each in unet.state_dict().items()}
    names = [name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight")]
    for name in names:
        down, up = (state[f"{name}.lora_{each}.weight"].double() for each in "AB")
        scale = float((alphas or {}).get(f"{name}.alpha", down.shape[0])) / down.shape[0]
        stored = f"{name.removeprefix('transformer.')}.weight"
        wanted[stored] = (wanted[stored].double() + weight * scale * up @ down).float()
    return wanted


def spelled(layout: str) -> tuple[list[str], dict[str, str]]:
    """Return the modules of a file in a layout, as it writes them, and its names of factors."""
    match layout:
        case "diffusers":
            return [f"transformer.{name}" for name in DIFFUSERS], PEFT
        case "kohya":
            return [f"lora_unet_{name.replace('.', '_')}" for name in ORIGINAL], KOHYA
        case _:
            return list(OF_XLABS), XLABS


def table_name(name: str) -> str:
    """Return what a module's name is in the table: the ending of XLabs' in single blocks is a role's."""
    return name.removesuffix("_lora")


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "xlabs"])
def test_a_merge_is_what_diffusers_makes_of_the_file(
    layout: str, folder: Path, unet: Any, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    modules, names = spelled(layout)
    alpha = 1.0 if layout in ("kohya", "diffusers") else None
    tensors = low_rank({name: shapes[table_name(name)] for name in modules}, alpha=alpha, names=names)
    file = lora_file(tmp_path / "x.safetensors", tensors)
    found, wanted = merged(folder, file, tmp_path, 0.7), by_diffusers(unet, file, 0.7)
    plain = unet.state_dict()
    changed = {name for name, each in wanted.items() if not torch.equal(each, plain[name])}
    assert len(changed) >= len(modules)
    assert {name for name, each in found.items() if not torch.equal(each, plain[name])} == changed
    for name, each in wanted.items():
        torch.testing.assert_close(found[name], each, atol=1e-6, rtol=1e-6)


def test_original_names_with_dots_are_those_of_kohya(
    folder: Path, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    """ComfyUI, fal and Black Forest Labs: diffusers' own readers of them know files of all blocks alone."""
    made = []
    for start in ("lora_unet_", "diffusion_model.", "base_model.model.", ""):
        names = [start + (each.replace(".", "_") if start == "lora_unet_" else each) for each in ORIGINAL]
        tensors = low_rank({name: shapes[name] for name in names}, names=KOHYA if start == "lora_unet_" else PEFT)
        made.append(merged(folder, lora_file(tmp_path / "x.safetensors", tensors), tmp_path))
    assert all(torch.equal(other[name], each) for other in made[1:] for name, each in made[0].items())


def test_flat_names_of_diffusers_are_those_with_dots(
    folder: Path, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    """OneTrainer and SimpleTuner: diffusers' own reader knows some of the modules alone."""
    made = []
    for start in ("transformer.", "lora_transformer_", "lora_unet_", "lycoris_", "base_model.model."):
        is_flat = start.endswith("_")
        names = [start + (each.replace(".", "_") if is_flat else each) for each in DIFFUSERS]
        tensors = low_rank({name: shapes[name] for name in names}, names=KOHYA if is_flat else PEFT)
        made.append(merged(folder, lora_file(tmp_path / "x.safetensors", tensors), tmp_path))
    assert all(torch.equal(other[name], each) for other in made[1:] for name, each in made[0].items())


def rows_of(unet: Any, change: Tensor, modules: list[str]) -> dict[str, Tensor]:
    """Return a change of the original's rows cut up for the modules that it holds."""
    sizes = [unet.get_submodule(module).weight.shape[0] for module in modules]
    return dict(zip(modules, change.split(sizes), strict=True))


def test_rows_of_one_original_module_go_to_four_of_diffusers(
    folder: Path, unet: Any, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    """The first layer of a single block, which diffusers' own reader knows at full width alone."""
    block = "single_transformer_blocks.0"
    modules = [f"{block}.attn.to_{each}" for each in "qkv"] + [f"{block}.proj_mlp"]
    name = "lora_unet_single_blocks_0_linear1"
    out = shapes[name][0]
    tensors = low_rank({name: shapes[name]}, alpha=1.0)
    change = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"] / 2
    bias = torch.arange(out, dtype=torch.float32) / out
    whole = {f"{name}.diff": change, f"{name}.diff_b": bias}
    for given in (tensors, whole):
        found = merged(folder, lora_file(tmp_path / "x.safetensors", given), tmp_path)
        for module, rows in rows_of(unet, change, modules).items():
            wanted = unet.get_submodule(module).weight + rows
            torch.testing.assert_close(found[f"{module}.weight"], wanted, atol=1e-6, rtol=1e-6)
    for module, rows in rows_of(unet, bias, modules).items():
        torch.testing.assert_close(found[f"{module}.bias"], unet.get_submodule(module).bias + rows)


def test_magnitudes_of_an_input_are_of_all_rows_together(folder: Path, unet: Any, tmp_path: Path) -> None:
    """DoRA by input columns has norms over q, k and v at once: each alone would be another change."""
    name, modules = "lora_unet_double_blocks_0_img_attn_qkv", ["to_q", "to_k", "to_v"]
    weights = [unet.get_submodule(f"transformer_blocks.0.attn.{each}").weight for each in modules]
    tensors = low_rank({name: (96, 32)}, alpha=2.0)
    moved = torch.cat(weights) + tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
    magnitude = torch.linspace(0.5, 1.5, 32)[None]
    found = merged(
        folder, lora_file(tmp_path / "x.safetensors", {**tensors, f"{name}.dora_scale": magnitude}), tmp_path
    )
    wanted = moved * magnitude / moved.norm(dim=0, keepdim=True)
    for each, rows in zip(modules, wanted.split(32), strict=True):
        torch.testing.assert_close(found[f"transformer_blocks.0.attn.{each}.weight"], rows, atol=1e-6, rtol=1e-5)


def test_halves_of_the_last_modulation_change_places(folder: Path, unet: Any, tmp_path: Path) -> None:
    tensors = low_rank({"lora_unet_final_layer_adaLN_modulation_1": (64, 32)})
    file = lora_file(tmp_path / "x.safetensors", tensors)
    found, wanted = merged(folder, file, tmp_path), by_diffusers(unet, file)
    torch.testing.assert_close(found["norm_out.linear.weight"], wanted["norm_out.linear.weight"], atol=1e-6, rtol=1e-6)


def test_two_files_in_two_layouts_are_merged_in_their_order(
    folder: Path, unet: Any, shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    fused = low_rank({"lora_unet_double_blocks_0_img_attn_qkv": (96, 32)})
    single = low_rank({"transformer.transformer_blocks.0.attn.to_k": (32, 32)}, seed=1, names=PEFT)
    files = [lora_file(tmp_path / f"{n}.safetensors", each) for n, each in enumerate((fused, single))]
    spec = ModelSpec(name=str(folder), loras=[{"file": str(file)} for file in files])
    info = describe(spec, tmp_path)
    found = Models(info, "float32", CPU).unet.state_dict()["transformer_blocks.0.attn.to_k.weight"]
    base = unet.state_dict()["transformer_blocks.0.attn.to_k.weight"]
    one, other = (by_diffusers(unet, file)["transformer_blocks.0.attn.to_k.weight"] - base for file in files)
    torch.testing.assert_close(found, base + one + other, atol=1e-6, rtol=1e-6)
    plain = describe(ModelSpec(name=str(folder)), tmp_path)
    assert {part for part in plain.fingerprints if plain.fingerprints[part] != info.fingerprints[part]} == {"unet"}
    assert describe(spec.model_copy(update={"loras": spec.loras[::-1]}), tmp_path).fingerprints != info.fingerprints


def test_a_text_encoder_is_changed_as_well(folder: Path, tmp_path: Path) -> None:
    name = "lora_te1_text_model_encoder_layers_1_mlp_fc1"
    file = lora_file(tmp_path / "x.safetensors", low_rank({name: SHAPES[name]}))
    plain, info = (describe(ModelSpec(name=str(folder), loras=each), tmp_path) for each in ([], [{"file": str(file)}]))
    assert {part for part in plain.fingerprints if plain.fingerprints[part] != info.fingerprints[part]} == {"text"}
    one, other = (Models(each, "float32", CPU).text_encoder("text_encoder").state_dict() for each in (plain, info))
    assert [key for key, each in one.items() if not torch.equal(each, other[key])] == [
        "encoder.layers.1.mlp.fc1.weight"
    ]


def test_scales_of_peft_are_read_under_the_name_of_the_transformer(folder: Path, unet: Any, tmp_path: Path) -> None:
    name = "transformer.transformer_blocks.0.attn.to_q"
    tensors = low_rank({name: (32, 32)}, names=PEFT)
    metadata = {"lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": 6}'}
    file = lora_file(tmp_path / "x.safetensors", tensors, metadata)
    change = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] * 3
    wanted = unet.transformer_blocks[0].attn.to_q.weight + change
    found = merged(folder, file, tmp_path)["transformer_blocks.0.attn.to_q.weight"]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_every_module_is_spelled_in_both_layouts(folder: Path, unet: Any, tmp_path: Path) -> None:
    table = targets({UNET: unet})
    for path, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert table[f"transformer.{path}"].modules == table[path].modules == (path,)
            original = transformer_name("flux", path)
            for name in (f"lora_unet_{original.replace('.', '_')}", f"diffusion_model.{original}", original):
                assert path in table[name].modules
    assert {part: kind for part, (kind, _) in networks_of(describe(ModelSpec(name=str(folder)), tmp_path)).items()} == {
        "unet": "FluxTransformer2DModel",
        "text_encoder": "CLIPTextModel",
    }


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (SHAPES, "that the model .* lacks .* it was made for a model with other blocks"),
        ({"lora_unet_double_blocks_7_img_attn_qkv": (96, 32)}, "that the model .* lacks"),
        ({"lora_unet_double_blocks_0_img_attn_qkv": (9216, 3072)}, "does not fit the model .*qkv"),
        ({"transformer.transformer_blocks.0.attn.to_q": (48, 48)}, "does not fit the model"),
        ({"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k": (640, 2048)}, "it was made for SDXL, and this"),
        (
            {"lora_te3_encoder_block_0_layer_0_SelfAttention_q": (24, 24)},
            "lacks .* changes of a T5 text encoder are not",
        ),
        (
            {"lora_unet_double_blocks_0_img_attn_qkv": (96, 32), "double_blocks.0.img_attn.qkv": (96, 32)},
            "which are one module of",
        ),
        (
            {"lora_unet_double_blocks_0_img_attn_qkv": (96, 32), "transformer_blocks.0.attn.to_v": (32, 32)},
            "which are one module of",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    shapes: dict[str, tuple[int, ...]], said: str, folder: Path, tmp_path: Path
) -> None:
    file = lora_file(tmp_path / "x.safetensors", low_rank(shapes))
    with pytest.raises(SpecError, match=said) as error:
        describe(ModelSpec(name=str(folder), loras=[{"file": str(file)}]), tmp_path)
    assert "\n" not in str(error.value)


def test_there_are_no_blocks_to_weigh_apart(folder: Path, tmp_path: Path) -> None:
    file = lora_file(tmp_path / "x.safetensors", low_rank({"double_blocks.0.img_attn.qkv": (96, 32)}))
    for name in ("IN", "IN04", "OUT", "MID"):
        with pytest.raises(SpecError, match=rf"blocks: '{name}' is not in the model .*; it has BASE$"):
            describe(ModelSpec(name=str(folder), loras=[{"file": str(file), "blocks": {name: 0.5}}]), tmp_path)


def test_an_adapter_of_flux_does_not_fit_a_unet(tmp_path: Path) -> None:
    file = lora_file(tmp_path / "x.safetensors", low_rank({"lora_unet_single_blocks_0_linear1": (224, 32)}))
    with pytest.raises(SpecError, match="it was made for Flux"):
        describe(ModelSpec(name=str(EMBEDDED_MODELS["shapes"]), loras=[{"file": str(file)}]), tmp_path)


def test_a_pickled_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"PK")
    with pytest.raises(SpecError, match=r"pickled|\.safetensors"):
        describe(ModelSpec(name=str(folder), loras=[{"file": str(tmp_path / "x.bin")}]), tmp_path)


@pytest.mark.thorough
def test_the_first_layer_of_a_single_block_at_full_width(tmp_path: Path) -> None:
    """As diffusers reads it, which knows the widths of FLUX.1 alone: 3072 and 12288."""
    from diffusers import FluxTransformer2DModel

    from stages.adapters.applied import applied

    with torch.device("meta"):
        network = FluxTransformer2DModel(num_layers=0, num_single_layers=1)
    block = network.single_transformer_blocks[0]
    for module in (block.attn.to_q, block.attn.to_k, block.attn.to_v, block.proj_mlp):
        module.weight = torch.nn.Parameter(torch.zeros(module.weight.shape), requires_grad=False)
    file = lora_file(
        tmp_path / "x.safetensors", low_rank({"lora_unet_single_blocks_0_linear1": (21504, 3072)}, alpha=1.0)
    )
    networks = {"unet": ("FluxTransformer2DModel", dict(network.config))}
    merge("unet", network, applied(ModelSpec(loras=[{"file": str(file)}]).loras, tmp_path, "flux", networks))
    state = FluxLoraLoaderMixin.lora_state_dict(str(file))
    state = state[0] if isinstance(state, tuple) else state
    for name, module in {
        "attn.to_q": block.attn.to_q,
        "attn.to_v": block.attn.to_v,
        "proj_mlp": block.proj_mlp,
    }.items():
        before = f"transformer.single_transformer_blocks.0.{name}.lora_"
        wanted = state[f"{before}B.weight"] @ state[f"{before}A.weight"]
        torch.testing.assert_close(module.weight, wanted, atol=1e-6, rtol=1e-6)
