"""The metadata of InvokeAI: of version 3 and later, of 2.x (`sd-metadata`), and its first command line (`Dream`)."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Any

from flows.picture_import.recipe import NamedFile, Recipe, number
from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WEIGHTED = re.compile(r"\)[+-]|\w[+-]{2}|\)\d|\.(and|blend|swap)\(")
UNWANTED = re.compile(r"\[([^\[\]]*)\]")  # words to avoid, in a prompt of version 2
DREAM = {
    "-s": "steps",
    "-S": "seed",
    "-W": "width",
    "-H": "height",
    "-C": "cfg_scale",
    "-A": "sampler",
    "-U": "upscale",
}
QUIET = ("app_version", "generation_mode", "rand_device", "app_id", "canvas_v2_metadata", "postprocessing")
USUAL: tuple[object, ...] = (None, False, 0, "", [], {})  # of a field that was not used


def read_metadata(texts: Mapping[str, str]) -> Recipe:
    """Return what the metadata of InvokeAI say. Raises `SpecError` for text that is none."""
    readers: dict[str, Callable[[str], Recipe]] = {
        "invokeai_metadata": lambda text: _current(_mapping(text)),
        "sd-metadata": lambda text: _second(_mapping(text)),
        "Dream": _dream,
    }
    key = next(name for name in readers if name in texts)
    return readers[key](texts[key])


def _mapping(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise SpecError("picture: the metadata of InvokeAI in it are not JSON") from None
    if not isinstance(values, dict):
        raise SpecError("picture: the metadata of InvokeAI in it are no mapping")
    return values


def _current(values: dict[str, Any]) -> Recipe:
    recipe = Recipe("InvokeAI")
    _prompts(values.pop("positive_prompt", ""), values.pop("negative_prompt", ""), recipe)
    recipe.number("steps", values.pop("steps", None), "steps", whole=True)
    recipe.number("guidance_scale", values.pop("cfg_scale", None), "cfg_scale")
    if rescale := values.pop("cfg_rescale_multiplier", None):
        recipe.number("guidance_rescale", rescale, "cfg_rescale_multiplier")
    recipe.seed(values.pop("seed", None), "seed")
    if (sides := (values.pop("width", None), values.pop("height", None))) != (None, None):
        recipe.size(*sides)
    if name := values.pop("scheduler", None):
        recipe.sampler(str(name), "scheduler")
    skipped = number(values.pop("clip_skip", None))
    if skipped:
        recipe.number("clip_skip", skipped + 1, "clip_skip", whole=True, of_model=True)  # it counts skipped layers
    for kind, key in (("model", "model"), ("vae", "vae")):
        if name := _name(values.pop(key, None)):
            recipe.files.append(NamedFile(kind, name))  # type: ignore[arg-type]
    loras = values.pop("loras", None)
    for each in loras if isinstance(loras, list) else ():
        name, weight = _name(each.get("model") or each.get("lora")) if isinstance(each, dict) else "", 1.0
        if name:
            weight = number(each.get("weight")) or 0.0
            recipe.files.append(NamedFile("lora", name, weight=weight))
        else:
            recipe.left("LoRA", each)
    for key, value in values.items():
        if key not in QUIET and value not in USUAL:
            recipe.left(key, value)
    return recipe


def _name(model: object) -> str:
    """The name of a model, which was `model_name` in version 3."""
    if isinstance(model, dict):
        return str(model.get("name") or model.get("model_name") or "")
    return model if isinstance(model, str) else ""


def _prompts(prompt: object, negative: object, recipe: Recipe) -> None:
    """Both prompts, plain: the weights of InvokeAI's syntax, `(dusk)1.2` and `dusk++`, have no field."""
    recipe.prompts(prompt, negative, "plain")
    if WEIGHTED.search(f"{prompt} {negative}"):
        recipe.left(
            "weights in the prompt", "InvokeAI writes (words)1.2 and words++; prompt_syntax a1111 has (words:1.2)"
        )


def _second(values: dict[str, Any]) -> Recipe:
    image = values.pop("image", None)
    if not isinstance(image, dict):
        raise SpecError("picture: the metadata of InvokeAI in it have no `image`")
    said = image.pop("prompt", "")
    parts = [each for each in said if isinstance(each, dict)] if isinstance(said, list) else []
    prompt = ", ".join(str(each.get("prompt", "")) for each in parts) if parts else str(said)
    recipe = Recipe("InvokeAI")
    _dream_fields(prompt, image, recipe)
    digits = str(values.pop("model_hash", "") or "")
    if name := str(values.pop("model_weights", "") or ""):
        recipe.files.append(NamedFile("model", name, digits if re.fullmatch("[0-9a-f]{8,64}", digits) else ""))
    for key, value in image.items():
        if value not in USUAL and value not in ("txt2img", 1, 1.0):
            recipe.left(key, value)
    return recipe


def _dream(text: str) -> Recipe:
    try:
        words = shlex.split(text)
    except ValueError:
        raise SpecError("picture: the text `Dream` of InvokeAI in it has a quote that is not closed") from None
    if not words:
        raise SpecError("picture: the text `Dream` of InvokeAI in it is empty")
    recipe, fields = Recipe("InvokeAI"), dict[str, Any]()
    prompt, rest = words[0], words[1:]
    while rest:
        word = rest.pop(0)
        joined = word[:2] if word[:2] in DREAM and not word.startswith("--") else word
        value = word[2:] if joined != word else rest.pop(0) if rest and not rest[0].startswith("-") else ""
        if joined in DREAM:
            fields[DREAM[joined]] = value
        elif word.startswith("-"):
            recipe.left(word if joined == word else joined, value)
    _dream_fields(prompt, fields, recipe)
    for key, value in fields.items():
        recipe.left(key, value)
    return recipe


def _dream_fields(prompt: str, fields: dict[str, Any], recipe: Recipe) -> None:
    """Take the fields that versions 1 and 2 have over, out of `fields`; words in [] are those to avoid."""
    _prompts(UNWANTED.sub("", prompt), ", ".join(UNWANTED.findall(prompt)), recipe)
    recipe.number("steps", fields.pop("steps", None), "steps", whole=True)
    recipe.number("guidance_scale", fields.pop("cfg_scale", None), "cfg_scale")
    recipe.seed(fields.pop("seed", None), "seed")
    if (sides := (fields.pop("width", None), fields.pop("height", None))) != (None, None):
        recipe.size(*sides)
    if name := fields.pop("sampler", None):
        recipe.sampler(str(name), "sampler")
