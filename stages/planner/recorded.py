"""A stage of a render from what its artifact's manifest says of it, for what such a stage cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.conditioning import EncodePrompt
from stages.decode import Decode, DecodeVideo
from stages.denoise import BaseDenoise, DetailPass, HighresDenoise
from stages.upscale import EncodePicture, Upscale, UpscaleMixed, UpscaleVideo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.stage import Stage

KINDS: tuple[type[Stage], ...] = (  # those that a network of the model works in
    EncodePrompt,
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


def recorded_stage(name: str, version: int, params: Mapping[str, Any]) -> Stage | None:
    """Return the stage of this name and version (as `Stage.key_version` has it) with these parameters.

    None for a stage without a network of the model, and for one of an older version, with other fields.
    """
    for kind in KINDS:
        if (kind.name, kind.key_version()) == (name, version):
            try:
                return kind.from_params({field: value for field, value in params.items() if field != "model"})
            except (TypeError, KeyError):
                continue
    return None
