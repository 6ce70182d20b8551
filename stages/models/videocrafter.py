"""VideoCrafter2's UNet: diffusers' `UNet3DConditionModel`, which is the same network, plus the branch for fps.

The branch adds a second embedding to that of the timestep. fps is a knob for motion: it says how densely the frames
sample the video, so a larger number means less motion; the rate of playback is another matter. The UNet is called as
`unet(sample, t, text, timestep_cond=fps)` with latents (B, 4, F, h, w) and fps (B,).
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stages.errors import SpecError
from stages.models.clip_tokenizer import vocabulary as clip_vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor


class VideoCrafterUNet(UNet3DConditionModel):  # type: ignore[misc]
    """The defaults are VideoCrafter2: 320x512 pixels, 16 frames, 1413 M parameters in 1484 tensors.

    `attention_head_dim` is the width of a head at every level, as the parent has it.
    """

    time_embedding: Any
    ignore_for_config: ClassVar[list[str]] = ["num_attention_heads", "time_cond_proj_dim"]  # of the parent; never set

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = (40, 64),
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
        up_block_types: tuple[str, ...] = ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
    ) -> None:
        super().__init__(
            sample_size=sample_size,
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            up_block_types=up_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            downsample_padding=downsample_padding,
            mid_block_scale_factor=mid_block_scale_factor,
            act_fn=act_fn,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=attention_head_dim,
        )
        self.time_embedding = FpsTimeEmbedding(self.time_embedding, block_out_channels[0], act_fn)


class FpsTimeEmbedding(nn.Module):
    """A timestep embedding with an embedding of fps added; it keeps the modules, and the keys, of the former."""

    def __init__(self, time: Any, channels: int, act_fn: str = "silu") -> None:
        super().__init__()
        self.linear_1, self.act, self.linear_2 = time.linear_1, time.act, time.linear_2
        self.fps_proj = Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.fps_embedding = TimestepEmbedding(channels, 4 * channels, act_fn=act_fn)

    def forward(self, t_emb: Tensor, fps: Tensor | None) -> Tensor:
        """Return the sum (B, 4 channels) for the sinusoids `t_emb` (B, channels) of t and `fps` (B,)."""
        if fps is None:
            raise ValueError("timestep_cond is None, allowed: fps, one number for each row of the batch")
        time: Tensor = self.linear_2(self.act(self.linear_1(t_emb)))
        embedded: Tensor = self.fps_embedding(self.fps_proj(fps).to(time.dtype))
        return time + embedded


def empty_networks(unet: Mapping[str, Any], vae: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """Return the three networks without weights, on the meta device, by their folders' names.

    OpenCLIP's tower has an exact GELU and, with its last layer left off, is a CLIP text model.
    """
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        return {
            "unet": VideoCrafterUNet(**unet),
            "vae": AutoencoderKL(layers_per_block=2, latent_channels=4, scaling_factor=0.18215, **blocks, **vae),
            "text_encoder": CLIPTextModel(CLIPTextConfig(hidden_act="gelu", pad_token_id=0, **text)),
        }


def load_tokenizer(path: Path, vocabulary: int) -> Any:
    """Return CLIP's tokenizer from a folder, or from `bpe_simple_vocab_16e6.txt.gz`, which OpenCLIP and CLIP carry.

    Raises `SpecError` for one that is not there or has another vocabulary.
    """
    if not path.exists():
        raise SpecError(f"tokenizer: {str(path)!r} does not exist; name the tokenizer folder of a local CLIP")
    try:
        if path.is_file():
            lines = gzip.decompress(path.read_bytes()).decode().split("\n")  # the first is a comment
            tokenizer = CLIPTokenizer(*clip_vocabulary(lines[1 : vocabulary - 2 * 256 - 2 + 1]))
        else:
            tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError(
            f"tokenizer: {str(path)!r} cannot be read ({reason:.200}); the tokenizer folder of a local CLIP or "
            "Stable Diffusion model works, and so does OpenCLIP's bpe_simple_vocab_16e6.txt.gz"
        ) from None
    if len(tokenizer) != vocabulary:
        raise SpecError(f"tokenizer: {str(path)!r} has {len(tokenizer)} tokens; CLIP's, with {vocabulary}, works")
    return tokenizer
