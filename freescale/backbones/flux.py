"""FLUX.1 (dev, schnell, Krea) and what has its form: a transformer over text and image tokens, a flow model.

A token is 2 x 2 latent cells. Positions are (0, row, column), those of text (0, 0, 0). The network takes its time as
sigma, rounded to its dtype where that is still 1000 sigma, as the stock pipeline has it. The ids stay float32: bfloat16
has no whole numbers above 256, so the stock pipeline confuses rows of pictures beyond 4096 pixels a side.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from freescale.backbones.base import dtype_of, to_rows
from freescale.backbones.joint import PATCH, Windowed, pack, processed, tempered, tokens_of, unpack
from freescale.joint_attention import JointAttention
from freescale.positions import Positions
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


@dataclass(frozen=True, eq=False)
class Flux(Windowed):
    """A `FluxTransformer2DModel`."""

    kind: ClassVar[BackboneKind] = "flow"
    axes: ClassVar[tuple[int | None, ...]] = (None, 0, 1)  # what the ids of a token count: nothing, rows, columns

    network: Any

    def run(self, given: Tensor, timestep: float, rows: Rows) -> Tensor:
        """Return the velocity for latents (B, C, h, w) of whole patches; `rows.added` has `pooled_projections`.

        Raises `ValueError` for latents of other sides, and for a guidance that the network does not take or lacks.
        """
        batch, device = given.shape[0], given.device
        dtype = dtype_of(self.network)
        self.check_guidance(rows)
        tokens = pack(given.to(dtype))
        time = torch.tensor(timestep, dtype=torch.float32, device=device).to(dtype).expand(batch) / 1000
        guidance = None if rows.guidance is None else torch.full((batch,), rows.guidance, device=device)
        output: Tensor = self.network(
            hidden_states=tokens,
            timestep=time,
            guidance=guidance,
            pooled_projections=to_rows(rows.added["pooled_projections"], batch),
            encoder_hidden_states=to_rows(rows.embeds, batch),
            txt_ids=torch.zeros(rows.embeds.shape[1], 3, device=device),
            img_ids=image_ids((given.shape[2] // PATCH, given.shape[3] // PATCH), device),
            return_dict=False,
        )[0]
        return unpack(output, (given.shape[2], given.shape[3]))

    def check_guidance(self, rows: Rows) -> None:
        """Raise `ValueError` for a guidance that the network does not take, and for none where it takes one."""
        if (rows.guidance is None) == bool(self.network.config.guidance_embeds):
            takes = "a number" if rows.guidance is None else "None"
            raise ValueError(f"guidance is {rows.guidance}, allowed: {takes} with this network")

    def attentions(self) -> list[tuple[str, Any]]:
        """Return (name, module) of every joint attention."""
        named = self.network.named_modules()
        return [(name, module) for name, module in named if name.endswith(".attn") and "transformer_blocks." in name]

    def windowed(self, asked: JointAsked, latent_hw: Size) -> Patch:
        """Put `JointAttention` in place of every processor of joint attention."""
        grid = tokens_of(latent_hw)

        def rotary_of(window: Size) -> Rotary:
            """Return the network's own table, whatever hooks a rule of positions has put on it."""
            table: Rotary = self.network.pos_embed.forward(image_ids(window, self.network.device))
            return table

        return processed(self.attentions(), lambda name, inner: JointAttention(inner, name, grid, rotary_of, asked))

    def rectified(self, rectified: Rectified, latent_hw: Size, trained: Size) -> Patch:
        """Put `RectifiedAttention` in place of every processor of joint attention."""
        tiles = Tiles(tokens_of(latent_hw), tokens_of(trained), rectified)
        return processed(self.attentions(), lambda name, inner: RectifiedAttention(inner, name, tiles, self.rotary_at))

    def rotary_at(self, places: Places) -> Rotary:
        """Return the network's own table for tokens at these rows and columns; text has no numbers here."""
        ids = torch.stack((torch.zeros_like(places.rows), places.rows, places.columns), dim=-1).float()
        table: Rotary = self.network.pos_embed.forward(ids)
        return table

    def repeated_text(self, latent_hw: Size, trained: Size) -> Patch:
        """Give the network its text once for each trained grid, at the row and the column where that grid begins."""
        origins = torch.cartesian_prod(
            *(
                torch.arange(0.0, side, step)
                for side, step in zip(tokens_of(latent_hw), tokens_of(trained), strict=True)
            )
        )

        def repeat(_: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            """Return what the network is called with, its text repeated."""
            copies = torch.zeros(len(origins), len(self.axes), device=given["txt_ids"].device)
            copies[:, [self.axes.index(0), self.axes.index(1)]] = origins.to(copies)
            ids = (given["txt_ids"][None] + copies[:, None]).flatten(0, 1)
            text = given["encoder_hidden_states"].repeat(1, len(origins), 1)
            return args, given | {"encoder_hidden_states": text, "txt_ids": ids}

        @contextmanager
        def patch(network: nn.Module) -> Iterator[None]:
            """Change what the network is called with."""
            handle = network.register_forward_pre_hook(repeat, with_kwargs=True)
            try:
                yield
            finally:
                handle.remove()

        return patch

    def positioned(self, rule: PositionRule, latent_hw: Size, trained: Size) -> Patch:
        """Make the table of rotations anew from the positions that the network was given, which text shares."""
        positions = Positions(rule, tokens_of(latent_hw), tokens_of(trained))

        def table(module: Any, given: tuple[Tensor], own: Rotary) -> Rotary:
            """Return cosines and sines by the rule, in the dtype of the network's own."""
            cosines, sines = [], []
            for column, (axis, dims) in enumerate(zip(self.axes, module.axes_dim, strict=True)):
                turns = torch.tensor(positions.frequencies(axis, dims, float(module.theta)), dtype=torch.float64)
                angles = torch.outer(given[0][:, column].double(), turns.to(given[0].device))
                cosines.append(positions.magnitude(axis) * angles.cos())
                sines.append(positions.magnitude(axis) * angles.sin())
            cosine, sine = (torch.cat(parts, dim=1).repeat_interleave(2, dim=1) for parts in (cosines, sines))
            return cosine.to(own[0]), sine.to(own[1])

        @contextmanager
        def patch(network: nn.Module) -> Iterator[None]:
            """Hook the table of rotations."""
            module: Any = network.pos_embed
            handle = module.register_forward_hook(table)
            try:
                yield
            finally:
                handle.remove()

        return patch

    def tempered(self, factor: float) -> Patch:
        """Multiply the queries of image and text after their norm."""
        return tempered(self.attentions(), factor)


def image_ids(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return the positions (h * w, 3) of the tokens of a grid: (0, row, column)."""
    rows, columns = (torch.arange(side, dtype=torch.float32, device=device) for side in grid)
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((torch.zeros_like(row), row, column), dim=-1).flatten(0, 1)
