"""From latents to a guided noise prediction: one or two passes of the network and their combination.

The network runs in its own dtype, its outputs are combined in float32. Images are (B, C, h, w), videos (B, C, F, h, w).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from freescale.attention import prefer_backends
from freescale.backbones import Rescales, Rows, backbone_of, dtype_of, to_rows
from freescale.compute import Compute
from freescale.savings import TextCache, chunk_feed_forward
from freescale.unet_patches import patched

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from freescale.backbones import Backbone
    from freescale.deepcache import DeepCache, Side
    from freescale.schedule import Schedule
    from freescale.unet_patches import Patch
    from freescale.views import Views


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the network is conditioned on: a row for each of the B rows of the latents, or one row for all of them.

    `added` is what its backbone says: `text_embeds` and `time_ids` for SDXL, nothing for Stable Diffusion 1.5 and most
    video UNets, `pooled_projections` for FLUX. `fps` is for UNets with a branch for it (VideoCrafter2).
    """

    prompt_embeds: Tensor  # (B, T, D)
    negative_embeds: Tensor | None = None
    added: Mapping[str, Tensor] = field(default_factory=dict)
    negative_added: Mapping[str, Tensor] = field(default_factory=dict)
    fps: Tensor | None = None  # (B,) or (1,), of both sides
    guidance: float | None = None  # of both sides, for a network that guidance was distilled into

    @property
    def is_uneven(self) -> bool:
        """Whether the prompts have different numbers of tokens, so that one call cannot read both."""
        return self.negative_embeds is not None and self.negative_embeds.shape[1] != self.prompt_embeds.shape[1]

    def for_views(self, crops: Tensor, batch: int) -> Conditioning:
        """Return the conditioning of views of `batch` pictures: a row for each view and picture, views outermost.

        `crops` (views, 2) holds each view's (top, left) in pixels, which is added to the crop in SDXL's `time_ids`.
        """

        def repeat(x: Tensor) -> Tensor:
            """Return the rows once for each view; one row for all stays one."""
            return x if x.shape[0] == 1 else x.repeat(len(crops), *(1 for _ in x.shape[1:]))

        def added(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
            """Return the added rows of one side, with the crops in `time_ids`."""
            rows = {name: repeat(x) for name, x in given.items()}
            if "time_ids" in given:
                ids = to_rows(given["time_ids"], batch).repeat(len(crops), 1)
                ids[:, 2:4] += crops.repeat_interleave(batch, 0).to(ids)
                rows["time_ids"] = ids
            return rows

        negative = None if self.negative_embeds is None else repeat(self.negative_embeds)
        fps = None if self.fps is None else repeat(self.fps)
        return replace(
            self,
            prompt_embeds=repeat(self.prompt_embeds),
            negative_embeds=negative,
            added=added(self.added),
            negative_added=added(self.negative_added),
            fps=fps,
        )


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network, its conditioning and classifier-free guidance (arXiv:2207.12598). Called, it predicts the noise."""

    network: nn.Module
    conditioning: Conditioning
    guidance_scale: float = 7.5  # 1 or below, or no negative embeddings: one pass without guidance
    guidance_rescale: float = 0.0  # arXiv:2305.08891, section 3.4: 0 (off) to 1
    guidance_interval: tuple[float, float] | None = None  # arXiv:2404.07724: from, to, as shares of the schedule
    compute: Compute = field(default_factory=Compute)
    text_cache: TextCache | None = field(default_factory=TextCache)  # None: the prompt is projected at every step
    deep_cache: DeepCache | None = None  # None: the whole UNet is computed at every step

    @property
    def backbone(self) -> Backbone:
        """How the network is called."""
        return backbone_of(self.network)

    def is_guided(self, i: int, schedule: Schedule) -> bool:
        """Return whether there is a negative pass at step `i`."""
        if self.guidance_scale <= 1.0 or self.conditioning.negative_embeds is None:
            return False
        return schedule.is_within(i, self.guidance_interval)

    def for_views(self, views: Views, batch: int) -> Denoiser:
        """Return the denoiser for views of `batch` pictures, to be called with `views.take(latents)`."""
        return replace(
            self, conditioning=self.conditioning.for_views(views.crops, batch), text_cache=None, deep_cache=None
        )

    def __call__(self, latents: Tensor, i: int, schedule: Schedule) -> Tensor:
        """Return the guided prediction (`Schedule.to_noise`) for latents (B, C, [F,] h, w) before step `i`."""
        if self.is_guided(i, schedule):
            output = self.combine(*self.pair(latents, i, schedule))
        else:
            (output,) = self.passes(latents, i, schedule, "positive")
        return schedule.to_noise(output, latents, i)

    def pair(self, latents: Tensor, i: int, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Return the raw (negative, positive) outputs, from one call of the network or, with split guidance, from two.

        Prompts of different lengths are two calls as well. Raises `ValueError` without negative embeddings.
        """
        if self.compute.split_guidance or self.conditioning.is_uneven:
            (negative,) = self.passes(latents, i, schedule, "negative")
            (positive,) = self.passes(latents, i, schedule, "positive")
        else:
            negative, positive = self.passes(latents, i, schedule, "negative", "positive")
        return negative, positive

    def passes(self, latents: Tensor, i: int, schedule: Schedule, *sides: Side) -> tuple[Tensor, ...]:
        """Return one raw output for each side, in order, from one call with the latents' B rows for each side.

        They are float32 at least.
        """
        given, rows = schedule.model_input(latents, i), self._rows(sides, latents.shape[0])
        dtype = dtype_of(self.network)
        patches = [*self._savings(), *([] if self.deep_cache is None else [self.deep_cache.patch(i, sides)])]
        with patched(self.network, patches), prefer_backends(given.device, dtype):
            output = self.backbone.run(torch.cat([given] * len(sides)), schedule.timesteps[i], rows)
        return output.to(torch.promote_types(dtype, torch.float32)).chunk(len(sides))

    def _rows(self, sides: tuple[Side, ...], batch: int) -> Rows:
        """Return what the network is conditioned on, for `batch` rows of each side."""
        embeds = self._embeds(sides, batch)
        added = {
            name: torch.cat([to_rows(self._conditioning_of(side)[1][name], batch) for side in sides])
            for name in self.conditioning.added
        }
        fps = None if self.conditioning.fps is None else to_rows(self.conditioning.fps, batch).repeat(len(sides))
        return Rows(embeds, added, fps, self.conditioning.guidance)

    def _embeds(self, sides: tuple[Side, ...], batch: int) -> Tensor:
        """Return the embeddings (sides * B, T, D) of the prompts, from the cache where there is one."""

        def joined() -> Tensor:
            """Return the rows of all sides."""
            return torch.cat([to_rows(self._conditioning_of(side)[0], batch) for side in sides])

        return joined() if self.text_cache is None else self.text_cache.rows((sides, batch), joined)

    def _conditioning_of(self, side: Side) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return one side's embeddings, and what else it adds."""
        conditioning = self.conditioning
        if side == "positive":
            return conditioning.prompt_embeds, conditioning.added
        if conditioning.negative_embeds is None:
            raise ValueError("negative_embeds is None, allowed: a tensor where there is a negative pass")
        return conditioning.negative_embeds, conditioning.negative_added

    def _savings(self) -> Iterator[Patch]:
        if self.text_cache is not None:
            yield self.text_cache.patch
        if self.compute.feed_forward_tokens is not None:
            yield chunk_feed_forward(self.compute.feed_forward_tokens)

    def combine(self, negative: Tensor, positive: Tensor, *, start: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """Return start + scale * guidance_scale * (positive - negative), float32; `start` is `negative` where None.

        A network's own rescaling comes first. With `guidance_rescale` the deviation is partly set back to that of the
        positive pass (arXiv:2305.08891, section 3.4).
        """
        guided = (negative if start is None else start) + self.guidance_scale * scale * (positive - negative)
        if isinstance(self.backbone, Rescales):
            guided = self.backbone.rescaled(guided, positive)
        if self.guidance_rescale == 0.0:
            return guided
        axes = tuple(range(1, guided.ndim))
        rescaled = guided * (positive.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
        return torch.lerp(guided, rescaled, self.guidance_rescale)


def scaled_guidance(denoiser: Denoiser, factor: float) -> Denoiser:
    """Return the denoiser with `factor` times its guidance scale; itself where the factor is 1.

    Of a network that guidance was distilled into it is the scale that it is told, at least 1, which is no guidance.
    """
    if factor == 1.0:
        return denoiser
    told = denoiser.conditioning.guidance
    conditioning = replace(denoiser.conditioning, guidance=None if told is None else max(told * factor, 1.0))
    return replace(denoiser, conditioning=conditioning, guidance_scale=denoiser.guidance_scale * factor)
