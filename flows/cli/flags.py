"""Command line words -> specs: flags over a spec file, a method's own parameters as flags, masks with scales."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.cli.given import Written, read_given, read_spec
from flows.home import user_path
from flows.rendering.fields import PLACES, Origin, cascade, model_fields, picture_path, queue_fields, render_fields
from flows.rendering.job import Job, load, prepare
from freescale import METHODS
from freescale.methods.ablations import ABLATIONS
from stages.errors import LISTS_METHODS, SpecError, nearest, not_one_of
from stages.models.presets import method_of
from stages.spec import RenderSpec, expand_method, make_spec, parse_size
from stages.textfiles.documents import value_of
from stages.textfiles.text import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flows.home import Home

SPEC_FLAGS = (
    *("negative_prompt", "guidance_scale", "guidance_rescale", "solver", "eta", "format", "cascade"),
    *("motion_fps", "crf", "pixel_format", "prompt_syntax", "emphasis"),
    *("preset", "sigmas", "timestep_spacing", "timesteps", "guidance_interval"),
    *("deepcache", "deepcache_branch", "deepcache_levels", "todo", "shift_rule"),
)
MODEL_FLAGS = ("dtype", "clip_skip", "prediction", "ztsnr")
LIST_FLAGS = ("cascade", "timesteps")
TEXT_FLAGS = ("negative_prompt",)  # what was typed, whatever it looks like
RUN = re.compile(r"[a-z0-9-]+-[0-9]+-[0-9a-f]{8}")  # as `run_name` makes them


@dataclass(frozen=True)
class Asked:
    """What a person asked to render."""

    job: Job
    name: str | None = None  # of the picture's file, where a spec file gives one
    drawn: tuple[int, ...] = ()  # seeds, for each seed of -1


def asked_or_run(
    what: str, flags: dict[str, Any], extra: list[str], home: Home, root: Path | None, options: Sequence[str] = ()
) -> Asked:
    """Like `asked`, and the name of a recorded run alone gives that run's spec."""
    if not extra and not _typed(flags) and _is_run(what, home):
        return Asked(prepare(load(home, what)[1], home))
    return asked(what, flags, extra, home, root, options)


def asked(
    what: str, flags: dict[str, Any], extra: list[str], home: Home, root: Path | None, options: Sequence[str] = ()
) -> Asked:
    """The job of a prompt or a spec file with flags laid over it.

    `extra` are words that are none of the command's `options`, so parameters of the method.

    Pictures and masks must lie in `root`; without it, those that a file names must lie in the folder of the file.
    Raises `SpecError`; what is wrong in a file is named with its line.
    """
    if what.startswith("--"):
        raise SpecError(f"{what}: a parameter of a method comes after the prompt: freescale render PROMPT {what} VALUE")
    if _is_run(what, home):
        raise SpecError(f"{what!r} is a run; plan and resume take its name alone, redo makes it again with changes")
    given = spec_flags(flags) | method_flags(extra)
    written = read_given(what) or Written(values={"prompt": what})
    origin = Origin(written.folder, root if written.path is None else root or written.folder, str(written.path))
    typed = Origin(Path(), root, "the command line")
    with written.located({*given, *_typed(flags)}):
        values = dict(written.values)
        name, _ = queue_fields(values) if written.path is not None else (None, 0)
        if flags.get("size") is not None:  # in place of what the file says
            values = {k: v for k, v in values.items() if k not in ("size", "width", "height")}
        values = _with_flags(render_fields(values, origin), flags, given, typed, options)
        if flags.get("seed") is not None:
            values["seed"] = origin.seed(flags["seed"])
        return Asked(prepare(make_spec(values), home), name, tuple(origin.drawn))


def _with_flags(
    values: dict[str, Any], flags: dict[str, Any], given: dict[str, Any], origin: Origin, options: Sequence[str]
) -> dict[str, Any]:
    """The fields with flags laid over them. Raises `SpecError`."""
    values = values | {k: flags[k] for k in ("steps", "frames", "fps") if flags.get(k) is not None}
    if flags.get("image") is not None:
        values["image"] = picture_path("image", flags["image"], origin)
    if flags.get("size") is not None:
        values["width"], values["height"] = parse_size(flags["size"])
    if flags.get("model") is not None:
        values["model"] = _mapping(values, "model") | {"name": flags["model"]}
    if flags.get("mask"):
        values["regions"] = regions(flags["mask"], origin)
    record = _mapping(values, "method")
    if flags.get("method") is not None:
        same = record.get("name") == flags["method"]
        record = (record if same else {}) | {"name": flags["method"]}
    record = expand_method(record)
    name = record.get("name", method_of(given.get("preset", values.get("preset"))))
    if not isinstance(name, str) or name not in METHODS:
        raise SpecError(f"method: {not_one_of(name, [*METHODS, *ABLATIONS], listed_by=LISTS_METHODS)}")
    values |= {k: cascade(v) if k == "cascade" else v for k, v in given.items() if k in SPEC_FLAGS}
    of_model = {k: given[k] for k in MODEL_FLAGS if k in given}
    of_model |= model_fields({k: flags[k] for k in PLACES if flags.get(k) is not None}, origin)
    for option, field in (("embedding", "embeddings"), ("lora", "loras")):
        if flags.get(option):
            of_model |= model_fields({field: list(flags[option])}, origin)
    if of_model:
        values["model"] = _mapping(values, "model") | of_model
    own = {k: v for k, v in given.items() if k not in (*SPEC_FLAGS, *MODEL_FLAGS)}
    values["method"] = record | {"name": name} | _own(name, own, options)
    return values


def _typed(flags: Mapping[str, Any]) -> set[str]:
    """The fields that options on the command line decide."""
    fields = {
        "size": ("size", "width", "height"),
        "mask": ("mask", "regions"),
        "embedding": ("embeddings",),
        "lora": ("loras",),
    }
    said = [name for name, value in flags.items() if value not in (None, [], ())]
    return {field for name in said for field in fields.get(name, (name,))}


def _is_run(what: str, home: Home) -> bool:
    if not RUN.fullmatch(what):
        return False
    try:
        home.record(what)
    except SpecError:
        return False
    return True


def redo_spec(
    spec: RenderSpec,
    stage: str,
    level: int,
    changes: dict[str, Any],
    extra: list[str],
    options: Sequence[str] = (),
) -> RenderSpec:
    """The spec of a run with one more change, which holds from a stage on. Raises `SpecError`."""
    name: str = spec.method.name
    typed = Origin(Path(), None, "the command line")
    change = {
        "stage": stage,
        "level": level,
        "method": _own(name, method_flags(extra), options),
        "seed": typed.seed(changes["seed"]),
        "guidance_scale": changes["guidance_scale"],
        "regions": regions(changes["mask"], typed) if changes["mask"] else None,
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
            if flag in options:
                raise SpecError(f"{flag}: behind `--` no word is an option; write it before")
            if others:
                raise SpecError(f"{flag}: method {name!r} has no such parameter; it is of {', '.join(others)}")
            found = nearest(flag, [*(f"--{one.replace('_', '-')}" for one in known), *options])
            hint = f"`{LISTS_METHODS}` lists the parameters" if found is None else f"the nearest is {found}"
            raise SpecError(f"{flag}: there is no such option, and no such parameter of method {name!r}; {hint}")
    if isinstance(given.get("upscaler"), str):  # relative to the working folder, whatever the input root
        return given | {"upscaler": str(user_path(given["upscaler"]).absolute())}
    return given


def spec_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that options give as text, as values: `none` is None, a list has commas."""
    return {name: _value(name, flags[name]) for name in (*SPEC_FLAGS, *MODEL_FLAGS) if flags.get(name) is not None}


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
    if _field(name) in TEXT_FLAGS:
        return text
    is_list = _field(name) not in SPEC_FLAGS or _field(name) in LIST_FLAGS
    try:
        if is_list and "," in text and text.strip()[:1] not in ("[", "{"):
            return [_value(name, part) for part in text.split(",")]
        return value_of(text)
    except UnreadableError as error:
        raise SpecError(f"--{name}: {text!r} is {error}") from None


def regions(masks: list[str], origin: Origin) -> list[dict[str, Any]]:
    """`PATH:SCALE` -> regions. Raises `SpecError` for other text, and for a path that `origin` does not allow."""
    found = []
    for mask in masks:
        path, colon, scale = mask.rpartition(":")
        try:
            number = float(scale)
        except ValueError:
            raise SpecError(f"mask: {mask!r} is not PATH:DETAIL_SCALE, for example face.png:3.0") from None
        if not colon or not path:
            raise SpecError(f"mask: {mask!r} is not PATH:DETAIL_SCALE, for example face.png:3.0")
        found.append({"mask": picture_path("mask", path, origin), "detail_scale": number})
    return found


def grid_values(what: Path | None, flags: Mapping[str, Any]) -> tuple[dict[str, Any], Written]:
    """The fields of a file of prompts x methods x sizes x seeds, or none, with flags laid over them; and the file.

    Raises `SpecError`.
    """
    written = Written() if what is None else read_spec(what)
    values = _with_whole_paths(written)
    values |= {
        name: flags[name] for name in ("count", "steps", "prompts", "frames", "fps") if flags.get(name) is not None
    }
    lists = {"method": "methods", "size": "sizes", "seed": "seeds"}
    values |= {field: list(flags[flag]) for flag, field in lists.items() if flags.get(flag)}
    if isinstance(values.get("seeds"), list):
        origin = Origin(written.folder, None, str(written.path))
        values["seeds"] = [origin.seed(seed) for seed in values["seeds"]]
    if isinstance(values.get("model"), str):
        values["model"] = {"name": values["model"]}
    if flags.get("model") is not None:
        given = values.get("model", {})
        values["model"] = (dict(given) if isinstance(given, dict) else {}) | {"name": flags["model"]}
    return values, written


def _with_whole_paths(written: Written) -> dict[str, Any]:
    """The fields of a file, with its files of prompts and of the model and its folder of pictures as absolute paths."""
    values = dict(written.values)
    if isinstance(model := values.get("model"), dict):
        name = {field: model[field] for field in ("name",) if field in model}
        values["model"] = model_fields(model, Origin(written.folder, None, str(written.path))) | name
    if isinstance(values.get("prompts"), str) and values["prompts"] != "shapes":
        values["prompts"] = str(written.folder.absolute() / user_path(values["prompts"]))
    reference = values.get("reference")
    if isinstance(reference, dict) and isinstance(reference.get("folder"), str):
        folder = written.folder.absolute() / user_path(reference["folder"])
        values["reference"] = reference | {"folder": str(folder)}
    return values
