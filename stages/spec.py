"""What a person writes: `RenderSpec` holds all that decides the bytes of a render, `RunOptions` how it is run.

A spec comes as a YAML or JSON file, as flags of the command line or as parameters of a Prefect deployment; all three
are validated here. A method's dataclass is its configuration. The models of the union `MethodSpec` are made from those
dataclasses, so each default is written once, in the method's file.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import typing
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from freescale import METHODS, Compute, Method
from freescale.methods.ablations import CHANGES
from freescale.methods.base import LATER
from stages.errors import SpecError, nearest_size, not_one_of, sentence
from stages.models import sampling_fields as sampling
from stages.models.spec import EmbeddingSpec as EmbeddingSpec  # names of this module, too
from stages.models.spec import FrozenModel
from stages.models.spec import ModelSpec as ModelSpec
from stages.planner.amounts import Amount, AmountOrNever  # noqa: TC001 - pydantic reads them

GRAIN = 8  # every side is a multiple of it; a model whose latent cells are larger asks for more (stages/settings.py)
EVERY_GRAIN = 32  # that of all models
MIN_SIDE, MAX_SIDE, MAX_ASPECT = 64, 16384, 8
MAX_FRAMES = 1024
FPS = (Fraction(1), Fraction(240))  # of playback
IMAGE_FORMATS, VIDEO_FORMATS = ("png", "tiff", "webp"), ("mp4", "hevc", "ffv1", "frames")
LOSSY = ("mp4", "hevc")
DEVICES = r"^(auto|cpu|mps|cuda(:\d+)?)$"
Pair = tuple[int, int]


class _MethodSpec(FrozenModel):
    name: str = ""  # each made class allows its own method's alone

    def build(self) -> Method:
        """Return the method these parameters configure; it checks its own bounds."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(METHODS[self.name])}
        return METHODS[self.name](**values)

    @model_validator(mode="after")
    def _check(self) -> _MethodSpec:
        self.build()
        return self


def _method_models() -> list[type[_MethodSpec]]:
    models: list[type[_MethodSpec]] = []
    for name, method in METHODS.items():
        hints = typing.get_type_hints(method)
        fields: dict[str, Any] = {f.name: (hints[f.name], f.default) for f in dataclasses.fields(method)}
        fields = {"name": (Literal[name], name), **fields}
        model = create_model(f"{name}_method", __base__=_MethodSpec, __doc__=method.__doc__, **fields)
        model.later = frozenset(f.name for f in dataclasses.fields(method) if LATER in f.metadata)
        models.append(model)
    return models


METHOD_MODELS = tuple(_method_models())


def expand_method(value: Any) -> Any:
    """Return FreeScale with an ablation's parameters for its name, `freescale/no-fusion`; else `value` as it is."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or value["name"] not in CHANGES:
        return value
    return {**CHANGES[value["name"]], **value, "name": "freescale"}


if typing.TYPE_CHECKING:
    MethodSpec = _MethodSpec
else:
    MethodSpec = Annotated[
        Annotated[typing.Union[METHOD_MODELS], Field(discriminator="name")],  # noqa: UP007
        BeforeValidator(expand_method),
    ]


class Region(FrozenModel):
    """A soft mask and the detail scale inside it; the rest of the picture keeps the method's detail scale."""

    mask: str = Field(min_length=1, max_length=4096, description="A picture file: white is 1, black is 0.")
    detail_scale: float = Field(ge=0, le=50, description="The method's `detail_scale` where the mask is 1.")


class Redo(FrozenModel):
    """Changes that hold from one stage of one level on; everything before keeps its bytes."""

    stage: Literal["base_denoise", "upscale", "renoise", "highres_denoise", "detail_pass"] = Field(
        description="The first stage that is made again."
    )
    level: int = Field(ge=0, le=16, description="The level of that stage; 0 is the smallest.")
    method: dict[str, Any] = Field(default_factory=dict, description="Fields of the method that change.")
    guidance_scale: float | None = Field(None, ge=0, le=50, description="None: as before.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="None: as before; up to `renoise`, which draws noise.")
    regions: tuple[Region, ...] | None = Field(
        None, max_length=16, description="In place of those before; none: as before."
    )

    @model_validator(mode="after")
    def _has_effect(self) -> Redo:
        if self.seed is not None and self.stage in ("highres_denoise", "detail_pass"):
            raise ValueError(f"seed cannot change from {self.stage} on: a level's noise is drawn at renoise")
        return self


def off_grain(side: int, grain: int) -> str:
    """What is wrong with a side that is not a multiple of `grain` pixels, with the two allowed sides around it."""
    return f"{side} is not a multiple of {grain}; the nearest that work are {_around(side, grain)}"


def _around(side: int, grain: int) -> str:
    low = side // grain * grain
    return f"{max(low, MIN_SIDE)} and {max(low + grain, MIN_SIDE)}"


def _device(value: Any) -> Any:
    """Return the name of a device as it is. Raises `ValueError` with the nearest for one that is none."""
    if isinstance(value, str) and not re.fullmatch(DEVICES, value):
        raise ValueError(not_one_of(value, ("auto", "cpu", "mps", "cuda", "cuda:N")))
    return value


def _sizes(value: Any) -> Any:
    """Return the sizes of a cascade as they are. Raises `ValueError` for what is neither `auto` nor pairs of sides."""
    pairs = [tuple(one) for one in value if isinstance(one, list | tuple)] if isinstance(value, list | tuple) else []
    sides = [side for pair in pairs for side in pair if re.fullmatch(r"\d+(\.0)?", str(side))]
    if value != "auto" and (not pairs or len(pairs) < len(value) or len(sides) < 2 * len(pairs)):
        raise ValueError("is not auto or the size of every level, such as [[128, 128], [256, 256]]")
    return value


def exact_rate(value: Any) -> Any:
    """Return the exact fraction of a frame rate, such as 24 or `24000/1001`, as text in lowest terms.

    Raises `ValueError` for a rate outside 1 to 240 frames a second.
    """
    if value is None or isinstance(value, bool):
        return value
    try:
        rate = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        raise ValueError("is not a number of frames a second, such as 24, 23.976 or 24000/1001") from None
    if not FPS[0] <= rate <= FPS[1] or rate.denominator > 10_000:
        raise ValueError(f"is not from {FPS[0]} to {FPS[1]} frames a second with a divisor up to 10000")
    return str(rate)


Side = Annotated[
    int, Field(ge=MIN_SIDE, le=MAX_SIDE, description="Pixels, a multiple of 8 and of the VAE's latent cell.")
]


class RenderSpec(FrozenModel):
    """All that decides the bytes of one picture or video."""

    later = frozenset(
        {
            *("prompt_syntax", "emphasis", "preset", "sigmas", "timestep_spacing", "timesteps", "guidance_interval"),
            *("deepcache", "deepcache_branch", "deepcache_levels", "todo", "shift_rule"),
        }
    )

    prompt: str = Field(min_length=1, max_length=4000, description="What to draw.")
    negative_prompt: str | None = Field(None, max_length=4000, description="What to avoid. None: the model's default.")
    prompt_syntax: Literal["plain", "a1111", "comfy"] | None = Field(
        None, description="Of both prompts. None: a1111 for a model in a single file, else plain."
    )
    emphasis: Literal["original", "no_norm", "comfy", "off"] | None = Field(
        None, description="How weights in prompts act. None: as in the program whose syntax it is."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="All noise is drawn from it.")
    width: Side = 512
    height: Side = 512
    model: ModelSpec = Field(ModelSpec(), description="The pretrained model.")
    method: MethodSpec = Field(
        default_factory=lambda: _spec_of("freescale"), description="The high-resolution method and its parameters."
    )
    cascade: Annotated[Literal["auto"] | tuple[Pair, ...], BeforeValidator(_sizes)] = Field(
        "auto",
        description="Sizes of the levels: `auto` (the method's own), or every level's (width, height) in pixels.",
    )
    steps: int | None = Field(None, ge=1, le=1000, description="None: the model's default (50, or 4 for turbo).")
    guidance_scale: float | None = Field(
        None, ge=0, le=50, description="Of classifier-free guidance; 1 or less: none. None: the model's default."
    )
    guidance_rescale: float = Field(
        0.0, ge=0, le=1, description="Share of rescaled guidance (arXiv:2305.08891); 0: none."
    )
    solver: sampling.SolverName = Field("auto", description="`auto`: the method's as published, else the model's.")
    eta: float | None = Field(
        None, ge=0, le=1, description="Stochasticity of `ddim` and `tcd`. None: the method's with `auto`, else usual."
    )
    preset: sampling.Preset = Field(
        None, description="How a few-step model is sampled, or a method with its values. None: neither."
    )
    sigmas: sampling.Sigmas = Field("auto", description="`uniform`: at even timesteps. `auto`: the model's.")
    timestep_spacing: sampling.TimestepSpacing = Field("auto", description="Of even timesteps. `auto`: the model's.")
    timesteps: sampling.Timesteps = Field(
        None, min_length=1, max_length=1000, description="Every timestep. None: by spacing."
    )
    guidance_interval: sampling.Interval = Field(
        None, description="(start, end): shares of the steps between which guidance is on. None: all of them."
    )
    deepcache: sampling.DeepCache = Field(None, description="Every how many steps the whole UNet runs. None: all.")
    deepcache_branch: sampling.Branch = Field(2, description="Skip connection from which outwards all steps run.")
    deepcache_levels: sampling.DeepCacheLevels = Field("base", description="`base`: level 0. `all`: every level.")
    shift_rule: sampling.Shift = Field(
        None,
        description="Of a flow model's noise levels: cap, sqrt, stock, a number; or a list. None: the method's.",
    )
    todo: sampling.Thinned = Field(None, description="Factor that thins keys and values; `auto`: a level's scale.")
    image: str | None = Field(None, max_length=4096, description="A picture to enlarge, in place of level 0.")
    regions: tuple[Region, ...] = Field((), max_length=16, description="Parts with a detail scale of their own.")
    redo: tuple[Redo, ...] = Field((), max_length=16, description="Changes from a stage of a level on, in order.")
    format: Literal["png", "tiff", "webp", "mp4", "hevc", "ffv1", "frames"] | None = Field(
        None, description="None: png for a picture, mp4 for a video. `frames`: a zip of PNG files."
    )
    frames: int | None = Field(
        None, ge=1, le=MAX_FRAMES, description="Of a video. None: as many as the model was trained for."
    )
    fps: Annotated[str | None, BeforeValidator(exact_rate)] = Field(
        None, description="Frames a second of playback: 24, 24000/1001; from 1 to 240. None: the model's default."
    )
    motion_fps: float | None = Field(
        None,
        gt=0,
        le=240,
        description="Frames a second for a model with an fps branch; more is less motion. None: its default.",
    )
    crf: int | None = Field(None, ge=0, le=51, description="Quality of mp4 and hevc, smaller is better; none: 18.")
    pixel_format: Literal["yuv420p", "yuv444p"] | None = Field(None, description="Of mp4 and hevc; none: yuv420p.")

    @model_validator(mode="before")
    @classmethod
    def _sampling(cls, values: Any) -> Any:
        return sampling.sampling_of(values)

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _printable(cls, value: str | None) -> str | None:
        if value is not None and any(ord(c) < 32 and c not in "\n\t" for c in value):
            raise ValueError("holds control characters; write plain text")
        return value

    @field_validator("width", "height")
    @classmethod
    def _multiple(cls, side: int) -> int:
        if side % GRAIN:
            raise ValueError(f"{off_grain(side, GRAIN)}, with every model {_around(side, EVERY_GRAIN)}")
        return side

    @model_validator(mode="after")
    def _consistent(self) -> RenderSpec:
        if max(self.size) > MAX_ASPECT * min(self.size):
            raise ValueError(f"width x height {self.width}x{self.height} is beyond an aspect of {MAX_ASPECT}:1")
        if self.cascade != "auto":
            _check_cascade(self.cascade, self.width, self.height)
        masked = self.regions or any(change.regions for change in self.redo)
        if masked and "detail_scale" not in type(self.method).model_fields:
            raise ValueError(f"regions need a method with detail control; {self.method.name!r} has none")
        for change in self.redo:
            changed_method(self.method, change.method)
        for name in ("crf", "pixel_format"):
            if getattr(self, name) is not None and self.format not in (None, *LOSSY):
                raise ValueError(f"{name} is for {' and '.join(LOSSY)}, not for {self.format}")
        return self

    @property
    def size(self) -> Pair:
        """(height, width) in pixels."""
        return self.height, self.width


def _spec_of(name: str) -> Any:
    return next(m for m in METHOD_MODELS if m.model_fields["name"].default == name)()


def changed_method(spec: _MethodSpec, changes: dict[str, Any]) -> _MethodSpec:
    """Return the method's spec with these fields changed. Raises `ValueError` for a field that the method lacks."""
    unknown = sorted(set(changes) - set(type(spec).model_fields))
    if unknown:
        known = ", ".join(type(spec).model_fields)
        raise ValueError(f"method {spec.name!r} has no {', '.join(unknown)}; it has {known}")
    return type(spec).model_validate(spec.model_dump() | changes)


def _check_cascade(cascade: tuple[Pair, ...], width: int, height: int) -> None:
    if not cascade or cascade[-1] != (width, height):
        raise ValueError(f"cascade must end at {width}x{height}, the size asked for")
    for w, h in cascade:
        if w % GRAIN or h % GRAIN or min(w, h) < MIN_SIDE:
            raise ValueError(f"cascade level {w}x{h}: sides must be multiples of {GRAIN}, at least {MIN_SIDE}")
    for (w, h), (next_w, next_h) in itertools.pairwise(cascade):
        if next_w < w or next_h < h or (w, h) == (next_w, next_h):
            raise ValueError(f"cascade level {next_w}x{next_h} does not grow from {w}x{h}")
        if abs(math.log((next_w * h) / (next_h * w))) > 0.12:
            raise ValueError(f"cascade level {next_w}x{next_h} has another aspect than {w}x{h}")


class RunOptions(FrozenModel):
    """How a render is run. Nothing here decides a byte beyond floating-point rounding."""

    device: Annotated[str, BeforeValidator(_device)] = Field(
        "auto", pattern=DEVICES, description="`auto`: the first accelerator, else the CPU."
    )
    split_guidance: bool = Field(False, description="Two passes of the UNet in place of one twice as wide.")
    window_rows: int | None = Field(None, ge=1, description="Most attention windows computed at once. None: by memory.")
    feed_forward_tokens: int | None = Field(None, ge=1, description="Most tokens in one feed-forward. None: all.")
    offload: bool = Field(False, description="Only the part of the model that works is on the accelerator.")
    by_blocks: bool = Field(False, description="Of the UNet or transformer only the block that works is on it.")
    memory: Amount | None = Field(
        None, ge=1, description="Most memory to take, in bytes or as `16GiB`. None: what the device has free."
    )
    vae_memory: AmountOrNever | None = Field(
        None,
        ge=0,
        description="Bytes above which the VAE works by exact tiles; None: as memory asks; 0 or `never`: no tiles.",
    )
    vae_tile: Literal[64, 128, 256, 512, 1024] = Field(512, description="Side of the VAE's tiles in pixels.")
    phase_convs: bool = Field(False, description="Dilated convolutions as dense ones on interleaved phases.")
    checkpoint_every: float = Field(60.0, ge=0, le=86400, description="Seconds between checkpoints inside a stage.")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; None: torch's default.")

    @property
    def compute(self) -> Compute:
        """The options that change how a UNet is run, for the denoiser."""
        return Compute(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Compute)})


def parse_size(text: str, field: str = "size") -> Pair:
    """Return (width, height) in pixels from `WIDTHxHEIGHT`. Raises `SpecError`, which names `field`, for other text."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isascii() and p.isdigit() and len(p) < 7 for p in parts):
        width, height = nearest_size(text, GRAIN, MIN_SIDE, MAX_SIDE) or (768, 512)
        raise SpecError(f"{field}: {text!r} is not WIDTHxHEIGHT in pixels; write for example {width}x{height}")
    return int(parts[0]), int(parts[1])


def make_spec(values: dict[str, Any]) -> RenderSpec:
    """Return the spec of plain values. Raises `SpecError` with the first thing that is wrong, in one sentence."""
    try:
        return RenderSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError(sentence(error, RenderSpec)) from None
