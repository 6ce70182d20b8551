"""One stage of a render with its parents, and the key under which its result is kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stages.decode_video import DecodeVideo
from stages.upscale_video import UpscaleVideo
from storage.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.stage import Stage

Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Call:
    """One stage of a render with its parents, by role. Two calls with one identity have the same bytes."""

    stage: Stage
    level: int
    parents: Mapping[str, Call]
    model: str  # fingerprint of the weights that decide the bytes, and the dtype; empty where none do
    size: Size
    frames: int = 1

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the bytes beside the parents, as plain values."""
        return {
            "stage": self.stage.name,
            "version": self.stage.version,
            "params": self.stage.params(),
            "model": self.model,
        }

    @cached_property
    def key(self) -> str:
        """The fingerprint of the identity and of the parents' keys: 64 hex digits. It alone decides what is done."""
        return fingerprint(self.identity, {role: parent.key for role, parent in self.parents.items()})

    @property
    def label(self) -> str:
        """For people: the stage's name and, above the first level, the level."""
        return f"{self.stage.name} {self.level}"

    @property
    def work(self) -> float:
        """Rough cost in latent cells times steps, for progress; attention grows with the square of the cells."""
        cells = self.size[0] * self.size[1] / 64
        first, last = self.stage.span
        steps = 1 if isinstance(self.stage, DecodeVideo | UpscaleVideo) else max(last - first, 1)
        return steps * self.frames * cells * (1 + cells / 16384)
