"""What stands in for a model, a picture and the inputs of a stage where a step is run without numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from stages.stage import cells_of, latent_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from stages.denoise import DenoiseStage
    from stages.stage import Size

TOKENS = 77  # of CLIP's context
T5_TOKENS = 512  # of a transformer's prompt
T5_TOKENS_SD3 = 256  # beside those of CLIP


@dataclass(frozen=True)
class BlankInfo:
    """What a stage asks of a model beside its networks. No cost depends on noise levels: any schedule will do."""

    latent_channels: int
    cell: int
    frames: int | None = None
    patch: int = 1
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def latent_frames(self) -> int | None:
        """Latent frames that the model was trained for: here all frames are latent ones."""
        return self.frames


@dataclass(frozen=True)
class BlankModels:
    """Stands in for `Models`: a UNet, with or without weights."""

    unet: Any
    info: BlankInfo
    device: torch.device

    @property
    def vae(self) -> BlankVae:
        """What steps that use the VAE call."""
        return BlankVae(self.info)


@dataclass(frozen=True)
class BlankVae:
    """Stands in for a VAE inside a step: pictures and latents of the right shapes. A stage counts its work apart."""

    info: BlankInfo
    config: ClassVar = {"scaling_factor": 1.0}

    def decode(self, latents: Tensor) -> Any:
        """Return a blank picture on the device of the latents."""
        height, width = (self.info.cell * side for side in latents.shape[-2:])
        return SimpleNamespace(sample=latents.new_zeros(1, 3, height, width))

    def encode(self, image: Tensor) -> Any:
        """Return a posterior of zeros on the host, where latents go from an encoder."""
        zeros = torch.zeros(latent_shape((image.shape[-2], image.shape[-1]), self.info.latent_channels, self.info.cell))
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=zeros, std=zeros))


@dataclass(frozen=True)
class BlankPicture:
    """Stands in for a picture on disk."""

    size: Size
    device: torch.device

    def region(self, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """Return zeros of the region's shape."""
        return torch.zeros(1, 3, rows[1] - rows[0], columns[1] - columns[0], device=self.device)


def blank_parents(stage: DenoiseStage, config: Any, latents: Tensor, cell: int) -> dict[str, dict[str, Tensor]]:
    """Inputs of a stage, on the host as a store gives them, of the right shapes."""
    tokens, width, pooled = text_rows(config)
    text = {"prompt_embeds": torch.zeros(1, stage.chunks * tokens, width)}
    if pooled:
        text["text_embeds"] = torch.zeros(1, pooled)
    if stage.sampling.guidance_scale > 1 and not config.get("guidance_embeds"):
        text |= {f"negative_{name.removeprefix('prompt_')}": value for name, value in text.items()}
    parents = {"text": text, "latents": {"latents": latents}}
    if stage.level:
        parents["reference"] = {"latents": latents}
        base = cells_of(stage.base_size, cell)  # no cost depends on the size of the level below
        parents["below"] = {"trajectory": torch.zeros(()).expand(1, stage.stop - stage.start, latents.shape[1], *base)}
        parents["anchor"] = {"latents": torch.zeros(*latents.shape[:-2], *base)}
    masks = {role: {"picture": torch.zeros(*latents.shape[-2:], 1, dtype=torch.uint8)} for role, _ in stage.regions}
    return parents | masks


def text_rows(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Rows of a prompt and their width, and the width of the pooled row, by the configuration of a UNet or transformer.

    A transformer may read fewer than T5's 512 tokens; 0 is the width of no pooled row.
    """
    if "pos_embed_max_size" in config:
        return TOKENS + T5_TOKENS_SD3, int(config["joint_attention_dim"]), int(config["pooled_projection_dim"])
    if "text_dim" in config:
        return T5_TOKENS, int(config["text_dim"]), 0
    if "cap_feat_dim" in config:
        return T5_TOKENS, int(config["cap_feat_dim"]), 0
    if "joint_attention_dim" in config:
        return T5_TOKENS, int(config["joint_attention_dim"]), int(config.get("pooled_projection_dim") or 0)
    return TOKENS, int(config["cross_attention_dim"]), _pooled_width(config)


def latent_channels(config: Mapping[str, Any]) -> int:
    """Channels of the latents of a UNet, or of a transformer, which may be given tokens of 2 x 2 cells."""
    is_packed = "joint_attention_dim" in config and "pos_embed_max_size" not in config
    return int(config["in_channels"]) // (4 if is_packed else 1)


def _pooled_width(config: Mapping[str, Any]) -> int:
    """Width of SDXL's pooled text row, by its UNet's configuration; 0 for a model without."""
    if config.get("addition_embed_type") != "text_time":
        return 0
    width = int(config.get("projection_class_embeddings_input_dim") or 0)
    return max(0, width - 6 * int(config.get("addition_time_embed_dim") or 0))
