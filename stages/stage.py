"""What a stage is: a name, a version, frozen parameters, parents, and a run from tensors to tensors.

A stage's fields are the parameters that decide its bytes; a field marked `aside()` does not (a path whose content
is named by a digest beside it). Short stages return their tensors, long ones are generators that yield a kernel
`Step` after each step and return them. Nothing here knows of disks, Prefect or progress.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from freescale import METHODS, Level, Method, Step

if TYPE_CHECKING:
    from stages.models import Models
    from stages.spec import RunOptions

Tensors = dict[str, Tensor]
Parents = Mapping[str, Tensors]
Running = Generator[Step, None, Tensors]


class StageError(RuntimeError):
    """A stage whose result cannot be right (NaN, a uniform picture). Nothing of it is kept."""


def aside(default: Any = dataclasses.MISSING) -> Any:
    """A field that says how to get at an input, not what it is; left out of the fingerprint."""
    return field(default=default, metadata={"aside": True}, compare=False)


@dataclass(frozen=True)
class Stage:
    """One step of a render. `part` names the part of the model whose weights decide its bytes, if any."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    part: ClassVar[str] = ""
    axes: ClassVar[Mapping[str, str]] = {}  # of its arrays, as single letters: "BCHW", "HWC"

    def params(self) -> dict[str, Any]:
        """The parameters that decide the bytes, as JSON has them."""
        decisive = {f.name for f in dataclasses.fields(self) if not f.metadata.get("aside")}
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: value for name, value in values.items() if name in decisive}

    @property
    def span(self) -> tuple[int, int]:
        """(first step, one past the last) for a long stage; (0, 0) for a short one."""
        return 0, 0

    def run(
        self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None
    ) -> Tensors | Running:
        """Make the result, from `resume` on where a checkpoint gives one."""
        raise NotImplementedError

    def files(self, parents: Parents) -> dict[str, bytes]:
        """Files beside the arrays; only `export` has one."""
        return {}


def method_record(method: Method) -> dict[str, Any]:
    """A method as plain values, for a stage's parameters."""
    return {"name": method.name, "version": method.version, **dataclasses.asdict(method)}


def method_of(record: Mapping[str, Any]) -> Method:
    """The method `method_record` described."""
    kind = METHODS[record["name"]]
    return kind(**{f.name: _tupled(record[f.name]) for f in dataclasses.fields(kind)})


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list | tuple) else value


def level_of(index: int, size: tuple[int, int], base_size: tuple[int, int], **tensors: Tensor | None) -> Level:
    """The kernel's `Level` for sizes in pixels; every model here has eight pixels to a latent cell."""
    return Level(index=index, size=size, base_size=base_size, **tensors)  # type: ignore[arg-type]


def latent_shape(size: tuple[int, int], channels: int) -> tuple[int, int, int, int]:
    """(1, C, h, w) for a picture of (H, W) pixels."""
    return 1, channels, size[0] // 8, size[1] // 8
