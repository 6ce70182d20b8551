"""Names of Qwen-Image's VAE in diffusers -> names in the files of Wan, whose VAE it is. Pure: no file is opened."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_RESNET = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
           "conv_shortcut": "shortcut"}  # fmt: skip
_OUTER = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2", "mid_block.attentions.0": "middle.1",
          "mid_block.resnets.0": "middle.0", "mid_block.resnets.1": "middle.2"}  # fmt: skip
_QUANT = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
_UP = re.compile(r"up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(.+)")


def wan_vae_name(config: Mapping[str, Any], name: str) -> str:
    """Return the original name of a tensor or module of the VAE. Raises `KeyError`.

    The blocks of each side are one list there; `config` gives `num_res_blocks`.
    """
    side, _, rest = name.partition(".")
    if side in _QUANT:
        return f"{_QUANT[side]}.{rest}" if rest else _QUANT[side]
    if match := _UP.fullmatch(rest):
        layers = int(config.get("num_res_blocks", 2)) + 1
        number = int(match[1]) * (layers + 1) + (int(match[3]) if match[2] == "resnets" else layers)
        return f"{side}.upsamples.{number}.{_inside(match[4])}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.(.+)", rest):
        return f"{side}.downsamples.{match[1]}.{_inside(match[2])}"
    outer = next((each for each in _OUTER if rest == each or rest.startswith(f"{each}.")), None)
    if outer is None:
        raise KeyError(name)
    inside = rest[len(outer) + 1 :]
    inside = _inside(inside) if ".resnets." in outer else inside
    return f"{side}.{_OUTER[outer]}" + (f".{inside}" if inside else "")


def _inside(name: str) -> str:
    """Return the name within a block: of a residual one by its number in a list, of a resampling one as it is."""
    outer, dot, leaf = name.partition(".")
    return _RESNET.get(outer, outer) + dot + leaf
