"""The errors of a render, and the words in which they are told.

SpecError(ValueError)       the person who wrote the spec can mend it
StageError(RuntimeError)    another try gives the same result
"""

from __future__ import annotations

import difflib
import itertools
import re
from typing import TYPE_CHECKING, Any, get_args, get_origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

LISTED = 12  # names that one error lists; of more it gives the nearest and what lists them all
LIKENESS = 0.65  # of two names with one first letter, by difflib's ratio, from which one is a typo of the other
LIKENESS_OF_OTHERS = 0.8  # of names with another first letter, and of words of other programs
HABITS: Mapping[str, str] = {
    "bfloat16": "bf16",
    "clip_skip": "clip_stop_at_last_layers stop_at_clip_layer clip_layer",
    "cuda": "gpu nvidia",
    "ddim": "pndm plms",
    "device": "gpu cuda",
    "doctor": "check diagnose",
    "dpmpp_2m": "dpm deis dpmsolver",
    "dtype": "precision torch_dtype fp16 bf16 half float16",
    "embedding": "textual_inversion ti embeddings",
    "emphasis": "prompt_weighting weighting",
    "euler_ancestral": "euler_a k_euler_a",
    "evaluate": "eval measure benchmark score",
    "float16": "fp16 half",
    "float32": "fp32 full single",
    "format": "type extension output_format",
    "fps": "frame_rate framerate",
    "frames": "num_frames n_frames video_length length",
    "freescale": "default auto",
    "guidance_rescale": "cfg_rescale rescale",
    "guidance_scale": "cfg cfg_scale guidance scale",
    "help": "h usage",
    "hevc": "h265 x265",
    "image": "init_image input input_image init img i",
    "import": "from_a1111 png_info pnginfo read_metadata",
    "memory": "vram lowvram low_vram medvram max_memory offload",
    "model": "ckpt checkpoint model_id pretrained m",
    "mp4": "mov mkv avi h264 x264 avc webm",
    "negative_prompt": "negative neg n_prompt uc",
    "out": "o output outdir out_dir output_dir outfile save",
    "overwrite": "force f y replace",
    "plan": "dry_run estimate cost",
    "png": "jpg jpeg bmp gif",
    "prompt": "text caption positive_prompt",
    "prune": "clean gc delete rm remove",
    "render": "generate gen draw txt2img img2img text2img upscale create make",
    "restart": "strength denoise denoising_strength",
    "resume": "continue restart",
    "runs": "list ls history status ps",
    "seed": "noise_seed random_seed s",
    "show": "info inspect describe",
    "sigmas": "schedule_type noise_schedule sigma_schedule",
    "size": "w h width height resolution dimensions",
    "solver": "sampler sampler_name scheduler",
    "steps": "num_inference_steps n_steps num_steps sampling_steps",
    "tiff": "tif",
    "v_prediction": "v vpred v_pred velocity",
    "timestep_spacing": "spacing",
}
"""Our name: words for it in other programs."""


class SpecError(ValueError):
    """A spec that cannot be rendered. The message is one sentence: the field, its value, what is allowed."""


class StageError(RuntimeError):
    """A stage whose result cannot be right (NaN, a uniform picture). Nothing of it is kept."""


def nearest(given: object, allowed: Iterable[str], also: Mapping[str, str] | None = None) -> str | None:
    """Return the allowed name that is most like what was given, or None where none is like it.

    Case, blanks and punctuation do not count, and words of other programs stand for our names (`HABITS`). `also` has
    further words for allowed names.
    """
    names = {_letters(word): name for word, name in (also or {}).items()}
    own = {_letters(name): name for name in allowed}
    for name, words in HABITS.items():
        if (ours := own.get(_letters(name))) is not None:
            names |= {_letters(word): ours for word in words.split()}
    names |= own
    wanted = _letters(str(given))
    likeness = {name: difflib.SequenceMatcher(None, wanted, name).ratio() for name in names}
    least = {name: LIKENESS if name in own and name[:1] == wanted[:1] else LIKENESS_OF_OTHERS for name in names}
    found = [name for name in names if likeness[name] >= least[name]]
    if not found and len(wanted) > 2:
        found = [name for name in names if name.startswith(wanted)]
    return names[max(found, key=lambda name: likeness[name])] if found else None


def not_one_of(
    given: object, allowed: Iterable[str], also: Mapping[str, str] | None = None, listed_by: str | None = None
) -> str:
    """Return what is wrong with a name: `'webm' is not one of png, webp; the nearest is 'webp'`.

    Of many names only the nearest is given, and `listed_by`, the command that lists all. `also` as for `nearest`.
    """
    names = list(allowed)
    if len(names) <= LISTED or listed_by is None:
        said = f"{given!r} is not one of {', '.join(names)}" if names else f"{given!r} does not exist"
    else:
        said = f"{given!r} is not one of the {len(names)} that `{listed_by}` lists"
    found = nearest(given, names, also)
    return said if found is None else f"{said}; the nearest is {found!r}"


def nearest_size(text: str, grain: int, least: int, most: int) -> tuple[int, int] | None:
    """Return (width, height) in pixels that 512*512, 512, 1k, 1080p or 16:9 probably mean, or None for other text.

    Sides are multiples of `grain` from `least` to `most`.
    """
    found = [(float(number), unit) for number, unit in re.findall(r"(\d{1,6}(?:\.\d{1,3})?)\s*(k|p)?", text.lower())]
    if not found or len(found) > 2:
        return None
    sides = [number * 1024 if unit == "k" else number for number, unit in found]
    if found[0][1] == "p":
        sides = [sides[0] * 16 / 9, sides[0]]
    elif re.fullmatch(r"[\d.]+ *: *[\d.]+", text.strip()) and len(sides) == 2:  # an aspect
        sides = [1024 * side / max(*sides, 1) for side in sides]
    width, height = (min(max(round(side / grain) * grain, least), most) for side in (sides[0], sides[-1]))
    return width, height


def cause(error: Exception) -> str:
    """Return in one line, without the words of a library, why a file cannot be read."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte 0x{error.object[error.start]:02x} at {error.start})"
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    mark = getattr(error, "problem_mark", None)  # of YAML
    if mark is not None:
        return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', None) or 'not YAML'}"
    if hasattr(error, "lineno") and hasattr(error, "colno"):  # of JSON
        return f"line {error.lineno}, column {error.colno}: {str(getattr(error, 'msg', error)).lower()}"
    return (str(error).splitlines() or [type(error).__name__])[0]


def sentence(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Return the first finding of a validation error: the field, its value, what is allowed, and the nearest to that.

    With the `model` that was validated, an unknown field is told with the nearest known one, a number with its range.
    """
    found = error.errors(include_url=False)
    findings = sorted((one for one in found if not _follows(one, found)), key=lambda one: one["type"] == "missing")
    first = findings[0]
    owners = _owners(model, first["loc"]) if model is not None else []
    loc = first["loc"]
    if first["type"] == "missing" and isinstance(loc[-1], int):  # an entry of a list: it is the list that is told
        loc = loc[:-1]
    named = str((first.get("ctx") or {}).get("error", "")).partition(":")[0]
    if model is not None and any(named in owner.model_fields for owner in _owners(model, (*loc, named))):
        loc = (*loc, named)  # a model's own validator, which names the field
    path = [str(part) for before, part in itertools.pairwise((None, *loc)) if before != "method"]
    where = ".".join(path) or "spec"
    more = len(findings) - 1
    return f"{where}: {_what(first, owners)}" + (f" (and {more} more)" if more else "")


def _follows(finding: ErrorDetails, found: list[ErrorDetails]) -> bool:
    """Whether a list is too short only because one of its entries was refused."""
    path = finding["loc"]
    return finding["type"] == "too_short" and any(
        len(one["loc"]) > len(path) and one["loc"][: len(path)] == path for one in found
    )


def _what(finding: ErrorDetails, owners: list[type[BaseModel]]) -> str:
    """Return what is wrong with one value, and what would work."""
    kind, given, known = finding["type"], finding.get("input"), finding.get("ctx") or {}
    if kind == "extra_forbidden":
        return _unknown_field(str(finding["loc"][-1]), owners)
    if kind == "missing":
        name = finding["loc"][-1]
        return "is missing" if isinstance(name, str) else f"{given!r} has no entry {name + 1}, and needs one"
    if kind == "literal_error":
        return not_one_of(given, re.findall(r"[^\s',]+", known["expected"].replace(" or ", " ")))
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_method(known.get("tag", given))
    if kind in LIMITS:
        return f"{given} is {LIMITS[kind]}; {_range(finding, owners)}"
    if kind in KINDS and given is None:
        return f"is null, not {KINDS[kind]}; give one, or leave the field out"
    if kind in KINDS:
        return f"{given!r} is not {KINDS[kind]}{_mended(kind, given)}{_form(finding, owners)}"
    if kind in ("string_too_short", "string_too_long"):
        return "is empty" if given == "" else f"has {len(str(given))} characters; allowed: {_lengths(known)}"
    if kind in ("too_short", "too_long"):
        return f"has {known.get('actual_length')} entries; allowed: {_lengths(known)}"
    if kind == "string_pattern_mismatch":
        return f"{given!r} is not {PATTERNS.get(known['pattern'], known['pattern'])}"
    return _own_words(finding)


LIMITS = {
    "greater_than_equal": "too small",
    "greater_than": "too small",
    "less_than_equal": "too large",
    "less_than": "too large",
}
KINDS = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    "string_type": "text; put it into quotes",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping of field names to values"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
}
PATTERNS = {
    r"^[\w.-]+$": "of letters, digits, '.', '_' and '-'",
    r"^[0-9a-fA-F]{64}$": "64 hexadecimal digits",
    r"^[^|\n\r]+$": "text without | and line breaks",
}


def _own_words(finding: ErrorDetails) -> str:
    """Return the words of our own validators, after the value where they do not name it."""
    given, known = finding.get("input"), finding.get("ctx") or {}
    says = finding["msg"].removeprefix("Value error, ")
    if isinstance(known.get("error"), SpecError):  # it names its field, and so do we
        return says.partition(": ")[2] or says
    if says.startswith(("is ", "has ", "holds ")):
        return f"{given!r} {says}"
    return says if isinstance(given, dict) or str(given) in says else f"{given!r}: {says}"


def _unknown_field(name: str, owners: list[type[BaseModel]]) -> str:
    known = list(dict.fromkeys(field for owner in owners for field in owner.model_fields))
    found = nearest(name, known)
    if found is None:
        return f"unknown field; allowed: {', '.join(known)}" if known else "unknown field"
    return f"unknown field; the nearest is {found!r}"


def _unknown_method(given: Any) -> str:
    from freescale import METHODS  # they bring torch, and not every command needs it
    from freescale.methods.ablations import ABLATIONS

    if isinstance(given, dict):
        return f"name is missing; `{LISTS_METHODS}` lists the methods"
    return not_one_of(given, [*METHODS, *ABLATIONS], listed_by=LISTS_METHODS)


LISTS_METHODS = "freescale methods"


def _range(finding: ErrorDetails, owners: list[type[BaseModel]]) -> str:
    """Return the range of a number, from its field where that is known, else the bound that was passed."""
    bounds = dict(finding.get("ctx") or {})
    for owner in owners:
        field = owner.model_fields.get(str(finding["loc"][-1]))
        for rule in field.metadata if field else ():
            bounds |= {name: getattr(rule, name) for name in ("ge", "gt", "le", "lt") if hasattr(rule, name)}
    low = f"{bounds['ge']}" if "ge" in bounds else f"above {bounds['gt']}" if "gt" in bounds else None
    if isinstance(bounds.get("lt"), int):
        bounds["le"] = bounds["lt"] - 1
    high = f"{bounds['le']}" if "le" in bounds else f"below {bounds['lt']}" if "lt" in bounds else None
    if low is None or high is None:
        return f"allowed: {low} or more" if high is None else f"allowed: up to {high}"
    return f"allowed: {low} to {high}"


def _lengths(known: Mapping[str, Any]) -> str:
    return f"at least {known['min_length']}" if "min_length" in known else f"at most {known.get('max_length')}"


def _mended(kind: str, given: object) -> str:
    """Return what was probably meant by a number that is none: 7,5 or 30.5 where a whole number is asked."""
    text = str(given).strip()
    if KINDS[kind] == "a number" and re.fullmatch(r"-?\d+,\d+", text):
        return f"; write {text.replace(',', '.')}"
    if KINDS[kind] == "a whole number" and re.fullmatch(r"\d{1,9}\.\d*", text):
        low = int(float(text))
        return f"; write {low}" if low == float(text) else f"; the nearest are {low} and {low + 1}"
    return ""


def _form(finding: ErrorDetails, owners: list[type[BaseModel]]) -> str:
    """Return how a list is written that is none, such as [[text, number], ...]; nothing for other values."""
    known = [owner.model_fields[str(name)] for owner in owners if (name := finding["loc"][-1]) in owner.model_fields]
    if finding["type"] not in ("list_type", "tuple_type") or not known:
        return ""
    forms = [form for one in (known[0].annotation, *get_args(known[0].annotation)) if (form := _written(one))]
    return f"; write {forms[0]}" if forms else ""


def _written(annotation: Any) -> str:
    """Return how values of an annotation are written; nothing for one that is not of lists, numbers and texts."""
    if get_origin(annotation) is tuple:
        parts = [_written(part) if part is not ... else "..." for part in get_args(annotation)]
        return f"[{', '.join(parts)}]" if all(parts) else ""
    if hasattr(annotation, "model_fields"):
        return "{" + ", ".join(f"{name}: ..." for name in annotation.model_fields) + "}"
    return {int: "number", float: "number", str: "text"}.get(annotation, "") if isinstance(annotation, type) else ""


def _owners(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """Return the models in which the last part of a path is a field; a part may be the name of a method."""
    owners = [model]
    for part in loc[:-1]:
        inner = [one for o in owners if part in o.model_fields for one in _models(o.model_fields[str(part)].annotation)]
        named = [o for o in owners if "name" in o.model_fields and o.model_fields["name"].default == part]
        owners = inner or named or owners
    return owners


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Return every model that an annotation names."""
    if hasattr(annotation, "model_fields"):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _letters(name: str) -> str:
    """Return the letters and digits of a name in lower case; `+` is written p, as in dpmpp for DPM++."""
    return "".join(c for c in name.lower().replace("+", "p") if c.isalnum())
