"""A spec as YAML, with comments on what was found, what is missing and what is not carried over."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from flows.picture_import.recipe import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from flows.picture_import.found import FoundFile
    from flows.picture_import.recipe import Recipe

FIRST = ("prompt", "negative_prompt", "prompt_syntax", "emphasis", "seed", "width", "height", "cascade")
LISTS: Mapping[str, str] = {"lora": "loras", "embedding": "embeddings"}  # of a model's spec
SINGLE: Mapping[str, str] = {"model": "name", "vae": "vae", "text_encoder": "text_encoders"}
NAME = re.compile("[a-z][a-z0-9_]*")
MISSING = "  # missing here"


def spec_text(recipe: Recipe, source: str, found: Sequence[FoundFile], notes: Sequence[str]) -> str:
    """Return the YAML of a recipe with its files; `source` is the picture's name, `notes` stand at the head."""
    head = [f"Imported from {source}, a picture of {recipe.program}.", *notes]
    lines = [f"# {one_line(line, 1000)}" for line in head]
    fields = sorted(recipe.fields.items(), key=lambda item: FIRST.index(item[0]) if item[0] in FIRST else len(FIRST))
    lines += [f"{_key(name)}: {_value(value)}" for name, value in fields]
    if model := [*_model(recipe, found)]:
        lines += ["model:", *(f"  {line}" for line in model)]
    return "\n".join(lines) + "\n"


def _model(recipe: Recipe, found: Sequence[FoundFile]) -> Iterator[str]:
    """The lines of the model: its files, then its other fields."""
    written: set[str] = set()
    for each in found:
        field = SINGLE.get(each.wanted.kind)
        if field is not None and field not in written:
            written.add(field)
            yield f"{field}: {_value(each.name)}{MISSING if each.path is None else ''}"
    for kind, field in LISTS.items():
        if files := [each for each in found if each.wanted.kind == kind]:
            yield f"{field}:"
            yield from (f"  - {_value(_entry(each))}{MISSING if each.path is None else ''}" for each in files)
    yield from (f"{_key(name)}: {_value(value)}" for name, value in recipe.model.items())


def _entry(file: FoundFile) -> dict[str, Any]:
    """A LoRA or an embedding as an entry of its list."""
    wanted = file.wanted
    if wanted.kind == "embedding":
        return {"file": file.name, "trigger": wanted.name}
    text = {} if wanted.text_weight is None else {"text_weight": wanted.text_weight}
    return {"file": file.name, "weight": wanted.weight, **text}


def _value(value: Any) -> str:
    """A value in YAML's flow style, which JSON is a part of; characters that YAML does not allow are escaped."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)}: {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _key(name: str) -> str:
    return name if NAME.fullmatch(name) else _value(name)
