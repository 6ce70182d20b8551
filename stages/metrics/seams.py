"""Seams where windows meet: how much more a picture changes across the borders of windows than beside them.

Methods that work in windows of the training size, or attend within them, move these by half their size. So borders lie
on lines at multiples of half the training size. The difference of neighbouring pixels across such a line is compared
with that across lines 8 and 16 pixels away: far enough that a soft seam is not in them, and at one phase of the latent
cells, whose own pattern therefore does not count. Of the differences the square roots are averaged, so that a seam over
the whole line counts more than an object's edge that crosses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from stages.export import to_pixels
from stages.metrics.detail import GREY
from stages.stage import Parents, Stage, Tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from freescale import Step
    from stages.models.load import Models
    from stages.spec import RunOptions

BESIDE = (-16, -8, 8, 16)  # pixels


def seam_score(pixels: Tensor, steps: tuple[int, int]) -> float:
    """Return how much stronger the differences across lines of windows are than beside them, of a picture (3, H, W).

    0 is no seam, 1 twice the differences. `steps` are the pixels between two lines, (down, right). 0 where no line lies
    in the picture, where nothing differs beside them, or more than across them.
    """
    grey = np.tensordot(np.array(GREY), pixels.numpy().astype(np.float64), 1)
    across, beside = 0.0, 0.0
    for turned, step in ((grey, steps[0]), (grey.T, steps[1])):
        differences = np.sqrt(np.abs(np.diff(turned, axis=0))).mean(1)
        for line in range(step - 1, len(differences), step):
            across += differences[line]
            beside += _mean_beside(differences, line)
    return max(across / beside - 1, 0.0) if beside > 0 else 0.0


def _mean_beside(differences: NDArray[Any], line: int) -> float:
    near = [differences[line + away] for away in BESIDE if 0 <= line + away < len(differences)]
    return float(np.mean(near)) if near else 0.0


@dataclass(frozen=True)
class Seams(Stage):
    """{"seams": (1) float64}: the seam score of a render's decoded image, as it is exported."""

    name = "seams"
    axes: ClassVar[Mapping[str, str]] = {"seams": "N"}

    steps: tuple[int, int]  # pixels

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Read the parent `image`."""
        pixels = torch.from_numpy(np.array(to_pixels(parents["image"]["image"]))).permute(2, 0, 1)
        return {"seams": torch.tensor([seam_score(pixels, self.steps)], dtype=torch.float64)}
