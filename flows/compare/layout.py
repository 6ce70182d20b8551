"""The pictures of a comparison: every prompt, seed and size under every method, each picture a run of its own.

The picture of a seed here is the picture that `freescale render` makes of the same words and seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.batch.jobs_file import QueuedJob
from flows.rendering.job import prepare
from stages.models.load import describe
from stages.spec import make_spec
from storage import fingerprint

if TYPE_CHECKING:
    from flows.home import Home
    from stages.metrics.grid import GridSpec

CAPTIONS = 4  # of scenes, where the spec gives no count


@dataclass(frozen=True)
class Cell:
    """One picture of a comparison, and the job that makes it."""

    label: str  # of the method
    queued: QueuedJob

    @property
    def run(self) -> str:
        """The run's name."""
        return self.queued.job.run


@dataclass(frozen=True)
class Row:
    """One row of a comparison: every method on one prompt, seed and size."""

    prompt: str
    seed: int
    size: tuple[int, int]  # (width, height)
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.prompt}, seed {self.seed}, {self.size[0]}x{self.size[1]}"


@dataclass(frozen=True)
class Comparison:
    """A checked comparison. Nothing has been rendered yet."""

    name: str
    spec: GridSpec
    rows: tuple[Row, ...]

    @property
    def jobs(self) -> tuple[QueuedJob, ...]:
        """Every render once, row by row, so that a comparison which was stopped has whole rows."""
        return tuple({cell.run: cell.queued for row in self.rows for cell in row.cells}.values())


def prepare_comparison(spec: GridSpec, home: Home) -> Comparison:
    """Check a spec wholly and lay out its pictures. Raises `SpecError` before any work."""
    rows = []
    info = describe(spec.model, home.root)
    spec = spec.with_own_values(info)
    for prompt in dict.fromkeys(spec.prompt_list(CAPTIONS, info.is_video)):
        for seed in spec.seeds:
            for size in spec.sizes:
                cells = []
                for entry in spec.methods:
                    job = prepare(make_spec(spec.render_values(prompt, seed, size, entry)), home)
                    cells.append(Cell(entry.label, QueuedJob(f"{entry.label}: {job.run}", 0, "comparison", job)))
                rows.append(Row(prompt, seed, size, tuple(cells)))
    named = fingerprint([[cell.label, cell.run] for row in rows for cell in row.cells])
    return Comparison(f"comparison-{named[:8]}", spec, tuple(rows))
