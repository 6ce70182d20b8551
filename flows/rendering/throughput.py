"""How long a stage will take: its floating-point operations over the rate of this device, measured or assumed.

Measured: stages of this model in the store that this device made without a stop; their operations are traced like those
of a plan. The rate of the nearest kind is taken: the same stage, else the same part of the model. Assumed: the device
multiplies two matrices, once a home, and a stage is taken to reach `EFFICIENCY` of that rate. A stage without a network
takes the seconds per pixel of earlier ones.
"""

from __future__ import annotations

import statistics
import time
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from stages.device import device_name, planned_device
from stages.planner.configurations import computed
from stages.planner.networks import TracedNetworks
from stages.planner.recorded import recorded_stage
from stages.planner.trace_cache import cached, cached_trace
from stages.prompts.chunks import chunk_length
from stages.spec import RunOptions

if TYPE_CHECKING:
    from flows.home import Home
    from stages.call import Call
    from stages.models.folder import ModelInfo
    from stages.planner.estimate import Estimate
    from stages.stage import Stage
    from storage import Manifest

EFFICIENCY = 0.5  # of the rate of a matrix product, where nothing was measured; the embedded model reaches less
RECENT = 2  # artifacts of a stage, size and level that are looked at, newest first


class Seconds(NamedTuple):
    """A prediction and what it rests on: `measured` on this device, or `assumed`."""

    seconds: float
    basis: str


class Throughput:
    """The rates of one device for one model, from the artifacts of a home."""

    def __init__(self, home: Home, info: ModelInfo, device: str, made: list[Manifest]) -> None:
        self.info, self.device = info, planned_device(device)
        name = device_name(self.device)
        self._made = {manifest.key: manifest for manifest in made}
        self.rates: dict[str, list[float]] = {}  # floating-point operations a second, by stage and by part
        self.seconds_a_pixel: dict[str, list[float]] = {}
        seen: dict[tuple[str, str, int | None], int] = {}
        for manifest in sorted(made, key=lambda m: m.created, reverse=True):
            if manifest.device != name or not manifest.seconds or manifest.resumed_at:
                continue
            kind = (manifest.stage, str(manifest.params.get("size")), manifest.level)
            seen[kind] = seen.get(kind, 0) + 1
            if seen[kind] <= RECENT:
                self._learn(manifest)

    def _learn(self, manifest: Manifest) -> None:
        assert manifest.seconds is not None
        stage = recorded_stage(manifest.stage, manifest.version, manifest.params, self._chunks(manifest))
        flops = 0.0 if stage is None else self._flops(manifest, stage)
        if stage is not None and flops:
            for kind in (stage.name, stage.part):
                self.rates.setdefault(kind, []).append(flops / manifest.seconds)
        elif manifest.level is not None and (pixels := _pixels(manifest)):
            self.seconds_a_pixel.setdefault(manifest.stage, []).append(manifest.seconds / pixels)

    def _chunks(self, manifest: Manifest) -> int:
        """Chunks of the prompts of an artifact, by the rows of its text; 1 where the store has them no more.

        A transformer's rows are no chunks of CLIP's context.
        """
        if self.info.backbone == "flow":
            return 1
        text = self._made.get(manifest.parents.get("text", manifest.key))
        rows = None if text is None else text.arrays.get("prompt_embeds")
        return 1 if rows is None else rows.shape[1] // (chunk_length(self.info.texts) + 2)

    def _flops(self, manifest: Manifest, stage: Stage) -> float:
        """Floating-point operations of an artifact of this model; 0 where they cannot be told."""
        size = _size_of(manifest)
        model = str(manifest.params.get("model", ""))
        if model.split(":")[0] not in self.info.fingerprints.values() or size is None:
            return 0.0
        dtype = model.partition(":")[2] or "float32"
        frames = _frames_of(manifest, self.info.time_cell)
        return stage.cost(TracedNetworks(self.info, dtype, RunOptions()), size, frames).flops

    def seconds(self, call: Call, estimate: Estimate) -> Seconds | None:
        """The seconds that a call will take; None for a stage without a network that this device has not made yet."""
        stage = call.stage.name
        if not estimate.flops:
            known = self.seconds_a_pixel.get(stage)
            return Seconds(statistics.median(known) * call.size[0] * call.size[1], "measured") if known else None
        for kind in (stage, call.stage.part):
            if kind in self.rates:
                return Seconds(estimate.flops / statistics.median(self.rates[kind]), "measured")
        dtype = "float32" if call.stage.part == "vae" else computed(call.model.rpartition(":")[2])
        brings_torch = self.device.type == "cpu" and dtype != "float32"  # else numpy measures, or torch is there
        kept = cached_trace if brings_torch else cached
        (rate,) = kept(partial(_rate, str(self.device), dtype), "matmul", device_name(self.device), dtype)
        return Seconds(estimate.flops / (EFFICIENCY * rate), "assumed")


def _size_of(manifest: Manifest) -> tuple[int, int] | None:
    """(height, width) in pixels of what an artifact is about."""
    size = manifest.params.get("size")
    if isinstance(size, list) and len(size) == 2:
        return int(str(size[0])), int(str(size[1]))
    image = manifest.arrays.get("image")
    return None if image is None else (image.shape[-2], image.shape[-1])


def _frames_of(manifest: Manifest, time_cell: int) -> int:
    """Of the video that an artifact holds, whose latent frames but the first are `time_cell` each; 1 for a picture."""
    for name, array in manifest.arrays.items():
        if name in ("latents", "image") and len(array.shape) == 5:
            return int(array.shape[2] if name == "image" else (array.shape[2] - 1) * time_cell + 1)
    return 1


def _pixels(manifest: Manifest) -> int:
    size = _size_of(manifest)
    return 0 if size is None else size[0] * size[1]


def _rate(device: str, dtype: str) -> tuple[float]:
    return (matmul_rate(device, dtype),)


@cache
def matmul_rate(device: str, dtype: str) -> float:
    """Floating-point operations a second of one square product, by names of device and dtype: the best of five."""
    side = 8192 if device.startswith("cuda") else 768
    a: Any = np.ones((side, side), np.float32)
    if (device, dtype) != ("cpu", "float32"):  # for these alone torch is worth its import
        a = torch.ones(side, side, device=device, dtype=getattr(torch, dtype))
    best = float("inf")
    for _ in range(5):
        _synchronize(device)
        began = time.perf_counter()
        a @ a
        _synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / best


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
