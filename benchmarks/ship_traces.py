"""Write what traces of the embedded models find at usual sizes to the package: `python -m benchmarks.ship_traces`.

A first `freescale plan` then imports neither torch nor diffusers. To be run where a trace, a model, the parameters of a
stage, or the pinned torch or diffusers has changed; a test says so.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from stages.models.folder import describe
from stages.plan import make_plan
from stages.planner import trace_cache
from stages.planner.budget import PARTS, _steps
from stages.planner.estimate import estimate
from stages.spec import RunOptions, make_spec

if TYPE_CHECKING:
    from stages.plan import Plan

SQUARES = (128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 2048, 3072, 4096, 6144, 8192, 16384)
OBLONGS = ((384, 256), (768, 512), (1024, 512), (1024, 768), (1280, 720), (1920, 1080), (2048, 1024), (3840, 2160))
VIDEOS = (128, 192, 256, 384, 512)
MUCH = 8 << 30  # bytes, from which a plan looks at the savings as well


def sizes(model: str) -> list[tuple[int, int]]:
    """(width, height) in pixels of the plans whose traces are shipped."""
    if model == "shapes-motion":
        return [(side, side) for side in VIDEOS]
    return [*((side, side) for side in SQUARES), *OBLONGS, *((h, w) for w, h in OBLONGS)]


def planned(model: str, width: int, height: int, home: Path) -> Plan:
    """The plan of a prompt alone at a size."""
    spec = make_spec({"prompt": "x", "width": width, "height": height, "model": {"name": model}})
    return make_plan(spec, describe(spec.model, home))


def trace_all(plan: Plan) -> None:
    """Ask for all that a plan may ask for under the default options."""
    for call in plan.calls:
        found = estimate(call, plan.info, RunOptions(), "cpu")
        if call.stage.part in PARTS and found.memory > MUCH:
            for options, _ in _steps(call.stage.part, RunOptions()):
                estimate(call, plan.info, options, "cpu")


def main() -> None:
    """Write the file anew."""
    target, trace_cache.SHIPPED = trace_cache.SHIPPED, Path("none")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "traces.json"
        for model in ("shapes", "shapes-motion"):
            for width, height in sizes(model):
                print(model, f"{width}x{height}", flush=True)
                with trace_cache.trace_cache(made):
                    trace_all(planned(model, width, height, Path(folder)))
        entries = json.loads(made.read_text(encoding="utf-8"))
    lines = (f"{json.dumps(key)}: {json.dumps(entries[key])}" for key in sorted(entries))
    target.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
