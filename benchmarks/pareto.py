"""Cost against quality of the methods in evaluations, as a picture (SVG) and a table.

    python -m benchmarks.pareto EVALUATION.json ... --out docs/images/pareto.svg
    python -m benchmarks.pareto EVALUATION.json ... --cost samples
    python -m benchmarks.pareto EVALUATION.json ... --over detail_4=0.054

A column for each size, a row for each metric, a point for each method with the intervals of its evaluation. Cost is by
default the arithmetic of the same walk on SDXL, at as many times its training size: the planner counts it on SDXL's
configuration without weights. `seconds` and `samples` are those of the evaluation. Where two files have a method at one
size, the later one counts. `--over` divides a metric by the most that it can be: by what true pictures keep of it when
they go through the VAE, for example, so that 1 is right and more is false texture.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.sdxl_folder import write_sdxl
from stages.models.load import describe
from stages.plan import make_plan
from stages.planner.estimate import estimate
from stages.spec import ModelSpec, RunOptions, make_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from stages.models.load import ModelInfo

COSTS = {
    "sdxl": "TFLOP of the same walk on SDXL",
    "seconds": "seconds a picture",
    "samples": "UNet samples a picture",
}
NAMES = {"right": "right, %", "detail_4": "detail of 4-8 px, truth = 1", "detail_8": "detail of 8-16 px, truth = 1"}
_FIELDS = {"seconds": "seconds", "samples": "unet_samples"}  # of a row of an evaluation
PERCENT = ("right", "one_object", "attributes", "texture", "period_right")
WIDE, HIGH, LEFT, TOP = 460, 300, 64, 44  # a panel, and the room for its axis and title, in pixels
PALETTE = ("#1b6ca8", "#c8553d", "#3a7d44", "#7b4fa3", "#b8860b", "#2a9d8f", "#8a5a44", "#5c677d", "#d1495b", "#00798c")


@dataclass(frozen=True)
class Point:
    """A method at a size: its cost, and a metric with its interval."""

    method: str
    size: str
    metric: str
    cost: float
    value: float
    low: float
    high: float


def points(
    records: Sequence[dict[str, Any]], metrics: Sequence[str], cost: str, over: Mapping[str, float] | None = None
) -> list[Point]:
    """Return the points of evaluations. Raises `ValueError` where none has a metric, or a cost is not known."""
    found: dict[tuple[str, str, str], Point] = {}
    sdxl = Sdxl() if cost == "sdxl" else None
    for record in records:
        for row in record["rows"]:
            if row["metric"] not in metrics or row["value"] is None:
                continue
            key = (row["method"], row["size"], row["metric"])
            times = (100 if row["metric"] in PERCENT else 1) / (over or {}).get(row["metric"], 1.0)
            spent = sdxl.tflop(record["spec"], *key[:2]) if sdxl else row[_FIELDS[cost]]
            if spent is None:
                raise ValueError(f"{row['method']} at {row['size']} has no {cost}; take another --cost")
            values = (times * row[name] for name in ("value", "low", "high"))
            found[key] = Point(*key, spent, *values)
    if missing := [metric for metric in metrics if not any(key[2] == metric for key in found)]:
        known = sorted({row["metric"] for record in records for row in record["rows"]})
        raise ValueError(f"metric {missing[0]!r} is in none of the evaluations, which have {', '.join(known)}")
    return list(found.values())


class Sdxl:
    """What methods cost on SDXL's configuration."""

    def __init__(self) -> None:
        self.folder = write_sdxl(Path(tempfile.mkdtemp(prefix="freescale-sdxl-")))
        self.info = self._describe(str(self.folder))
        self.known: dict[str, float] = {}

    def tflop(self, spec: dict[str, Any], method: str, size: str) -> float:
        """Return the arithmetic of a method of an evaluation's spec, at as many times SDXL's training size."""
        entry = next(entry for entry in spec["methods"] if entry["label"] == method)
        own = self._describe(spec["model"]["name"])
        width, height = (int(side) for side in size.split("x"))
        sides = {"width": width * self.info.native[1] // own.native[1]}
        sides["height"] = height * self.info.native[0] // own.native[0]
        steps = entry["steps"] or spec["steps"] or own.steps
        values = {"prompt": "x", "steps": steps, "method": entry["method"], **sides}
        key = json.dumps(values, sort_keys=True)
        if key not in self.known:
            model = {"name": str(self.folder), "dtype": "bfloat16"}
            plan = make_plan(make_spec(values | {"model": model}), self.info)
            self.known[key] = sum(estimate(call, self.info, RunOptions()).flops for call in plan.calls) / 1e12
        return self.known[key]

    def _describe(self, name: str) -> ModelInfo:
        return describe(ModelSpec(name=name), Path(tempfile.gettempdir()), has_weights=False)


def front(found: Iterable[Point]) -> list[Point]:
    """Return the points that no other one beats: none costs as little or less and is better."""
    best: list[Point] = []
    for point in sorted(found, key=lambda p: (p.cost, -quality(p))):
        if not best or quality(point) > quality(best[-1]):
            best.append(point)
    return best


def quality(point: Point) -> float:
    """Return how good a value is: of detail, how near it is to that of the truth, as a ratio; else the value."""
    return -abs(math.log(max(point.value, 1e-9))) if point.metric.startswith("detail") else point.value


def table(found: Sequence[Point], cost: str) -> str:
    """Return a Markdown table: a line for each method and size, a column for each metric."""
    metrics = list(dict.fromkeys(p.metric for p in found))
    lines = [f"| method | size | {COSTS[cost]} | {' | '.join(NAMES.get(m, m) for m in metrics)} |"]
    lines.append(f"|{'---|' * (3 + len(metrics))}")
    for method, size in dict.fromkeys((p.method, p.size) for p in found):
        by = {p.metric: p for p in found if (p.method, p.size) == (method, size)}
        cells = [
            f"{_short(by[m].value)} [{_short(by[m].low)}, {_short(by[m].high)}]" if m in by else "" for m in metrics
        ]
        lines.append(f"| {method} | {size} | {_short(next(iter(by.values())).cost)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(found: Sequence[Point], cost: str) -> str:
    """Return the picture as SVG: sizes from left to right, metrics from top to bottom, lines through the best."""
    sizes = sorted({p.size for p in found}, key=lambda size: int(size.partition("x")[0]))
    metrics = list(dict.fromkeys(p.metric for p in found))
    methods = list(dict.fromkeys(p.method for p in found))
    colors = {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(methods)}
    width, height = len(sizes) * (WIDE + LEFT) + 30, len(metrics) * (HIGH + TOP) + 56
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(COSTS[cost])} against quality</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for column, size in enumerate(sizes):
        for row, metric in enumerate(metrics):
            panel = [p for p in found if (p.size, p.metric) == (size, metric)]
            if panel:
                place = (LEFT + column * (WIDE + LEFT), TOP + row * (HIGH + TOP))
                parts += _panel(panel, place, f"{size}: {NAMES.get(metric, metric)}", colors)
    middle, bottom = width / 2, height - 12
    parts.append(f'<text x="{middle}" y="{bottom}" text-anchor="middle">{escape(COSTS[cost])} (logarithmic)</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(found: list[Point], place: tuple[int, int], title: str, colors: dict[str, str]) -> list[str]:
    """One panel with its frame, ticks, intervals, points and names."""
    left, top = place
    lowest, highest = min(p.cost for p in found) / 1.25, max(p.cost for p in found) * 1.9  # room for names
    least, most = min(0.0, *(p.low for p in found)), max(p.high for p in found) * 1.06

    def across(cost: float) -> float:
        return left + WIDE * math.log(cost / lowest) / math.log(highest / lowest)

    def down(value: float) -> float:
        return top + HIGH * (1 - (value - least) / (most - least))

    parts = [
        f'<text x="{left}" y="{top - 10}" font-weight="bold">{escape(title)}</text>',
        f'<rect x="{left}" y="{top}" width="{WIDE}" height="{HIGH}" fill="none" stroke="#999"/>',
    ]
    for value in _ticks(least, most):
        y = down(value)
        parts.append(f'<line x1="{left}" x2="{left + WIDE}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for cost in _log_ticks(lowest, highest):
        x = across(cost)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + HIGH}" stroke="#eee"/>')
        parts.append(f'<text x="{x:.1f}" y="{top + HIGH + 15}" text-anchor="middle">{_short(cost)}</text>')
    if found[0].metric.startswith("detail") and least < 1 < most:
        y = down(1.0)
        parts.append(f'<line x1="{left}" x2="{left + WIDE}" y1="{y:.1f}" y2="{y:.1f}" stroke="#3a7d44"/>')
    best = " ".join(f"{across(p.cost):.1f},{down(p.value):.1f}" for p in front(found))
    parts.append(f'<polyline points="{best}" fill="none" stroke="#bbb" stroke-dasharray="4 3"/>')
    return parts + _marks(found, across, down, colors)


def _marks(
    found: list[Point], across: Callable[[float], float], down: Callable[[float], float], colors: dict[str, str]
) -> list[str]:
    """Intervals, points and names; a name is moved up or down until it covers no other."""
    parts, taken = [], list[tuple[float, float, float]]()
    for point in sorted(found, key=lambda p: p.value, reverse=True):
        x, y, color = across(point.cost), down(point.value), colors[point.method]
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{down(point.low):.1f}" y2="{down(point.high):.1f}" '
            f'stroke="{color}" stroke-width="1.5"/>'
        )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>')
        end, at = x + 8 + 7 * len(point.method), y + 4
        while any(x < other_end and end > start and abs(at - other) < 12 for start, other_end, other in taken):
            at += 12
        taken.append((x, end, at))
        parts.append(f'<text x="{x + 8:.1f}" y="{at:.1f}" fill="{color}">{escape(point.method)}</text>')
    return parts


def _ticks(least: float, most: float) -> list[float]:
    """Four to eight round numbers between two."""
    step = 10 ** math.floor(math.log10((most - least) / 3))
    step *= next(factor for factor in (5, 2, 1) if (most - least) / (factor * step) >= 3)
    first = math.ceil(least / step)
    return [step * number for number in range(first, math.floor(most / step) + 1)]


def _log_ticks(lowest: float, highest: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two."""
    powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    return [
        factor * 10.0**power for power in powers for factor in (1, 2, 5) if lowest <= factor * 10.0**power <= highest
    ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"


def _divisor(text: str) -> tuple[str, float]:
    """Return a metric and a number above 0 from METRIC=VALUE."""
    name, _, value = text.partition("=")
    if not (math.isfinite(number := float(value)) and number > 0):
        raise ValueError(text)
    return name, number


def main() -> None:
    """Read the evaluations, write the picture, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/images/pareto.svg"))
    parser.add_argument("--cost", choices=COSTS, default="sdxl")
    parser.add_argument("--metrics", nargs="+", default=["right", "detail_4"])
    parser.add_argument("--over", nargs="+", type=_divisor, default=[], metavar="METRIC=VALUE")
    given = parser.parse_args()
    records = [json.loads(path.read_text(encoding="utf-8")) for path in given.evaluations]
    try:
        found = points(records, given.metrics, given.cost, dict(given.over))
    except ValueError as error:
        parser.error(str(error))
    given.out.write_text(picture(found, given.cost), encoding="utf-8")
    print(table(found, given.cost))


if __name__ == "__main__":
    main()
