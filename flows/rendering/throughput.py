"""How long a stage will take: its multiply-adds over a rate this device has shown, else over one it is believed of.

Shown: stages of the same model in the store, made on this device in one go; their multiply-adds are traced like those
of a plan. The nearest kind counts: the same stage, else the same part of the model. Believed: the device multiplies two
matrices, and a stage is taken to reach `EFFICIENCY` of that. Stages without a network are timed by the pixel.
"""

from __future__ import annotations

import statistics
import time
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from stages.base_denoise import BaseDenoise
from stages.denoise import DenoiseStage, Sampling
from stages.detail_pass import DetailPass
from stages.device import device_name, pick_device
from stages.highres_denoise import HighresDenoise
from stages.planner.estimate import stage_cost
from stages.spec import RunOptions
from stages.upscale import Upscale

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flows.home import Home
    from stages.call import Call
    from stages.models.load import ModelInfo
    from stages.planner.estimate import Estimate
    from stages.stage import Stage
    from storage import Manifest

EFFICIENCY = 0.5  # of the matmul rate, before anything was measured; renders of the embedded model reach less
RECENT = 2  # artifacts of a kind and size that are looked at, newest first
SHARES = {"base_denoise": "unet", "highres_denoise": "unet", "detail_pass": "unet", "decode": "vae", "upscale": "vae"}
DENOISING: Mapping[str, type[DenoiseStage]] = {kind.name: kind for kind in (BaseDenoise, HighresDenoise, DetailPass)}


class Seconds(NamedTuple):
    """A prediction and what it rests on: `measured` on this device, or `assumed`."""

    seconds: float
    basis: str


class Pace:
    """The rates of one device for one model, from what a home holds."""

    def __init__(self, home: Home, info: ModelInfo, device: str, made: list[Manifest]) -> None:
        self.info, self.device = info, pick_device(device)
        name = device_name(self.device)
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
        flops = self._flops(manifest)
        if flops:
            for kind in (manifest.stage, SHARES.get(manifest.stage, "")):
                self.rates.setdefault(kind, []).append(flops / manifest.seconds)
        elif manifest.level is not None and (pixels := _pixels(manifest)):
            self.seconds_a_pixel.setdefault(manifest.stage, []).append(manifest.seconds / pixels)

    def _flops(self, manifest: Manifest) -> float:
        """Floating-point operations of an artifact of this model; 0 where they cannot be told."""
        stage, size = _stage_of(manifest), _size_of(manifest)
        model = str(manifest.params.get("model", ""))
        if model.split(":")[0] not in self.info.fingerprints.values() or size is None:
            return 0.0
        dtype = getattr(torch, model.partition(":")[2] or "float32")
        cost = None if stage is None else stage_cost(stage, self.info, dtype, RunOptions(), size, _frames_of(manifest))
        return 0.0 if cost is None else cost.flops

    def seconds(self, call: Call, estimate: Estimate) -> Seconds | None:
        """What a call will take; None for a stage without a network that was never made here."""
        stage = call.stage.name
        if not estimate.flops:
            known = self.seconds_a_pixel.get(stage)
            return Seconds(statistics.median(known) * call.size[0] * call.size[1], "measured") if known else None
        for kind in (stage, SHARES.get(stage, "")):
            if kind in self.rates:
                return Seconds(estimate.flops / statistics.median(self.rates[kind]), "measured")
        dtype = torch.float32 if call.stage.part == "vae" else getattr(torch, call.model.rpartition(":")[2])
        return Seconds(estimate.flops / (EFFICIENCY * matmul_rate(self.device, dtype)), "assumed")


def _stage_of(manifest: Manifest) -> Stage | None:
    """The stage that made an artifact, as far as its cost goes."""
    params = {name: value for name, value in manifest.params.items() if name != "model"}
    try:
        if (kind := DENOISING.get(manifest.stage)) is not None:
            return kind(**_frozen(params) | {"sampling": Sampling(**params["sampling"]), "method": params["method"]})  # type: ignore[arg-type]
        if manifest.stage == "upscale" and "posterior" in params:
            return Upscale(**_frozen(params))
    except TypeError:  # of an older version, with other fields
        return None
    return None


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _frozen(inner) for name, inner in value.items()}
    return tuple(_frozen(inner) for inner in value) if isinstance(value, list) else value


def _size_of(manifest: Manifest) -> tuple[int, int] | None:
    """(height, width) in pixels of what an artifact is about."""
    size = manifest.params.get("size")
    if isinstance(size, list) and len(size) == 2:
        return int(str(size[0])), int(str(size[1]))
    image = manifest.arrays.get("image")
    return None if image is None else (image.shape[-2], image.shape[-1])


def _frames_of(manifest: Manifest) -> int:
    """Of the video that an artifact holds; 1 for a picture."""
    latents = manifest.arrays.get("latents")
    return latents.shape[2] if latents is not None and len(latents.shape) == 5 else 1


def _pixels(manifest: Manifest) -> int:
    size = _size_of(manifest)
    return 0 if size is None else size[0] * size[1]


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one square product in this dtype: the best of five."""
    side = 8192 if device.type == "cuda" else 768
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        _settle(device)
        began = time.perf_counter()
        a @ a
        _settle(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / best


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
