"""A picture's parameters as a spec: read by the program that wrote them, completed by what lies on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.picture_import import a1111, comfyui, invokeai, ours
from flows.picture_import.found import Finder, FoundFile
from flows.picture_import.recipe import one_line
from flows.picture_import.spec_file import SINGLE, spec_text
from flows.picture_import.texts import PASTED, read_texts
from stages.errors import SpecError
from stages.prompts.syntax import parse
from stages.spec import ModelSpec, RenderSpec, make_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flows.picture_import.recipe import NamedFile, Recipe
    from flows.picture_import.texts import PictureTexts

NOISE = "The seed is carried over, the noise is not: each program draws its own, so the picture will be another one."
NAMES = {"model": "model", "lora": "LoRA", "embedding": "embedding", "vae": "VAE", "text_encoder": "text encoder"}
OTHERS = ("SwarmUI", "NovelAI", "Fooocus", "Midjourney", "DALL")


@dataclass(frozen=True)
class Imported:
    """A spec as YAML, its fields, and what a person has to know: one line each."""

    text: str
    program: str
    fields: Mapping[str, Any]
    found: tuple[FoundFile, ...]
    notes: tuple[str, ...]
    left_out: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """The import for a script."""
        files = [
            {"kind": each.wanted.kind, "name": each.wanted.name, "path": None if each.path is None else str(each.path)}
            for each in self.found
        ]
        return {"program": self.program, "files": files, "not_carried_over": dict(self.left_out), "spec": self.text}


def import_picture(
    what: str, home: Path, hash_all: bool = False, told: Callable[[str], None] = lambda text: None
) -> Imported:
    """Return the spec of a picture, of a text file with parameters, or of `-`, the standard input.

    `told` is called with a line before a file is hashed. Raises `SpecError` where there are no parameters, or none that
    can be read.
    """
    texts = read_texts(what)
    recipe = read_recipe(what, texts)
    if not str(recipe.fields.get("prompt", "")).strip():
        raise SpecError(f"picture: {what!r} has no prompt in its parameters, and a spec needs one")
    finder = Finder(home, hash_all, told)
    _one_of_each(recipe)
    found = tuple(finder.find(each) for each in dict.fromkeys(recipe.files))
    if recipe.is_spec:
        _compare(recipe, home)
    else:
        _check(recipe)
    notes = tuple(one_line(note, 1000) for note in (*(() if recipe.is_spec else (NOISE,)), *_notes(recipe, found)))
    source = "pasted text" if what == "-" else Path(what).name
    try:
        text = spec_text(recipe, source, found, notes)
    except RecursionError:
        raise SpecError(f"picture: the spec in {what!r} is nested too deep") from None
    return Imported(text, recipe.program, recipe.fields, found, notes, recipe.left_out)


def read_recipe(what: str, texts: PictureTexts) -> Recipe:
    """Return what a picture says, read by the program whose keys its texts have. Raises `SpecError`."""
    said = dict(texts.by_key)
    for key in (PASTED, "UserComment", "comment", "Description"):  # texts that may be of several programs
        if (text := said.get(key, "").strip()).startswith("{") and "prompt" not in said and "workflow" not in said:
            said |= _graph(text)
        elif a1111.looks_like(text):
            said.setdefault("parameters", text)
    if "freescale" in said:
        return ours.read_provenance(said["freescale"])
    if {"invokeai_metadata", "sd-metadata", "Dream"} & said.keys():
        return invokeai.read_metadata(said)
    if a1111.looks_like(said.get("parameters", "")):
        return a1111.read_parameters(said["parameters"])
    if any(said.get(key, "").lstrip().startswith(("{", "[")) for key in ("prompt", "workflow")):
        return comfyui.read_nodes(said, texts.size)
    if PASTED in said:
        return a1111.read_parameters(said[PASTED])
    known = " ".join(f"{key} {text[:300]}" for key, text in said.items())
    other = next((name for name in OTHERS if name.lower() in known.lower()), None)
    if other is not None or "sui_image_params" in known:
        raise SpecError(f"picture: {what!r} is of {other or 'SwarmUI'}, whose parameters are not read here")
    keys = f"; its texts are {', '.join(sorted(said)[:6])}" if said else ""
    raise SpecError(
        f"picture: {what!r} has no parameters of A1111, Forge, ComfyUI, InvokeAI or FreeScale in it{keys}; "
        "sites and editors often remove them"
    )


def _graph(text: str) -> dict[str, str]:
    """A graph of ComfyUI under the key of its form, where a text in JSON is one."""
    return {"workflow" if '"nodes"' in text else "prompt": text} if "class_type" in text or '"nodes"' in text else {}


def _compare(recipe: Recipe, home: Path) -> None:
    """Note whether the model here has the weights that a picture of ours was made with; one that is missing is told."""
    from stages.adapters.prompted import with_prompted
    from stages.models.describe import describe

    name = next(file.name for file in recipe.files if file.kind == "model")
    prompt, syntax = str(recipe.fields["prompt"]), recipe.fields.get("prompt_syntax") or "plain"
    try:
        model = make_spec({"prompt": "x", "model": {"name": name, **recipe.model}}).model
        found = describe(with_prompted(model, prompt, None, syntax), home).fingerprints
    except SpecError:
        return
    if other := [part for part in recipe.weights if recipe.weights[part] != found.get(part)]:
        recipe.notes.append(f"the model {name} has other weights here than in the picture: {', '.join(other)}")
    elif recipe.weights:
        recipe.notes.append(f"the model {name} has the same weights here, so the spec makes this very picture")


def _one_of_each(recipe: Recipe) -> None:
    """Leave out all but the first model, VAE and text encoder: a spec has one field for each."""
    kept: list[NamedFile] = []
    for file in recipe.files:
        if file.kind in SINGLE and any(each.kind == file.kind for each in kept):
            recipe.left(f"a second {NAMES[file.kind]}", file.name)
        else:
            kept.append(file)
    recipe.files = kept


def _check(recipe: Recipe) -> None:
    """Leave out what a spec does not take, by the spec's own rules. Raises `SpecError` for a prompt that is none."""
    fields = recipe.fields
    sides: dict[str, Any] = {name: fields[name] for name in ("width", "height") if name in fields}
    if says := _refused(sides):
        for name in (*sides, "cascade"):
            fields.pop(name, None)
        recipe.left("size", f"{'x'.join(str(side) for side in sides.values())} ({says})")
        sides = {}
    for name in [each for each in fields if each in RenderSpec.model_fields and each not in sides]:
        if says := _refused({**sides, name: fields[name]}):
            if name in ("prompt", "negative_prompt"):
                raise SpecError(f"picture: its {says}")
            recipe.left(name, f"{fields.pop(name)} ({says})")
    for name in [each for each in recipe.model if each in ModelSpec.model_fields]:
        if says := _refused({"model": {name: recipe.model[name]}}):
            recipe.left(name, f"{recipe.model.pop(name)} ({says})")
    for name in ("prompt", "negative_prompt"):
        try:
            parse(fields[name], fields["prompt_syntax"])
        except SpecError as error:
            recipe.notes.append(f"the spec cannot be rendered as it is: {error}")


def _refused(fields: Mapping[str, Any]) -> str | None:
    try:
        make_spec({"prompt": "x", **fields})
    except SpecError as error:
        return str(error)
    return None


def _notes(recipe: Recipe, found: tuple[FoundFile, ...]) -> list[str]:
    """One line for each file, for each thing that changed, and for each that is not carried over."""
    lines = []
    for each in found:
        what, wanted = NAMES[each.wanted.kind], each.wanted
        if each.path is None:
            digits = f" (hash {wanted.digits})" if wanted.digits else ""
            lines.append(f"missing: {what} {wanted.name}{digits}{f'; {each.how}' if each.how else ''}")
        else:
            lines.append(f"found: {what} {wanted.name} is {each.path}, {each.how}")
    if not any(each.wanted.kind == "model" for each in found):
        lines.append(
            "The picture names no model, so the spec has none and renders with `shapes`; add a line `model: NAME`."
        )
    if any(each.path is None for each in found):
        lines.append(
            "Put each missing file into the home or link its folder (`freescale models add`), or delete its line."
        )
    return [*lines, *recipe.notes, *(f"not carried over: {name}: {value}" for name, value in recipe.left_out.items())]
