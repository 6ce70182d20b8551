"""What a checkpoint in one file says of its prediction, by its header alone.

The first source that says it decides: the names of its tensors, its metadata, a `.yaml` beside it, and marks of Stable
Diffusion 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

PredictionType = Literal["epsilon", "v_prediction", "sample"]
V_STEPS, EPSILON_STEPS = (110000,), (220000, 875000)  # `global_step` of the released Stable Diffusion 2
V_DEVIATION = 0.09  # of `V_TENSOR`'s values, above which Stable Diffusion 2 predicts v (ComfyUI's rule)
V_TENSOR = "output_blocks.11.1.transformer_blocks.0.norm1.bias"


@dataclass(frozen=True)
class Prediction:
    """What a UNet predicts, and why that is believed."""

    type: PredictionType
    ztsnr: bool  # whether it knows zero terminal SNR
    why: str
    is_sure: bool = True  # False: a usual value, taken since nothing says it
    remark: str | None = None  # to be told before a render
    unet: str = ""  # fingerprint of the UNet, by which a probe's answer is kept


@dataclass(frozen=True)
class Header:
    """What is known of a checkpoint in one file without its weights; of Stable Diffusion 2 also two small tensors."""

    keys: Collection[str]
    metadata: Mapping[str, str] = field(default_factory=dict)
    yaml: Path | None = None  # of the same name, beside the file
    is_sd2: bool = False  # whether it is a Stable Diffusion 2.x
    native: int | None = None  # side in pixels
    global_step: int | None = None
    norm_deviation: float | None = None  # of `V_TENSOR`, as of a whole population

    @classmethod
    def of_file(
        cls, path: Path, keys: Collection[str], metadata: Mapping[str, str], *, is_sd2: bool, native: int
    ) -> Self:
        """Return what is known of the file at `path`, with the `.yaml` or `.yml` beside it where there is one."""
        beside = (path.with_suffix(suffix) for suffix in (".yaml", ".yml"))
        return cls(keys, metadata, next((file for file in beside if file.is_file()), None), is_sd2, native)


def detected(header: Header) -> Prediction:
    """Return what a checkpoint's header says, the first source that says anything, or the usual value."""
    for source in (_by_tensors, _by_metadata, _by_yaml, _by_marks):
        if (found := source(header)) is not None:
            kind, why = found
            return Prediction(kind, "ztsnr" in header.keys, why)
    if header.is_sd2 and (header.native or 0) >= 768:
        return Prediction("v_prediction", "ztsnr" in header.keys, "usual for Stable Diffusion 2 at 768", is_sure=False)
    return Prediction("epsilon", "ztsnr" in header.keys, "usual", is_sure=False)


def _by_tensors(header: Header) -> tuple[PredictionType, str] | None:
    if "v_pred" in header.keys:
        return "v_prediction", "its tensor v_pred"
    return None


def _by_metadata(header: Header) -> tuple[PredictionType, str] | None:
    """Read the fields of SAI ModelSpec 1.0.1."""
    said = header.metadata.get("modelspec.prediction_type", "").strip().lower()
    for kind, words in _WORDS.items():
        if said in words:
            return kind, f"its metadata, modelspec.prediction_type {said}"
    architecture = header.metadata.get("modelspec.architecture", "")
    if architecture.startswith("stable-diffusion-v2-768-v"):
        return "v_prediction", f"its metadata, modelspec.architecture {architecture}"
    return None


_WORDS: Mapping[PredictionType, tuple[str, ...]] = {
    "epsilon": ("epsilon", "eps"),
    "v_prediction": ("v", "v_prediction", "v-prediction", "vpred", "velocity"),
    "sample": ("sample", "x0"),
}


def _by_yaml(header: Header) -> tuple[PredictionType, str] | None:
    """Read a configuration as A1111 and Forge have it: `parameterization`, or the scaling of generative-models."""
    if header.yaml is None:
        return None
    try:
        text = header.yaml.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    lines = [line.partition("#")[0] for line in text.splitlines()]
    for line in lines:
        if found := re.fullmatch(r"\s*parameterization:\s*[\"']?(\w+)[\"']?\s*", line):
            for kind, words in _WORDS.items():
                if found[1].lower() in words:
                    return kind, f"{header.yaml.name}, parameterization {found[1]}"
        if found := re.fullmatch(r"\s*target:\s*[\w.]+\.(V|Eps)Scaling\w*\s*", line):
            return ("v_prediction" if found[1] == "V" else "epsilon"), f"{header.yaml.name}, {line.strip()}"
    return None


def _by_marks(header: Header) -> tuple[PredictionType, str] | None:
    """Know Stable Diffusion 2 by the steps of its training, or by a tensor that differs between its two kinds."""
    if not header.is_sd2:
        return None
    if header.global_step in V_STEPS:
        return "v_prediction", f"its global_step {header.global_step}"
    if header.global_step in EPSILON_STEPS:
        return "epsilon", f"its global_step {header.global_step}"
    if header.norm_deviation is None:
        return None
    by_tensor: PredictionType = "v_prediction" if header.norm_deviation > V_DEVIATION else "epsilon"
    return by_tensor, f"the deviation of {V_TENSOR}, {header.norm_deviation:.3f}"
