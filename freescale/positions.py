"""Positions beyond the training size: how fast the components of rotary embeddings (arXiv:2104.09864) turn.

Component j of an axis of d dimensions turns by theta^(-2 j / d) a token. A grid of s times the trained tokens on an
axis has positions that were never seen. A rule slows components down. What it asks of component j:

| rule | | |
|---|---|---|
| `none` | nothing | objects repeat or dissolve |
| `pi` | all by 1 / s (position interpolation, arXiv:2306.15595) | blurs |
| `ntk` | theta times s^(d / (d - 2)): the first stays, the last turns 1 / s as fast | |
| `yarn` | fast ones stay, slow ones are interpolated, `ntk` between them (arXiv:2309.00071), and all tokens grow | |
| `cinescale` | theta times 20, to 1.5 times the size, or 25 (CineScale, arXiv:2508.15774), whatever s is | |
| `hiflow` | theta times 10, whatever s is (HiFlow, arXiv:2504.06232, as released) | |
| `imax` | theta times 10, but none slower than by `pi` (I-Max, arXiv:2410.07536) | |
| `ultra` | that whose period is nearest the trained extent gets one of s times it (UltraImage, arXiv:2512.04504) | |
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Grid = tuple[int, int]

PositionRule = Literal["none", "pi", "ntk", "yarn", "cinescale", "hiflow", "imax", "ultra"]

YARN_FAST, YARN_SLOW = (16.0, 2.0), (1.25, 0.75)
"""Turns within the trained extent: components with more than 16 stay, between 2 and 1.25 are those of `ntk`, and with
fewer than 0.75 those of `pi`; there is a ramp within each pair."""


@dataclass(frozen=True)
class Positions:
    """The rule for the tokens of a grid, for a network that was trained on `trained` tokens (rows, columns)."""

    rule: PositionRule
    grid: Grid
    trained: Grid

    @property
    def scale(self) -> tuple[float, float]:
        """How many times longer the grid is than the trained one on each axis, at least 1."""
        return max(self.grid[0] / self.trained[0], 1.0), max(self.grid[1] / self.trained[1], 1.0)

    def frequencies(self, axis: int | None, dims: int, theta: float) -> list[float]:
        """Return the turn a token, in radians, of each component of an axis: 0 rows, 1 columns, None neither."""
        scale, trained = (1.0, 1) if axis is None else (self.scale[axis], self.trained[axis])
        return frequencies(self.rule, dims, theta, scale, trained)

    def magnitude(self, axis: int | None) -> float:
        """Return the factor of the rotated components of an axis, of queries and keys alike."""
        return 1.0 if self.rule != "yarn" or axis is None else 0.1 * math.log(self.scale[axis]) + 1.0


def frequencies(rule: PositionRule, dims: int, theta: float, scale: float, trained: int) -> list[float]:
    """Return the turn a token of the dims / 2 components, fastest first, at `scale` times the `trained` tokens."""
    own = _powers(theta, dims)
    if scale <= 1.0:
        return own
    slowed = [turn / scale for turn in own]
    ntk = _powers(theta * scale ** (dims / (dims - 2)), dims) if dims > 2 else own
    match rule:
        case "pi":
            return slowed
        case "ntk":
            return ntk
        case "yarn":
            fast, slow = (_ramp(turns, dims, theta, trained) for turns in (YARN_FAST, YARN_SLOW))
            between = [(1 - w) * n + w * p for w, n, p in zip(slow, ntk, slowed, strict=True)]
            return [(1 - w) * o + w * b for w, o, b in zip(fast, own, between, strict=True)]
        case "cinescale":
            return _powers(theta * (20.0 if scale <= 1.5 else 25.0), dims)
        case "hiflow":
            return _powers(10.0 * theta, dims)
        case "imax":
            return [max(slow, least) for slow, least in zip(_powers(10.0 * theta, dims), slowed, strict=True)]
        case "ultra":
            nearest = min(range(len(own)), key=lambda j: abs(2 * math.pi / own[j] - trained))
            return [2 * math.pi / (scale * trained) if j == nearest else turn for j, turn in enumerate(own)]
    return own


def _powers(theta: float, dims: int) -> list[float]:
    return [theta ** (-2 * j / dims) for j in range(dims // 2)]


def _ramp(turns: tuple[float, float], dims: int, theta: float, trained: int) -> list[float]:
    """Return 0 for components with more than turns[0] turns within the trained extent, 1 for fewer than turns[1]."""

    def component(turns: float) -> float:
        """Return the component, not a whole number, that turns so often."""
        return dims * math.log(trained / (2 * math.pi * turns)) / (2 * math.log(theta))

    first, last = math.floor(component(turns[0])), math.ceil(component(turns[1]))
    return [min(max((j - first) / (last - first), 0.0), 1.0) for j in range(dims // 2)]


def growing_temperature(tokens: int, trained: int) -> float:
    """Return ln(k trained) / ln trained of CineScale (arXiv:2508.15774, as released for Wan, trained at 3600 tokens).

    k is 1.5 above 10 000 tokens and 2 above 20 000, here in shares of the trained ones.
    """
    growth = tokens / trained
    kappa = 2.0 if growth > 20_000 / 3600 else 1.5 if growth > 10_000 / 3600 else 1.0
    return math.log(kappa * trained) / math.log(trained) if trained > 1 else 1.0


def temperature(tokens: int, trained: int) -> float:
    """Return sqrt(ln tokens / ln trained), which keeps the entropy of attention (arXiv:2306.08645, section 3.2)."""
    return math.sqrt(math.log(tokens) / math.log(trained)) if tokens > trained > 1 else 1.0
