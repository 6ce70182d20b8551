"""Command line words -> specs: flags over a spec file, a method's own parameters as flags, masks with scales."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from freescale import METHODS
from freescale.methods.ablations import ABLATIONS
from stages.errors import LISTS_METHODS, SpecError, nearest, not_one_of
from stages.spec import RenderSpec, expand_method, load_spec, make_spec, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flows.home import Home

SPEC_FLAGS = (
    *("negative_prompt", "guidance_scale", "guidance_rescale", "solver", "eta", "format", "cascade"),
    *("motion_fps", "crf", "pixel_format"),
)


def spec_or_run(
    what: str, flags: dict[str, Any], extra: list[str], home: Home, options: Sequence[str] = ()
) -> RenderSpec:
    """Like `spec_from`, and the name of a recorded run gives that run's spec."""
    from flows.rendering.job import load

    names = {record.run for record in home.runs.list()}
    if what in names and not extra and not any(flags.values()):
        _, spec = load(home, what)
        return spec
    return spec_from(what, flags, extra, options)


def spec_from(what: str, flags: dict[str, Any], extra: list[str], options: Sequence[str] = ()) -> RenderSpec:
    """The spec for a prompt or a spec file with flags laid over it. Raises `SpecError`.

    `extra` are words that are none of the command's `options`, so parameters of the method.
    """
    if what.startswith("--"):
        raise SpecError(f"{what}: a parameter of a method comes after the prompt: freescale render PROMPT {what} VALUE")
    path = Path(os.path.expanduser(what))
    values: dict[str, Any] = load_spec(path) if path.suffix in (".yaml", ".yml", ".json") else {"prompt": what}
    for name in ("seed", "steps", "image", "frames", "fps"):
        if flags.get(name) is not None:
            values[name] = flags[name]
    if flags.get("size") is not None:
        values["width"], values["height"] = parse_size(flags["size"])
    if flags.get("model") is not None:
        values["model"] = _mapping(values, "model") | {"name": flags["model"]}
    if flags.get("mask"):
        values["regions"] = regions(flags["mask"])
    given = spec_flags(flags) | method_flags(extra)
    record = _mapping(values, "method")
    if flags.get("method") is not None:
        same = record.get("name") == flags["method"]
        record = (record if same else {}) | {"name": flags["method"]}
    record = expand_method(record)
    name = record.get("name", "freescale")
    if name not in METHODS:
        raise SpecError(f"method: {not_one_of(name, [*METHODS, *ABLATIONS], listed_by=LISTS_METHODS)}")
    values |= {k: parse_cascade(v) if k == "cascade" else v for k, v in given.items() if k in SPEC_FLAGS}
    if "dtype" in given:
        values["model"] = _mapping(values, "model") | {"dtype": given["dtype"]}
    own = {k: v for k, v in given.items() if k not in (*SPEC_FLAGS, "dtype")}
    values["method"] = record | {"name": name} | _own(name, own, options)
    return make_spec(values)


def redo_spec(
    spec: RenderSpec,
    stage: str,
    level: int | None,
    changes: dict[str, Any],
    extra: list[str],
    home: Home,
    options: Sequence[str] = (),
) -> RenderSpec:
    """The spec of a run with one more change, which holds from a stage on. Raises `SpecError`."""
    from flows.rendering.job import prepare

    if level is None:
        level = len(prepare(spec, home).plan.sizes) - 1
    name: str = spec.method.name
    change = {
        "stage": stage,
        "level": level,
        "method": _own(name, method_flags(extra), options),
        "seed": changes["seed"],
        "guidance_scale": changes["guidance_scale"],
        "regions": regions(changes["mask"]) if changes["mask"] else None,
    }
    if not change["method"] and all(change[k] is None for k in ("seed", "guidance_scale", "regions")):
        raise SpecError("redo: nothing changes; give a method's parameter, --seed, --guidance-scale or --mask")
    values = spec.model_dump(exclude_unset=True)
    values["redo"] = [*spec.model_dump()["redo"], change]
    return make_spec(values)


def _mapping(values: dict[str, Any], field: str) -> dict[str, Any]:
    found = values.get(field, {})
    if isinstance(found, str):
        return {"name": found}
    if not isinstance(found, dict):
        raise SpecError(f"{field}: {found!r} is not a name or a mapping")
    return dict(found)


def _own(name: str, given: dict[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """Only the parameters that the method declares. Raises `SpecError` with the nearest option or parameter."""
    known = [f.name for f in dataclasses.fields(METHODS[name])]
    for key in given:
        if key not in known:
            flag = f"--{key.replace('_', '-')}"
            others = [other for other, method in METHODS.items() if key in {f.name for f in dataclasses.fields(method)}]
            if others:
                raise SpecError(f"{flag}: method {name!r} has no such parameter; it is of {', '.join(others)}")
            found = nearest(flag, [*(f"--{one.replace('_', '-')}" for one in known), *options])
            hint = f"`{LISTS_METHODS}` lists the parameters" if found is None else f"the nearest is {found}"
            raise SpecError(f"{flag}: there is no such option, and no such parameter of method {name!r}; {hint}")
    return given


def spec_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that options give as text, as values: `none` is None, a list has commas."""
    return {name: _value(name, flags[name]) for name in (*SPEC_FLAGS, "dtype") if flags.get(name) is not None}


def method_flags(extra: list[str]) -> dict[str, Any]:
    """`--detail-scale 1.0 --no-fusion --freeu none` -> {"detail_scale": 1.0, "fusion": False, "freeu": None}."""
    given: dict[str, Any] = {}
    words = list(extra)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise SpecError(_too_many(word))
        name, equals, value = word[2:].partition("=")
        if equals:
            given[_field(name)] = _value(name, value)
        elif words and not words[0].startswith("--"):
            given[_field(name)] = _value(name, words.pop(0))
        elif name.startswith("no-"):
            given[_field(name[3:])] = False
        else:
            given[_field(name)] = True
    return given


def _too_many(word: str) -> str:
    if word.startswith("-") and len(word) > 1:
        found = nearest(word, ("--out", "--size", "--seed", "--steps", "--model", "--method", "--image", "--overwrite"))
        return f"{word}: options are written out, such as {found or '--size 768x512'}"
    return f"{word!r} is one word too many; quote the prompt, and write parameters as --name value"


def _field(name: str) -> str:
    return name.replace("-", "_")


def _value(name: str, text: str) -> Any:
    if _field(name) == "negative_prompt":
        return text
    if text.lower() == "none":
        return None
    parts = text.split(",") if _field(name) not in SPEC_FLAGS or _field(name) == "cascade" else [text]
    try:
        return [_value(name, part) for part in parts] if len(parts) > 1 else yaml.safe_load(text)
    except yaml.YAMLError:
        raise SpecError(f"--{name}: {text!r} cannot be read as a value") from None


def parse_cascade(value: Any) -> Any:
    """`128x128,256x256` as a flag -> pairs; `auto` stays."""
    parts = value if isinstance(value, list) else [value]
    return [parse_size(str(part)) for part in parts] if value != "auto" else value


def regions(masks: list[str]) -> list[dict[str, Any]]:
    """`PATH:SCALE` -> regions."""
    found = []
    for mask in masks:
        path, colon, scale = mask.rpartition(":")
        try:
            found.append({"mask": path, "detail_scale": float(scale)})
        except ValueError:
            raise SpecError(f"mask: {mask!r} is not PATH:DETAIL_SCALE, for example face.png:3.0") from None
        if not colon or not path:
            raise SpecError(f"mask: {mask!r} is not PATH:DETAIL_SCALE, for example face.png:3.0")
    return found


def grid_values(what: Path | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a file of prompts x methods x sizes x seeds, or none, with flags laid over them."""
    values: dict[str, Any] = {} if what is None else load_spec(what)
    values |= {
        name: flags[name] for name in ("count", "steps", "prompts", "frames", "fps") if flags.get(name) is not None
    }
    lists = {"method": "methods", "size": "sizes", "seed": "seeds"}
    values |= {field: list(flags[flag]) for flag, field in lists.items() if flags.get(flag)}
    if flags.get("model") is not None:
        given = values.get("model", {})
        values["model"] = (dict(given) if isinstance(given, dict) else {}) | {"name": flags["model"]}
    return values
