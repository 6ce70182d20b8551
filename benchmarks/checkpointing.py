"""What share of a render do checkpoints cost?

    python -m benchmarks.checkpointing [--folder DIR] [--steps-take SECONDS]

Writes checkpoints of real size through the store (arrays, hashes, fsync, the record last) into a folder, by default the
temporary one: latents of 1024 to 8192 pixels a side, with and without a solver's history. The share of a 4096 x 4096
render follows by arithmetic: one checkpoint each `checkpoint_every` seconds of steps, never more often than a step, and
never more than 2 % of the time (the runner waits 50 times as long as the last one took). Steps take what an H200 would
need at the rate of its matrix products, the worst case for the share; `--steps-take` puts a measured time in its place.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.harness import measure, parser, report, settled
from freescale.forward_process import normal
from storage import ArtifactStore, Checkpoints

FLOOR = {1024: 13.6 / 790, 2048: 87 / 790, 4096: 657 / 790, 8192: 7289 / 790}
"""Seconds of a guided step: TFLOP of both rows with scale fusion, over an H200's in bfloat16."""
LEVELS = {1024: 50, 2048: 35, 4096: 35}
EVERY = (60.0, 10.0, 1.0, 0.0)


def share_of(seconds: dict[int, float], write: dict[int, float], every: float) -> float:
    """Return the share of a render's time that is spent on checkpoints; `seconds` of a step and `write` by side."""
    steps = saves = 0.0
    for side, count in LEVELS.items():
        gap = max(every, 50 * write[side], seconds[side])
        steps += count * seconds[side]
        saves += count * seconds[side] / gap * write[side]
    return saves / (steps + saves)


def main() -> None:
    """Measure the writes, then say what they cost at several intervals."""
    asked = parser(__doc__ or "")
    asked.add_argument("--folder", type=Path, help="where the store will be; default: a temporary folder")
    asked.add_argument("--steps-take", type=float, help="seconds of a step at 4096 x 4096; default: the floor")
    given = settled(asked)
    cpu, rows, write = torch.device("cpu"), [], {}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        checkpoints = Checkpoints(ArtifactStore(Path(folder)), "0" * 64)
        for side in FLOOR:
            for history in (0, 1):
                names = ("latents", *(f"history{i}" for i in range(history)))
                tensors = {name: normal((1, 4, side // 8, side // 8), 0, name) for name in names}
                numbers = iter(range(10**6))
                name = f"{side}, {len(names) * tensors['latents'].nbytes / 2**20:.1f} MiB"
                rows.append(measure(name, lambda t=tensors, n=numbers: checkpoints.save(next(n), t), cpu, given.runs))
                write[side] = rows[-1].seconds
    slower = given.steps_take / FLOOR[4096] if given.steps_take else 1.0
    seconds = {side: floor * slower for side, floor in FLOOR.items()}
    shares = {f"every {every:g} s": share_of(seconds, write, every) for every in EVERY}
    report("checkpointing", rows, cpu, shares=shares, seconds_of_a_step=seconds)
    for name, share in shares.items():
        print(f"a 4096 x 4096 render, a checkpoint {name:<12}{share:>8.2%} of its time")


if __name__ == "__main__":
    main()
