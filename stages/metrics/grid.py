"""Prompts x methods x sizes x seeds: what `compare` and `evaluate` render, as a person writes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from stages.errors import SpecError, sentence
from stages.settings import settled_method
from stages.shapes.scenes import sample_scene
from stages.shapes_motion.videos import sample_video
from stages.spec import MAX_FRAMES, MethodSpec, ModelSpec, exact_rate, parse_size
from stages.textfiles.text import UnreadableError, numbered_lines, read_text

if TYPE_CHECKING:
    from stages.models.load import ModelInfo

FIRST_SCENE = 3_000_000  # of the held-out scenes: no training sees them
MAX_PROMPT_BYTES = 16 * 2**20


class Part(BaseModel):
    """Frozen, and strict about names and numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _entry(value: Any) -> Any:
    """`direct` or {"name": "freescale", "fusion": false, "label": "no fusion", "steps": 30} -> an entry."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, dict) and "method" not in value:
        own = {k: v for k, v in value.items() if k in MethodEntry.model_fields}
        parameters = {k: v for k, v in value.items() if k not in own}
        return {"label": value.get("name", ""), "method": parameters} | own
    return value


def _pair(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


class _Sampled(Part):
    """How renders are sampled; none: as the spec says, and else the model."""

    steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=0, le=50)

    def sampling(self) -> dict[str, Any]:
        """Return what is said, by its name in a `RenderSpec`."""
        return self.model_dump(include=set(_Sampled.model_fields), exclude_none=True)


class MethodEntry(_Sampled):
    """A method with its parameters, sampled in its own way where it says one, and what tables and pages call it."""

    label: str = Field(min_length=1, max_length=60, pattern=r"^[^|\n\r]+$")
    method: MethodSpec


class GridSpec(_Sampled):
    """Prompts x methods x sizes x seeds, each a render of its own."""

    model: ModelSpec = ModelSpec()
    methods: tuple[Annotated[MethodEntry, BeforeValidator(_entry, str | dict[str, Any])], ...] = Field(
        default=(MethodEntry.model_validate(_entry("freescale")), MethodEntry.model_validate(_entry("direct"))),
        min_length=1,
        max_length=64,
    )
    sizes: tuple[Annotated[tuple[int, int], BeforeValidator(_pair, str | tuple[int, int])], ...] = Field(
        ((512, 512),), min_length=1, max_length=16, description="(width, height) or WIDTHxHEIGHT."
    )
    prompts: str | tuple[str, ...] = Field(
        "shapes", description="A text file, prompts, or captions of held-out scenes."
    )
    count: int | None = Field(None, ge=1, le=100_000, description="Prompts used; none: all of a file, or as said.")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field((0,), min_length=1, max_length=1000)
    frames: int | None = Field(None, ge=1, le=MAX_FRAMES, description="Of videos; none: as many as the model makes.")
    fps: Annotated[str | None, BeforeValidator(exact_rate)] = None
    motion_fps: float | None = Field(None, gt=0, le=240)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for field, values in self._once().items():
            if len(set(values)) < len(values):
                again = next(v for v in values if values.count(v) > 1)
                hint = "; give each a label" if field == "methods" else ""
                raise ValueError(f"{field} has {again!r} twice{hint}")
        return self

    def _once(self) -> dict[str, list[object]]:
        return {
            "methods": [entry.label for entry in self.methods],
            "sizes": list(self.sizes),
            "seeds": list(self.seeds),
        }

    @property
    def of_scenes(self) -> bool:
        """Whether the prompts are captions of held-out scenes."""
        return self.prompts == "shapes"

    def prompt_list(self, captions: int, videos: bool = False) -> list[str]:
        """Return the prompts in order, `captions` of scenes (moving ones for `videos`) where no count is given.

        Raises `SpecError`.
        """
        if self.of_scenes:
            sample = sample_video if videos else sample_scene
            return [sample(FIRST_SCENE + index).caption for index in range(self.count or captions)]
        given = (
            list(self.prompts) if isinstance(self.prompts, tuple) else _lines(Path(os.path.expanduser(self.prompts)))
        )
        if self.count is not None and self.count > len(given):
            raise SpecError(f"count: {self.count} is more than the {len(given)} prompts there are")
        return given[: self.count]

    def with_own_values(self, info: ModelInfo) -> Self:
        """The spec with the model's own values for what its methods leave unsaid, so that a record of it says all."""
        methods = [e.model_copy(update={"method": settled_method(e.method, info)}) for e in self.methods]
        return self.model_copy(update={"methods": tuple(methods)})

    def render_values(self, prompt: str, seed: int, size: tuple[int, int], entry: MethodEntry) -> dict[str, Any]:
        """Return the fields of one picture's `RenderSpec`; `size` is (width, height)."""
        values = {"prompt": prompt, "seed": seed, "width": size[0], "height": size[1], "model": self.model}
        values |= self.sampling() | entry.sampling()
        return values | {"method": entry.method, "frames": self.frames, "fps": self.fps, "motion_fps": self.motion_fps}


def make_grid(values: dict[str, Any]) -> GridSpec:
    """Validate, turning pydantic's report into one sentence. Raises `SpecError`."""
    try:
        return GridSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError(sentence(error, GridSpec)) from None


def _lines(path: Path) -> list[str]:
    """Return the prompts of a text file, one a line; empty lines and those that begin with # are left out."""
    if not os.path.lexists(path):
        raise SpecError(f"prompts: {path} does not exist; say shapes, or name a text file with a prompt a line")
    try:
        lines = [line.strip() for _, line in numbered_lines(read_text(path, MAX_PROMPT_BYTES))]
    except UnreadableError as error:
        where = "" if error.line is None else f", line {error.line}:"
        raise SpecError(f"prompts: {path}{where} {error}") from None
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise SpecError(f"prompts: {path} holds no prompt")
    return found
