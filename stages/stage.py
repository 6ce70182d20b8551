"""What a stage is: a name, a version, frozen parameters, parents, and a run from tensors to tensors.

A stage's fields are the parameters that decide its bytes; a field marked `not_in_key()` does not (a path whose content
is named by a digest beside it). Short stages return their tensors, long ones are generators that yield a kernel
`Step` after each step and return them. Nothing here knows of disks, Prefect or progress.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from freescale import METHODS, Level, Method, Step

if TYPE_CHECKING:
    from pathlib import Path

    from freescale.vae.passes import Run
    from freescale.vae.tile import TiledVae
    from stages.models.load import Models
    from stages.spec import RunOptions

Tensors = dict[str, Tensor]
Parents = Mapping[str, Tensors]
Running = Generator[Step, None, Tensors]


class Video(Protocol):
    """Frames of a video that lies on disk, each (1, 3, H, W), read when asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...
    def __iter__(self) -> Iterator[Tensor]: ...


class Picture(Protocol):
    """A picture (1, 3, H, W) that lies on disk, read by regions: spans of rows and of columns."""

    @property
    def size(self) -> tuple[int, int]: ...
    def region(self, rows: tuple[int, int], columns: tuple[int, int], /) -> Tensor: ...
    def whole(self) -> Tensor: ...


@dataclass(frozen=True)
class Stream:
    """A video (1, C, F, H, W) of which `pieces` makes one frame (1, C, H, W) at a time, in order, each written at once.

    Of a picture (1, C, H, W) it makes bands of rows (1, C, rows, W), all but the last as high as the store's chunks.
    What is there already, of an attempt that was cut off, is given to it by number, and it makes the others.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[Mapping[int, Tensor]], Iterator[Tensor]]


class Helpers(Protocol):
    """Other processes at a call's hand, which compute what it would compute, to the same bits."""

    def tiles(self, frame: int = 0) -> Run:
        """Who computes the VAE's tiles over the call's picture, or over a frame of its video."""

    def frames(self, indices: Iterable[int], options: RunOptions) -> Iterator[Tensor]:
        """The stage's `make_frame` of each, in order."""


def not_in_key(default: Any = dataclasses.MISSING) -> Any:
    """A field that says how to get at an input, not what it is; left out of the fingerprint."""
    return field(default=default, metadata={"not_in_key": True}, compare=False)


@dataclass(frozen=True)
class Stage:
    """One step of a render. `part` names the part of the model whose weights decide its bytes, if any."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    part: ClassVar[str] = ""
    axes: ClassVar[Mapping[str, str]] = {}  # of its arrays, as single letters: "BCHW", "HWC"
    streamed: ClassVar[frozenset[str]] = frozenset()  # parents that are read frame by frame: `video_of`
    by_region: ClassVar[frozenset[str]] = frozenset()  # parents that are read by regions: `picture_of`
    writes_files: ClassVar[bool] = False

    def params(self) -> dict[str, Any]:
        """The parameters that decide the bytes, as JSON has them."""
        decisive = {f.name for f in dataclasses.fields(self) if not f.metadata.get("not_in_key")}
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: value for name, value in values.items() if name in decisive}

    def axes_of(self, name: str, dimensions: int) -> str | None:
        """The axes of an array: a video has frames where a picture has none."""
        axes = self.axes.get(name)
        return axes.replace("C", "CF") if axes is not None and dimensions == len(axes) + 1 else axes

    @property
    def span(self) -> tuple[int, int]:
        """(first step, one past the last) for a long stage; (0, 0) for a short one."""
        return 0, 0

    def run(
        self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None
    ) -> Tensors | dict[str, Stream] | Running:
        """Make the result, from `resume` on where a checkpoint gives one."""
        raise NotImplementedError

    def tools(self) -> dict[str, str]:
        """Versions of programs outside Python that wrote the files; recorded, and no part of the fingerprint."""
        return {}

    def tiled(self, parents: Parents, models: Models, frame: int = 0) -> TiledVae:
        """What helpers compute tiles of; of stages that ask them to."""
        raise NotImplementedError

    def make_frame(self, parents: Parents, models: Models, options: RunOptions, index: int) -> Tensor:
        """What helpers compute of a frame, on the CPU; of stages that ask them to."""
        raise NotImplementedError

    def files(self, parents: Parents) -> dict[str, bytes]:
        """Files beside the arrays; only `export` has one."""
        return {}

    def write_files(self, parents: Parents, folder: Path) -> None:
        """Write files that are too large to hold into a folder that will be the artifact's; where `writes_files`."""
        raise NotImplementedError


def video_of(parents: Parents, role: str, name: str = "image") -> Video:
    """The video of a parent that the stage lists in `streamed`."""
    return parents[role][name]


def picture_of(parents: Parents, role: str, name: str = "image") -> Picture:
    """The picture of a parent that the stage lists in `by_region`."""
    found: Any = parents[role][name]
    picture: Picture = found
    return picture


def method_record(method: Method) -> dict[str, Any]:
    """A method as plain values, for a stage's parameters."""
    return {"name": method.name, "version": method.version, **dataclasses.asdict(method)}


def method_of(record: Mapping[str, Any]) -> Method:
    """The method `method_record` described."""
    kind = METHODS[record["name"]]
    return kind(**{f.name: _tupled(record[f.name]) for f in dataclasses.fields(kind)})


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list | tuple) else value


def level_of(
    index: int,
    size: tuple[int, int],
    base_size: tuple[int, int],
    frames: int | None = None,
    **tensors: Tensor | None,
) -> Level:
    """The kernel's `Level` for sizes in pixels; every model here has eight pixels to a latent cell.

    `frames` are those the model was trained for.
    """
    return Level(index=index, size=size, base_size=base_size, frames=frames, **tensors)  # type: ignore[arg-type]


def latent_shape(size: tuple[int, int], channels: int, frames: int | None = None) -> tuple[int, ...]:
    """(1, C, h, w) for a picture of (H, W) pixels, (1, C, F, h, w) for a video."""
    cells = (size[0] // 8, size[1] // 8)
    return (1, channels, *cells) if frames is None else (1, channels, frames, *cells)
