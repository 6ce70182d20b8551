"""What is known of a file: its header, its networks, and what it is as a model. Frozen, and without a tensor's data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from stages.models.files.keys import Layout, original_name, unpacked_shape
from stages.models.weights import RENAMED, Header

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from stages.models.files.families import Family

TEXT_MODEL = "text_model."
IDENTITIES = (("unprojected_clip", "text_projection.weight"), ("headless_qwen", "lm_head.weight"))
"""Layouts, each with a tensor that is not read from its files."""
Written = Layout | Literal["diffusers", "old_diffusers"]
"""How a network is written in a file: `old_diffusers` has the names of a VAE's attention that diffusers had once."""


@dataclass(frozen=True)
class FileHeader:
    """What a file says of its tensors by name: shapes, numbers, and where their bytes begin and end in the file."""

    path: Path
    tensors: Mapping[str, Header]
    places: Mapping[str, tuple[int, int]]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class NetworkFile:
    """One network in a file: its class and configuration, and under which names its tensors are there."""

    path: Path
    kind: str
    layout: Written
    prefix: str
    config: Mapping[str, Any]

    def stored(self, name: str) -> str:
        """Return the name in the file of the tensor that the network calls `name`."""
        return self.prefix + self._inner(name)

    def shape(self, name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that the tensor `name` has in the network, where it has the shape `stored` in the file."""
        if "diffusers" in self.layout:
            return stored
        return unpacked_shape(self.layout, self.config, name, stored)  # type: ignore[arg-type]

    def is_identity(self, name: str) -> bool:
        """Return whether the tensor `name` is not read from the file, and has ones on its diagonal alone.

        Stable Diffusion 3 takes the pooled row of CLIP-L as it is, whatever projection a file has for it. The layer of
        Qwen2.5-VL that writes text is not used, and ComfyUI's checkpoints lack it.
        """
        return (self.layout, name) in IDENTITIES

    def _inner(self, name: str) -> str:
        if self.layout == "diffusers":
            return name
        if self.layout == "old_diffusers":
            before, _, leaf = name.rpartition(".")
            old = {new: old for old, new in RENAMED.items()}
            found = next((new for new in old if before.endswith(f".{new}") and ".attentions." in before), None)
            return name if found is None else f"{before.removesuffix(found)}{old[found]}.{leaf}"
        return original_name(self.layout, self.config, name)


@dataclass(frozen=True)
class FileInfo:
    """What a checkpoint in one file is, by its header alone; `why` gives a sentence for each thing that was decided."""

    path: Path
    of_family: Family
    member: str  # of the family: SDXL, SSD-1B …
    prediction: str | None  # `epsilon` or `v_prediction`, where the header says it
    ztsnr: bool  # whether the header says that it was trained with zero terminal SNR
    native: tuple[int, int]  # (height, width) in pixels
    dtype: str  # of most numbers of its UNet: F16, BF16, F32, F8_E4M3 …
    parts: Mapping[str, NetworkFile]  # those that are there, by part
    metadata: Mapping[str, str]
    marks: tuple[str, ...]  # names of tensors that mark something, such as `v_pred`
    why: tuple[str, ...]

    @property
    def family(self) -> str:
        """The name of its family: SDXL, Stable Diffusion 1.x …"""
        return self.of_family.name


def most_common(headers: Mapping[str, Header]) -> str:
    """Return the kind of numbers that most tensors have."""
    return Counter(each.dtype for each in headers.values()).most_common(1)[0][0]
