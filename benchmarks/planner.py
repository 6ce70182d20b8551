"""How far the planner's memory is from the measured: one step of each stage, and the VAE, at several sizes.

    python -m benchmarks.planner                     # CPU: the embedded model, random weights
    python -m benchmarks.planner --device cuda       # SDXL's configuration, random weights built on the card

Measured is, on a card, what torch's allocator gave out at most, above what was there before. On a CPU it is counted two
ways: the bytes alive between operations on real tensors, and what the CPU's allocator gave out at most, which the
profiler writes down and which sees inside the kernels. Errors are of activations alone: weights are exact.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.harness import here, peak_memory
from stages.denoise import DenoiseStage
from stages.models.fields import read_json
from stages.models.load import EMBEDDED, describe
from stages.models.networks import empty_part
from stages.plan import make_plan
from stages.planner.networks import TracedNetworks, run_step, run_vae
from stages.planner.trace import Trace
from stages.spec import ModelSpec, RunOptions, make_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from stages.call import Call

MEASURES: dict[str, dict[str, Any]] = {
    "none": {},
    "split": {"split_guidance": True},
    "all": {"split_guidance": True, "feed_forward_tokens": 16384, "window_rows": 8},
}


@torch.no_grad()
def allocator_peak(run: Callable[[], Any]) -> int:
    """The most bytes that torch's CPU allocator had given out during `run()`, above those before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    live = peak = 0
    results: Any = profile.profiler
    for event in sorted(results.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU:
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@torch.no_grad()
def live_peak(run: Callable[[], Any], module: torch.nn.Module) -> int:
    """The most bytes that tensors on the CPU had between two operations, above the weights."""
    with Trace("cpu") as trace:
        trace.hold((*module.parameters(), *module.buffers()))
        before = trace.live
        run()
    return trace.peak - before


def filled(folder: Path, part: str, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """A part of a model with made-up weights on the device."""
    module = empty_part(read_json(folder / part / "config.json"), dtype).to_empty(device=device)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.fill_(0.01)
    return module


def cases(folder: Path, sizes: list[int], dtype: str, native: int) -> list[tuple[str, Call]]:
    """One call of each kind and size."""
    found: list[tuple[str, Call]] = []
    for side in sizes:
        values = {"prompt": "x", "width": side, "height": side, "model": {"name": str(folder), "dtype": dtype}}
        info = describe(
            ModelSpec(name=str(folder)), Path(tempfile.gettempdir()) / "freescale-benchmark", has_weights=False
        )
        plan = make_plan(make_spec(values | {"steps": 50}), info)
        kinds = ("base_denoise",) if side == native else ("highres_denoise", "detail_pass")
        for call in plan.calls:
            if call.size == (side, side) and call.stage.name in (*kinds, "decode", "upscale"):
                found.append((f"{call.stage.name} {side}", call))
    return found


def main() -> None:
    """Measure, print a table, then one JSON line."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked.add_argument("--model", help="a model folder; its configuration alone is read")
    asked.add_argument("--sizes", type=int, nargs="+", help="sides in pixels")
    given = asked.parse_args()
    device = torch.device(given.device)
    is_card = device.type == "cuda"
    folder = Path(given.model) if given.model else EMBEDDED
    if is_card and not given.model:
        from benchmarks.sdxl_folder import write_sdxl

        folder = write_sdxl(Path(tempfile.mkdtemp()))
    native = int(read_json(folder / "unet" / "config.json")["sample_size"]) * 8
    name, dtype = ("bfloat16", torch.bfloat16) if is_card else ("float32", torch.float32)
    sizes = given.sizes or [native * n for n in (1, 2, 4)]
    unet, vae = filled(folder, "unet", dtype, device), filled(folder, "vae", torch.float32, device)
    rows: list[dict[str, Any]] = []
    info = describe(ModelSpec(name=str(folder)), Path(tempfile.gettempdir()) / "freescale-benchmark", has_weights=False)
    for label, call in cases(folder, sizes, name, native):
        stage = call.stage
        source = call.parents["image"].size if "image" in call.parents else call.size
        for measure, options in MEASURES.items() if isinstance(stage, DenoiseStage) else [("none", {})]:
            how = RunOptions(**options)
            if isinstance(stage, DenoiseStage):
                run = _step(stage, unet, how, device)
            else:
                run = _picture(vae, stage.name, call.size, source, device)
            expected = stage.cost(TracedNetworks(info, name, how), source, call.frames)
            module = unet if isinstance(stage, DenoiseStage) else vae
            row = {"case": f"{label}, {measure}", "predicted": expected.activations}
            if is_card:
                run()  # libraries take their workspaces at the first call
                with torch.no_grad(), peak_memory(device) as peak:
                    run()
                row["allocator"] = peak[0]
            else:
                row |= {"live": live_peak(run, module), "allocator": allocator_peak(run)}
            rows.append(row)
            print(_line(row), file=sys.stderr)
    print(json.dumps({"benchmark": "planner", **here(device), "rows": rows}))


def _step(stage: DenoiseStage, unet: Any, options: RunOptions, device: torch.device) -> Callable[[], None]:
    at = min(stage.start + 1, stage.stop - 1)
    return lambda: run_step(stage, unet, options, at, device)


def _picture(
    vae: Any, name: str, size: tuple[int, int], source: tuple[int, int], device: torch.device
) -> Callable[[], None]:
    return lambda: run_vae(vae, "decode" if name == "decode" else "encode", size, source, device)


def _line(row: dict[str, Any]) -> str:
    measured = {kind: row[kind] for kind in ("live", "allocator") if kind in row}
    errors = (f"{kind} {count / 2**20:9.1f} ({row['predicted'] / count - 1:+6.1%})" for kind, count in measured.items())
    return f"{row['case']:<32} predicted {row['predicted'] / 2**20:9.1f} MiB   {'   '.join(errors)}"


if __name__ == "__main__":
    main()
