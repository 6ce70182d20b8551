"""Z-Image, base and turbo: a transformer over one row of image and text tokens, a flow model.

A token is 2 x 2 latent cells. Image tokens come first, then the caption's; each of the two is filled up to a multiple
of 32 with a token that all attend to. Positions are (time, row, column): (1, 0, 0) and on for a caption, and for a
picture all at the first time after its caption. The network takes 1 - sigma as its time and returns -v. Captions have
their own lengths: those of one length, filled up, share a call, so that no call has a mask.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from freescale.backbones.base import dtype_of, to_rows
from freescale.backbones.flux import image_ids
from freescale.backbones.joint import PATCH, Windowed, processed, tokens_of
from freescale.heads import Heads, output_of, project
from freescale.joint_attention import Turns
from freescale.positions import Positions
from freescale.rectified_attention import Tiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from freescale.backbones.base import BackboneKind, Rows
    from freescale.cascade import Size
    from freescale.joint_attention import JointAsked, Rotary
    from freescale.positions import PositionRule
    from freescale.rectified_attention import Places, Rectified
    from freescale.unet_patches import Patch, Processor

FILLED = 32  # image and caption are filled up to multiples of it
AXES = (None, 0, 1)  # what the three ids of a token count: times, rows, columns
PLAIN = Positions("none", (1, 1), (1, 1))
OVER_IMAGE = ("layers.", "noise_refiner.")  # blocks whose attention reads the image; `context_refiner` reads text alone


@dataclass(frozen=True, eq=False)
class ZImage(Windowed):
    """A `ZImageTransformer2DModel`."""

    kind: ClassVar[BackboneKind] = "flow"

    network: Any

    def run(self, given: Tensor, timestep: float, rows: Rows) -> Tensor:
        """Return the velocity for latents (B, C, h, w) of whole patches.

        `rows.added` may have `text_mask` (B, T): which rows of a caption there are; without it all are. Raises
        `ValueError` for latents of other sides, and for a guidance inside the network.
        """
        h, w = given.shape[2:]
        if h % PATCH or w % PATCH:
            raise ValueError(f"latents are {h} x {w} cells, allowed: multiples of {PATCH}")
        if rows.guidance is not None:
            raise ValueError(f"guidance is {rows.guidance}, allowed: None with this network")
        captions = _captions(rows, len(given))
        pictures = given.to(dtype_of(self.network)).unsqueeze(2).unbind()
        time = (1000 - torch.tensor(timestep, dtype=torch.float32, device=given.device)) / 1000
        output: dict[int, Tensor] = {}
        with _within_table(self.network, (h // PATCH, w // PATCH)):
            for members in _of_one_length(captions):
                pair = [pictures[i] for i in members], [captions[i] for i in members]
                made = self.network(pair[0], time.expand(len(members)), pair[1], return_dict=False)[0]
                output |= {i: -picture.squeeze(1) for i, picture in zip(members, made, strict=True)}
        return torch.stack([output[i] for i in range(len(given))])

    def attentions(self) -> list[tuple[str, Any]]:
        """Return (name, module) of every attention that image tokens are in."""
        named = self.network.named_modules()
        return [(name, each) for name, each in named if name.endswith(".attention") and name.startswith(OVER_IMAGE)]

    def windowed(self, asked: JointAsked, latent_hw: Size) -> Patch:
        """Put `RowAttention` in place of the processors of every attention that image tokens are in."""
        grid, plain = tokens_of(latent_hw), Rotations.of(self.network)
        return processed(self.attentions(), lambda name, inner: RowAttention(inner, name, grid, plain, asked))

    def rectified(self, rectified: Rectified, latent_hw: Size, trained: Size) -> Patch:
        """Put `RowTiles` in place of the processors of every attention that image tokens are in."""
        tiles, plain = Tiles(tokens_of(latent_hw), tokens_of(trained), rectified), Rotations.of(self.network)
        return processed(self.attentions(), lambda name, inner: RowTiles(inner, name, tiles, plain))

    def positioned(self, rule: PositionRule, latent_hw: Size, trained: Size) -> Patch:
        """Put the rule's rotations in place of the table. What only reads text keeps the network's own."""
        made = Rotations.of(self.network, Positions(rule, tokens_of(latent_hw), tokens_of(trained)))

        @contextmanager
        def patch(network: nn.Module) -> Iterator[None]:
            """Put it in for the body of the `with`."""
            with ExitStack() as stack:
                stack.enter_context(_rotating(network, made))
                refiner: Any = network.context_refiner
                for block in refiner if made.grows else ():
                    stack.callback(block.register_forward_pre_hook(_own_pace).remove)
                yield

        return patch

    def tempered(self, factor: float) -> Patch:
        """Multiply the queries after their norm; a rotation is linear, so that all logits grow."""

        @contextmanager
        def patch(network: nn.Module) -> Iterator[None]:
            """Hook every query for the body of the `with`."""
            with ExitStack() as stack:
                for _, attention in self.attentions():
                    last = attention.to_q if attention.norm_q is None else attention.norm_q
                    stack.callback(last.register_forward_hook(lambda _m, _a, output: output * factor).remove)
                yield

        return patch


@dataclass(frozen=True)
class Rotations:
    """In place of the network's table, which ends at 512 tokens a side: computed for every position."""

    dims: tuple[int, ...]  # of each axis of a head
    theta: float
    positions: Positions = PLAIN

    @classmethod
    def of(cls, network: Any, positions: Positions | None = None) -> Rotations:
        """Return those of a network, at its own pace or by a rule."""
        own = tuple(network.config.axes_dims), float(network.config.rope_theta)
        return cls(*own) if positions is None else cls(*own, positions)

    @property
    def grows(self) -> bool:
        """Whether the rule makes rotated components larger."""
        return any(self.positions.magnitude(axis) != 1.0 for axis in AXES)

    def __call__(self, ids: Tensor) -> Tensor:
        """Return complex rotations (tokens, head_dim / 2) of positions (tokens, 3), as the table has them."""
        parts = []
        for column, (axis, dims) in enumerate(zip(AXES, self.dims, strict=True)):
            turns = torch.tensor(self.positions.frequencies(axis, dims, self.theta), dtype=torch.float64)
            angles = torch.outer(ids[:, column].double(), turns.to(ids.device)).float()
            parts.append(torch.polar(torch.full_like(angles, self.positions.magnitude(axis)), angles))
        return torch.cat(parts, dim=1)

    def window(self, window: Size, image: Tensor) -> Rotary:
        """Return cosines and sines of a window at the trained origin, at the time of the rotations of `image`."""
        table, times = self(image_ids(window, image.device)), self.dims[0] // 2
        return _as_rotary(torch.cat([image[:1, :times].expand(len(table), -1), table[:, times:]], dim=1))


@dataclass(frozen=True, eq=False)
class RowAttention:
    """Joint attention where image tokens stand before all others; `inner` is what it stands in for."""

    inner: Processor
    name: str  # of the attention
    grid: Size
    plain: Rotations
    asked: JointAsked

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Any:
        """Return the attention of all tokens, as `inner` does."""
        layer, image = self.asked.layer(self.name, self.grid), self.grid[0] * self.grid[1]
        if layer is None:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, freqs_cis)
        if attention_mask is not None or freqs_cis is None:
            raise ValueError(f"{self.name} has a mask or no positions, allowed: captions of one length in a call")
        others = hidden_states.shape[1] - image
        heads = Heads(*(x.roll(-image, dims=1) for x in project(attn, hidden_states)))
        rotary, own = _as_rotary(freqs_cis[0].roll(-image, dims=0)), self.plain.window(layer.window, freqs_cis[0])
        words = _as_rotary(_of_length_1(freqs_cis[0, image:]))
        return output_of(attn, layer.attended(heads, others, Turns(rotary, own, words)).roll(image, dims=1))


@dataclass(frozen=True, eq=False)
class RowTiles:
    """Attention in tiles where image tokens stand before all others, which keep their times."""

    inner: Processor
    name: str  # of the attention
    tiles: Tiles
    plain: Rotations

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Any:
        """Return the attention of all tokens, as `inner` does."""
        if self.tiles.is_trained:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, freqs_cis)
        if attention_mask is not None or freqs_cis is None:
            raise ValueError(f"{self.name} has a mask or no positions, allowed: captions of one length in a call")
        given, image = freqs_cis[0], self.tiles.grid[0] * self.tiles.grid[1]

        def rotary_at(places: Places) -> Rotary:
            """Return rotations at these rows and columns, at the times of the tokens."""
            rows, columns, numbers, _ = places
            times = self.plain.dims[0] // 2
            table = self.plain(torch.stack((torch.zeros_like(rows), rows, columns), dim=-1))
            own = given[torch.where(numbers >= 0, image + numbers, 0).long(), :times]
            return _as_rotary(torch.cat([own, table[:, times:]], dim=1))

        heads = Heads(*(x.roll(-image, dims=1) for x in project(attn, hidden_states)))
        attended = self.tiles.attended(heads, hidden_states.shape[1] - image, rotary_at)
        return output_of(attn, attended.roll(image, dims=1))


def _as_rotary(rotations: Tensor) -> Rotary:
    """Return cosines and sines, every one twice in a row, of complex rotations."""
    return rotations.real.repeat_interleave(2, dim=-1), rotations.imag.repeat_interleave(2, dim=-1)


def _captions(rows: Rows, batch: int) -> list[Tensor]:
    """Return the caption (tokens, width) of each of the latents."""
    embeds, mask = to_rows(rows.embeds, batch), rows.added.get("text_mask")
    return list(embeds) if mask is None else [x[kept] for x, kept in zip(embeds, to_rows(mask, batch), strict=True)]


def _of_one_length(captions: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield the places of the captions that are equally long, once they are filled up."""
    lengths = [-(-len(caption) // FILLED) for caption in captions]
    for length in dict.fromkeys(lengths):
        yield [i for i, each in enumerate(lengths) if each == length]


def _of_length_1(rotations: Tensor) -> Tensor:
    """Return complex rotations that make nothing larger: those of text at the network's own pace, whatever the rule."""
    return rotations / rotations.abs()


def _own_pace(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a block of the text alone, (tokens, mask, rotations), with the network's rotations."""
    tokens, mask, rotations = given
    return tokens, mask, _of_length_1(rotations)


@contextmanager
def _within_table(network: Any, grid: Size) -> Iterator[None]:
    """Compute positions instead of reading the network's table, for a grid that is larger than it."""
    own = network.rope_embedder
    if isinstance(own, Rotations) or all(n <= most for n, most in zip(grid, own.axes_lens[1:], strict=True)):
        yield
        return
    with _rotating(network, Rotations.of(network)):
        yield


@contextmanager
def _rotating(network: Any, rotations: Rotations) -> Iterator[None]:
    """Put `rotations` in place of the network's own."""
    own = network.rope_embedder
    network.rope_embedder = rotations
    try:
        yield
    finally:
        network.rope_embedder = own
