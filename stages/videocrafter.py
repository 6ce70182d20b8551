"""VideoCrafter2's UNet: diffusers' `UNet3DConditionModel`, which is the same network, plus the branch for fps.

The branch adds a second embedding to that of the timestep. fps is a knob for motion: it says how densely the frames
sample the clip, so a larger number means less motion; the rate of playback is another matter. The UNet is called as
`unet(sample, t, text, timestep_cond=fps)` with latents (B, 4, F, h, w) and fps (B,).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusers import UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class VideoCrafterUNet(UNet3DConditionModel):  # type: ignore[misc]
    """The defaults are VideoCrafter2: 320x512 pixels, 16 frames, 1413 M parameters in 1484 tensors.

    `attention_head_dim` is the width of a head at every level, as the parent has it.
    """

    time_embedding: Any

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
