"""The device that a render computes on: which one, its name, its memory."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from stages.errors import SpecError

DRIVERS = ("nvidia*", "nvmap", "nvhost*", "kfd", "dxg")
"""Under /dev of a Linux machine: what the drivers of accelerators make there, WSL's and Jetson's among them."""


class Named(Protocol):
    """A device as a plan knows it: `str` gives its name, `cuda:0`. A `torch.device` is one."""

    @property
    def type(self) -> str:
        """Its kind: `cpu`, `cuda` or `mps`."""


class Host(NamedTuple):
    """The CPU, without torch."""

    type: str = "cpu"

    def __str__(self) -> str:
        return self.type


def planned_device(wanted: str) -> Named:
    """Return what `pick_device` picks; torch is asked only where there may be an accelerator.

    Raises `SpecError` for a device that is not there.
    """
    return Host() if wanted == "cpu" or (wanted == "auto" and _has_no_driver()) else pick_device(wanted)


def _has_no_driver() -> bool:
    return sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in DRIVERS)


def pick_device(wanted: str) -> torch.device:
    """Return the device of a name; for `auto` the first accelerator, else the CPU.

    Raises `SpecError` for a device that is not there.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise SpecError(f"device: {wanted!r} is not one of auto, cpu, mps, cuda, cuda:N") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise SpecError(f"device: {wanted!r} is not there; torch sees {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SpecError("device: 'mps' is not there")
    return device


def device_name(device: Named) -> str:
    """`cpu`, or the accelerator's own name."""
    return torch.cuda.get_device_name(str(device)) if device.type == "cuda" else device.type


def device_id(device: torch.device) -> str:
    """A name of the device that holds in every process: `CUDA_VISIBLE_DEVICES` decides which GPU is `cuda:0`."""
    if device.type != "cuda":
        return str(device)
    return f"cuda-{torch.cuda.get_device_properties(device).uuid}"


def peak_memory(device: torch.device) -> int:
    """Peak bytes: of the accelerator since its last reset, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
