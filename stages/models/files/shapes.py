"""The configuration of each network from the shapes of its tensors in the original layout.

What shapes do not say, such as the heads of attention, comes from the family (`families.py`). Raises `Misshapen` where
the tensors do not lie as those of such a network do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stages.models.files.keys import original_name

if TYPE_CHECKING:
    from stages.models.files.families import Family, TextFamily

Shapes = Mapping[str, tuple[int, ...]]  # of one network, by names without a prefix


class Misshapen(ValueError):
    """Tensors that are those of no network that is known; the message says which."""


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise Misshapen(f"it has no {name}")
    return shapes[name]


def _count(shapes: Shapes, pattern: str) -> int:
    """Return how many numbers stand at the group of a pattern that begins a name."""
    found = {match[1] for name in shapes if (match := re.match(pattern, name))}
    return len(found)


def text_width(shapes: Shapes) -> int | None:
    """Return the width of the rows of text that a UNet reads; None where it reads none."""
    return next((each[1] for name, each in shapes.items() if name.endswith("attn2.to_k.weight")), None)


def vector_width(shapes: Shapes) -> int | None:
    """Return the width of the vector that goes into a UNet beside the timestep; None where there is none."""
    found = shapes.get("label_emb.0.0.weight")
    return None if found is None else found[1]


def as_original(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a UNet in diffusers' names by the original names. Raises `Misshapen`."""
    blocks = _count(shapes, r"up_blocks\.(\d+)\.")
    with_text = {int(match[1]) for name in shapes if (match := re.match(r"up_blocks\.(\d+)\.attentions\.", name))}
    config = {
        "layers_per_block": _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        "up_block_types": ["CrossAttnUpBlock2D" if block in with_text else "UpBlock2D" for block in range(blocks)],
    }
    try:
        return {original_name("unet", config, name): shape for name, shape in shapes.items()}
    except (KeyError, IndexError) as error:
        raise Misshapen(f"its tensor {error} is that of no Stable Diffusion UNet") from None


def unet_config(shapes: Shapes, family: Family) -> dict[str, Any]:
    """Return the configuration of a UNet from its shapes in the original layout."""
    layers, levels = _levels(shapes)
    widths = [_shape(shapes, f"input_blocks.{1 + b * (layers + 1)}.0.out_layers.3.weight")[0] for b in range(levels)]
    down = [[_depth(shapes, f"input_blocks.{1 + b * (layers + 1) + r}") for r in range(layers)] for b in range(levels)]
    up = [[_depth(shapes, f"output_blocks.{b * (layers + 1) + r}") for r in range(layers + 1)] for b in range(levels)]
    middle = _depth(shapes, "middle_block") if "middle_block.1.norm.weight" in shapes else 0
    for block in (*down, *up):
        if 0 in block and any(block):
            raise Misshapen("one of its levels has attention in some of its layers alone")
    depths: list[Any] = [_together(block) or 1 for block in down]
    if not down[-1][-1] and middle:
        depths[-1] = middle
    mirrored = [[depth] * (layers + 1) if isinstance(depth, int) else None for depth in reversed(depths)]
    reversed_too = all(block == like or not any(block) for block, like in zip(up, mirrored, strict=True))
    if middle and depths[-1] != middle:
        raise Misshapen(f"its middle has {middle} transformer blocks, and its last level {depths[-1]}")
    projections = [len(each) for name, each in shapes.items() if name.endswith(".proj_in.weight")]
    return {
        **family.unet,
        **_vector(shapes, family),
        "sample_size": family.native // 8,
        "in_channels": _shape(shapes, "input_blocks.0.0.weight")[1],
        "out_channels": _shape(shapes, "out.2.weight")[0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if any(block) else "DownBlock2D" for block in down],
        "up_block_types": ["CrossAttnUpBlock2D" if any(block) else "UpBlock2D" for block in up],
        "mid_block_type": _middle(shapes, middle),
        "transformer_layers_per_block": depths,
        "reverse_transformer_layers_per_block": None if reversed_too else [_together(block) or 1 for block in up],
        "cross_attention_dim": text_width(shapes),
        "attention_head_dim": [family.heads_of(width) for width in widths],
        "use_linear_projection": 2 in projections,
    }


def _levels(shapes: Shapes) -> tuple[int, int]:
    """Return the layers of a level and the number of levels, by where the downsamplers are."""
    found = sorted(int(m[1]) for name in shapes if (m := re.fullmatch(r"input_blocks\.(\d+)\.0\.op\.weight", name)))
    if not found:
        raise Misshapen("it has no input_blocks.3.0.op.weight")
    layers = found[0] - 1
    if layers < 1 or found != [(block + 1) * (layers + 1) for block in range(len(found))]:
        raise Misshapen(f"its downsamplers are at {', '.join(map(str, found))}, which are no equal levels")
    return layers, len(found) + 1


def _depth(shapes: Shapes, location: str) -> int:
    return _count(shapes, rf"{re.escape(location)}\.1\.transformer_blocks\.(\d+)\.")


def _together(depths: list[int]) -> Any:
    """Return one number for layers of one depth, else the list of depths."""
    return depths[0] if len(set(depths)) == 1 else depths


def _middle(shapes: Shapes, depth: int) -> str | None:
    if depth:
        return "UNetMidBlock2DCrossAttn"
    return "UNetMidBlock2D" if any(name.startswith("middle_block.") for name in shapes) else None


def _vector(shapes: Shapes, family: Family) -> dict[str, Any]:
    width = vector_width(shapes)
    return {} if width is None or not family.is_xl else {"projection_class_embeddings_input_dim": width}


def vae_config(shapes: Shapes, family: Family) -> dict[str, Any]:
    """Return the configuration of a VAE from its shapes, in the original layout or in diffusers' names."""
    original = any(name.startswith("encoder.down.") for name in shapes)
    level = r"encoder\.down\.(\d+)\." if original else r"encoder\.down_blocks\.(\d+)\."
    location = "encoder.down.{}.block" if original else "encoder.down_blocks.{}.resnets"
    levels = _count(shapes, level)
    if not levels:
        raise Misshapen("it has no encoder.down.0.block.0.conv1.weight")
    return {
        **family.vae,
        "block_out_channels": [_shape(shapes, f"{location.format(i)}.0.conv2.weight")[0] for i in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(shapes, rf"{re.escape(location.format(0))}\.(\d+)\."),
        "latent_channels": _shape(shapes, "decoder.conv_in.weight")[1],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def text_config(shapes: Shapes, family: TextFamily, kind: str) -> dict[str, Any]:
    """Return the configuration of a text encoder of the class `kind` from its shapes, in its own layout."""
    if "positional_embedding" in shapes:
        tokens, places = _shape(shapes, "token_embedding.weight"), _shape(shapes, "positional_embedding")
        inner, layers = "transformer.resblocks.0.mlp.c_fc.weight", r"transformer\.resblocks\.(\d+)\."
    else:
        first = "text_model." if "text_model.embeddings.token_embedding.weight" in shapes else ""
        tokens = _shape(shapes, f"{first}embeddings.token_embedding.weight")
        places = _shape(shapes, f"{first}embeddings.position_embedding.weight")
        inner, layers = f"{first}encoder.layers.0.mlp.fc1.weight", rf"{first}encoder\.layers\.(\d+)\."
    return {
        **family.config,
        "architectures": [kind],
        "vocab_size": tokens[0],
        "hidden_size": tokens[1],
        "max_position_embeddings": places[0],
        "intermediate_size": _shape(shapes, inner)[0],
        "num_hidden_layers": min(_count(shapes, layers), family.layers),
    }
