"""Name maps: against the converters of diffusers, there and back, and for modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils

from stages.models.files.keys import diffusers_names, original_name, unpacked, unpacked_shape
from stages.models.folder import EMBEDDED
from tests.checkpoints import network, packed, tensors_of
from tests.toys import sd_unet

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}


def config_of(module: Any) -> dict[str, Any]:
    config = module.config
    return dict(config) if isinstance(config, dict) else config.to_dict()


def there_and_back(layout: Any, module: Any) -> None:
    tensors, config = tensors_of(module), config_of(module)
    original = packed(layout, config, tensors)
    names = diffusers_names(layout, config, tensors)
    assert set(names) == set(original)
    for given, wanted in names.items():
        for name in wanted:
            found = unpacked(layout, config, name, original[given])
            assert torch.equal(found, tensors[name])
            assert unpacked_shape(layout, config, name, tuple(original[given].shape)) == tuple(found.shape)


@pytest.mark.parametrize(
    ("layout", "part", "which"),
    [
        ("unet", "unet", "xl"),
        ("unet", "unet", "sd"),
        ("vae", "vae", "xl"),
        ("clip", "text_encoder", "xl"),
        ("open_clip", "text_encoder", "xl"),
        ("open_clip", "text_encoder_2", "xl"),
    ],
)
def test_tensors_are_the_same_after_the_way_there_and_back(layout: Any, part: str, which: str) -> None:
    there_and_back(layout, network(part, which))


@pytest.mark.parametrize("part", ["unet", "vae"])
@pytest.mark.parametrize("which", ["xl", "sd", "2.1"])
def test_diffusers_reads_what_the_map_writes(part: str, which: str) -> None:
    module = sd_unet(which) if which == "2.1" and part == "unet" else network(part, which)
    tensors, config = tensors_of(module), config_of(module)
    original = {PREFIXES[part] + name: tensor for name, tensor in packed(part, config, tensors).items()}
    convert = getattr(single_file_utils, f"convert_ldm_{part}_checkpoint")
    read = convert(dict(original), config)
    assert {name: tuple(each.shape) for name, each in read.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_diffusers_reads_the_open_clip_that_the_map_writes() -> None:
    module = network("text_encoder_2")
    tensors = tensors_of(module)
    prefix = "conditioner.embedders.1.model."
    original = {prefix + name: tensor for name, tensor in packed("open_clip", {}, tensors).items()}
    read = single_file_utils.convert_open_clip_checkpoint(module, original, prefix=prefix)
    assert set(read) == set(tensors)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_the_embedded_model_goes_there_and_back() -> None:
    from safetensors.torch import load_file

    from stages.models.fields import read_json

    for layout, part, file in (
        ("unet", "unet", "diffusion_pytorch_model"),
        ("vae", "vae", "diffusion_pytorch_model"),
        ("open_clip", "text_encoder_2", "model"),
    ):
        config = read_json(EMBEDDED / part / "config.json")
        tensors = load_file(EMBEDDED / part / f"{file}.safetensors")
        original = packed(layout, config, tensors)  # type: ignore[arg-type]
        for given, names in diffusers_names(layout, config, tensors).items():  # type: ignore[arg-type]
            assert all(torch.equal(unpacked(layout, config, name, original[given]), tensors[name]) for name in names)  # type: ignore[arg-type]


def test_full_sizes_have_the_counts_of_published_files(full_sdxl_unet: Any, full_sd_unet: Any) -> None:
    for unet, count, samples in (
        (
            full_sdxl_unet,
            1680,
            {"input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight", "output_blocks.5.2.conv.bias"},
        ),
        (full_sd_unet, 686, {"output_blocks.2.1.conv.weight", "output_blocks.11.1.transformer_blocks.0.norm1.bias"}),
    ):
        names = diffusers_names("unet", config_of(unet), unet.state_dict())
        assert len(names) == count
        assert samples <= set(names)


MODULES = """
unet down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q input_blocks.4.1.transformer_blocks.0.attn1.to_q
unet down_blocks.0.resnets.1.conv1 input_blocks.2.0.in_layers.2
unet down_blocks.0.downsamplers.0.conv input_blocks.3.0.op
unet up_blocks.2.resnets.2.conv_shortcut output_blocks.8.0.skip_connection
unet up_blocks.0.upsamplers.0.conv output_blocks.2.2.conv
unet mid_block.resnets.1.time_emb_proj middle_block.2.emb_layers.1
unet mid_block.attentions.0.proj_in middle_block.1.proj_in
unet mid_block.resnets.1 middle_block.2
unet add_embedding.linear_2 label_emb.0.2
vae decoder.up_blocks.0.resnets.2.conv2 decoder.up.3.block.2.conv2
vae encoder.mid_block.attentions.0.to_out.0 encoder.mid.attn_1.proj_out
open_clip text_model.encoder.layers.3.mlp.fc1 transformer.resblocks.3.mlp.c_fc
open_clip text_model.encoder.layers.3.self_attn.q_proj.weight transformer.resblocks.3.attn.in_proj_weight
open_clip text_projection text_projection
"""


@pytest.mark.parametrize("line", MODULES.strip().splitlines())
def test_modules_have_names_too(line: str, full_sdxl_unet: Any) -> None:
    layout, name, original = line.split()
    config = {"unet": config_of(full_sdxl_unet), "vae": {"block_out_channels": (1, 1, 1, 1)}}.get(layout, {})
    assert original_name(layout, config, name) == original  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["unet", "vae", "open_clip"])
def test_a_name_without_a_counterpart_is_a_key_error(layout: Any) -> None:
    with pytest.raises(KeyError, match="sideways"):
        original_name(layout, {"layers_per_block": 2, "block_out_channels": (1,)}, "sideways.weight")
