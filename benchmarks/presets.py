"""Which values should `swift` have on a model? Renders a sweep of them, measures it, and shows crops to read by eye.

    python -m benchmarks.presets --model sdxl --device cuda --out sweep --plan    # only says what it would take
    python -m benchmarks.presets --model sdxl --device cuda --out sweep

Start, steps and leave are swept together; then, from the middle of the sweep, one part at a time is changed. FreeScale
(`reference`), the presets and plain enlargement are rows of the same table. Everything is kept in `--out`: the command
goes on where it was stopped. Settings that leave level 0 at one step share it.

No truth is known of a prompt, so the table says how much detail there is beside the model's own pictures at its
training size (1: as much; more is false texture), how sharp edges are, how much repeats at shifts of the training size
or more, and the CLIP score where its weights are there. Seams and false texture are for the eye: each sheet shows the
busiest and the quietest place of FreeScale's picture, cut out of every picture at full size.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.harness import parser
from flows.cli.terminal import Terminal
from flows.evaluate.layout import REFERENCE, Evaluation, prepare_evaluation
from flows.evaluate.readings import cells, read_all
from flows.home import Home
from flows.rendering.files import write_whole
from flows.rendering.job import to_do
from flows.rendering.session import Session
from flows.rendering.stop import stop_on_signals
from flows.rendering.throughput import Throughput
from stages.errors import SpecError
from stages.metrics.extractors import find_weights
from stages.metrics.spec import make_evaluation
from stages.models.describe import describe
from stages.planner.estimate import call_flops, estimate
from stages.planner.trace_cache import trace_cache
from stages.runner import Interrupted
from stages.settings import settled_method
from stages.spec import ModelSpec, RunOptions, make_spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flows.evaluate.layout import Picture
    from flows.evaluate.readings import Readings
    from flows.rendering.job import Job

PROMPTS = (  # an object, a face, fine repeated structure, a flat ground, text-like detail, far things
    "a red fox sitting in fresh snow, studio photograph",
    "portrait of an old fisherman with a grey beard, natural light",
    "a woven wicker basket full of apples on a wooden table",
    "a white sailing boat on a calm blue lake under a clear sky",
    "a narrow street of an old town with many windows and signs",
    "a mountain valley at dawn, a river, forests and distant peaks",
)
CHANGES: dict[str, dict[str, Any]] = {  # one at a time, from the middle of the sweep
    "no LFM": {"mix": False},
    "global attention": {"patches_only": False},
    "no jitter": {"jitter": False},
    "no dilation": {"dilation": 0.0},
    "structure 0.5": {"structure": 0.5},
    "no structure": {"structure": 0.0},
    "box filter": {"band_filter": "box", "mix": False},
    "guidance x2/3": {"guidance": 0.667},
    "no guidance": {"guidance": 0.0},
}
FREESCALE = "FreeScale"
CROP, LINE, MARGIN = 256, 16, 6  # pixels of a sheet
COLUMNS = 4


@dataclass(frozen=True)
class Row:
    """One setting: what its pictures cost, each on average, and what was measured."""

    setting: str
    seconds: float | None
    calls: float  # UNet calls of the training size
    peak_bytes: int | None  # of the accelerator, or resident on a CPU
    measured: dict[str, float]

    def record(self) -> dict[str, Any]:
        """The row as plain values."""
        own = {"setting": self.setting, "seconds": self.seconds, "calls": self.calls, "peak_bytes": self.peak_bytes}
        return own | self.measured


def methods(given: argparse.Namespace, model: ModelSpec, home: Home) -> list[dict[str, Any]]:
    """Return every setting as an entry of an evaluation's methods: presets, enlargement, the sweep, single changes."""
    info = describe(model, home.root)
    found: list[dict[str, Any]] = [{"name": "freescale", "label": FREESCALE}, {"name": "enlarge", "label": "enlarge"}]
    for name in ("swift", "draft"):
        spec = make_spec({"prompt": "x", "preset": name})
        method = settled_method(spec.method, info, spec.preset)
        found.append({"label": f"preset {name}", "method": method.model_dump()})
    for leave in given.leaves:
        for start in given.starts:
            for count in given.counts:
                found.append(swift(f"t {start:g}, {count} steps, leave {leave:g}", start, count, leave))
    middle = (_middle(given.starts), _middle(given.counts), _middle(given.leaves))
    return found + [swift(name, *middle, **CHANGES[name]) for name in given.changes]


def swift(label: str, start: float, count: int, leave: float, **changes: Any) -> dict[str, Any]:
    """Return an entry of `swift` with these values; guidance is the model's own, where nothing changes it."""
    own = {"start_timestep": start, "steps": count, "leave": leave, "guidance": 1.0, **changes}
    return {"label": label, "method": {"name": "swift", **own}}


def _middle(values: Sequence[Any]) -> Any:
    return sorted(values)[(len(values) - 1) // 2]


def laid_out(given: argparse.Namespace, home: Home) -> Evaluation:
    """Return the sweep as an evaluation against the model's own pictures at its training size."""
    model = ModelSpec(name=given.model, dtype=given.dtype)
    metrics = ["detail"]
    try:
        find_weights("clip", home.root, None, None)
        metrics.append("clip_score")
    except SpecError as error:
        print(f"without the CLIP score: {error}")
    values = {
        "model": model,
        "methods": methods(given, model, home),
        "sizes": [given.size],
        "prompts": str(given.prompts) if given.prompts else PROMPTS,
        "seeds": list(range(given.seeds)),
        "steps": given.steps,
        "metrics": metrics,
        "extractor": "shapes",  # of the features that a reading has beside the detail, which nobody scores here
    }
    return prepare_evaluation(make_evaluation({k: v for k, v in values.items() if v}), home)


# ---------------------------------------------------------------- what it takes


def left(evaluation: Evaluation, home: Home, options: RunOptions) -> tuple[int, float | None]:
    """Return how many pictures are left to render, and the seconds that their stages will take; None: not known.

    What two pictures share is counted once.
    """
    jobs = [picture.job for picture in evaluation.pictures if picture.job is not None]
    info = jobs[0].plan.info
    made = [m for key in home.store.list_keys() if (m := home.store.find(key)) is not None]
    pace, seconds, seen, count = Throughput(home, info, options.device, made), 0.0, set[str](), 0
    for job in jobs:
        pending = to_do(job.plan, home)
        count += bool(pending)
        for call in pending:
            if call.key not in seen:
                seen.add(call.key)
                took = pace.seconds(call, estimate(call, info, options, pace.device.type))
                seconds += 0.0 if took is None else took.seconds
    return count, seconds if seconds or not count else None


def calls_of(job: Job, options: RunOptions) -> float:
    """Return the UNet work of a picture in calls at the training size."""
    plan = job.plan
    flops = sum(estimate(call, plan.info, options).flops for call in plan.calls if call.stage.part == "unet")
    return flops / (call_flops(plan.calls, plan.info, options) or 1.0)


# ---------------------------------------------------------------- what it found


def rows(evaluation: Evaluation, readings: Readings, home: Home, options: RunOptions) -> Iterator[Row]:
    """Yield a row for every setting, in the order of the sweep."""
    job_of = {p.group: p.job for p in reversed(evaluation.pictures) if p.job is not None}
    for cell in cells(evaluation, readings):
        job = job_of[cell.method]
        manifests = (home.store.find(call.key) for call in job.plan.calls)
        peaks = [m.peak_memory for m in manifests if m is not None and m.peak_memory]
        measured = {score.metric: score.value for score in cell.scores}
        yield Row(cell.method, cell.seconds, calls_of(job, options), max(peaks, default=None), measured)


def table(found: Sequence[Row]) -> str:
    """Return the rows as CSV."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(found[0].record()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.record() for row in found)
    return out.getvalue()


def sheets(evaluation: Evaluation, home: Home, out: Path) -> Iterator[Path]:
    """Write a sheet of crops for every prompt and seed; yield its path. Pictures that failed are left out."""
    every = [p for p in evaluation.pictures if p.group != REFERENCE and p.job is not None]
    for id in dict.fromkeys(picture.id for picture in every):
        shown = {p.group: Image.open(path).convert("RGB") for p in every if p.id == id and (path := _file(p, home))}
        if FREESCALE in shown:
            buffer = io.BytesIO()
            sheet(shown, places(shown[FREESCALE])).save(buffer, "PNG")
            yield write_whole(buffer.getvalue(), out / f"crops-{id}.png")


def _file(picture: Picture, home: Home) -> Path | None:
    """Return the file of a picture that was rendered."""
    assert picture.job is not None
    level, (height, width) = len(picture.job.plan.sizes) - 1, picture.size
    path = home.root / "runs" / picture.job.run / f"level-{level}-{width}x{height}.png"
    return path if path.exists() else None


def places(picture: Image.Image) -> list[tuple[int, int]]:
    """Return (left, top) of the busiest and of the quietest crop of a picture, by its gradients."""
    grey = np.asarray(picture.convert("L"), np.float32)
    edge = np.abs(np.gradient(grey)).sum(0)
    side = min(CROP, *grey.shape)
    corners = [(x, y) for y in _starts(grey.shape[0], side) for x in _starts(grey.shape[1], side)]
    by_edge = sorted(corners, key=lambda at: float(edge[at[1] : at[1] + side, at[0] : at[0] + side].mean()))
    return [by_edge[-1], by_edge[0]]


def _starts(length: int, side: int) -> list[int]:
    """Return where crops of `side` begin, side by side, the last at the end."""
    return sorted({*range(0, length - side + 1, side), length - side})


def sheet(shown: dict[str, Image.Image], at: Sequence[tuple[int, int]]) -> Image.Image:
    """Return the crops of all pictures at these places, each picture under its name."""
    side = min(CROP, *next(iter(shown.values())).size)
    width, height = len(at) * side + MARGIN, side + LINE + MARGIN
    lines = -(-len(shown) // COLUMNS)
    made = Image.new("RGB", (COLUMNS * (width + MARGIN), lines * height), "white")
    pen = ImageDraw.Draw(made)
    for number, (name, picture) in enumerate(shown.items()):
        x, y = number % COLUMNS * (width + MARGIN), number // COLUMNS * height
        pen.text((x + 2, y + 2), name, "black")
        for place, (left, top) in enumerate(at):
            made.paste(picture.crop((left, top, left + side, top + side)), (x + place * side, y + LINE))
    return made


# ---------------------------------------------------------------- the command


def asked(words: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for."""
    asks = parser(__doc__ or "")
    asks.add_argument("--model", required=True, help="name or folder of a model, as for freescale render")
    asks.add_argument("--out", type=Path, required=True, help="folder for the store, the table and the sheets")
    asks.add_argument(
        "--size", help="WIDTHxHEIGHT; four times the training size of SDXL otherwise", default="4096x4096"
    )
    asks.add_argument("--prompts", type=Path, help="a text file with a prompt a line; six of our own otherwise")
    asks.add_argument("--seeds", type=int, default=1, help="pictures of each prompt and setting")
    asks.add_argument("--steps", type=int, help="of level 0; the model's own otherwise")
    asks.add_argument("--dtype", help="bfloat16 on a GPU, float32 on a CPU otherwise")
    asks.add_argument("--starts", type=_numbers(float), default=[249.0, 381.0, 600.0], help="timesteps")
    asks.add_argument("--counts", type=_numbers(int), default=[2, 4, 8, 12], help="steps of a level above the first")
    asks.add_argument("--leaves", type=_numbers(float), default=[0.6, 0.8, 1.0], help="shares of level 0's steps")
    asks.add_argument("--changes", type=_changes, default=list(CHANGES), help="of: " + ", ".join(CHANGES))
    asks.add_argument("--plan", action="store_true", help="say what it would take, and start nothing")
    given = asks.parse_args(words)
    given.dtype = given.dtype or ("bfloat16" if given.device.startswith("cuda") else "float32")
    return given


def _numbers(kind: type[float] | type[int]) -> Any:
    """Return the reader of numbers with commas between them."""
    return lambda text: [kind(part) for part in text.split(",")]


def _changes(text: str) -> list[str]:
    """Return the names of changes with commas between them. Raises for one that is none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in CHANGES:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(CHANGES)}")
    return names


def main(words: Sequence[str] | None = None) -> int:
    """Say what is left, render and read it, write table and sheets. Returns 0 when done, 3 when stopped, 2 refused."""
    given = asked(words)
    home, options = Home(given.out), RunOptions(device=given.device, threads=given.threads)
    home.make()
    try:
        evaluation = laid_out(given, home)
        with trace_cache(home.root / "cache" / "traces.json"):
            count, seconds = left(evaluation, home, options)
            total = sum(picture.job is not None for picture in evaluation.pictures)
            told = "unknown time" if seconds is None else f"about {seconds / 60:.0f} min"
            print(f"{len(evaluation.spec.methods)} settings: {total} pictures, {count} to render, {told}", flush=True)
            if given.plan:
                return 0
            session = Session(home, options, Terminal(quiet=True), stop_on_signals())
            readings = read_all(evaluation, session, told=lambda done, p: print(f"{done} {p.name}", file=sys.stderr))
            found = list(rows(evaluation, readings, home, options))
    except SpecError as error:
        print(f"benchmarks.presets: {error}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt):
        print("stopped; the same command goes on", file=sys.stderr)
        return 3
    for picture, why in readings.failed.items():
        print(f"left out: {picture.name}: {why}", file=sys.stderr)
    write_whole(table(found).encode(), given.out / "presets.csv")
    for path in sheets(evaluation, home, given.out):
        print(path)
    print(table(found))
    print(json.dumps({"benchmark": "presets", "rows": [row.record() for row in found]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
