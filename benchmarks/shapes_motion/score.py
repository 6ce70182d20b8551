"""Score `shapes-motion`: videos whose every frame shows just what was asked for, and that keep the named motion.

    python -m benchmarks.shapes_motion.score --count 64                             # the training size, 128x80
    python -m benchmarks.shapes_motion.score --count 16 --size 256x160 --method freescale

Renders go through the store, so a stopped run goes on where it was. Prompts are captions of videos that training never
saw; the rules are those of `stages/shapes_motion/metrics.py`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.cli.terminal import Terminal
from flows.home import Home
from flows.rendering.session import Session, prepare
from stages.shapes_motion.metrics import judge_video
from stages.shapes_motion.videos import MOTIONS, sample_video
from stages.spec import RunOptions, make_spec, parse_size

FIRST_VIDEO = 3_000_000  # of the held-out videos: no training sees them
COLUMNS = ("objects", "one_object", "color_ok", "shape_ok", "background_ok", "motion_ok", "right", "flicker")


def score(session: Session, seed: int, size: tuple[int, int], method: str, model: str) -> dict[str, Any]:
    """Render the caption of video `seed` and read it frame by frame."""
    video = sample_video(seed)
    caption = video.caption
    values = {"prompt": caption, "seed": seed, "width": size[0], "height": size[1], "method": {"name": method}}
    job = prepare(make_spec({**values, "model": {"name": model}}), session.home)
    image = session.runner(job).read(job.plan.exports[-1].parents["image"], {})["image"][0]
    verdict = judge_video((frame.float() for frame in image.unbind(1)), caption)
    return {"caption": caption, "motion": video.motion, **asdict(verdict), "right": verdict.right}


def summary(rows: list[dict[str, Any]]) -> str:
    """One line of the table."""
    mean = {name: sum(float(row[name]) for row in rows) / len(rows) for name in COLUMNS}
    shares = " | ".join(f"{100 * mean[name]:.0f} %" for name in COLUMNS[1:-1])
    return f"| {len(rows)} | {mean['objects']:.2f} | {shares} | {mean['flicker']:.1f} |"


def kept_motions(rows: list[dict[str, Any]]) -> str:
    """How many videos of each motion keep it, for example `growing 7 of 7`."""
    asked, kept = (Counter(row["motion"] for row in rows if row["motion_ok"] or every) for every in (True, False))
    return ", ".join(f"{motion} {kept[motion]} of {asked[motion]}" for motion in MOTIONS)


def main() -> None:
    """Parse, render, print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--size", default="128x80")
    parser.add_argument("--method", default="direct")
    parser.add_argument("--model", default="shapes-motion")
    parser.add_argument("--home", type=Path, default=Path("build/score_motion"))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    session = Session(Home(options.home), RunOptions(threads=options.threads), Terminal(quiet=True))
    rows = []
    for index in range(options.count):
        rows.append(score(session, FIRST_VIDEO + index, parse_size(options.size), options.method, options.model))
        if len(rows) % 8 == 0:
            print(summary(rows), flush=True)
    print("| n | objects | one object | colour | shape | ground | motion | right | flicker |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(summary(rows))
    print(f"\nmotions kept: {kept_motions(rows)}\n")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
