"""Wan 2.1 and 2.2: a transformer over the tokens of a video, a flow model. Text is in attention of its own (`attn2`).

A token is 2 x 2 latent cells of one latent frame. Positions are (frame, row, column), as rotations. Attention is over
all tokens of all frames, so a window of scale fusion is a part of the grid through all frames: what the network was
trained on is whole videos of the training size. The network takes its time as 1000 sigma in float32.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from freescale.backbones.base import dtype_of, to_rows
from freescale.backbones.joint import check_patches, processed, tempered, tokens_of
from freescale.positions import Positions, frequencies
from freescale.rectified_attention import Tiles
from freescale.video_attention import VideoFusion, VideoRectified, flat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from freescale.backbones.base import BackboneKind, Rows
    from freescale.cascade import Size
    from freescale.joint_attention import Rotary
    from freescale.patch_attention import PatchAttention
    from freescale.positions import PositionRule
    from freescale.rectified_attention import Places, Rectified
    from freescale.scale_fusion import Fusion
    from freescale.unet_patches import Patch
    from freescale.windows import Grid

THETA = 10000.0  # of the network's rotations, which it does not keep


@dataclass(frozen=True, eq=False)
class Wan:
    """A `WanTransformer3DModel` that makes videos of text alone, or the two of Wan 2.2 as one network."""

    kind: ClassVar[BackboneKind] = "flow"

    network: Any

    def run(self, given: Tensor, timestep: float, rows: Rows) -> Tensor:
        """Return the velocity for latents (B, C, F, h, w) of whole patches.

        Raises `ValueError` for latents of other sides, and for a guidance.
        """
        if rows.guidance is not None:
            raise ValueError(f"guidance is {rows.guidance}, allowed: None with this network")
        check_patches(given)
        batch = given.shape[0]
        output: Tensor = self.network(
            hidden_states=given.to(dtype_of(self.network)),
            timestep=torch.tensor(timestep, dtype=torch.float32, device=given.device).expand(batch),
            encoder_hidden_states=to_rows(rows.embeds, batch),
            return_dict=False,
        )[0]
        return output

    def attentions(self) -> list[tuple[str, Any]]:
        """Return (name, module) of every attention over the tokens of the video."""
        return [(name, module) for name, module in self.network.named_modules() if name.endswith(".attn1")]

    def fused(self, fusion: Fusion, latent_hw: Size) -> Patch:
        """Put `VideoFusion` in place of every processor; windows turn at the network's own pace."""

        def rotary_of(frames: int, window: Grid) -> Rotary:
            """Return the network's own table of a video, whatever hooks a rule of positions has put on it."""
            rope = self.network.rope
            sides = (count * patch for count, patch in zip((frames, *window), rope.patch_size, strict=True))
            return flat(rope.forward(torch.empty(1, 1, *sides, device="meta")))

        grid = tokens_of(latent_hw)
        return processed(self.attentions(), lambda name, inner: VideoFusion(inner, name, grid, rotary_of, fusion))

    def in_patches(self, asked: PatchAttention, latent_hw: Size) -> Patch:
        """Raise `ValueError`: patches are for pictures."""
        raise ValueError("attention is in patches, allowed: pictures, not videos")

    def rectified(self, rectified: Rectified, latent_hw: Size, trained: Size) -> Patch:
        """Put `VideoRectified` in place of every processor."""
        tiles = Tiles(tokens_of(latent_hw), tokens_of(trained), rectified)
        return processed(self.attentions(), lambda name, inner: VideoRectified(inner, name, tiles, self.rotary_at))

    def rotary_at(self, places: Places) -> Rotary:
        """Return cosines and sines (tokens, head_dim) of tokens at these places, which need not be whole numbers."""
        rope = self.network.rope
        angles = []
        for position, dims in ((places.frames, rope.t_dim), (places.rows, rope.h_dim), (places.columns, rope.w_dim)):
            turns = torch.tensor(frequencies("none", dims, THETA, 1.0, 1), dtype=torch.float64, device=position.device)
            angles.append(torch.outer(position.double(), turns))
        whole = torch.cat(angles, dim=1).repeat_interleave(2, dim=1)
        return whole.cos().float(), whole.sin().float()

    def positioned(self, rule: PositionRule, latent_hw: Size, trained: Size) -> Patch:
        """Make the tables of rows and columns anew by the rule; those of frames stay."""
        positions = Positions(rule, tokens_of(latent_hw), tokens_of(trained))

        def table(rope: Any, given: tuple[Tensor], own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            """Return cosines and sines (1, tokens, 1, head_dim)."""
            frames = given[0].shape[2] // rope.patch_size[0]
            axes = (0, rope.h_dim), (1, rope.w_dim)
            turned = [_turned(positions, axis, dims) for axis, dims in axes]
            made = []
            for number, freqs in enumerate((rope.freqs_cos, rope.freqs_sin)):
                of_frames = freqs[:frames, : rope.t_dim]
                rows, columns = (each[number].to(of_frames) for each in turned)
                parts = of_frames[:, None, None], rows[None, :, None], columns[None, None]
                shape = (frames, *positions.grid, -1)
                made.append(torch.cat([part.expand(shape) for part in parts], dim=-1).reshape(own[number].shape))
            return made[0], made[1]

        @contextmanager
        def patch(network: nn.Module) -> Iterator[None]:
            """Remove the hooks afterwards; of Wan 2.2 both transformers have one."""
            with ExitStack() as stack:
                for name, module in network.named_modules():
                    if name.rpartition(".")[2] == "rope":
                        stack.callback(module.register_forward_hook(table).remove)
                yield

        return patch

    def tempered(self, factor: float) -> Patch:
        """Multiply the queries of the video after their norm."""
        return tempered(self.attentions(), factor)


def _turned(positions: Positions, axis: int, dims: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (tokens of the axis, dims), every one twice in a row."""
    turns = torch.tensor(positions.frequencies(axis, dims, THETA), dtype=torch.float64)
    angles = torch.outer(torch.arange(positions.grid[axis], dtype=torch.float64), turns).repeat_interleave(2, dim=1)
    return positions.magnitude(axis) * angles.cos(), positions.magnitude(axis) * angles.sin()
