"""One stage of a render with its parents, and the key under which its result is kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from storage.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.stage import Size, Stage


@dataclass(frozen=True, eq=False)
class Call:
    """One stage of a render, with its parents by role. Calls with equal keys have equal bytes."""

    stage: Stage
    level: int
    parents: Mapping[str, Call]
    model: str  # fingerprint of the weights that decide the bytes, and the dtype; empty where none do
    size: Size
    frames: int = 1
    cell: int = 8  # pixels of a latent cell's side

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the bytes besides the parents, as plain values."""
        return {
            "stage": self.stage.name,
            "version": self.stage.key_version(),
            "params": self.stage.params(),
            "model": self.model,
        }

    @cached_property
    def key(self) -> str:
        """The fingerprint of the identity and of the parents' keys: 64 hex digits. It alone decides what is done."""
        return fingerprint(self.identity, {role: parent.key for role, parent in self.parents.items()})

    @property
    def label(self) -> str:
        """The stage's name and the level, for messages: `decode 1`."""
        return f"{self.stage.name} {self.level}"

    @property
    def work(self) -> float:
        """Rough cost for progress bars: latent cells times steps; attention grows with the square of the cells."""
        cells = self.size[0] * self.size[1] / self.cell**2
        return self.stage.passes * self.frames * cells * (1 + cells / 16384)
