"""Whether the object of a picture of `shapes` has the texture of its caption, and at the picture's own scale.

A method that draws texture at the scale of the training size over an enlarged object leaves the word right and the
period wrong: counts, colours and distances of features do not see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from stages.shapes.scenes import PERIODS
from stages.shapes.texture import WITHIN, asked_texture, period_ratio, read_texture
from stages.stage import Parents, Stage, Tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from freescale import Step
    from stages.models.load import Models
    from stages.spec import RunOptions

WORDS = ("texture", "period", "period_right")
"""What is said of a method, in its order."""


@dataclass(frozen=True)
class JudgeTexture(Stage):
    """{"texture": (3) float64}: whether a pattern is asked for, whether the texture is as asked, its period's ratio.

    The ratio is that of the period in radii of the object to a true one; 0 where there is no pattern, asked or shown.
    """

    name = "judge_texture"
    axes: ClassVar[Mapping[str, str]] = {"texture": "N"}

    caption: str
    base_area: int  # pixels of a training picture

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Hold the parent `image` against the caption."""
        image = parents["image"]["image"][0].float().cpu()
        return {"texture": torch.tensor(judge_texture(image, self.caption, self.base_area), dtype=torch.float64)}


def judge_texture(image: Tensor, caption: str, base_area: int) -> tuple[float, float, float]:
    """Return what `JudgeTexture` says of `image` (3, H, W) in [-1, 1]."""
    asked, found = asked_texture(caption), read_texture(image, base_area=base_area)
    is_pattern, is_right = asked in PERIODS, found is not None and found.texture == asked
    return float(is_pattern), float(is_right), period_ratio(found, asked) if is_pattern else 0.0


def texture_words(judged: Tensor) -> dict[str, Tensor]:
    """Return the values behind each of `WORDS` of rows (n, 3) of `JudgeTexture`; each word has its own pictures.

    `texture`: 1 where it is as asked, of all pictures. `period`: the ratio, where a pattern is asked for and shown.
    `period_right`: 1 where that is within a quarter of the truth, of all pictures that a pattern is asked for.
    """
    ratio = judged[judged[:, 0] == 1, 2]
    near = ((ratio - 1).abs() <= WITHIN).double()
    return dict(zip(WORDS, (judged[:, 1], ratio[ratio > 0], near), strict=True))
