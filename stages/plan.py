"""Spec -> the calls of a render, each with its parents and its fingerprint.

    text ─▶ base_denoise ─▶ decode ─▶ export 0
                              └─▶ upscale ─▶ renoise ─▶ highres_denoise ─▶ detail_pass ─▶ decode ─▶ export 1 …

The plan is pure: it reads the model's configuration and the checked pictures, loads no weights and starts nothing.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freescale import METHODS, Method, base_size_for, make_schedule
from freescale.methods import FreeScale
from stages.base_denoise import BaseDenoise
from stages.call import Call, Size
from stages.conditioning import EncodePrompt
from stages.decode import Decode
from stages.decode_video import DecodeVideo
from stages.denoise import DenoiseStage, Sampling
from stages.detail_pass import DetailPass
from stages.errors import SpecError
from stages.export import Export, check_whole
from stages.export_video import ExportVideo
from stages.highres_denoise import HighresDenoise
from stages.media.ffmpeg import check_encoding
from stages.media.picture import LoadPicture, check_aspect, check_picture
from stages.renoise import Renoise
from stages.spec import IMAGE_FORMATS, LOSSY, VIDEO_FORMATS, Region, RenderSpec, exact_rate
from stages.stage import Stage, method_record
from stages.upscale import EncodePicture, Upscale, UpscaleLatents
from stages.upscale_video import UpscaleVideo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from freescale import Solver
    from stages.models.load import ModelInfo
    from stages.spec import MethodSpec


@dataclass(frozen=True)
class Plan:
    """A render, frozen: calls in the order they are made, and the exports that a person gets."""

    spec: RenderSpec
    info: ModelInfo
    sizes: tuple[Size, ...]
    exports: tuple[Call, ...]
    calls: tuple[Call, ...] = field(default=())


def make_plan(spec: RenderSpec, info: ModelInfo, input_root: Path | None = None) -> Plan:
    """Check everything that can be checked before work, and lay out the calls. Raises `SpecError`."""
    spec = settled(spec, info)
    builder = _Builder(spec, info, input_root)
    exports = builder.exports()
    return Plan(placed(spec, input_root), info, builder.sizes, exports, tuple(_in_order(exports)))


def settled(spec: RenderSpec, info: ModelInfo) -> RenderSpec:
    """The spec with the model's own values for what its method leaves unsaid, so that a record of it says all."""
    method = spec.method
    if info.is_video and not method.build().video:
        able = ", ".join(name for name, kind in METHODS.items() if kind.video)
        raise SpecError(f"method: {method.name!r} makes images only; {able} make videos with {info.name}")
    video = _video_settings(spec, info) if info.is_video else _picture_settings(spec, info)
    return spec.model_copy(update={"method": settled_method(method, info), **video})


def settled_method(method: MethodSpec, info: ModelInfo) -> MethodSpec:
    """The method with the model's own values for what was left unsaid; those that were given stay.

    A name that FreeScale has means FreeScale's alone, so that a baseline is the published one; FreeU's factors, which
    go with a model's channels, are every method's.
    """
    built = method.build()
    known = {f.name for f in dataclasses.fields(built)} - method.model_fields_set
    if not isinstance(built, FreeScale):
        known -= {f.name for f in dataclasses.fields(FreeScale)} - {"freeu"}
    own = {name: value for name, value in info.method_defaults.items() if name in known}
    return type(method).model_validate(method.model_dump() | own)


def _picture_settings(spec: RenderSpec, info: ModelInfo) -> dict[str, Any]:
    """Format of a picture. Raises `SpecError` for what only a video has."""
    for name in ("frames", "fps", "motion_fps", "crf", "pixel_format"):
        if getattr(spec, name) is not None:
            raise SpecError(
                f"{name}: {getattr(spec, name)} is for videos, and {info.name} makes pictures; leave it out"
            )
    if spec.format not in (None, *IMAGE_FORMATS):
        raise SpecError(
            f"format: {spec.format} is for videos, and {info.name} makes pictures: {', '.join(IMAGE_FORMATS)}"
        )
    return {"format": spec.format or "png"}


def _video_settings(spec: RenderSpec, info: ModelInfo) -> dict[str, Any]:
    """Format, frames and rates of a video. Raises `SpecError` for what it cannot have."""
    if spec.format not in (None, *VIDEO_FORMATS):
        raise SpecError(
            f"format: {spec.format} is for pictures, and {info.name} makes videos: {', '.join(VIDEO_FORMATS)}"
        )
    if spec.image is not None:
        raise SpecError(f"image: {info.name} makes videos, and none can start from a picture; leave it out")
    if spec.motion_fps is not None and info.motion_fps is None:
        raise SpecError(f"motion_fps: {info.name} has no fps branch to tell it to; leave it out")
    format = spec.format or "mp4"
    check_encoding(format, spec.size, spec.pixel_format)
    for name in ("crf", "pixel_format"):
        if getattr(spec, name) is not None and format not in LOSSY:
            raise SpecError(f"{name}: {getattr(spec, name)} is for {' and '.join(LOSSY)}, not for {format}")
    return {
        "format": format,
        "frames": spec.frames or info.frames,
        "fps": spec.fps or exact_rate(info.fps),
        "motion_fps": spec.motion_fps or info.motion_fps,
    }


def placed(spec: RenderSpec, input_root: Path | None) -> RenderSpec:
    """The spec with whole paths, so that a record of it holds from any folder."""
    root = (input_root or Path()).absolute()

    def whole(path: str) -> str:
        return str(root / Path(path).expanduser())

    def all_whole(regions: tuple[Region, ...]) -> tuple[Region, ...]:
        return tuple(region.model_copy(update={"mask": whole(region.mask)}) for region in regions)

    changes = [
        change.model_copy(update={"regions": all_whole(change.regions)}) if change.regions else change
        for change in spec.redo
    ]
    image = None if spec.image is None else whole(spec.image)
    return spec.model_copy(update={"image": image, "regions": all_whole(spec.regions), "redo": tuple(changes)})


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


class _Builder:
    def __init__(self, spec: RenderSpec, info: ModelInfo, input_root: Path | None) -> None:
        self.spec, self.info, self.root = spec, info, input_root
        base = base_size_for(spec.size, info.native)
        if spec.cascade == "auto":
            self.sizes = spec.method.build().sizes(spec.size, base)
        else:
            self.sizes = tuple((h, w) for w, h in spec.cascade)
        self.base = self.sizes[0] if len(self.sizes) > 1 else base
        self.steps = spec.steps or info.steps
        self.last = len(self.sizes) - 1
        for change in spec.redo:
            if change.level > self.last:
                raise SpecError(f"redo.level: {change.level} is beyond the last level, {self.last}")
        self.text = self._call(self._prompts(), 0, {})

    def exports(self) -> tuple[Call, ...]:
        """The export of every level."""
        latents, exports = self._first(), list[Call]()
        self.anchor = latents
        for level in range(len(self.sizes)):
            if level:
                latents = self._higher(level, latents, exports[-1].parents["image"])
            frames = self.spec.frames
            image = self._call(Decode() if frames is None else DecodeVideo(frames), level, {"latents": latents})
            exports.append(self._call(self._export(level), level, {"image": image}))
        return tuple(exports)

    def _export(self, level: int) -> Export | ExportVideo:
        spec, provenance = self.spec, self._provenance(level)
        assert spec.format is not None
        if spec.fps is None:
            check_whole(spec.format, self.sizes[level])
            return Export(spec.format, provenance)
        return ExportVideo(spec.format, spec.fps, provenance, spec.crf, spec.pixel_format)

    def _call(self, stage: Stage, level: int, parents: Mapping[str, Call]) -> Call:
        model = self.info.fingerprints[stage.part] if stage.part else ""
        if stage.part in ("text", "unet"):
            model += f":{self.spec.model.dtype}"
        return Call(stage, level, dict(parents), model, self.sizes[level], self.spec.frames or 1)

    def _guidance(self, stage: str, level: int) -> float:
        value = self.spec.setting_from("guidance_scale", stage, level)
        return float(self.info.guidance_scale if value is None else value)

    def _prompts(self) -> EncodePrompt:
        scales = [
            self._guidance(stage, level) for level in range(self.last + 1) for stage in ("base_denoise", "detail_pass")
        ]
        if max(scales) <= 1:
            return EncodePrompt(self.spec.prompt, None)
        negative = self.spec.negative_prompt
        return EncodePrompt(self.spec.prompt, self.info.negative_prompt if negative is None else negative)

    def _sampling(self, stage: str, level: int) -> Sampling:
        solver, eta = self._solver()
        return Sampling(self.steps, solver, eta, self._guidance(stage, level), self.spec.guidance_rescale)

    def _solver(self) -> tuple[Solver, float]:
        """The spec's solver and eta, else the method's, else the model's; a few-step model keeps its own."""
        spec, own = self.spec, (self.info.solver, 0.0)
        published = None if self.info.is_video else spec.method.build().solver  # none is published for videos: eta = 0
        if spec.solver != "auto":
            solver, eta = spec.solver, 0.0
        else:
            solver, eta = own if published is None or self.info.solver == "euler_ancestral" else published
        return solver, eta if spec.eta is None else spec.eta

    def _first(self) -> Call:
        seed, size = self.spec.setting_from("seed", "base_denoise", 0), self.sizes[0]
        method = self.spec.method_from("base_denoise", 0)
        if self.spec.image is not None:
            if not self.last:
                raise SpecError(
                    f"image: {self.spec.width}x{self.spec.height} leaves nothing to enlarge; ask for a larger size"
                )
            picture = self._picture("image", self.spec.image, "RGB", size)
            return self._call(EncodePicture(seed, size, method.posterior), 0, {"picture": picture})
        stage = BaseDenoise(
            seed=seed,
            level=0,
            size=size,
            base_size=self.base,
            sampling=self._sampling("base_denoise", 0),
            method=method_record(method.at_base() if self.last else method),
            start=0,
            stop=self.steps,
            time_ids=self._time_ids(method),
            motion_fps=self.spec.motion_fps,
            frames=self.spec.frames,
        )
        return self._call(stage, 0, {"text": self.text})

    def _higher(self, level: int, latents: Call, image: Call) -> Call:
        """The calls of one level above the first, up to its finished latents."""
        size = self.sizes[level]
        method = self.spec.method_from("upscale", level)
        seed = self.spec.setting_from("seed", "upscale", level)
        if method.upsample == "latent":
            reference = self._call(UpscaleLatents(size, method.interpolation), level, {"latents": latents})
        else:
            how, frames = (seed, level, size, method.posterior), self.spec.frames
            enlarge = Upscale(*how) if frames is None else UpscaleVideo(*how, frames)
            reference = self._call(enlarge, level, {"image": image})
        schedule = make_schedule(self.info.scheduler, self.steps, *self._solver())
        start, detail = method.restart_step(schedule), method.detail_step(schedule)
        if not start < self.steps:
            raise SpecError(f"method: a restart at step {start} leaves none of {self.steps} steps to denoise")
        renoise = Renoise(
            seed=self.spec.setting_from("seed", "renoise", level),
            level=level,
            size=size,
            base_size=self.base,
            sampling=self._sampling("renoise", level),
            method=method_record(self.spec.method_from("renoise", level).at_start()),
            start=start,
        )
        current = self._call(renoise, level, {"reference": reference})
        for kind, first, stop in (
            (HighresDenoise, start, detail),
            (DetailPass, max(start, detail), self.steps),
        ):
            if first < stop:
                current = self._denoise(kind, level, first, stop, current, reference)
        return current

    def _denoise(
        self, kind: type[DenoiseStage], level: int, start: int, stop: int, latents: Call, reference: Call
    ) -> Call:
        regions: tuple[Region, ...] = self.spec.setting_from("regions", kind.name, level)
        masks = {
            f"mask{i}": self._picture(f"regions.{i}.mask", r.mask, "L", self.sizes[-1]) for i, r in enumerate(regions)
        }
        method = self.spec.method_from(kind.name, level)
        anchor = {"anchor": self.anchor} if method.anchored else {}
        stage = kind(
            seed=self.spec.setting_from("seed", "renoise", level),
            level=level,
            size=self.sizes[level],
            base_size=self.base,
            sampling=self._sampling(kind.name, level),
            method=method_record(method),
            start=start,
            stop=stop,
            time_ids=self._time_ids(method),
            regions=tuple((f"mask{i}", r.detail_scale) for i, r in enumerate(regions)),
            motion_fps=self.spec.motion_fps,
        )
        parents = {"text": self.text, "latents": latents, "reference": reference}
        return self._call(stage, level, parents | anchor | masks)

    def _time_ids(self, method: Method) -> Size | None:
        """What the method tells a size-conditioned model; one level is told its own size."""
        return method.told_size(self.sizes, self.base) if self.info.size_ids else None

    def _picture(self, field: str, path: str, mode: str, size: Size) -> Call:
        checked = check_picture(field, path, self.root)
        check_aspect(field, checked, size)
        return self._call(LoadPicture(checked.digest, mode, str(checked.path)), 0, {})

    def _provenance(self, level: int) -> str:
        """The spec, with what the model decided filled in, as one line of JSON."""
        spec = self.spec.model_dump(mode="json", exclude_defaults=True)
        if self.spec.format == "png":  # what a picture is where nothing is said
            del spec["format"]
        if self.spec.redo:  # what was done again above this level is not its concern
            spec["redo"] = [change for change in spec["redo"] if change["level"] <= level]
            spec = spec if spec["redo"] else {k: v for k, v in spec.items() if k != "redo"}
        if self.spec.image is not None:  # names say enough, and folders are nobody's business
            spec["image"] = Path(self.spec.image).name
        for holder in (spec, *spec.get("redo", ())):
            for region in holder.get("regions") or ():
                region["mask"] = Path(region["mask"]).name
        resolved = dataclasses.asdict(self._sampling("base_denoise", 0))
        record = {
            "spec": spec,
            "level": level,
            "sizes": self.sizes,
            "sampling": resolved,
            "model": self.info.fingerprints,
        }
        return json.dumps({"freescale": 1, **record}, sort_keys=True)
