"""Spec -> the calls of a render, each with its parents and its fingerprint.

    text ─▶ base_denoise ─▶ decode ─▶ export 0
                              └─▶ upscale ─▶ renoise ─▶ highres_denoise ─▶ detail_pass ─▶ decode ─▶ export 1 …

The plan is pure: it reads the model's configuration and the checked pictures, loads no weights and starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from freescale.walk import pairs_of
from stages.call import Call
from stages.causal import CAUSAL
from stages.conditioning import EncodePrompt, text_stage
from stages.decode import Decode, DecodeVideo
from stages.denoise import BaseDenoise, DenoiseStage, DetailPass, HighresDenoise, Sampling, Walk
from stages.errors import SpecError
from stages.export import Export, check_whole
from stages.export_video import ExportVideo
from stages.media.picture import CheckedPicture, check_aspect, check_picture
from stages.models.tokens import lengths
from stages.models.upscaler import find_upscaler
from stages.planner.accelerations import accelerated, check_accelerations
from stages.planner.level_schedules import schedules
from stages.planner.provenance import provenance
from stages.renoise import Renoise
from stages.settings import LevelSettings, StageSettings, level_sizes, placed, resolve, settled, solver_of
from stages.stage import Stage, cells_of, method_record
from stages.upscale import EncodePicture, Enlarge, Upscale, UpscaleLatents, UpscaleMixed, UpscaleVideo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from freescale import Method, Schedule, Solver
    from stages.models.folder import ModelInfo
    from stages.spec import RenderSpec
    from stages.stage import Size


Known = Mapping[tuple[str, str], CheckedPicture]
"""Pictures that are known before they are read, by mode and by path."""


@dataclass(frozen=True)
class Plan:
    """A render, frozen: sizes of the levels, calls in the order they are made, and the exports that a person gets."""

    spec: RenderSpec
    info: ModelInfo
    sizes: tuple[Size, ...]
    exports: tuple[Call, ...]
    calls: tuple[Call, ...] = field(default=())


def make_plan(
    spec: RenderSpec,
    info: ModelInfo,
    input_root: Path | None = None,
    pictures: Known | None = None,
) -> Plan:
    """Return the calls of a render, after every check that needs no weights.

    Pictures and masks are looked for under `input_root` (None: the working folder); those that `pictures` has are
    known already. Raises `SpecError`.
    """
    spec = settled(spec, info)
    check_accelerations(spec, info)
    sizes, base = level_sizes(spec, info)
    builder = _Builder(spec, info, input_root, pictures or {}, base, resolve(spec, info, sizes))
    try:
        builder.schedules  # noqa: B018 — what they refuse is refused of a render of one level as well
        exports = builder.exports()
    except SpecError:
        raise
    except ValueError as error:  # the kernel's: solver, steps or a method's values that do not go together
        raise SpecError(str(error)) from None
    return Plan(placed(spec, input_root), info, sizes, exports, tuple(_in_order(exports)))


def _in_order(exports: tuple[Call, ...]) -> Iterator[Call]:
    seen: set[int] = set()

    def visit(call: Call) -> Iterator[Call]:
        if id(call) not in seen:
            seen.add(id(call))
            for parent in call.parents.values():
                yield from visit(parent)
            yield call

    for export in exports:
        yield from visit(export)


@dataclass(frozen=True)
class _Builder:
    """Lays out the calls of one render, level by level."""

    spec: RenderSpec
    info: ModelInfo
    root: Path | None
    pictures: Known
    base: Size  # of level 0; of a render with one level, the size that a cascade would begin at
    levels: tuple[LevelSettings, ...]

    def exports(self) -> tuple[Call, ...]:
        """The export of every level."""
        latents, image, exports = self.first, None, list[Call]()
        for level in self.levels:
            method = level.upscale.method
            if image is not None and method.in_pixels:
                file = find_upscaler(method.upscaler, self.root)
                stage = Enlarge(level.size, method.picture_filter, file.path, file.sha256)
                image = self._call(stage, level, {"image": image})
            else:
                latents = latents if image is None else self._higher(level, latents, image)
                image = self._call(self._decoding(), level, {"latents": latents})
            exports.append(self._call(self._export(level), level, {"image": image}))
        if not self._enlarges:
            self._masks(self.levels[0].detail_pass)  # checked, though nothing reads them
        return tuple(exports)

    @cached_property
    def text(self) -> Call:
        """The encoded prompts, which every level shares; a negative one where guidance is on anywhere."""
        scales = [s.guidance_scale for level in self.levels for s in (level.base_denoise, level.detail_pass)]
        negative = None
        if max(scales) > 1 and not self.info.takes_guidance:
            given = self.spec.negative_prompt
            negative = self.info.negative_prompt if given is None else given
        return self._call(text_stage(self.spec, self.info, negative), self.levels[0], {})

    @property
    def chunks(self) -> int:
        """How long the encoded prompts are."""
        stage = self.text.stage
        assert isinstance(stage, EncodePrompt)
        return max(stage.chunks, lengths(self.info, (stage.prompt, stage.negative_prompt or "")))

    @cached_property
    def first(self) -> Call:
        """The clean latents of level 0: denoised from noise, or a picture's."""
        level, settings = self.levels[0], self.levels[0].base_denoise
        method = settings.method
        if self.spec.image is not None:
            if not self._enlarges:
                raise SpecError(
                    f"image: {self.spec.width}x{self.spec.height} leaves nothing to enlarge; ask for a larger size"
                )
            picture = self._picture("image", self.spec.image, "RGB")
            return self._call(EncodePicture(settings.seed, level.size, method.posterior), level, {"picture": picture})
        walk = self._walk(method, 0)
        stage = BaseDenoise(
            seed=settings.seed,
            level=0,
            size=level.size,
            base_size=self.base,
            sampling=self._sampling(settings),
            method=method_record(method.at_base() if self._enlarges else method),
            start=0,
            stop=len(walk),
            time_ids=self._time_ids(method, 0),
            motion_fps=self.spec.motion_fps,
            frames=None if self.spec.frames is None else self.info.latent_frames_of(self.spec.frames),
            chunks=self.chunks,
            walk=self._pairs(walk),
            grows=self._enlarges and method.asks_growth,
            shift_rule=level.shift_rule,
        )
        return self._call(stage, level, {"text": self.text})

    def _higher(self, level: LevelSettings, latents: Call, image: Call) -> Call:
        """The finished latents of a level above the first, from the latents and the image of the level below."""
        reference = self._reference(level, latents, image)
        method = level.upscale.method
        walk = self._walk(method, level.level)
        start, detail, stop = method.restart_step(walk), method.detail_step(walk), len(walk)
        if not start < stop:
            raise SpecError(f"method: a restart at step {start} leaves none of {stop} steps to denoise")
        renoise = Renoise(
            seed=level.renoise.seed,
            level=level.level,
            size=level.size,
            base_size=self.base,
            sampling=self._sampling(level.renoise),
            method=method_record(level.renoise.method.at_start()),
            start=start,
            walk=self._pairs(walk),
            shift_rule=level.shift_rule,
        )
        parents = {"text": self.text, "latents": self._call(renoise, level, {"reference": reference})}
        parents |= {"reference": reference, **({"image": image} if method.asks_vae else {})}
        parents |= {"below": self._followed(latents, method, stop)} if method.asks_trajectory else {}
        if start < detail:
            parents["latents"] = self._denoise(HighresDenoise, level, level.highres_denoise, (start, detail), parents)
        if max(start, detail) < stop:
            span = (max(start, detail), stop)
            parents["latents"] = self._denoise(DetailPass, level, level.detail_pass, span, parents)
        return parents["latents"]

    def _followed(self, below: Call, method: Method, steps: int) -> Call:
        """The steps of the level below, for a method that follows them. Raises `SpecError` where there are too few."""
        if not isinstance(below.stage, DenoiseStage):
            raise SpecError(
                f"image: {method.name!r} follows the steps of level 0, and a picture has none; leave it out"
            )
        if (taken := below.stage.passes) < steps:
            raise SpecError(f"method: {steps} steps follow the {taken} of the level below; a later restart works")
        return below

    def _decoding(self) -> Stage:
        """The stage that decodes the picture, or the video, of a level."""
        if (frames := self.spec.frames) is None:
            return Decode()
        kind: Any = DecodeVideo if self.info.time_cell == 1 else CAUSAL["decode 101"]
        stage: Stage = kind(frames)
        return stage

    def _reference(self, level: LevelSettings, latents: Call, image: Call) -> Call:
        """The result of the level below, enlarged to this level's size."""
        method, seed, frames = level.upscale.method, level.upscale.seed, self.spec.frames
        if method.upsample == "latent":
            return self._call(UpscaleLatents(level.size, method.interpolation), level, {"latents": latents})
        file = find_upscaler(method.upscaler, self.root)
        pixels = (method.picture_filter, method.clamps, method.sharpening, file.path, file.sha256)
        how = (seed, level.level, level.size, method.posterior, *pixels)
        if method.upsample == "mixed":
            band, kind = method.mixed_band(*(cells_of(size, self.info.cell) for size in (level.size, self.base)))
            mixed = UpscaleMixed(*how, band, kind)
            return self._call(mixed, level, {"image": image, "latents": latents})
        if frames is not None:
            video: Any = UpscaleVideo if self.info.time_cell == 1 else CAUSAL["upscale 104"]
            return self._call(video(*how[:4], frames), level, {"image": image})
        return self._call(Upscale(*how), level, {"image": image})

    def _denoise(
        self,
        kind: type[DenoiseStage],
        level: LevelSettings,
        settings: StageSettings,
        span: tuple[int, int],
        parents: Mapping[str, Call],
    ) -> Call:
        """Steps of a level under these settings; the level's noise is the one that was drawn at `renoise`."""
        anchor = {"anchor": self.first} if settings.method.anchored else {}
        stage = kind(
            seed=level.renoise.seed,
            level=level.level,
            size=level.size,
            base_size=self.base,
            sampling=self._sampling(settings),
            method=method_record(settings.method),
            start=span[0],
            stop=span[1],
            time_ids=self._time_ids(settings.method, level.level),
            regions=tuple((f"mask{i}", region.detail_scale) for i, region in enumerate(settings.regions)),
            motion_fps=self.spec.motion_fps,
            chunks=self.chunks,
            walk=self._pairs(self._walk(level.upscale.method, level.level)),
            sizes=self._sizes if settings.method.asks_sizes else (),
            shift_rule=level.shift_rule,
        )
        return self._call(stage, level, {**parents, **anchor, **self._masks(settings)})

    def _masks(self, settings: StageSettings) -> dict[str, Call]:
        """The masks of a stage, by the names that it knows them by."""
        return {f"mask{i}": self._picture(f"regions.{i}.mask", r.mask, "L") for i, r in enumerate(settings.regions)}

    def _export(self, level: LevelSettings) -> Export | ExportVideo:
        spec, sampling = self.spec, self._sampling(self.levels[0].base_denoise)
        said = provenance(spec, self.info, level.level, self._sizes, sampling)
        assert spec.format is not None
        if spec.fps is None:
            check_whole(spec.format, level.size)
            return Export(spec.format, said, spec.method.name)
        return ExportVideo(spec.format, spec.fps, said, spec.crf, spec.pixel_format, spec.method.name)

    def _call(self, stage: Stage, level: LevelSettings, parents: Mapping[str, Call]) -> Call:
        model = "+".join(self.info.fingerprints[part] for part in stage.parts)
        if stage.part in ("text", "unet"):
            model += f":{self.spec.model.dtype}"
        stage = accelerated(stage, self.spec)
        return Call(stage, level.level, dict(parents), model, level.size, self.spec.frames or 1, self.info.cell)

    def _picture(self, field: str, path: str, mode: str) -> Call:
        checked = self.pictures.get((mode, path)) or check_picture(field, path, self.root, mode)
        if checked.size is not None:
            check_aspect(field, path, checked.size, self.spec.size)
        return self._call(checked.loading(mode), self.levels[0], {})

    @property
    def _enlarges(self) -> bool:
        return len(self.levels) > 1

    @property
    def steps(self) -> int:
        """The steps of a whole denoising, from noise to clean latents."""
        return self.spec.steps or self.info.steps

    @cached_property
    def solver(self) -> tuple[Solver, float]:
        """The solver and its eta."""
        return solver_of(self.spec, self.info)

    @cached_property
    def schedules(self) -> tuple[Schedule, ...]:
        """The noise levels of all steps, for each level."""
        return schedules(self.info, self._sampling(self.levels[0].base_denoise), self.levels, self.base)

    def _walk(self, method: Method, level: int) -> Schedule:
        return method.walk(self.schedules[level], level, self._sizes)

    def _pairs(self, walk: Schedule) -> Walk:
        """What a stage is told of a walk: nothing where it is the whole schedule."""
        return () if any(walk is each for each in self.schedules) else pairs_of(walk)

    def _sampling(self, settings: StageSettings) -> Sampling:
        spec = self.spec
        return Sampling(
            self.steps,
            *self.solver,
            settings.guidance_scale,
            spec.guidance_rescale,
            spec.sigmas,
            spec.timestep_spacing,
            spec.timesteps or (),
            spec.guidance_interval,
        )

    def _time_ids(self, method: Method, level: int) -> Size | None:
        """The size that the method gives a size-conditioned model at a level (SDXL's micro-conditioning)."""
        return method.told_size(self._sizes, self.base, level) if self.info.size_ids else None

    @property
    def _sizes(self) -> tuple[Size, ...]:
        return tuple(level.size for level in self.levels)
