"""How much memory does VideoCrafter2 take at its real size, without its weights and without a GPU?

    python -m benchmarks.video_memory

What `freescale plan` says of a video of 16 frames on a GPU (`docs/explanation/planner.md`), in float16, method by
method and saving by saving: GiB beyond the weights. A table, then one line of JSON.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.videocrafter_folder import write_videocrafter2
from stages.models.load import ModelInfo, describe
from stages.plan import make_plan
from stages.planner.estimate import Estimate, estimate
from stages.spec import ModelSpec, RunOptions, make_spec

GIB = 2**30
SPLIT: dict[str, Any] = {"split_guidance": True}
TRIED: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("direct", 16, {}),
    ("direct", 16, SPLIT),
    ("scalecrafter", 16, {}),
    ("demofusion", 16, {}),
    ("freescale", 16, {}),
    ("freescale", 16, SPLIT),
    ("freescale", 16, SPLIT | {"feed_forward_tokens": 16384}),
    ("freescale", 16, SPLIT | {"feed_forward_tokens": 16384, "window_rows": 8}),
    ("freescale", 32, SPLIT),
)


def largest(info: ModelInfo, method: str, frames: int, options: RunOptions) -> Estimate:
    """Of the stages of the UNet for 640x1024, the one that takes the most."""
    values = {"prompt": "x", "width": 1024, "height": 640, "frames": frames, "method": {"name": method}}
    plan = make_plan(make_spec(values | {"model": {"name": str(info.folder), "dtype": "float16"}}), info)
    found = [estimate(call, info, options) for call in plan.calls if call.stage.part == "unet"]
    return max(found, key=lambda one: one.activations)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as place:
        folder = write_videocrafter2(Path(place))
        info = describe(ModelSpec(name=str(folder)), Path(place), has_weights=False)
        rows: dict[str, dict[str, float]] = {}
        for method, frames, options in TRIED:
            name = ", ".join((f"{method}, {frames} frames", *options))
            found = largest(info, method, frames, RunOptions(**options))
            rows[name] = {"weights": found.weights / GIB, "activations": found.activations / GIB}
    for name, row in rows.items():
        print(f"{name:<80} {row['weights']:6.2f} + {row['activations']:6.2f} GiB")
    print(json.dumps({"benchmark": "video_memory", "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
