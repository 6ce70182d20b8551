"""A stage of a render from what its artifact's manifest says of it, for what such a stage cost."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from stages.causal import CAUSAL
from stages.conditioning import EncodeChunks, EncodePrompt
from stages.decode import Decode, DecodeVideo
from stages.denoise import BaseDenoise, DetailPass, HighresDenoise
from stages.upscale import EncodePicture, Upscale, UpscaleMixed, UpscaleVideo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.stage import Stage

KINDS: tuple[type[Stage], ...] = (  # those that a network of the model works in
    EncodePrompt,
    EncodeChunks,
    BaseDenoise,
    HighresDenoise,
    DetailPass,
    Decode,
    DecodeVideo,
    Upscale,
    UpscaleMixed,
    UpscaleVideo,
    EncodePicture,
)


def recorded_stage(name: str, version: int, params: Mapping[str, Any], chunks: int = 1) -> Stage | None:
    """Return the stage of this name and version (as `Stage.key_version` has it) with these parameters.

    `chunks` are those of its prompts, which no parameter names. None for a stage without a network of the model, and
    for one of an older version, with other fields.
    """
    causal = f"{name} {version}"
    for kind in (CAUSAL[causal],) if causal in CAUSAL else KINDS:
        if (kind.name, kind.key_version()) == (name, version):
            try:
                found = kind.from_params({field: value for field, value in params.items() if field != "model"})
            except (TypeError, KeyError):
                continue
            has_chunks = "chunks" in {field.name for field in dataclasses.fields(found)}
            return dataclasses.replace(found, **{"chunks": chunks} if has_chunks else {})
    return None
