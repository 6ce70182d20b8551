"""A model's networks by their configurations, without weights: the classes of diffusers and transformers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from freescale.backbones.base import stays_in_float32
from stages.models.eight_bits import STORED, computed, stored_in_8_bits
from stages.models.fields import TEXT_CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping

ALIGNED = 64  # bytes that torch's own memory on a CPU begins at
TEXT_CONFIGS = {
    **dict.fromkeys(TEXT_CLASSES.values(), "CLIPTextConfig"),
    "T5EncoderModel": "T5Config",
    "UMT5EncoderModel": "UMT5Config",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2_5_VLConfig",
    "Qwen3Model": "Qwen3Config",
    "Mistral3ForConditionalGeneration": "Mistral3Config",
}
"""The classes of the text encoders, and those of their configurations."""


def empty_part(config: Mapping[str, Any], dtype: torch.dtype, adapter: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a UNet or VAE by its configuration, on the meta device: shapes and no weights.

    `adapter` is the configuration of motion modules for a UNet.
    """
    module = for_pictures(empty_network(str(config["_class_name"]), config))
    if adapter is not None:
        with torch.device("meta"):
            module = with_motion(module, empty_network("MotionAdapter", adapter))
    empty: nn.Module = nn.Module.to(module, computed(dtype)).eval().requires_grad_(False)  # diffusers' own warns
    for name, each in (*empty.named_parameters(), *empty.named_buffers()):
        if stays_in_float32(empty, name):
            each.data = each.data.float()
    return stored_in_8_bits(empty) if dtype == STORED else empty


def empty_network(name: str, config: Mapping[str, Any]) -> nn.Module:
    """Return a network of the class `name` on the meta device: shapes and no weights.

    `name` is the class of a UNet or transformer, of a VAE, `MotionAdapter` or one of `TEXT_CONFIGS`.
    """
    quiet_diffusers()
    with torch.device("meta"):
        if name in TEXT_CONFIGS:
            import transformers

            text: nn.Module = getattr(transformers, name)(getattr(transformers, TEXT_CONFIGS[name])(**config))
            return text
        if name == "WanTransformerPair":
            from stages.models.flow.base import BOUNDARY  # here, since UNets need none of it

            own = {key: value for key, value in config.items() if key not in ("_class_name", BOUNDARY)}
            pair = [network_class("WanTransformer3DModel").from_config(own) for _ in range(2)]
            joined: nn.Module = network_class(name)(*pair, config[BOUNDARY])
            return joined
        network: nn.Module = network_class(name).from_config(dict(config))
        return network


def for_pictures(network: nn.Module) -> nn.Module:
    """Return a VAE of videos as one of single frames, and any other network as it is."""
    from freescale.vae.one_frame import SINGLE_FRAME, OneFrameVae

    return OneFrameVae(network) if type(network).__name__ in SINGLE_FRAME else network


def align(network: nn.Module) -> None:
    """Copy weights whose memory does not begin at a whole number of `ALIGNED` bytes, such as those of a mapped file.

    Sums of products on a CPU may differ in their last bit by where numbers lie. So equal weights are the same network,
    whatever file they come from.
    """
    for each in (*network.parameters(), *network.buffers()):
        if each.data_ptr() % ALIGNED:
            each.data = each.data.clone()


def with_motion(unet: Any, adapter: Any) -> Any:
    """Return a Stable Diffusion UNet and AnimateDiff's motion modules as one network for videos."""
    from diffusers import UNetMotionModel

    return UNetMotionModel.from_unet2d(unet, adapter)


def network_class(name: str) -> Any:
    """Return the class of a UNet, a VAE or motion modules that `describe` lets pass."""
    import diffusers

    if name == "VideoCrafterUNet":
        from stages.models.videocrafter import VideoCrafterUNet

        return VideoCrafterUNet
    if name == "WanTransformerPair":
        from stages.models.wan_pair import WanTransformerPair

        return WanTransformerPair
    return getattr(diffusers, name)


def quiet_diffusers() -> None:
    """Silence the progress bars and notices of diffusers and transformers, which would break ours."""
    warnings.filterwarnings("ignore", message="`FluxPosEmbed` is deprecated", category=FutureWarning)  # of Chroma's own
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for quiet in (diffusers_logging, transformers_logging):
        quiet.set_verbosity_error()
        quiet.disable_progress_bar()
