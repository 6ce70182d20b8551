"""What a picture says of how it was made: one line of JSON in its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stages.denoise import Sampling
    from stages.models.info import ModelInfo
    from stages.spec import RenderSpec
    from stages.stage import Size


def provenance(spec: RenderSpec, info: ModelInfo, level: int, sizes: Sequence[Size], sampling: Sampling) -> str:
    """Return the spec, with what the model decided filled in, as one line of JSON."""
    values = spec.model_dump(mode="json", exclude_defaults=True)
    if spec.format == "png":  # the default of a picture
        del values["format"]
    if spec.redo:  # a redo of a level above does not change this one
        values["redo"] = [change for change in values["redo"] if change["level"] <= level]
        values = values if values["redo"] else {k: v for k, v in values.items() if k != "redo"}
    if spec.image is not None:  # the folders of a machine are private
        values["image"] = Path(spec.image).name
    if (upscaler := values.get("method", {}).get("upscaler")) is not None:
        values["method"]["upscaler"] = Path(upscaler).name
    for holder in (values, *values.get("redo", ())):
        for region in holder.get("regions") or ():
            region["mask"] = Path(region["mask"]).name
    model = values.get("model", {})
    for each in (*model.get("embeddings", ()), *model.get("loras", ())):
        each["file"] = Path(each["file"]).name
    record = {
        "spec": values,
        "level": level,
        "sizes": list(sizes),
        "sampling": sampling.record(),
        "model": info.fingerprints,
    }
    return json.dumps({"freescale": 1, **record}, sort_keys=True)
