"""What the benchmarks share: how time and memory are taken, what the device can do, a table and one JSON line.

A measurement is the median of several runs after a warm-up, the device synchronised before and after each, beside the
spread between the quartiles, the peak of memory above what was there before, and the arithmetic per second over what
the device reaches in one large matrix product. What is compared runs in turns, a run of each row a round, and a ratio
is the median of those of the rounds: a machine that slows down for a while slows all rows alike.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


@dataclass(frozen=True)
class Measurement:
    """One row: seconds are medians, `spread` is half the distance between the quartiles over the median."""

    name: str
    seconds: float
    spread: float
    peak_bytes: int  # of the warm-up, above what was allocated (GPU) or resident (CPU) before it
    flop: float = 0.0  # multiply-adds count twice
    runs: int = 0
    times: tuple[float, ...] = ()  # seconds of each run, in order

    @property
    def rate(self) -> float:
        """TFLOP/s."""
        return self.flop / self.seconds / 1e12


def parser(description: str) -> argparse.ArgumentParser:
    """Return what every benchmark can be asked: the device, the runs, the CPU threads."""
    asked = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked.add_argument("--runs", type=int, default=5, help="measured runs of each row, after one to warm up")
    asked.add_argument("--threads", type=int, help="of the CPU; torch's default otherwise")
    return asked


def settled(asked: argparse.ArgumentParser) -> argparse.Namespace:
    """Return what was asked for, with the device as torch has it and the threads set."""
    given = asked.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    given.device = torch.device(given.device)
    return given


def arguments(description: str) -> argparse.Namespace:
    """Return what was asked of a benchmark without options of its own."""
    return settled(parser(description))


def synchronise(device: torch.device) -> None:
    """Wait for the device to finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def measure(
    name: str, run: Callable[[], Any], device: torch.device, runs: int = 5, flop: float = 0.0, warm_ups: int = 1
) -> Measurement:
    """Return the measurement of `run()`."""
    return side_by_side({name: run}, device, runs, {name: flop}, warm_ups)[name]


@torch.no_grad()
def side_by_side(
    compared: Mapping[str, Callable[[], Any]],
    device: torch.device,
    rounds: int = 5,
    flop: Mapping[str, float] | None = None,
    warm_ups: int = 1,
) -> dict[str, Measurement]:
    """Return the measurements of what is compared, by name: warmed up one by one, then measured in turns."""
    peaks, times = dict[str, int](), {name: list[float]() for name in compared}
    for name, run in compared.items():
        with peak_memory(device) as peak:
            for _ in range(warm_ups):
                run()
        peaks[name] = peak[0]
    for _ in range(rounds):
        for name, run in compared.items():
            synchronise(device)
            began = time.perf_counter()
            run()
            synchronise(device)
            times[name].append(time.perf_counter() - began)
    return {name: _measured(name, times[name], peaks[name], (flop or {}).get(name, 0.0)) for name in compared}


def _measured(name: str, seconds: list[float], peak: int, flop: float) -> Measurement:
    low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return Measurement(name, middle, (high - low) / 2 / middle, peak, flop, len(seconds), tuple(seconds))


def ratio(one: Measurement, other: Measurement) -> float:
    """Return how many times as long `one` takes as `other`: the median over the rounds that both were measured in."""
    return statistics.median(a / b for a, b in zip(one.times, other.times, strict=True))


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Give a list whose one number, after the body, is the most bytes above those before it."""
    gc.collect()
    peak = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device) - before
        return
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # the kernel forgets the peak of resident memory
    before = _resident("VmRSS")
    yield peak
    peak[0] = max(_resident("VmHWM") - before, 0)


def _resident(field: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def count_flop(run: Callable[[], Any]) -> float:
    """Return the arithmetic of `run()` in matrix products, convolutions and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=_ON_CPU)
    with torch.no_grad(), counter:
        run()
    return float(counter.get_total_flops())


def _attention_flop(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    batch, heads, tokens, size = query
    return 2 * batch * heads * tokens * key[-2] * (size + value[-1])


_ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop}


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the TFLOP/s of one large square matrix product: what there is to reach."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return measure("matmul", lambda: a @ b, device, runs=5, flop=2.0 * side**3, warm_ups=3).rate


def here(device: torch.device) -> dict[str, Any]:
    """Return what a number means nothing without."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "commit": git.stdout.strip(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def report(title: str, rows: Sequence[Measurement], device: torch.device, rate: float = 0.0, **also: Any) -> None:
    """Print a table, then one JSON line with the same and `also`. `rate` is the device's matmul rate."""
    place = here(device)
    print(f"\n{title}  ({', '.join(f'{k} {v}' for k, v in place.items() if v is not None)})")
    print(f"{'':<44}{'seconds':>10}{'spread':>8}{'peak MiB':>10}{'TFLOP/s':>10}{'of matmul':>10}")
    for row in rows:
        share = f"{row.rate / rate:>10.0%}" if rate and row.flop else f"{'':>10}"
        arithmetic = f"{row.rate:>10.3f}" if row.flop else f"{'':>10}"
        print(f"{row.name:<44}{row.seconds:>10.4f}{row.spread:>8.1%}{row.peak_bytes / 2**20:>10.0f}{arithmetic}{share}")
    records = [asdict(row) | {"tflops": row.rate} for row in rows]
    print(json.dumps({"benchmark": title, **place, "matmul_tflops": rate, "rows": records, **also}), flush=True)
