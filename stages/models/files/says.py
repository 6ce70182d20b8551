"""What a checkpoint says of its prediction: its header, a `.yaml` beside it, and of SD 2 two small tensors."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.models.files.header import read_header, read_numbers
from stages.models.predicted import V_TENSOR, Header

if TYPE_CHECKING:
    from stages.models.files.record import FileInfo

STEPS = "global_step"


def header_of(file: FileInfo, *, has_weights: bool) -> Header:
    """Return what is known of a checkpoint without its weights; without `has_weights` no tensor is read."""
    is_second = file.family.startswith("Stable Diffusion 2")
    found = _numbers(file) if is_second and has_weights and file.path.suffix == ".safetensors" else {}
    known = Header.of_file(file.path, file.marks, file.metadata, is_sd2=is_second, native=min(file.native))
    return replace(known, **found)


def _numbers(file: FileInfo) -> dict[str, Any]:
    """Return what the two tensors say, of those that are there."""
    header, found = read_header(file.path), dict[str, Any]()
    if steps := read_numbers(header, STEPS):
        found["global_step"] = int(steps[0])
    if values := read_numbers(header, file.parts["unet"].prefix + V_TENSOR):
        found["norm_deviation"] = statistics.pstdev(values)
    return found
