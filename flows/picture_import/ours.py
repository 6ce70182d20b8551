"""The spec that this program leaves in its pictures."""

from __future__ import annotations

import json
from typing import Any

from flows.picture_import.recipe import NamedFile, Recipe
from stages.errors import SpecError


def read_provenance(text: str) -> Recipe:
    """Return the spec of a picture of ours, with its files by name. Raises `SpecError` for text that holds none."""
    try:
        record = json.loads(text)
        spec = record["spec"]
        if not isinstance(spec, dict) or not isinstance(spec.get("prompt"), str):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise SpecError("picture: the text `freescale` in it holds no spec") from None
    recipe = Recipe("FreeScale", fields=dict(spec), is_spec=True)
    model = recipe.fields.pop("model", {})
    model = {"name": model} if isinstance(model, str) else dict(model) if isinstance(model, dict) else {}
    recipe.files.append(NamedFile("model", str(model.pop("name", "shapes"))))
    weights = record.get("model")
    recipe.weights = {str(part): str(each) for part, each in weights.items()} if isinstance(weights, dict) else {}
    recipe.model = model  # other files as they are, with all of their fields
    sizes, level = record.get("sizes"), record.get("level")
    if isinstance(sizes, list) and isinstance(level, int) and level < len(sizes) - 1:
        recipe.notes.append(f"this picture is level {level} of {len(sizes) - 1}; the spec makes all of them")
    if names := [*_paths(spec)]:
        recipe.notes.append(
            f"pictures are named without their folders, so put them beside the spec: {', '.join(names)}"
        )
    return recipe


def _paths(spec: dict[str, Any]) -> list[str]:
    """The pictures that a spec names."""
    found = [spec["image"]] if isinstance(spec.get("image"), str) else []
    redo = spec.get("redo")
    for holder in (spec, *(redo if isinstance(redo, list) else ())):
        regions = holder.get("regions") if isinstance(holder, dict) else None
        for each in regions if isinstance(regions, list) else ():
            found += [each["mask"]] if isinstance(each, dict) and isinstance(each.get("mask"), str) else []
    return list(dict.fromkeys(found))
