"""Every way in which files write the name of a module leads to that module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stages.adapters.spellings import is_of_text, spellings, targets
from stages.models.networks import empty_network
from tests.toys import sd_unet

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from stages.adapters.spellings import Target

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUTPUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
LAYER = "encoder.layers.3.self_attn.q_proj"


@pytest.fixture(scope="module")
def table(full_sdxl_unet: UNet2DConditionModel) -> dict[str, Target]:
    """The table of SDXL at full size."""
    texts = {
        "text_encoder": empty_network("CLIPTextModel", CLIP_L),
        "text_encoder_2": empty_network("CLIPTextModelWithProjection", CLIP_G | {"projection_dim": 1280}),
    }
    return targets({"unet": full_sdxl_unet, **texts})


@pytest.mark.parametrize(
    ("name", "part", "module"),
    [
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", "unet", QUERY),
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", "unet", QUERY),
        ("lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", "unet", QUERY),
        (f"unet.{QUERY}", "unet", QUERY),
        (QUERY, "unet", QUERY),
        (f"base_model.model.{QUERY}", "unet", QUERY),
        (f"unet.base_model.model.{QUERY}", "unet", QUERY),
        (f"unet.{OUTPUT}", "unet", OUTPUT),
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out", "unet", OUTPUT),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_q", "unet", QUERY),
        ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q", "unet", QUERY),
        ("lora_unet_input_blocks_1_0_in_layers_2", "unet", "down_blocks.0.resnets.0.conv1"),
        ("lora_unet_input_blocks_3_0_op", "unet", "down_blocks.0.downsamplers.0.conv"),
        ("lora_unet_output_blocks_2_2_conv", "unet", "up_blocks.0.upsamplers.0.conv"),
        ("lora_unet_output_blocks_8_0_skip_connection", "unet", "up_blocks.2.resnets.2.conv_shortcut"),
        ("lora_unet_middle_block_1_proj_in", "unet", "mid_block.attentions.0.proj_in"),
        ("lora_unet_add_embedding_linear_1", "unet", "add_embedding.linear_1"),
        ("lora_unet_add_embedding_linear_2", "unet", "add_embedding.linear_2"),
        ("lora_unet_label_emb_0_2", "unet", "add_embedding.linear_2"),
        ("lora_unet_time_embedding_linear_1", "unet", "time_embedding.linear_1"),
        ("lora_unet_time_embed_0", "unet", "time_embedding.linear_1"),
        ("lora_unet_conv_in", "unet", "conv_in"),
        ("lora_unet_input_blocks_0_0", "unet", "conv_in"),
        ("lora_unet_out_2", "unet", "conv_out"),
        ("lora_unet_out_0", "unet", "conv_norm_out"),
        ("lora_te1_text_model_encoder_layers_3_self_attn_q_proj", "text_encoder", LAYER),
        ("lora_te_text_model_encoder_layers_3_self_attn_q_proj", "text_encoder", LAYER),
        ("text_encoder.text_model.encoder.layers.3.self_attn.q_proj", "text_encoder", LAYER),
        ("text_encoder.encoder.layers.3.self_attn.q_proj", "text_encoder", LAYER),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj", "text_encoder", LAYER),
        ("lora_te2_text_model_encoder_layers_3_self_attn_q_proj", "text_encoder_2", f"text_model.{LAYER}"),
        ("text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj", "text_encoder_2", f"text_model.{LAYER}"),
        ("clip_g.transformer.text_model.encoder.layers.3.self_attn.q_proj", "text_encoder_2", f"text_model.{LAYER}"),
        ("lora_te2_text_projection", "text_encoder_2", "text_projection"),
        ("text_encoder_2.text_projection", "text_encoder_2", "text_projection"),
        (
            "text_encoders.clip_l.transformer.text_model.encoder.layers.3.layer_norm1",
            "text_encoder",
            "encoder.layers.3.layer_norm1",
        ),
        (
            "text_encoders.clip_g.transformer.text_model.embeddings.token_embedding",
            "text_encoder_2",
            "text_model.embeddings.token_embedding",
        ),
    ],
)
def test_a_spelling_of_sdxl(name: str, part: str, module: str, table: dict[str, Target]) -> None:
    assert (table[name].part, table[name].module) == (part, module)
    assert is_of_text(name) == (part != "unet")


def test_all_modules_of_sdxl_have_spellings_and_no_two_share_one(table: dict[str, Target]) -> None:
    """Of 794 layers with matrices or kernels in the UNet and 269 of the text encoders; the rest are norms."""
    modules = {(target.part, target.module): target for target in table.values()}
    matrices = [target for target in modules.values() if len(target.shape) > 1]
    assert sum(target.part == "unet" for target in matrices) == 794
    assert sum(target.part != "unet" for target in matrices) == 12 * 6 + 32 * 6 + 1 + 4  # and embeddings
    for name, target in table.items():
        assert is_of_text(name) == (target.part != "unet"), name


@pytest.mark.parametrize("version", ["1.5", "2.1"])
def test_stable_diffusion_is_spelled_by_diffusers_and_by_the_original(version: str) -> None:
    table = targets({"unet": sd_unet(version)})
    for name, module in {
        "lora_unet_down_blocks_0_attentions_1_proj_in": "down_blocks.0.attentions.1.proj_in",
        "lora_unet_input_blocks_2_1_proj_in": "down_blocks.0.attentions.1.proj_in",
        "lora_unet_up_blocks_0_upsamplers_0_conv": "up_blocks.0.upsamplers.0.conv",
        "lora_unet_output_blocks_2_1_conv": "up_blocks.0.upsamplers.0.conv",
        "lora_unet_output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
    }.items():
        assert table[name].module == module


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("lora_unet_conv_in", "IN00"),
        ("lora_unet_input_blocks_4_1_proj_in", "IN04"),
        ("lora_unet_input_blocks_6_0_op", "IN06"),
        ("lora_unet_middle_block_0_in_layers_2", "MID"),
        ("lora_unet_output_blocks_0_1_proj_in", "OUT00"),
        ("lora_unet_output_blocks_8_0_in_layers_2", "OUT08"),
        ("lora_unet_out_2", "BASE"),
        ("lora_unet_time_embed_0", "BASE"),
        ("lora_unet_label_emb_0_0", "BASE"),
        ("lora_te1_text_model_encoder_layers_3_self_attn_q_proj", "BASE"),
    ],
)
def test_blocks_have_the_numbers_of_the_original_layout(name: str, block: str, table: dict[str, Target]) -> None:
    assert table[name].block == block


def test_a_module_has_its_shape_and_the_length_of_its_bias(table: dict[str, Target]) -> None:
    assert (table["lora_unet_conv_in"].shape, table["lora_unet_conv_in"].bias) == ((320, 4, 3, 3), 320)
    assert (table[QUERY].shape, table[QUERY].bias) == ((640, 640), None)


def test_a_module_that_the_original_layout_lacks_is_spelled_by_diffusers_alone() -> None:
    assert list(spellings("unet", "conv_in")) == [
        "lora_unet_conv_in",
        "lycoris_conv_in",
        "conv_in",
        "unet.conv_in",
        "base_model.model.conv_in",
        "unet.base_model.model.conv_in",
        "diffusion_model.conv_in",
    ]
