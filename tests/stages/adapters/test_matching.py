"""A file and a model: each module finds its place, or an error says which do not and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.adapters.kinds import FORMS, changed_weight
from stages.adapters.matching import match
from stages.adapters.read import AdapterFile, read_adapter
from stages.adapters.spellings import Target, targets
from stages.errors import SpecError
from stages.models.describe import describe, networks_of
from stages.models.networks import empty_network
from stages.models.weights import Header
from stages.spec import ModelSpec
from tests.adapter_files import KOHYA, PEFT, SHAPES, SHAPES_UNET, lora_file, low_rank
from tests.toys import sd_unet

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from torch import Tensor


Table = dict[str, Target]
SD1 = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
FLUX = "lora_unet_double_blocks_0_img_attn_qkv"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """The table of the embedded model."""
    info = describe(ModelSpec(), tmp_path_factory.mktemp("home"))
    return targets({part: empty_network(*network) for part, network in networks_of(info).items()})


@pytest.fixture(scope="module")
def sdxl(full_sdxl_unet: UNet2DConditionModel) -> Table:
    return targets({"unet": full_sdxl_unet})


def refused(path: Path, tensors: dict[str, Tensor], table: Table, metadata: dict[str, str] | None = None) -> str:
    file = read_adapter(lora_file(path / "grain.safetensors", tensors, metadata))
    with pytest.raises(SpecError) as error:
        match(file, table, "mine")
    said = str(error.value)
    assert said.startswith("lora: 'grain.safetensors' ")
    assert "'mine'" in said
    return said


def test_every_module_of_a_file_finds_its_place(table: Table, tmp_path: Path) -> None:
    found = match(read_adapter(lora_file(tmp_path / "a.safetensors")), table, "shapes")
    assert {target.module for target in found.groups} == {
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
        "down_blocks.0.resnets.0.conv1",
        "encoder.layers.1.mlp.fc1",
    }
    assert found.unmatched == ()


def test_a_module_that_the_model_lacks_is_named_and_may_be_left_out(table: Table, tmp_path: Path) -> None:
    others = {f"lora_unet_input_blocks_9_{n}_proj": (4, 4) for n in range(5)}
    tensors = low_rank({SHAPES_UNET: (96, 96), **others})
    said = refused(tmp_path, tensors, table)
    assert "5 of 6 modules that the model 'mine' lacks" in said
    assert "lora_unet_input_blocks_9_0_proj, lora_unet_input_blocks_9_1_proj" in said
    assert "and 2 more" in said
    file = read_adapter(tmp_path / "grain.safetensors")
    found = match(file, table, "mine", allow_unmatched=True)
    assert sorted(found.unmatched) == sorted(others)
    assert len(found.groups) == 1


def test_a_tensor_of_an_unknown_ending_is_named(table: Table, tmp_path: Path) -> None:
    said = refused(tmp_path, low_rank(SHAPES) | {f"{SHAPES_UNET}.strange": torch.zeros(1)}, table)
    assert f"1 of 4 modules that the model 'mine' lacks ({SHAPES_UNET}.strange)" in said
    assert "no tensors of an adapter's kinds" in said


def test_a_file_without_one_module_of_the_model_is_refused_whatever_is_allowed(table: Table, tmp_path: Path) -> None:
    file = read_adapter(lora_file(tmp_path / "a.safetensors", low_rank({FLUX: (4, 4)})))
    with pytest.raises(SpecError, match="has no module of the model 'mine'; it was made for Flux"):
        match(file, table, "mine", allow_unmatched=True)


@pytest.mark.parametrize(
    ("tensors", "metadata", "says"),
    [
        (
            low_rank({SD1: (320, 768)}),
            None,
            "it was made for Stable Diffusion 1 (rows of text of 768), and this model's have 2048",
        ),
        (low_rank({SD1: (320, 1024)}), None, "made for Stable Diffusion 2 (rows of text of 1024)"),
        (
            low_rank({SD1: (320, 512)}),
            {"ss_base_model_version": "sd_v1"},
            "made for Stable Diffusion 1 (rows of text of 512)",
        ),
        (low_rank({FLUX: (8, 8)}), None, "it was made for Flux, and this model is SDXL"),
        (low_rank({"transformer.blocks.0": (8, 8)}), None, "a transformer model"),
        (
            low_rank({"lora_unet_x": (8, 8)}),
            {"ss_base_model_version": "sd_v1"},
            "it was made for Stable Diffusion 1, and",
        ),
        (
            low_rank({"lora_unet_x": (8, 8)}),
            {"ss_base_model_version": "sdxl_base_v1-0"},
            "by a program that names them",
        ),
        (low_rank({"lora_unet_x": (8, 8)}), None, "a model with other blocks"),
        (low_rank({"down_blocks.0.motion_modules.0.x": (8, 8)}), None, "video model"),
    ],
)
def test_the_reason_is_the_family_by_shapes_then_by_metadata(
    tensors: dict[str, Tensor], metadata: dict[str, str] | None, says: str, sdxl: Table, tmp_path: Path
) -> None:
    assert says in refused(tmp_path, tensors, sdxl, metadata)


def test_an_adapter_of_sdxl_on_stable_diffusion_says_so(tmp_path: Path) -> None:
    tensors = low_rank({"lora_te2_text_model_encoder_layers_0_mlp_fc1": (5120, 1280)})
    assert "it was made for SDXL" in refused(tmp_path, tensors, targets({"unet": sd_unet("1.5")}))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (low_rank({SHAPES_UNET: (96, 64)}), "it makes 96x64 of a weight 96x96"),
        (low_rank({SHAPES_UNET: (64, 96)}), "it makes 64x96 of a weight 96x96"),
        (low_rank({SHAPES_UNET: (96, 768)}), "it was made for Stable Diffusion 1 (rows of text of 768)"),
        ({f"{SHAPES_UNET}.lora_down.weight": torch.zeros(2, 96)}, "lora_down without lora_up"),
        ({f"{SHAPES_UNET}.diff": torch.zeros(96, 97)}, "it makes 96x97 of a weight 96x96"),
        ({f"{SHAPES_UNET}.diff_b": torch.zeros(96)}, "attn2.to_k has no bias"),
        ({"lora_unet_conv_in.diff_b": torch.zeros(47)}, "it makes 47 of a weight 48"),
        (low_rank({SHAPES_UNET: (96, 96)}) | {f"{SHAPES_UNET}.dora_scale": torch.zeros(95, 1)}, "magnitudes 95x1"),
        ({f"{SHAPES_UNET}.hada_w1_a": torch.zeros(2, 2)}, "hada_w1_a without hada_w1_b"),
    ],
)
def test_a_change_that_does_not_fit_is_told_with_its_shapes(
    tensors: dict[str, Tensor], says: str, table: Table, tmp_path: Path
) -> None:
    said = refused(tmp_path, tensors, table)
    assert "does not fit the model 'mine': " in said
    assert says in said


def test_a_matrix_fits_a_kernel_of_one_tap_and_the_other_way(table: Table, tmp_path: Path) -> None:
    """Files for the same layers have either shape: proj_in is a convolution in one version of a UNet."""
    tensors = low_rank({SHAPES_UNET: (96, 96, 1, 1), "lora_unet_output_blocks_6_0_skip_connection": (48, 144)})
    assert len(match(read_adapter(lora_file(tmp_path / "a.safetensors", tensors)), table, "mine").groups) == 2


@settings(max_examples=60)
@given(st.data())
def test_whatever_the_shapes_are_a_module_fits_or_is_refused_in_words(data: st.DataObject) -> None:
    roles = data.draw(st.sampled_from([form.needs | form.may for form in FORMS]))
    roles |= data.draw(st.sets(st.sampled_from(["alpha", "dora_scale", "magnitude", "diff_b", "b_norm", "lora_bias"])))
    sides = st.lists(st.integers(0, 3), max_size=4)
    shapes = {role: () if role == "alpha" else tuple(data.draw(sides)) for role in sorted(roles)}
    tensors = {f"a.{role}": Header(shape, "F32") for role, shape in shapes.items()}
    file = AdapterFile(Path("a"), tensors, {}, {"a": {role: f"a.{role}" for role in roles}}, (), ())
    target = Target("unet", "a", data.draw(st.sampled_from([(3,), (3, 2), (3, 2, 1, 1), (3, 2, 3, 3)])), 3)
    refusal = None
    try:
        match(file, {"a": target}, "mine")
    except SpecError as error:
        refusal = str(error)
    if refusal is None:
        ones = {role: torch.ones(shape) for role, shape in shapes.items()}
        assert changed_weight(torch.ones(target.shape), ones, 1.0).shape == target.shape
    else:
        assert refusal.startswith("lora: 'a' ")
        assert "unpack" not in refusal, "no words of the interpreter"


def test_two_spellings_of_one_module_are_refused(table: Table, tmp_path: Path) -> None:
    path = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = low_rank({SHAPES_UNET: (96, 96)}, names=KOHYA) | low_rank({path: (96, 96)}, names=PEFT)
    said = refused(tmp_path, tensors, table)
    assert SHAPES_UNET in said
    assert path in said
    assert "are one module" in said
