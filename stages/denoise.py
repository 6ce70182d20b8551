"""The three denoising stages: each runs one span of steps of one level.

`base_denoise` runs all steps at the first size. At every further level `highres_denoise` runs from the restart step to
the end of dilation, and `detail_pass` from there to the last step. They are two stages so that `redo` can make the
detail pass again, with another mask or detail scale, from the latents that `highres_denoise` left.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch

from freescale import (
    METHODS,
    Denoiser,
    Level,
    Moment,
    Schedule,
    Step,
    denoise,
    make_schedule,
    region_map,
    video_noise,
)
from freescale.backbones import dtype_of
from freescale.deepcache import DeepCache, full_steps
from freescale.flow_levels import rule_at
from freescale.methods.base import TRAJECTORY
from freescale.noise_levels import SIGMAS
from freescale.walk import walked
from stages.conditioning import conditioning
from stages.decode import decoded_whole
from stages.errors import StageError
from stages.stage import (
    LATENT_AXES,
    Cost,
    Networks,
    Parents,
    Running,
    Size,
    Stage,
    added,
    latent_shape,
    method_of,
    not_in_key,
    picture_bytes,
    picture_of,
)
from stages.upscale import encode, enlarged, patch_codec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from freescale import Method, Solver
    from freescale.flow_levels import ShiftRule
    from freescale.vae.codec import PatchCodec
    from stages.models.info import ModelInfo
    from stages.models.load import Models
    from stages.spec import RunOptions

Walk = tuple[tuple[float, float], ...]
"""(timestep, sigma) before each step of a level, and (0, sigma) after the last."""


@dataclass(frozen=True)
class Sampling:
    """The solver's settings, equal at every level; `eta` in [0, 1], guidance of 1 or less is off."""

    steps: int
    solver: Solver
    eta: float
    guidance_scale: float
    guidance_rescale: float
    sigmas: str = "auto"
    timestep_spacing: str = "auto"
    timesteps: tuple[int, ...] = ()
    guidance_interval: tuple[float, float] | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the settings of which `record` was made. Raises `TypeError` for others."""
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in record.items()}
        return cls(**values)

    def record(self) -> dict[str, Any]:
        """Return the settings as plain values; those that came later are left out where they say nothing."""
        values = dataclasses.asdict(self)
        later = ("sigmas", "timestep_spacing", "timesteps", "guidance_interval")
        return {name: value for name, value in values.items() if name not in later or value not in ("auto", (), None)}

    def schedule(self, info: ModelInfo, walk: Walk, size: Size, base_size: Size, rule: ShiftRule) -> Schedule:
        """The noise levels of a model for these steps, or those of a `walk`, at a `size` in pixels.

        The size, by a `rule`, decides those of a flow model alone. With `cap` they are those of the cascade's first
        size, which may have fewer tokens than the model was trained for.
        """
        counts = [height * width // (info.cell * info.patch) ** 2 for height, width in (size, base_size)]
        return self.schedule_on(info.scheduler, walk, min(counts) if rule == "cap" else counts[0], rule)

    def schedule_on(
        self, scheduler: Mapping[str, Any], walk: Walk = (), tokens: int | None = None, rule: ShiftRule = "cap"
    ) -> Schedule:
        """The noise levels of a scheduler's configuration, for these steps or a walk. Raises `ValueError` for none.

        Without `tokens` those of a flow model are the levels of its training size.
        """
        config = dict(scheduler)
        tokens = tokens or int(config.get("max_image_seq_len", 4096))
        if self.sigmas != "auto":
            config |= {f"use_{kind}_sigmas": kind == self.sigmas for kind in SIGMAS}
            config["sigma_range"] = "training"
        if self.timestep_spacing != "auto":
            config["timestep_spacing"] = self.timestep_spacing
        options: dict[str, Any] = {"tokens": tokens, "shift_rule": rule}
        whole = make_schedule(config, self.steps, self.solver, self.eta, self.timesteps, **options)
        return walked(whole, walk) if walk else whole


@dataclass(frozen=True)
class _Codec:
    """The VAE of a stage, for methods that work on pixels within a step."""

    models: Models
    options: RunOptions

    def decode(self, latents: Tensor) -> Tensor:
        """Return the picture (1, 3, H, W) of clean latents, by tiles where memory asks for it."""
        return decoded_whole(latents, self.models, self.options).to(self.models.device)

    def encode(self, image: Tensor) -> Tensor:
        """Return the latents (1, C, h, w) of a picture, the mode of the posterior."""
        return encode(self.models, self.options, image, "mode", seed=0).to(self.models.device)


@dataclass(frozen=True)
class DenoiseStage(Stage):
    """Steps `start` to `stop` - 1 of a level, under the method's patches, blend and prediction."""

    part = "unet"
    axes = LATENT_AXES | {"trajectory": "BNChw"}
    by_region = frozenset({"image"})

    seed: int
    level: int
    size: tuple[int, int]
    base_size: tuple[int, int]
    sampling: Sampling
    method: dict[str, Any]
    start: int
    stop: int
    time_ids: tuple[int, int] | None
    regions: tuple[tuple[str, float], ...] = ()  # (parent that holds the mask, detail scale inside it)
    motion_fps: float | None = None  # for a video model with an fps branch
    chunks: int = not_in_key(1)  # of the prompts: the rows that it attends to
    walk: Walk = added(())  # of the level; empty: the whole schedule
    sizes: tuple[tuple[int, int], ...] = added(())  # of all levels, for methods that ask for them
    deepcache: tuple[int, ...] = added(())  # (interval, branch); empty: the whole UNet at every step
    thinning: tuple[float, ...] = added(())  # of keys and values, (height, width); empty: none
    grows: bool = added(False)  # whether levels follow level 0, for methods that ask for it
    shift_rule: ShiftRule | None = added(None)  # of a flow model's noise levels; None: the method's

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """The stage that has these `params`. Raises `TypeError` for fields that it does not have."""
        made = super().from_params(params)
        return replace(made, sampling=Sampling.from_record(params["sampling"]))

    def params(self) -> dict[str, Any]:
        """The parameters that decide the bytes, as JSON has them."""
        return {**super().params(), "sampling": json.loads(json.dumps(self.sampling.record()))}

    @property
    def parts(self) -> tuple[str, ...]:
        """The UNet, and the VAE where a method asks for it above level 0."""
        return ("unet", "vae") if self.level and METHODS[self.method["name"]].asks_vae else ("unet",)

    @property
    def span(self) -> tuple[int, int]:
        """First step and one past the last."""
        return self.start, self.stop

    def full_steps(self, schedule: Schedule) -> frozenset[int]:
        """With DeepCache, the steps at which the whole UNet runs, and the one past the last; `schedule` is the walk."""
        also = list(method_of(self.method).switches(schedule)) if self.level else []
        if self.sampling.guidance_interval is not None:  # a negative pass begins, of which nothing is kept
            also.append(schedule.step_at(self.sampling.guidance_interval[0]))
        return full_steps(self.start, self.stop, self.deepcache[0], schedule.calls, also)

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """The UNet, once a step or more often, under the method's patches; the VAE both ways in steps that use it."""
        unet = networks.denoise(self, frames)
        if "vae" not in self.parts:
            return unet
        method, schedule = method_of(self.method), self.sampling.schedule_on({}, self.walk)
        used = sum(method.uses_vae(step, schedule) for step in range(self.start, self.stop))
        held = 2 * picture_bytes(self.size) + 4 * networks.latent_bytes(self.size)
        passes = networks.decode(self.size, held), networks.encode(self.size, self.size, held)
        flops = unet.flops + used * sum(one.flops for one in passes)
        return Cost(max(unet.activations, *(held + one.activations for one in passes)), flops)

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Running:
        """Yield a `Step` after each step; return {"latents": (1, C, [F,] h, w)} in float32, noise level by sigma.

        Where the level above needs it, "trajectory" has the x0 of each step, (1, N, C, h, w).
        """
        method = method_of(self.method)
        rule = self.shift_rule or rule_at(method.shift_rule, self.level)
        schedule = self.sampling.schedule(models.info, self.walk, self.size, self.base_size, rule)
        takes_guidance = bool(models.unet.config.get("guidance_embeds"))
        guidance = self.sampling.guidance_scale if takes_guidance else None
        like = torch.empty(0, dtype=dtype_of(models.unet), device=models.device)
        level = self._level(parents, models, options)
        cache = DeepCache(self.full_steps(schedule), self.deepcache[1]) if self.deepcache else None
        denoiser = Denoiser(
            models.unet,
            conditioning(parents["text"], self.time_ids, like, self.motion_fps, guidance),
            guidance_scale=1.0 if takes_guidance else self.sampling.guidance_scale,
            guidance_rescale=self.sampling.guidance_rescale,
            guidance_interval=self.sampling.guidance_interval,
            compute=options.compute,
            deep_cache=cache,
        )
        if resume is None:
            resume = Step(self.start - 1, self._first(parents, method, schedule, level, models))
        latents, extra = resume.latents.to(models.device), resume.extra
        loop = denoise(
            denoiser,
            latents,
            schedule,
            method,
            level,
            seed=self.seed,
            start=resume.index + 1,
            stop=self.stop,
            history=tuple(h.to(models.device) for h in resume.history),
            extra={name: tensor.to(models.device) for name, tensor in extra.items()},
        )
        for step in loop:
            latents, extra = step.latents, step.extra
            if not torch.isfinite(latents).all():
                raise StageError(f"{self.name} level {self.level}: latents are not finite after step {step.index + 1}")
            yield step if cache is None else replace(step, resumable=step.index + 1 in cache.full)
        trajectory = [extra[name] for name in sorted(extra) if name.startswith(TRAJECTORY)]
        made = {"trajectory": torch.stack(trajectory, dim=1).float().cpu()} if trajectory else {}
        return {"latents": latents.float().cpu(), **made}

    def disk_bytes(self, networks: Networks, size: Size, frames: int) -> int:
        """Those of the latents, and of an x0 for each step where the level above needs it."""
        is_followed = self.grows or self.level + 1 < len(self.sizes)
        kept = self.stop - self.start if is_followed and METHODS[self.method["name"]].asks_trajectory else 0
        return (1 + kept) * super().disk_bytes(networks, size, frames)

    def _first(self, parents: Parents, method: Method, schedule: Schedule, level: Level, models: Models) -> Any:
        return parents["latents"]["latents"].to(models.device)

    def _level(self, parents: Parents, models: Models, options: RunOptions) -> Level:
        frames, device = models.info.latent_frames, models.device
        level = Level(self.level, self.size, self.base_size, models.info.cell, sizes=self.sizes, frames=frames)
        if self.thinning:
            level = replace(level, thinning=(self.thinning[0], self.thinning[1]))
        if self.level == 0 or "reference" not in parents:
            return replace(level, grows=self.grows)
        reference = parents["reference"]["latents"]
        noise = video_noise(tuple(reference.shape), frames, self.seed, "restart_noise", self.level)
        return replace(
            level,
            reference=reference.to(device),
            noise=noise.to(device),
            **self._pixels(parents, models, options),
            cell_codec=self._cell_codec(models, options),
            anchor=parents["anchor"]["latents"].to(device) if "anchor" in parents else None,
            trajectory=parents["below"]["trajectory"] if "below" in parents else None,
            detail_map=self._detail_map(parents, level.latent_hw).to(device) if self.regions else None,
        )

    def _cell_codec(self, models: Models, options: RunOptions) -> PatchCodec | None:
        """Of a VAE whose latents have other scales from cell to cell, for a method that filters them."""
        if not METHODS[self.method["name"]].filters or (codec := patch_codec(models)) is None:
            return None
        models.make_room(self.parts, options.offload, options.by_blocks)  # only its statistics are asked for
        return codec

    def _pixels(self, parents: Parents, models: Models, options: RunOptions) -> dict[str, Any]:
        """The VAE, and the pixels of the reference, which are enlarged as they were for it, where a method asks."""
        if "vae" not in self.parts:
            return {}
        method = method_of(self.method)
        how = (method.picture_filter, method.clamps, method.sharpening)
        picture = enlarged(picture_of(parents, "image"), self.size, *how)(((0, self.size[0]), (0, self.size[1])))
        return {"codec": _Codec(models, options), "picture": picture.to(models.device)}

    def _detail_map(self, parents: Parents, latent_hw: tuple[int, int]) -> Tensor:
        """The detail scale of every latent cell (1, 1, h, w), from the masks."""
        masks = [parents[role]["picture"][..., 0].float() / 255 for role, _ in self.regions]
        scales = [scale for _, scale in self.regions]
        return region_map(masks, scales, float(self.method["detail_scale"]), latent_hw)


@dataclass(frozen=True)
class BaseDenoise(DenoiseStage):
    """Noise -> latents at the first size: all steps, from the method's first latents (seeded noise)."""

    name = "base_denoise"

    frames: int | None = None  # latent ones, of a video

    def _first(self, parents: Parents, method: Method, schedule: Schedule, level: Level, models: Models) -> Any:
        moment = Moment(level=level, step=self.start, schedule=schedule, seed=self.seed)
        shape = latent_shape(self.size, models.info.latent_channels, models.info.cell, self.frames)
        return method.start(shape, moment).to(models.device)


@dataclass(frozen=True)
class HighresDenoise(DenoiseStage):
    """Structure: steps from the restart to the end of dilation.

    Parents: `latents` (from `renoise`), `reference`, `text` and masks.
    """

    name = "highres_denoise"


@dataclass(frozen=True)
class DetailPass(DenoiseStage):
    """Detail: steps from the end of dilation to the last; regions may have a detail scale of their own.

    Parents: `latents` (from `highres_denoise`), `reference`, `text` and masks.
    """

    name = "detail_pass"
