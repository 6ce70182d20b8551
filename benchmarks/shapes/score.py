"""Score `shapes` at the training size: pictures with just the object, colour, shape and background asked for.

    python -m benchmarks.shapes.score --count 128

Renders go through the store, so a stopped run goes on where it was. Prompts are captions of scenes that training never
saw; the counting rules are those of `stages/shapes/metrics.py`. Above the training size, `table.yaml` is evaluated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flows.cli.terminal import Terminal
from flows.home import Home
from flows.rendering.session import Session, prepare
from stages.metrics.grid import FIRST_SCENE
from stages.shapes.metrics import judge
from stages.shapes.scenes import sample_scene
from stages.spec import RunOptions, make_spec

SIDE = 128  # pixels, the training size


def score(session: Session, seed: int) -> dict[str, Any]:
    """Render the caption of scene `seed` and read the picture."""
    caption = sample_scene(seed).caption
    spec = make_spec({"prompt": caption, "seed": seed, "width": SIDE, "height": SIDE, "method": {"name": "direct"}})
    job = prepare(spec, session.home)
    image = session.runner(job).read(job.plan.exports[-1].parents["image"], {})["image"][0].float()
    verdict = judge(image, caption)
    attributes = (verdict.color_ok + verdict.shape_ok + verdict.background_ok) / 3
    return {"caption": caption, "count": verdict.count, "attributes": attributes, "right": verdict.right}


def summary(rows: list[dict[str, Any]]) -> str:
    """One line of the table."""
    n = len(rows)
    mean = {key: sum(float(row[key]) for row in rows) / n for key in ("count", "attributes", "right")}
    one = sum(row["count"] == 1 for row in rows) / n
    return (
        f"| {n} | {mean['count']:.2f} | {100 * one:.1f} % | {100 * mean['attributes']:.1f} % "
        f"| {100 * mean['right']:.1f} % |"
    )


def main() -> None:
    """Parse, render, print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--home", type=Path, default=Path("build/score"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    session = Session(Home(options.home), RunOptions(threads=options.threads), Terminal(quiet=True))
    rows = [score(session, FIRST_SCENE + index) for index in range(options.count)]
    print("| n | objects | exactly one | attributes | right |\n|---|---|---|---|---|")
    print(summary(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
