"""Qwen-Image: a transformer over text and image tokens, a flow model.

A token is 2 x 2 latent cells. Positions are (0, row, column) counted from the middle of the grid; text stands on the
diagonal, from half of the larger side on. The network takes its time as sigma, rounded to its dtype where that is still
1000 sigma, as the stock pipeline has it. Prompts of unequal length are in calls of their own, so that none is padded.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from freescale.backbones.base import dtype_of, to_rows
from freescale.backbones.joint import Windowed, pack, processed, tempered, tokens_of, unpack
from freescale.joint_attention import JointAttention
from freescale.positions import Positions, frequencies
from freescale.rectified_attention import RectifiedAttention, Tiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from freescale.backbones.base import BackboneKind, Rows
    from freescale.cascade import Size
    from freescale.joint_attention import JointAsked, Rotary
    from freescale.positions import PositionRule
    from freescale.rectified_attention import Places, Rectified
    from freescale.unet_patches import Patch

AXES = (None, 0, 1)  # what the three positions of a token count: nothing, rows, columns


@dataclass(frozen=True, eq=False)
class QwenImage(Windowed):
    """A `QwenImageTransformer2DModel`."""

    kind: ClassVar[BackboneKind] = "flow"

    network: Any

    def run(self, given: Tensor, timestep: float, rows: Rows) -> Tensor:
        """Return the velocity for latents (B, C, h, w) of whole patches.

        `rows.added` may have `text_mask` (B, T): which rows of a prompt there are, from the first on; without it all
        are. Raises `ValueError` for latents of other sides, and for a guidance.
        """
        if rows.guidance is not None:
            raise ValueError(f"guidance is {rows.guidance}, allowed: None with this network")
        batch, size = given.shape[0], (given.shape[2], given.shape[3])
        dtype = dtype_of(self.network)
        tokens, embeds = pack(given.to(dtype)), to_rows(rows.embeds, batch)
        time = torch.tensor(timestep, dtype=torch.float32, device=given.device).to(dtype) / 1000
        output = torch.empty_like(tokens)
        for members, length in _of_one_length(rows, batch):
            at = slice(None) if len(members) == batch else members
            output[at] = self.network(
                hidden_states=tokens[at],
                timestep=time.expand(len(members)),
                encoder_hidden_states=embeds[at, :length],
                img_shapes=[[(1, *tokens_of(size))]] * len(members),
                return_dict=False,
            )[0]
        return unpack(output, size)

    def rescaled(self, guided: Tensor, positive: Tensor) -> Tensor:
        """Return the guided prediction (B, C, h, w) with the norm of the positive one at every token."""
        tokens, wanted = pack(guided), pack(positive).norm(dim=-1, keepdim=True)
        return unpack(tokens * (wanted / tokens.norm(dim=-1, keepdim=True)), (guided.shape[2], guided.shape[3]))

    def attentions(self) -> list[tuple[str, Any]]:
        """Return (name, module) of every joint attention."""
        return [(name, module) for name, module in self.network.named_modules() if name.endswith(".attn")]

    def windowed(self, asked: JointAsked, latent_hw: Size) -> Patch:
        """Put `JointAttention` in place of every processor; windows have the text's trained place."""
        grid = tokens_of(latent_hw)

        def rotary_of(window: Size) -> Rotary:
            """Return the network's own table of the image, whatever hooks a rule of positions has put on it."""
            return _as_rotary(own(window, 0)[0])

        def words_of(window: Size, text: int) -> Rotary:
            """Return the network's own table of the text beside a picture of a window's size."""
            return _as_rotary(own(window, text)[1])

        def own(window: Size, text: int) -> tuple[Tensor, Tensor]:
            """Return both of them."""
            device = self.network.device
            tables: tuple[Tensor, Tensor] = self.network.pos_embed.forward([(1, *window)], device, text)
            return tables

        return processed(
            self.attentions(),
            lambda name, inner: JointAttention(inner, name, grid, rotary_of, asked, words_of, _joined),
        )

    def rectified(self, rectified: Rectified, latent_hw: Size, trained: Size) -> Patch:
        """Put `RectifiedAttention` in place of every processor of joint attention."""
        tiles = Tiles(tokens_of(latent_hw), tokens_of(trained), rectified)
        turned = partial(self.rotary_at, tiles.trained)
        return processed(self.attentions(), lambda name, inner: RectifiedAttention(inner, name, tiles, turned))

    def rotary_at(self, trained: Size, places: Places) -> Rotary:
        """Return rotations of tokens at these rows and columns; text is where it is beside a picture of `trained`.

        Positions are counted from the origin here: only differences count.
        """
        (rows, columns, words, _), module = places, self.network.pos_embed
        is_text = words >= 0
        first = max(side // 2 for side in trained)
        beyond = [first + side - side // 2 for side in trained]  # from the origin of the grid on
        axes = (
            torch.where(is_text, first + words, 0.0),
            *(x + torch.where(is_text, along + words, 0.0) for x, along in zip((rows, columns), beyond, strict=True)),
        )
        angles = []
        for position, dims in zip(axes, module.axes_dim, strict=True):
            turns = torch.tensor(frequencies("none", dims, float(module.theta), 1.0, 1), dtype=torch.float64)
            angles.append(torch.outer(position.double(), turns.to(position.device)))
        whole = torch.cat(angles, dim=1).float()
        return _as_rotary(torch.polar(torch.ones_like(whole), whole))

    def positioned(self, rule: PositionRule, latent_hw: Size, trained: Size) -> Patch:
        """Make the image's table anew by the rule. Text keeps its places; where a rule grows tokens, it grows too."""
        positions = Positions(rule, tokens_of(latent_hw), tokens_of(trained))

        def table(module: Any, given: Any, named: Any, own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            """Return complex rotations (tokens, head_dim / 2) of image and text."""
            parts, magnitudes = [], []
            for axis, dims in zip(AXES, module.axes_dim, strict=True):
                turns = torch.tensor(positions.frequencies(axis, dims, float(module.theta)), dtype=torch.float64)
                places = torch.zeros(1) if axis is None else _centred(positions.grid[axis])
                angles = torch.outer(places.double(), turns).float()
                rotations = torch.polar(torch.full_like(angles, positions.magnitude(axis)), angles)
                shape = [1, 1] if axis is None else [-1, 1] if axis == 0 else [1, -1]
                parts.append(rotations.view(*shape, dims // 2).expand(*positions.grid, -1))
                magnitudes.append(torch.full((dims // 2,), positions.magnitude(axis)))
            image = torch.cat(parts, dim=-1).flatten(0, 1)
            return image.to(own[0].device), own[1] * torch.cat(magnitudes).to(own[1].device)

        @contextmanager
        def patch(network: nn.Module) -> Iterator[None]:
            """Remove the hook afterwards."""
            module: Any = network.pos_embed
            handle = module.register_forward_hook(table, with_kwargs=True)
            try:
                yield
            finally:
                handle.remove()

        return patch

    def tempered(self, factor: float) -> Patch:
        """Multiply the queries of image and text after their norm."""
        return tempered(self.attentions(), factor)


def _of_one_length(rows: Rows, batch: int) -> Iterator[tuple[list[int], int]]:
    """Yield the places of the prompts that are equally long, and how long they are."""
    mask, most = rows.added.get("text_mask"), rows.embeds.shape[1]
    lengths = [most] * batch if mask is None else to_rows(mask, batch).sum(dim=1).tolist()
    for length in dict.fromkeys(lengths):
        yield [i for i, each in enumerate(lengths) if each == length], length


def _centred(side: int) -> Tensor:
    """Return the positions of the tokens of a side, about its middle."""
    return torch.arange(side) - (side - side // 2)


def _as_rotary(rotations: Tensor) -> Rotary:
    """Return cosines and sines, every one twice in a row, of complex rotations."""
    return rotations.real.repeat_interleave(2, dim=-1), rotations.imag.repeat_interleave(2, dim=-1)


def _joined(given: tuple[Tensor, Tensor]) -> Rotary:
    """Return the rotations of text and then image, of those that the network gives of image and text."""
    return _as_rotary(torch.cat([given[1], given[0]]))
