"""The text of parameters that A1111, Forge and SD.Next write, and that many other programs and pages copy.

a lighthouse (at dusk:1.2), <lora:film-grain:0.6>
Negative prompt: blurry
Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 5, Seed: 7, Size: 832x1216, Model: juggernaut
"""

from __future__ import annotations

import json
import re
from typing import Any

from flows.picture_import.recipe import NUMBER, NamedFile, Recipe, number
from stages.errors import SpecError

ENTRY = re.compile(r'\s*(\w[\w \-/.()+]{0,60}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
PARAMETERS = re.compile(r"\s*Steps:\s*\d")
NEGATIVE = "Negative prompt:"
NETWORK = re.compile(r"<(\w{1,20}):([^<>]{1,300})>")
PAIR = re.compile(r"\s*(?:(lora|lyco|embed|model|vae):)?([^:,]+):\s*([0-9a-fA-F]{8,64})\s*(?:,|$)")
FEWEST = 3  # entries of a last line that is not the prompt's
EMPHASES = {"original": "original", "no norm": "no_norm", "none": "off", "ignore": "off"}
QUIET = ("Version", "App", "Created Date")  # what says nothing of the picture
CIVITAI = ("Civitai resources", "Civitai metadata")


def looks_like(text: str) -> bool:
    """Whether a text has a line of parameters."""
    return any(PARAMETERS.match(line) for line in text.splitlines())


def read_parameters(text: str) -> Recipe:
    """Return what a text of parameters says. Raises `SpecError` for one without a prompt or without parameters."""
    prompt, negative, last, after = _split(text)
    resources, last = _resources(last)
    entries = {key.strip(): _unquoted(value) for key, value in ENTRY.findall(last)}
    if not entries:
        raise SpecError(
            "picture: its text has no line of parameters such as `Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1`"
        )
    recipe = Recipe(entries.get("App") or ("Forge" if entries.get("Version", "").startswith("f") else "A1111"))
    hashes = _hashes(entries)
    recipe.prompts(_without_networks(prompt, hashes, recipe), _without_networks(negative, hashes, recipe), "a1111")
    _files(entries, hashes, recipe)
    for resource in resources:
        _resource(resource, recipe)
    if re.search(r"\bAND\b", prompt):
        recipe.left("AND in the prompt", "prompts that are denoised side by side; here it is a word")
    _sampling(entries, recipe)
    _size(entries, recipe)
    for key, value in entries.items():
        if key not in QUIET:
            recipe.left(key, value)
    if after:
        recipe.left("text after the parameters", after)
    return recipe


def _split(text: str) -> tuple[str, str, str, str]:
    """The prompt, the negative prompt, the line of parameters, and what follows it."""
    lines = text.strip().splitlines()
    starts = [index for index, line in enumerate(lines) if PARAMETERS.match(line)]
    at = starts[-1] if starts else len(lines) - 1 if lines and len(ENTRY.findall(lines[-1])) >= FEWEST else len(lines)
    before = lines[:at]
    begins = next((index for index, line in enumerate(before) if line.strip().startswith(NEGATIVE)), len(before))
    negative = "\n".join(before[begins:]).strip().removeprefix(NEGATIVE)
    return "\n".join(before[:begins]), negative, "".join(lines[at : at + 1]), "\n".join(lines[at + 1 :]).strip()


def _unquoted(value: str) -> str:
    if value[:1] == '"' and value[-1:] == '"' and len(value) > 1:
        try:
            return str(json.loads(value))
        except ValueError:
            return value[1:-1]
    return value.strip()


def _resources(line: str) -> tuple[list[dict[str, Any]], str]:
    """The files that Civitai names in JSON at the end of a line, and the line without them."""
    found: list[dict[str, Any]] = []
    for key in CIVITAI:
        before, colon, rest = line.partition(f"{key}: ")
        if not colon:
            continue
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
        except (ValueError, RecursionError):
            continue
        line = before + rest[end:].lstrip(", ")
        if isinstance(value, list):
            found += [each for each in value if isinstance(each, dict)]
    return found, line.rstrip(", ")


def _resource(resource: dict[str, Any], recipe: Recipe) -> None:
    """A file that Civitai names, by the names of its page, which files rarely have."""
    name = " ".join(str(resource.get(part) or "") for part in ("modelName", "modelVersionName")).strip()
    weight = number(resource.get("weight")) or 1.0
    kinds = {"checkpoint": "model", "lora": "lora", "lycoris": "lora", "embed": "embedding", "vae": "vae"}
    kind: Any = kinds.get(str(resource.get("type", "")).lower())
    if kind is None or not name:
        recipe.left("Civitai resource", resource)
    elif kind not in ("model", "vae") or kind not in {file.kind for file in recipe.files}:
        recipe.files.append(NamedFile(kind, name, weight=weight))


def _hashes(entries: dict[str, str]) -> dict[tuple[str, str], str]:
    """Hashes by kind and name, of `Lora hashes`, `TI hashes` and of `Hashes`, which is JSON."""
    found: dict[tuple[str, str], str] = {}
    for key, kind in (("Lora hashes", "lora"), ("TI hashes", "embed")):
        for _, name, digits in PAIR.findall(entries.pop(key, "")):
            found[kind, name.strip()] = digits
    if text := entries.pop("Hashes", ""):
        try:
            given = json.loads(text)
        except (ValueError, RecursionError):
            given = {}
        for key, digits in given.items() if isinstance(given, dict) else ():
            kind, _, name = str(key).partition(":")
            found.setdefault(({"lyco": "lora"}.get(kind, kind), name), str(digits))
    return found


def _without_networks(prompt: str, hashes: dict[tuple[str, str], str], recipe: Recipe) -> str:
    """The prompt without `<lora:NAME:TEXT:UNET>`, whose files are noted; one number is for both networks."""

    def taken(match: re.Match[str]) -> str:
        name, *rest = (word.strip() for word in match[2].split(":"))
        named = dict(word.split("=", 1) for word in rest if "=" in word)
        numbers = [word for word in rest if "=" not in word]
        text = named.get("te", numbers[0] if numbers else "1")
        unet = named.get("unet", numbers[1] if len(numbers) > 1 else text)
        is_plain = (
            NUMBER.fullmatch(text) and NUMBER.fullmatch(unet) and len(numbers) < 3 and named.keys() <= {"te", "unet"}
        )
        if match[1] not in ("lora", "lyco") or not is_plain:
            recipe.left(f"{match[1]} in the prompt", match[0])
            return ""
        weights = float(unet), None if float(text) == float(unet) else float(text)
        recipe.files.append(NamedFile("lora", name, hashes.get(("lora", name), ""), *weights))
        return ""

    return NETWORK.sub(taken, prompt)


def _files(entries: dict[str, str], hashes: dict[tuple[str, str], str], recipe: Recipe) -> None:
    """The model, the VAE and the embeddings."""
    for kind, key in (("model", "Model"), ("vae", "VAE")):
        name, digits = entries.pop(key, ""), entries.pop(f"{key} hash", "") or hashes.get((kind, ""), "")
        if name or digits:
            recipe.files.append(NamedFile(kind, name or digits, digits))  # type: ignore[arg-type]
    words = recipe.fields["prompt"] + recipe.fields["negative_prompt"]
    for (kind, name), digits in hashes.items():
        if kind == "embed":
            recipe.files.append(NamedFile("embedding", name, digits))
        elif kind == "lora" and not any(file.kind == "lora" and file.name == name for file in recipe.files):
            recipe.left("LoRA without a weight in the prompt", f"{name}: {digits}" if name not in words else name)


def _sampling(entries: dict[str, str], recipe: Recipe) -> None:
    recipe.number("steps", entries.pop("Steps", None), "Steps", whole=True)
    recipe.number("guidance_scale", entries.pop("CFG scale", None), "CFG scale")
    recipe.seed(entries.pop("Seed", None), "Seed")
    recipe.number("clip_skip", entries.pop("Clip skip", None), "Clip skip", whole=True, of_model=True)
    if name := entries.pop("Sampler", ""):
        recipe.sampler(f"{name} {entries.pop('Schedule type', '')}".strip(), "Sampler")
    if recipe.fields.get("solver") == "ddim":
        recipe.number("eta", entries.pop("Eta", entries.pop("Eta DDIM", None)), "Eta")
    if entries.get("Emphasis", "").lower() in EMPHASES:
        recipe.fields["emphasis"] = EMPHASES[entries.pop("Emphasis").lower()]
    if entries.get("Noise Schedule") in ("Default", "Zero Terminal SNR"):
        recipe.model |= {"ztsnr": "on"} if entries.pop("Noise Schedule") != "Default" else {}


def _size(entries: dict[str, str], recipe: Recipe) -> None:
    """The size, and that after the hires fix: `Hires upscale: 2`, or `Hires resize: 1664x0` with 0 for either side."""
    size = re.fullmatch(r"(\d{1,6})x(\d{1,6})", entries.pop("Size", ""))
    if size is None:
        return
    recipe.size(size[1], size[2], "Size")
    width, height = int(size[1]), int(size[2])
    factor = number(entries.get("Hires upscale"))
    if resize := re.fullmatch(r"(\d{1,6})x(\d{1,6})", entries.get("Hires resize", "")):
        wide, high = int(resize[1]), int(resize[2])
        del entries["Hires resize"]
        entries.pop("Hires upscale", None)
        wide, high = wide or round(high * width / max(height, 1)), high or round(wide * height / max(width, 1))
        recipe.enlarged(wide, high, "hires fix")
    elif factor is not None and 1 < factor <= 16:
        del entries["Hires upscale"]
        recipe.enlarged(int(width * factor) // 8 * 8, int(height * factor) // 8 * 8, "hires fix")
