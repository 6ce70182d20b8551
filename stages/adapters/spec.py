"""What a person writes of an adapter: its file, its weights, the blocks it acts on."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

MOST_WEIGHT = 100.0  # also below zero
_WEIGHTED = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+))", re.DOTALL)
_BLOCK = re.compile(r"BASE|MID|(IN|OUT)(\d{0,2})")
Weight = Annotated[float, Field(ge=-MOST_WEIGHT, le=MOST_WEIGHT)]


class LoraSpec(BaseModel):
    """One adapter: LoRA, LoCon, LoHa, LoKr, DoRA, GLoRA or full differences, in a .safetensors file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    file: str = Field(
        min_length=1,
        max_length=1024,
        description="The path of a .safetensors file, or its name under HOME/loras or in a linked folder.",
    )
    weight: Weight = Field(1.0, description="What its change of the UNet is multiplied by; 0: none.")
    text_weight: Weight | None = Field(None, description="The same for the text encoders. None: as the `weight`.")
    blocks: dict[str, Weight] = Field(
        default_factory=dict,
        max_length=64,
        description="What the weight is multiplied by in blocks of the UNet: IN04, MID, OUT11; IN and OUT for all of "
        "a side; BASE for the rest and the text encoders. Others: 1.",
    )
    network: Literal["transformer", "transformer_2", "both"] | None = Field(
        None,
        description="Of Wan 2.2 A14B's two networks, the one that it changes: `transformer` works at high noise, "
        "`transformer_2` at low noise. None: as the names in the file say.",
    )
    allow_unmatched: bool = Field(
        False, description="Leave out what the model has no module for, in place of an error."
    )

    def __hash__(self) -> int:
        """Specs that are equal have one hash; a mapping has none of its own."""
        rest = (self.network, self.allow_unmatched)
        return hash((self.file, self.weight, self.text_weight, *sorted(self.blocks.items()), *rest))

    @field_validator("blocks")
    @classmethod
    def _named(cls, blocks: dict[str, float]) -> dict[str, float]:
        return {_block(name): weight for name, weight in blocks.items()}

    @property
    def weights(self) -> tuple[float, float]:
        """The weights of the UNet and of the text encoders."""
        return self.weight, self.weight if self.text_weight is None else self.text_weight


def _block(name: str) -> str:
    """Return the name of a block with two digits. Raises `ValueError` for another name."""
    match = _BLOCK.fullmatch(name.strip().upper())
    if match is None:
        raise ValueError(f"{name!r} is no block of a UNet; BASE, MID, IN, OUT, and IN00 or OUT00 and on, work")
    return f"{match[1]}{int(match[2]):02}" if match[2] else match[0]


def lora_list(written: Any) -> Any:
    """Return adapters as a list of mappings: of a list, of one alone, or of text with commas; what is none stays."""
    if isinstance(written, str):
        written = [part.strip() for part in written.split(",")]
    each = [written] if isinstance(written, dict) else written
    return [lora_fields(one) for one in each] if isinstance(each, list | tuple) else written


def lora_fields(written: Any) -> Any:
    """Return the fields of `FILE`, `FILE:WEIGHT` or `FILE:WEIGHT:TEXT_WEIGHT`; what is no text is copied as it is.

    A path may have colons: weights are numbers at the end. A file that is there under a path with a number
    at its end is that file.
    """
    if not isinstance(written, str):
        return dict(written) if isinstance(written, dict) else written
    parts, numbers = written, list[float]()
    while len(numbers) < 2 and not os.path.isfile(os.path.expanduser(parts)):
        match = _WEIGHTED.fullmatch(parts)
        if match is None:
            break
        parts, numbers = match[1], [float(match[2]), *numbers]
    return {"file": parts, **dict(zip(("weight", "text_weight"), numbers, strict=False))}


Loras = Annotated[tuple[LoraSpec, ...], BeforeValidator(lora_list)]
"""Adapters in the order in which they are merged; one may be written as text."""
