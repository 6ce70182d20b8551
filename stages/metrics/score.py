"""Readings of two sets of pictures -> rows of numbers, each with its counts, its interval and how it was taken."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.metrics.bootstrap import interval
from stages.metrics.detail import OCTAVES
from stages.metrics.detail import WORDS as DETAIL_WORDS
from stages.metrics.frechet import frechet_distance
from stages.metrics.inception_score import inception_score
from stages.metrics.kid import KernelSums, kernel_distance
from stages.metrics.texture import texture_words
from stages.metrics.video_readings import VIDEO_WORDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stages.metrics.spec import EvaluationSpec, Metric

COMPARED = ("fid", "kid", "fid_c", "kid_c", "fvd", "kvd", "detail")  # need a reference
FRECHET = ("fid", "fid_c", "fvd")
CROPPED = ("fid_c", "kid_c")
WORDS = ("objects", "one_object", "attributes", "right")  # what `objects` says


@dataclass(frozen=True)
class Sample:
    """What was read of `count` pictures, row i of picture i; crop j belongs to picture `owner[j]`."""

    count: int
    features: Tensor  # (n, d)
    logits: Tensor  # (n, c)
    crops: Tensor = field(default_factory=lambda: torch.empty(0, 0))  # (k, d)
    owner: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))  # (k)
    clip: Tensor = field(default_factory=lambda: torch.empty(0))  # (n) CLIP scores
    verdicts: Tensor = field(default_factory=lambda: torch.empty(0, 4, dtype=torch.long))  # (n, 4)
    detail: Tensor = field(default_factory=lambda: torch.empty(0, len(DETAIL_WORDS)))  # (n, 5)
    texture: Tensor = field(default_factory=lambda: torch.empty(0, 3))  # (n, 3) of `JudgeTexture`
    seams: Tensor = field(default_factory=lambda: torch.empty(0))  # (n) seam scores
    videos: Mapping[str, Tensor] = field(default_factory=dict)  # of videos, values (n) by what they say

    def rows(self, metric: str) -> tuple[Tensor, Tensor]:
        """Return the rows (r, d) a distance compares, in float64, and the picture of each (r)."""
        if metric in CROPPED:
            return self.crops.double(), self.owner
        return self.features.double(), torch.arange(self.count)


@dataclass(frozen=True)
class Score:
    """One number. `std` is over KID's subsets or the inception score's parts, the interval over pictures.

    `value` and interval are None where fewer than two of the pictures have what is measured.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    std: float | None = None
    n_reference: int | None = None
    rows: int | None = None  # crops, where these are compared and not pictures
    rows_reference: int | None = None


def scores(spec: EvaluationSpec, pictures: Sample, reference: Sample | None) -> list[Score]:
    """Return the scores of every metric of the spec. `reference` may be None where none of them needs one."""
    found: list[Score] = []
    for metric in spec.measured:
        if metric in COMPARED:
            if reference is None:
                raise ValueError(f"{metric} needs a reference")
            if metric == "detail":
                found += _detail(spec, pictures, reference)
            else:
                found.append(_distance(spec, metric, pictures, reference))
        elif metric == "is":
            found.append(_inception(spec, pictures))
        elif metric == "clip_score":
            found.append(_mean(spec, metric, pictures.clip))
        elif metric == "seams":
            found.append(_mean(spec, metric, pictures.seams))
        elif metric == "texture":
            found += [_mean(spec, word, values) for word, values in texture_words(pictures.texture).items()]
        elif metric == "objects":
            words = (
                {word: pictures.videos[word] for word in VIDEO_WORDS} if pictures.videos else _words(pictures.verdicts)
            )
            found += [_mean(spec, name, values) for name, values in words.items()]
        else:
            found.append(_mean(spec, metric, pictures.videos[metric]))
    return found


def _distance(spec: EvaluationSpec, metric: Metric, a: Sample, b: Sample) -> Score:
    (x, x_owner), (y, y_owner) = a.rows(metric), b.rows(metric)
    if metric in FRECHET:
        value, std = frechet_distance(x, y), None
        where = [_positions(owner, s.count) for owner, s in ((x_owner, a), (y_owner, b))]
        statistic: Callable[..., float] = partial(_frechet_of, x, where[0], y, where[1])
    else:
        found = kernel_distance(x, y, spec.kid_subsets, spec.kid_subset_size, spec.seed)
        value, std = found.value, found.std
        statistic = partial(_kernel_of, KernelSums.of(x, x_owner, y, y_owner))
    around = interval(value, statistic, (a.count, b.count), spec.draws, spec.seed)
    rows = (len(x), len(y)) if metric in CROPPED else (None, None)
    return Score(metric, value, around.low, around.high, a.count, std, b.count, *rows)


def _detail(spec: EvaluationSpec, pictures: Sample, reference: Sample) -> list[Score]:
    """Return energies over the mean of the reference's, and what needs no reference as it is."""
    usual = reference.detail.mean(0)
    scale = torch.tensor([*usual[: len(OCTAVES)].clamp(min=1e-12), *[1.0] * (len(DETAIL_WORDS) - len(OCTAVES))])
    found = [_mean(spec, word, column) for word, column in zip(DETAIL_WORDS, (pictures.detail / scale).T, strict=True)]
    return [replace(score, n_reference=reference.count) for score in found]


def _positions(owner: Tensor, count: int) -> list[Tensor]:
    return [(owner == picture).nonzero()[:, 0] for picture in range(count)]


def _frechet_of(
    x: Tensor, x_where: Sequence[Tensor], y: Tensor, y_where: Sequence[Tensor], drawn_x: Tensor, drawn_y: Tensor
) -> float:
    rows = (torch.cat([where[i] for i in drawn.tolist()]) for where, drawn in ((x_where, drawn_x), (y_where, drawn_y)))
    return frechet_distance(x[next(rows)], y[next(rows)])


def _kernel_of(sums: KernelSums, drawn_x: Tensor, drawn_y: Tensor) -> float:
    return sums.mmd2(torch.bincount(drawn_x, minlength=len(sums.x)), torch.bincount(drawn_y, minlength=len(sums.y)))


def _inception(spec: EvaluationSpec, pictures: Sample) -> Score:
    parts = spec.parts(pictures.count)
    value, std = inception_score(pictures.logits, parts, spec.seed)
    around = interval(
        value,
        lambda drawn: inception_score(pictures.logits[drawn], parts, spec.seed)[0],
        (pictures.count,),
        spec.draws,
        spec.seed,
    )
    return Score("is", value, around.low, around.high, pictures.count, std if parts > 1 else None)


def _words(verdicts: Tensor) -> dict[str, Tensor]:
    """Objects, whether there is one, share of colour, shape and background kept, and whether all is right."""
    objects, kept = verdicts[:, 0].double(), verdicts[:, 1:].double().mean(dim=1)
    one = (objects == 1).double()
    return dict(zip(WORDS, (objects, one, kept, one * (kept == 1)), strict=True))


def _mean(spec: EvaluationSpec, metric: str, values: Tensor) -> Score:
    if len(values) < 2:
        return Score(metric, None, None, None, len(values))
    value = float(values.mean())
    around = interval(
        value, lambda drawn: float(values[drawn].mean()), (len(values),), spec.draws, spec.seed, shifted=False
    )
    return Score(metric, value, around.low, around.high, len(values))
