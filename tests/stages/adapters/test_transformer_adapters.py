"""Adapters of the transformers beyond FLUX.1: what they make of the weights, against diffusers' own reading of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers.loaders import lora_pipeline

from stages.adapters.families import transformer_family
from stages.adapters.read import family_by_shapes, read_adapter
from stages.adapters.spellings import TRANSFORMERS, UNET, targets
from stages.errors import SpecError
from stages.models.describe import describe, networks_of
from stages.models.file_marks import describe_file
from stages.models.files.transformer_keys import transformer_name
from stages.models.files.transformer_names import LAYOUTS
from stages.models.load import Models
from stages.spec import ModelSpec
from tests.adapter_files import KOHYA, PEFT, lora_file, low_rank
from tests.flux2_folder import klein_folder
from tests.flux_files import original
from tests.qwen_folder import qwen_folder
from tests.sd3_folder import sd3_folder
from tests.toys import points
from tests.wan_folder import wan_folder
from tests.zimage_folder import zimage_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

CPU = torch.device("cpu")
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "sd3": sd3_folder,
    "qwen": qwen_folder,
    "z_image": zimage_folder,
    "flux2": klein_folder,
    "wan": wan_folder,
}
READERS: dict[str, Any] = {
    "sd3": lora_pipeline.SD3LoraLoaderMixin,
    "qwen": lora_pipeline.QwenImageLoraLoaderMixin,
    "z_image": lora_pipeline.ZImageLoraLoaderMixin,
    "flux2": lora_pipeline.Flux2LoraLoaderMixin,
    "wan": lora_pipeline.WanLoraLoaderMixin,
}
MODULES: dict[str, tuple[str, ...]] = {
    "sd3": (
        "transformer_blocks.1.attn.to_q",
        "transformer_blocks.0.attn.add_k_proj",
        "transformer_blocks.2.ff.net.0.proj",
        "transformer_blocks.0.norm1.linear",
        "transformer_blocks.3.norm1_context.linear",
        "context_embedder",
        "norm_out.linear",
    ),
    "qwen": (
        "transformer_blocks.1.attn.to_q",
        "transformer_blocks.0.attn.add_k_proj",
        "transformer_blocks.0.attn.to_out.0",
        "transformer_blocks.1.img_mlp.net.0.proj",
        "transformer_blocks.1.txt_mod.1",
        "img_in",
    ),
    "z_image": (
        "layers.1.attention.to_q",
        "layers.0.attention.to_out.0",
        "noise_refiner.0.feed_forward.w1",
        "context_refiner.1.attention.to_v",
        "layers.1.adaLN_modulation.0",
    ),
    "flux2": (
        "transformer_blocks.1.attn.to_q",
        "transformer_blocks.0.attn.add_k_proj",
        "transformer_blocks.0.ff.linear_in",
        "single_transformer_blocks.1.attn.to_qkv_mlp_proj",
        "single_transformer_blocks.0.attn.to_out",
        "x_embedder",
        "norm_out.linear",
    ),
    "wan": (
        "blocks.1.attn1.to_q",
        "blocks.0.attn2.to_out.0",
        "blocks.0.ffn.net.0.proj",
        "condition_embedder.time_proj",
        "proj_out",
    ),
}
"""Modules of diffusers."""
FUSED: dict[str, tuple[str, ...]] = {
    "sd3": ("joint_blocks.0.x_block.attn.qkv", "joint_blocks.1.context_block.attn.qkv",
            "joint_blocks.1.x_block.mlp.fc1", "joint_blocks.3.context_block.adaLN_modulation.1", "final_layer.linear"),
    "qwen": (),
    "z_image": ("layers.0.attention.qkv", "noise_refiner.1.attention.qkv", "layers.1.attention.out"),
    "flux2": ("double_blocks.0.img_attn.qkv", "double_blocks.1.txt_attn.qkv", "double_blocks.0.img_mlp.2",
              "single_blocks.1.linear1", "single_blocks.0.linear2", "final_layer.linear"),
    "wan": tuple(f"blocks.{n}.{name}" for n in range(2) for name in ("ffn.0", "ffn.2", *(
        f"{kind}_attn.{each}" for kind in ("self", "cross") for each in "qkvo"))),  # diffusers asks for them all
}  # fmt: skip
"""Modules of the authors' layout, some of which are several of diffusers'."""
READ_BY_DIFFUSERS: dict[str, tuple[str, ...]] = {
    "sd3": ("transformer.",),
    "qwen": ("transformer.", "diffusion_model.", "lora_unet_"),
    "z_image": ("transformer.", "diffusion_model.", "lora_unet_"),
    "flux2": ("transformer.", "diffusion_model."),
    "wan": ("transformer.", "diffusion_model.", "lora_unet_"),
}
"""What is before a module's name in the files that diffusers has a reader for."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Return the toy folder of a family and its transformer, each made once."""
    made: dict[str, tuple[Path, Any]] = {}

    def folder(family: str) -> tuple[Path, Any]:
        if family not in made:
            root = FOLDERS[family](tmp_path_factory.mktemp(family) / "model")
            made[family] = root, Models(describe(ModelSpec(name=str(root)), root.parent), "float32", CPU).unet
        return made[family]

    return folder


def merged(folder: Path, file: Path, home: Path, weight: float = 1.0) -> dict[str, Tensor]:
    info = describe(ModelSpec(name=str(folder), loras=[{"file": str(file), "weight": weight}]), home)
    found: dict[str, Tensor] = Models(info, "float32", CPU).unet.state_dict()
    return found


def by_diffusers(family: str, unet: Any, file: Path, weight: float) -> dict[str, Tensor]:
    """Return the weights with the changes that diffusers reads from a file: W + weight * scale * B A."""
    state = READERS[family].lora_state_dict(str(file))
    wanted = {name: each.clone() for name, each in unet.state_dict().items()}
    names = [name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight")]
    for name in names:
        down, up = (state[f"{name}.lora_{each}.weight"].double() for each in "AB")
        stored = f"{name.removeprefix('transformer.')}.weight"
        wanted[stored] = (wanted[stored].double() + weight * up @ down).float()
    return wanted


def spelled(before: str, name: str) -> str:
    return before + (name.replace(".", "_") if before.endswith("_") else name)


ASKED = [(family, before) for family, starts in READ_BY_DIFFUSERS.items() for before in starts]
KEPT = (("z_image", "lora_unet_"),)
OF_AUTHORS = (("flux2", "diffusion_model."), ("wan", "diffusion_model."), ("wan", "lora_unet_"))
"""Of these diffusers reads the authors' modules alone."""


@pytest.mark.parametrize("asked", points(ASKED, kept=lambda each: each in KEPT))
def test_a_merge_is_what_diffusers_makes_of_the_file(
    asked: tuple[str, str], folders: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    family, before = asked
    folder, unet = folders(family)
    table, names = targets({UNET: unet}), KOHYA if before == "lora_unet_" else PEFT
    own = FUSED if asked in OF_AUTHORS else MODULES
    modules = [spelled(before, name) for name in own[family]]
    alpha = 1.0 if names is KOHYA else None
    file = lora_file(
        tmp_path / "x.safetensors", low_rank({n: table[n].shape for n in modules}, alpha=alpha, names=names)
    )
    found, wanted = merged(folder, file, tmp_path, 0.7), by_diffusers(family, unet, file, 0.7)
    plain = unet.state_dict()
    changed = {name for name, each in wanted.items() if not torch.equal(each, plain[name])}
    assert len(changed) >= len(modules)
    assert {name for name, each in found.items() if not torch.equal(each, plain[name])} == changed
    for name, each in wanted.items():
        torch.testing.assert_close(found[name], each, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", points(("sd3", "z_image", "flux2"), kept=lambda name: name == "z_image"))
def test_one_module_of_the_authors_is_cut_up_for_those_of_diffusers(
    family: str, folders: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    """ComfyUI, kohya and PEFT: the change of the rows is that of a whole weight in the authors' layout."""
    folder, unet = folders(family)
    layout, config = LAYOUTS[type(unet).__name__], dict(unet.config)
    made: list[dict[str, Tensor]] = []
    table = targets({UNET: unet})
    for before in ("diffusion_model.", "lora_unet_", "base_model.model."):
        names = [spelled(before, name) for name in FUSED[family]]
        tensors = low_rank({n: table[n].shape for n in names}, names=KOHYA if before == "lora_unet_" else PEFT)
        made.append(merged(folder, lora_file(tmp_path / "x.safetensors", tensors), tmp_path))
    assert all(torch.equal(other[name], each) for other in made[1:] for name, each in made[0].items())
    plain = original(unet.state_dict(), layout, config)  # type: ignore[arg-type]
    found = original(made[0], layout, config)  # type: ignore[arg-type]
    for name, dotted in zip(names, FUSED[family], strict=True):
        up, down = (tensors[f"{name}.lora_{each}.weight"] for each in "BA")
        torch.testing.assert_close(
            found[f"{dotted}.weight"], plain[f"{dotted}.weight"] + up @ down, atol=1e-6, rtol=1e-5
        )
    assert {name for name, each in found.items() if not torch.equal(each, plain[name])} == {
        f"{dotted}.weight" for dotted in FUSED[family]
    }


@pytest.mark.thorough
@pytest.mark.parametrize("family", FOLDERS)
def test_every_module_is_spelled_in_both_layouts(family: str, folders: Callable[[str], tuple[Path, Any]]) -> None:
    _, unet = folders(family)
    table, layout = targets({UNET: unet}), LAYOUTS.get(type(unet).__name__)
    for path, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear):
            names = [f"transformer.{path}", f"lora_unet_{path.replace('.', '_')}", f"diffusion_model.{path}"]
            if layout is not None:
                other = transformer_name(layout, path)
                names += [f"diffusion_model.{other}", f"lora_unet_{other.replace('.', '_')}"]
            assert all(path in table[name].modules for name in names)


@pytest.mark.thorough
def test_text_encoders_of_stable_diffusion_3_are_changed_as_well(
    folders: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    folder, _ = folders("sd3")
    shapes = {"lora_te1_text_model_encoder_layers_1_mlp_fc1": (32, 8), "text_encoder_2.text_projection": (12, 12)}
    file = lora_file(tmp_path / "x.safetensors", low_rank(shapes))
    plain, info = (describe(ModelSpec(name=str(folder), loras=each), tmp_path) for each in ([], [{"file": str(file)}]))
    assert {part for part in plain.fingerprints if plain.fingerprints[part] != info.fingerprints[part]} == {"text"}
    for part, name in (
        ("text_encoder", "text_model.encoder.layers.1.mlp.fc1.weight"),
        ("text_encoder_2", "text_projection.weight"),
    ):
        one, other = (Models(each, "float32", CPU).text_encoder(part).state_dict() for each in (plain, info))
        assert [key for key, each in one.items() if not torch.equal(each, other[key])] == [name]
    assert {part: kind for part, (kind, _) in networks_of(plain).items()} == {
        "unet": "SD3Transformer2DModel",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
    }


MADE_FOR = {
    "Flux": {"lora_unet_double_blocks_0_img_attn_qkv": (9216, 3072),
             "lora_unet_single_blocks_0_linear1": (21504, 3072)},
    "FLUX.2": {"diffusion_model.double_blocks.0.img_attn.qkv": (9216, 3072),
               "diffusion_model.single_blocks.0.linear1": (27648, 3072)},
    "Stable Diffusion 3": {"transformer.transformer_blocks.0.attn.to_q": (1536, 1536)},
    "Qwen-Image": {"transformer_blocks.0.attn.to_q": (3072, 3072),
                   "transformer_blocks.0.img_mlp.net.2": (3072, 12288)},
    "Z-Image": {"diffusion_model.layers.0.feed_forward.w2": (3840, 10240),
                "lora_unet_layers_0_attention_qkv": (11520, 3840)},
    "Lumina 2": {"diffusion_model.layers.0.attention.qkv": (4608, 2304)},
    "Wan or a kin of it": {"diffusion_model.blocks.0.self_attn.q": (1536, 1536),
                           "transformer.blocks.0.attn1.to_q": (1536, 1536)},
    "HunyuanVideo": {"transformer.double_blocks.0.img_attn_qkv": (9216, 3072)},
    "LTX-Video or PixArt": {"diffusion_model.transformer_blocks.0.attn1.to_q": (2048, 2048)},
}  # fmt: skip
"""Modules of files of each family, as people have them."""


@pytest.mark.parametrize("name", MADE_FOR)
def test_the_family_that_names_and_shapes_say(name: str, tmp_path: Path) -> None:
    path = lora_file(tmp_path / "x.safetensors", low_rank(MADE_FOR[name]))
    file = read_adapter(path)
    assert family_by_shapes(file) == transformer_family(file.groups, file.shapes) == describe_file(path).family == name


def test_an_adapter_of_another_family_is_refused_by_its_name(
    folders: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    folder, unet = folders("z_image")
    for name, shapes in MADE_FOR.items():
        file = lora_file(tmp_path / "x.safetensors", low_rank(shapes))
        own = TRANSFORMERS[type(unet).__name__]
        said = "does not fit the model" if name == own else f"it was made for {name}, and this model is {own}"
        with pytest.raises(SpecError, match=said) as error:
            describe(ModelSpec(name=str(folder), loras=[{"file": str(file)}]), tmp_path)
        assert "\n" not in str(error.value)
