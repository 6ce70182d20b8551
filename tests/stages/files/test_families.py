"""Every family and every file that is none, told by a header alone."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest

from stages.errors import SpecError
from stages.models.files.header import read_header
from stages.models.files.probe import probe
from stages.models.folder import describe
from stages.models.networks import empty_network
from stages.plan import make_plan
from stages.planner.estimate import estimate
from stages.spec import ModelSpec, RunOptions, make_spec
from tests.checkpoints import PUBLISHED, full_network, full_shapes, write_header

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = ("Stable Diffusion 1.x", "Stable Diffusion 2.x", "SDXL")


def probed(path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Any:
    return probe(read_header(write_header(path, shapes, metadata), is_whole=False))


def refused(path: Path, shapes: dict[str, tuple[int, ...]]) -> str:
    with pytest.raises(SpecError) as error:
        probed(path, shapes)
    return str(error.value)


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.thorough] if f != "SDXL" else []) for f in PUBLISHED],
)
def test_a_unet_is_configured_as_it_was_published(family: str, tmp_path: Path) -> None:
    """Its network has the names and shapes of the published one, and its heads."""
    info = probed(tmp_path / "x.safetensors", full_shapes(family, "unet"))
    assert info.member == family
    assert info.family == (family if family in WHOLE else "SDXL")
    made, published = empty_network("UNet2DConditionModel", info.parts["unet"].config), full_network("unet", family)
    assert {n: t.shape for n, t in made.state_dict().items()} == {n: t.shape for n, t in published.state_dict().items()}
    heads = [[m.heads for m in each.modules() if hasattr(m, "heads")] for each in (made, published)]
    assert heads[0] == heads[1]


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=[pytest.mark.thorough] if f != "SDXL" else []) for f in WHOLE]
)
def test_a_header_suffices_for_a_plan(family: str, tmp_path: Path) -> None:
    file = write_header(tmp_path / "model.safetensors", full_shapes(family))
    info = describe(ModelSpec(name=str(file)), tmp_path / "home", has_weights=False)
    side = {"SDXL": 1024}.get(family, 512)
    assert info.native == (side, side)
    assert info.cell == 8
    assert info.size_ids == (family == "SDXL")
    factor = 0.13025 if family == "SDXL" else 0.18215
    assert info.configs["vae"]["scaling_factor"] == factor
    plan = make_plan(
        make_spec({"prompt": "a", "width": 2 * side, "height": 2 * side, "model": {"name": str(file)}}), info
    )
    text = estimate(plan.calls[0], info, RunOptions())
    parameters = {"SDXL": 817.7, "Stable Diffusion 1.x": 123.1, "Stable Diffusion 2.x": 340.4}[family]
    assert text.weights == pytest.approx(4e6 * parameters, rel=0.01)
    layers = {"SDXL": 12, "Stable Diffusion 1.x": 12, "Stable Diffusion 2.x": 23}[family]
    assert info.configs["text_encoder"]["num_hidden_layers"] == layers


def test_the_counts_are_those_of_a_published_file() -> None:
    assert len(full_shapes("SDXL")) == 2514 - 1  # no logit_scale, and no position_ids
    assert len(full_shapes("SDXL", "unet")) == 1680


XL = ("SDXL", "unet")


@pytest.mark.parametrize(
    ("metadata", "extra", "prediction", "native"),
    [
        ({}, {}, None, 1024),
        ({}, {"v_pred": (0,)}, "v_prediction", 1024),
        ({}, {"v_pred": (0,), "ztsnr": (0,)}, "v_prediction", 1024),
        ({"modelspec.prediction_type": "v"}, {}, "v_prediction", 1024),
        ({"modelspec.prediction_type": "epsilon"}, {}, "epsilon", 1024),
        ({"modelspec.resolution": "768x768"}, {}, None, 768),
        ({"modelspec.resolution": "nonsense"}, {}, None, 1024),
    ],
)
def test_what_a_header_says_is_told_with_its_reason(
    metadata: dict[str, str], extra: dict[str, Any], prediction: str | None, native: int, tmp_path: Path
) -> None:
    info = probed(tmp_path / "x.safetensors", full_shapes(*XL) | extra, metadata)
    assert (info.prediction, info.native, info.ztsnr) == (prediction, (native, native), "ztsnr" in extra)
    assert info.marks == tuple(extra)
    assert info.dtype == "F16"
    said = " ".join(info.why)
    assert "text of width 2048" in said
    assert all(name in said for name in (*extra, *(m for m in metadata if metadata[m] != "nonsense")))


def test_stable_diffusion_2_is_768_where_it_predicts_v(tmp_path: Path) -> None:
    said = {"modelspec.architecture": "stable-diffusion-v2-768-v"}
    info = probed(tmp_path / "x.safetensors", full_shapes("Stable Diffusion 2.x", "unet"), said)
    assert (info.native, info.prediction) == ((768, 768), "v_prediction")


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_a_unet_without_its_prefix_is_the_same(prefix: str, tmp_path: Path) -> None:
    shapes = {prefix + n.removeprefix("model.diffusion_model."): s for n, s in full_shapes(*XL).items()}
    assert probed(tmp_path / "x.safetensors", shapes).parts["unet"].prefix == prefix


@pytest.mark.parametrize("family", ["SDXL", "SSD-1B", "Stable Diffusion 1.x"])
def test_a_unet_in_diffusers_names_has_the_same_configuration(family: str, tmp_path: Path) -> None:
    shapes = {name: tuple(each.shape) for name, each in full_network("unet", family).state_dict().items()}
    found = probed(tmp_path / "x.safetensors", shapes).parts["unet"]
    assert found.config == probed(tmp_path / "y.safetensors", full_shapes(family, "unet")).parts["unet"].config
    assert found.layout == "diffusers"


def changed(**shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return full_shapes(*XL) | {name.replace("__", "."): shape for name, shape in shapes.items()}


FIRST, LABEL = "model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({FIRST: (320, 9, 3, 3)}, "is an inpainting model: its UNet has 9 input channels"),
        ({FIRST: (320, 8, 3, 3)}, "is an InstructPix2Pix model"),
        ({FIRST: (320, 5, 3, 3)}, "is a depth-to-image model"),
        ({FIRST: (320, 7, 3, 3)}, "is an upscaling model"),
        ({"edm_mean": (4,), "edm_std": (4,)}, "is Playground v2.5"),
        ({"edm_vpred.sigma_max": (1,)}, "is CosXL"),
        ({LABEL: (1280, 2560)}, "is of no family that is known: its UNet reads text of width 2048"),
        ({"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}, "is a ControlNet"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_its_name(extra: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path / "x.safetensors", full_shapes(*XL) | extra)


def test_the_refiner_is_refused_by_its_name(tmp_path: Path) -> None:
    narrow = {n: (s[0], 1280) if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) else s
              for n, s in full_shapes(*XL).items()}  # fmt: skip
    assert "SDXL's refiner" in refused(tmp_path / "x.safetensors", narrow | {LABEL: (1536, 2560)})


OTHERS = """
a LoRA = lora_unet_input_blocks_4_1_proj_in.lora_down.weight
a LoRA = unet.down_blocks.0.attentions.0.to_q.lora_A.weight
a LoRA = lora_te1_text_model_encoder_layers_0_mlp_fc1.hada_w1_a
an IP-Adapter = image_proj.proj.weight ip_adapter.1.to_k_ip.weight
a ControlNet = controlnet_cond_embedding.conv_in.weight down_blocks.0.resnets.0.conv1.weight conv_in.weight
a ControlNet = zero_convs.0.0.weight input_hint_block.0.weight input_blocks.0.0.weight
a ControlNet = lora_controlnet input_hint_block.0.weight
a T2I-Adapter = adapter.body.0.in_conv.weight
a textual inversion = emb_params
a textual inversion = clip_l clip_g
AnimateDiff's motion modules = down_blocks.0.motion_modules.0.temporal_transformer.norm.weight
Stable Video Diffusion = model.diffusion_model.x.time_stack.0.weight
FLUX.1 = double_blocks.0.img_attn.qkv.weight
FLUX.1 = model.diffusion_model.double_blocks.0.img_attn.qkv.weight
FLUX.1 = transformer_blocks.0.attn.to_q.weight single_transformer_blocks.0.proj_mlp.weight
Stable Diffusion 3 = model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight
AuraFlow = double_layers.0.attn.w1q.weight
PixArt = adaln_single.linear.weight
Lumina 2 = noise_refiner.0.attention.qkv.weight
Stable Cascade = clip_txt_mapper.weight
a transformer = transformer_blocks.0.attn.to_q.weight
Wan = patch_embedding.weight blocks.0.cross_attn.q.weight
a T5 text encoder = encoder.block.0.layer.0.SelfAttention.q.weight shared.weight
an image encoder = vision_model.embeddings.class_embedding
an upscaler = model.1.sub.0.RDB1.conv1.0.weight
a VAE = encoder.conv_in.weight decoder.conv_in.weight
a VAE = first_stage_model.decoder.conv_in.weight
a text encoder = text_model.encoder.layers.0.mlp.fc1.weight
a text encoder = transformer.resblocks.0.mlp.c_fc.weight
holds no UNet that is known (1 tensors, such as weight) = weight
"""


@pytest.mark.parametrize("line", OTHERS.strip().splitlines())
def test_a_file_that_is_no_model_is_told_by_its_name(line: str, tmp_path: Path) -> None:
    said, names = line.split(" = ")
    assert said in refused(tmp_path / "x.safetensors", dict.fromkeys(names.split(), (2, 2)))


def test_text_encoders_of_old_files_and_in_files_of_their_own_are_found(tmp_path: Path) -> None:
    """Stable Diffusion's first files have no `text_model.`; ComfyUI keeps each encoder in a file of its own."""
    old = {name.replace(".text_model.", "."): shape for name, shape in full_shapes("Stable Diffusion 1.x").items()}
    file = write_header(tmp_path / "old.safetensors", old)
    info = describe(ModelSpec(name=str(file)), tmp_path / "home", has_weights=False)
    assert info.networks["text_encoder"].prefix == "cond_stage_model.transformer."
    whole, folder = full_shapes("SDXL"), tmp_path / "clip"
    folder.mkdir()
    for name, prefix in (
        ("clip_l", "conditioner.embedders.0.transformer."),
        ("clip_g", "conditioner.embedders.1.model."),
    ):
        own = {n.removeprefix(prefix): s for n, s in whole.items() if n.startswith(prefix)}
        write_header(folder / f"{name}.safetensors", own)
    rest = write_header(tmp_path / "x.safetensors", {n: s for n, s in whole.items() if "conditioner" not in n})
    spec = ModelSpec(name=str(rest), text_encoders=str(folder))
    found = describe(spec, tmp_path / "home", has_weights=False).networks
    assert found["text_encoder"].path.name == "clip_l.safetensors"
    assert found["text_encoder_2"].path.name == "clip_g.safetensors"


def test_a_vae_or_text_encoders_of_another_family_are_refused(tmp_path: Path) -> None:
    sd, whole = full_shapes("Stable Diffusion 2.x"), tmp_path / "sd.safetensors"
    write_header(whole, sd)
    sixteen = {n.removeprefix("first_stage_model."): s for n, s in sd.items() if n.startswith("first_stage_model.")}
    sixteen |= {"decoder.conv_in.weight": (512, 16, 3, 3), "encoder.conv_out.weight": (32, 512, 3, 3),
                "encoder.conv_out.bias": (32,), "quant_conv.weight": (32, 32, 1, 1), "quant_conv.bias": (32,),
                "post_quant_conv.weight": (16, 16, 1, 1), "post_quant_conv.bias": (16,)}  # fmt: skip
    vae = write_header(tmp_path / "flux-vae.safetensors", sixteen)
    with pytest.raises(SpecError, match="has latents of 16 channels, and the UNet takes 4"):
        describe(ModelSpec(name=str(whole), vae=str(vae)), tmp_path / "home", has_weights=False)
    xl = write_header(tmp_path / "xl.safetensors", full_shapes("SDXL"))
    with pytest.raises(SpecError, match=r"xl\.safetensors has no text encoder for it"):
        describe(ModelSpec(name=str(whole), text_encoders=str(xl)), tmp_path / "home", has_weights=False)


def test_what_is_known_of_a_model_travels_to_other_processes(tmp_path: Path) -> None:
    file = write_header(tmp_path / "x.safetensors", full_shapes("Stable Diffusion 1.x"))
    info = describe(ModelSpec(name=str(file)), tmp_path / "home", has_weights=False)
    assert pickle.loads(pickle.dumps(info)) == info


@pytest.mark.parametrize("cut", range(3))
def test_a_unet_that_lacks_what_tells_its_levels_is_refused(cut: int, tmp_path: Path) -> None:
    gone = (".0.op.weight", "input_blocks.1.0.out_layers.3.weight", "out.2.weight")[cut]
    shapes = {name: shape for name, shape in full_shapes(*XL).items() if not name.endswith(gone)}
    assert "holds a network that is not known" in refused(tmp_path / "x.safetensors", shapes)
