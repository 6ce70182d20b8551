"""Score `shapes`: objects per picture and attributes kept, at the training size and above, method by method.

    python -m benchmarks.shapes.score base --count 128     # right pictures at the training size
    python -m benchmarks.shapes.score table --count 64     # 2x and 4x, with and without fusion and dilation, direct

Renders go through the store, so a stopped run goes on where it was, and `--minutes` bounds a night. Prompts are
captions of scenes that training never saw; the counting rules are those of `stages/shapes/measures.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from flows.progress import Terminal
from flows.session import Home, Session, prepare
from stages.runner import key_of
from stages.shapes.measures import judge
from stages.shapes.scenes import sample_scene
from stages.spec import RunOptions, make_spec

FIRST_SEED = 3_000_000
METHODS: dict[str, dict[str, Any]] = {
    "freescale": {"name": "freescale"},
    "no fusion": {"name": "freescale", "fusion": False},
    "no dilation": {"name": "freescale", "dilate": False},
    "neither": {"name": "freescale", "fusion": False, "dilate": False},
    "direct": {"name": "direct", "freeu": [1.1, 1.2, 0.6, 0.4]},
}


def score(session: Session, seed: int, side: int, method: dict[str, Any]) -> dict[str, Any]:
    """Render the caption of scene `seed` and read the picture."""
    caption = sample_scene(seed).caption
    spec = make_spec({"prompt": caption, "seed": seed, "width": side, "height": side, "method": method})
    job = prepare(spec, session.home)
    picture = job.plan.exports[-1].parents["image"]
    image = session.runner(job).read(picture, {})["image"][0].float()
    verdict = judge(image, caption)
    manifests = [session.home.store.find(key_of(call)) for call in job.plan.calls if call.stage.name != "export"]
    seconds = sum(m.seconds or 0.0 for m in manifests if m is not None)
    attributes = (verdict.color_ok + verdict.shape_ok + verdict.background_ok) / 3
    return {"count": verdict.count, "attributes": attributes, "right": verdict.right, "seconds": seconds}


def summary(name: str, rows: list[dict[str, Any]]) -> str:
    """One line of the table."""
    n = len(rows)
    mean = {key: sum(float(r[key]) for r in rows) / n for key in ("count", "attributes", "right", "seconds")}
    one = sum(r["count"] == 1 for r in rows) / n
    return (
        f"| {name} | {n} | {mean['count']:.2f} | {100 * one:.0f} % | {100 * mean['attributes']:.1f} % "
        f"| {100 * mean['right']:.1f} % | {mean['seconds']:.1f} |"
    )


def main() -> None:
    """Parse, render, print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("base", "table"))
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--skip", type=int, default=0, help="leave out the first prompts: another process has them")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--home", type=Path, default=Path("build/score"))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    session = Session(Home(options.home), RunOptions(threads=options.threads), Terminal(quiet=True))
    cells = {"training size, direct": (128, METHODS["direct"] | {"freeu": None})}
    if options.what == "table":
        cells |= {f"{side // 128}x, {name}": (side, method) for side in (256, 512) for name, method in METHODS.items()}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in cells}
    until = time.monotonic() + 60 * options.minutes
    for index in range(options.skip, options.count):
        if time.monotonic() > until:
            break
        for name, (side, method) in cells.items():
            rows[name].append(score(session, FIRST_SEED + index, side, method))
    print("| cell | n | objects | exactly one | attributes | right | seconds |\n|---|---|---|---|---|---|---|")
    for name, found in rows.items():
        print(summary(name, found))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
