"""What a stage is: a name, a version, frozen parameters, parents, and a run from tensors to tensors.

A stage's fields are the parameters that decide its bytes; a field marked `not_in_key()` does not (a path whose content
is named by a digest beside it). Short stages return their tensors, long ones are generators that yield a kernel
`Step` after each step and return them. What only some stages can do is a protocol: `Tiled`, `ByFrame`, `WritesFiles`.
Nothing here knows of disks, Prefect or progress.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias, runtime_checkable

from freescale import METHODS
from freescale.methods.base import LATER

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from pathlib import Path

    import torch
    from torch import Tensor

    from freescale import Method, Step
    from freescale.vae.tile import TiledVae
    from stages.models.load import Models
    from stages.spec import RunOptions

Size = tuple[int, int]  # (height, width) in pixels
Tensors: TypeAlias = "dict[str, Tensor]"
Parents: TypeAlias = "Mapping[str, Tensors]"
Running: TypeAlias = "Generator[Step, None, Tensors]"
LATENT_AXES = {"latents": "BChw"}


class Video(Protocol):
    """Frames of a video that lies on disk, each (1, 3, H, W), read when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...
    def __iter__(self) -> Iterator[Tensor]: ...


class Picture(Protocol):
    """A picture (1, 3, H, W) that lies on disk, read by regions: spans of rows and of columns."""

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""

    def region(self, rows: tuple[int, int], columns: tuple[int, int], /) -> Tensor:
        """The part (1, 3, rows, columns) within two spans, [first, one past the last) each."""

    def whole(self) -> Tensor:
        """All of it."""


@dataclass(frozen=True)
class Stream:
    """A video (1, C, F, H, W) of which `pieces` makes one frame (1, C, H, W) at a time, in order, each written at once.

    Of a picture (1, C, H, W) it makes bands of rows (1, C, rows, W), all but the last as high as the store's chunks.
    `pieces` is given the pieces that an interrupted attempt left, by number, and makes the others.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[Mapping[int, Tensor]], Iterator[Tensor]]


def not_in_key(default: Any = dataclasses.MISSING) -> Any:
    """A field that says how to get at an input, not what it is; left out of the fingerprint."""
    return field(default=default, metadata={"not_in_key": True}, compare=False)


def added(default: Any) -> Any:
    """A field that came later; at its default it is left out of the fingerprint, so that older keys stay."""
    return field(default=default, metadata={"added": True})


@dataclass(frozen=True)
class Cost:
    """What a stage takes: bytes beyond the weights at the worst moment, and floating-point operations."""

    activations: int
    flops: float = 0.0

    def times(self, count: int) -> Cost:
        """The cost of `count` runs, one after another."""
        return Cost(self.activations, self.flops * count)


class Networks(Protocol):
    """What a model's networks take at work; the planner knows it without loading them."""

    def latent_bytes(self, size: Size, frames: int = 1) -> int:
        """Bytes of the float32 latents of a picture of `size` pixels, or of a video."""

    def text_bytes(self, chunks: int) -> int:
        """Bytes of the float32 rows of one encoded prompt of so many chunks."""

    def encode_text(self, chunks: int) -> Cost:
        """Encode both prompts, of so many chunks each."""

    def denoise(self, stage: Any, frames: int) -> Cost:
        """Run all steps of a denoising stage, over `frames` of a video."""

    def decode(self, size: Size, held: int = 0) -> Cost:
        """Decode a picture of `size` pixels; by tiles, with `held` bytes beside them."""

    def encode(self, size: Size, source: Size, held: int = 0) -> Cost:
        """Enlarge a picture from `source` to `size` pixels and encode it; by tiles, with `held` bytes beside them."""

    def decode_video(self, size: Size, frames: int) -> Cost:
        """Decode a video of `size` pixels by a causal VAE, a latent frame at a time."""

    def encode_video(self, size: Size, source: Size, frames: int) -> Cost:
        """Enlarge the frames of a video from `source` to `size` pixels and encode them by a causal VAE."""


@dataclass(frozen=True)
class Stage:
    """One step of a render. `part` names the part of the model whose weights decide its bytes, if any.

    Stages that share a name differ in `variant`: 0 for the first of them.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1  # raised when the arithmetic changes
    variant: ClassVar[int] = 0
    part: ClassVar[str] = ""
    axes: ClassVar[Mapping[str, str]] = {}  # of its arrays, as single letters: "BCHW", "HWC"
    streamed: ClassVar[frozenset[str]] = frozenset()  # parents that are read frame by frame: `video_of`
    by_region: ClassVar[frozenset[str]] = frozenset()  # parents that are read by regions: `picture_of`

    def run(
        self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None
    ) -> Tensors | dict[str, Stream] | Running:
        """Make the result, from `resume` on where a checkpoint gives one."""
        raise NotImplementedError

    @classmethod
    def key_version(cls) -> int:
        """Version and variant as one number, as keys and manifests have them: 1, 2, …; of a variant 101, 102, …"""
        return 100 * cls.version + cls.variant if cls.variant else cls.version

    def params(self) -> dict[str, Any]:
        """The parameters that decide the bytes, as JSON has them."""
        decisive = {f.name for f in dataclasses.fields(self) if self._decides(f)}
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: value for name, value in values.items() if name in decisive}

    def _decides(self, field: dataclasses.Field[Any]) -> bool:
        at_default = field.metadata.get("added") and getattr(self, field.name) == field.default
        return not field.metadata.get("not_in_key") and not at_default

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """The stage that has these `params`. Raises `TypeError` for fields that it does not have."""
        return cls(**{name: _tupled(value) for name, value in params.items()})

    def axes_of(self, name: str, dimensions: int) -> str | None:
        """The axes of an array: a video has frames where a picture has none."""
        axes = self.axes.get(name)
        return axes.replace("C", "CF") if axes is not None and dimensions == len(axes) + 1 else axes

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the model that work in the stage: `part`, if any, and those that help it."""
        return (self.part,) if self.part else ()

    @property
    def span(self) -> tuple[int, int]:
        """(first step, one past the last) for a long stage; (0, 0) for a short one."""
        return 0, 0

    @property
    def passes(self) -> int:
        """How often the stage goes over all that it works on: once, or once a step."""
        first, end = self.span
        return max(end - first, 1)

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """What a run takes. `source` is the size of the picture it starts from, or makes; `frames` are a video's.

        By default, that of a stage without a network: a few latents on the host.
        """
        return Cost(4 * networks.latent_bytes(source))

    def disk_bytes(self, networks: Networks, size: Size, frames: int) -> int:
        """About how many bytes its arrays and files have, for a level of `size`: by default those of latents."""
        return networks.latent_bytes(size, frames)


class FrameStage(Stage):
    """A stage over a video, a step a frame."""

    frames: int

    @property
    def span(self) -> tuple[int, int]:
        """A step a frame."""
        return 0, self.frames

    @property
    def passes(self) -> int:
        """Once: a step is one frame."""
        return 1


@runtime_checkable
class Tiled(Protocol):
    """A stage whose work with the VAE other processes can do tile by tile."""

    def tiled(self, parents: Parents, models: Models, frame: int = 0) -> TiledVae:
        """The half of the VAE over the stage's picture, or over a frame of its video."""


@runtime_checkable
class ByFrame(Protocol):
    """A stage whose frames other processes can make one by one."""

    def make_frame(self, parents: Parents, models: Models, options: RunOptions, index: int) -> Tensor:
        """What the stage makes of a frame, on the CPU."""


@runtime_checkable
class WritesFiles(Protocol):
    """A stage that writes files beside its arrays."""

    def write_files(self, parents: Parents, folder: Path) -> None:
        """Write the files into a folder that will be the artifact's."""

    def tools(self) -> dict[str, str]:
        """Versions of programs outside Python that wrote the files; recorded, and no part of the fingerprint."""


def video_of(parents: Parents, role: str, name: str = "image") -> Video:
    """The video of a parent that the stage lists in `streamed`."""
    return parents[role][name]


def picture_of(parents: Parents, role: str, name: str = "image") -> Picture:
    """The picture of a parent that the stage lists in `by_region`."""
    found: Any = parents[role][name]
    picture: Picture = found
    return picture


def picture_bytes(size: Size) -> int:
    """Bytes of a picture (1, 3, H, W) in float32."""
    return 3 * size[0] * size[1] * 4


def picture_cost(size: Size) -> Cost:
    """Of a stage that handles a whole picture on the host: two float32 numbers and a byte for each of its values."""
    return Cost(2 * picture_bytes(size) + 3 * size[0] * size[1])


def method_record(method: Method) -> dict[str, Any]:
    """A method as plain values, for a stage's parameters; without fields of how references are made.

    Fields that came later than others are left out at their default.
    """
    values, left_out = dataclasses.asdict(method), set[str]()
    for each in dataclasses.fields(method):
        is_unsaid = bool(each.metadata.get(LATER)) and values[each.name] == each.default
        if is_unsaid or each.metadata.get("of_reference"):
            left_out.add(each.name)
    kept = {name: value for name, value in values.items() if name not in left_out}
    return {"name": method.name, "version": method.version, **kept}


def method_of(record: Mapping[str, Any]) -> Method:
    """The method `method_record` described."""
    kind = METHODS[record["name"]]
    said = [each.name for each in dataclasses.fields(kind) if each.name in record or not each.metadata]
    return kind(**{name: _tupled(record[name]) for name in said})


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list | tuple) else value


def cells_of(size: Size, cell: int) -> tuple[int, int]:
    """Latent cells (h, w) of a picture of `size` pixels, of `cell` pixels a side each."""
    return size[0] // cell, size[1] // cell


def latent_shape(size: Size, channels: int, cell: int, frames: int | None = None) -> tuple[int, ...]:
    """(1, C, h, w) for a picture of (H, W) pixels, (1, C, F, h, w) for a video; a cell has `cell` pixels a side."""
    cells = cells_of(size, cell)
    return (1, channels, *cells) if frames is None else (1, channels, frames, *cells)
