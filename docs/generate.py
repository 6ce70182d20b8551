"""The reference pages of commands, of spec fields and of presets, made from the code.

    python -m docs.generate            # writes commands.md, fields.md and presets.md in docs/reference
    python -m docs.generate --check    # exits with 1 where a page on disk differs from the code

Options, types, defaults and ranges are read from the command line's own objects and from the models of the specs.
What a field means is its line in `docs/meanings.yaml`, or its description in the code where that has none.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import annotated_types
import typer
import yaml
from pydantic import BaseModel, WithJsonSchema
from pydantic_core import PydanticUndefined

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
HEAD = "<!-- Made by `python -m docs.generate`; edit the code or docs/meanings.yaml instead. -->"
WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
SECTIONS = {
    "ModelSpec": "model",
    "LoraSpec": "loras",
    "EmbeddingSpec": "embeddings",
    "Region": "regions",
    "Redo": "redo",
    "MethodEntry": "an-entry-of-methods",
}
PIPE = "\\|"  # inside a table

Table = list[tuple[str, ...]]


def pages() -> dict[Path, str]:
    """Every generated page: its path from the root of the repository, and its text."""
    folder = Path("docs/reference")
    made = {"commands.md": commands_page(), "fields.md": fields_page(), "presets.md": presets_page()}
    return {folder / name: text for name, text in made.items()}


# ---------------------------------------------------------------- commands


def command_line() -> Any:
    """The command of the console script `freescale`, with its subcommands."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module = project["scripts"]["freescale"].partition(":")[0]
    return typer.main.get_command(importlib.import_module(module).app)


def commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command and group that does work, with its full name: `freescale study make`."""
    for part in sorted(group.commands):
        command = group.commands[part]
        is_group = hasattr(command, "commands")
        if not is_group or command.invoke_without_command:
            yield f"{name} {part}", command
        if is_group:
            yield from commands(command, f"{name} {part}")


def commands_page() -> str:
    """Every command with its arguments and options."""
    root = command_line()
    found = list(commands(root, "freescale"))
    index = [(f"[`{name}`](#{anchor(name)})", summary(command)) for name, command in found]
    parts = [
        HEAD,
        "# Commands",
        "`freescale COMMAND --help` prints the same options in the terminal. Exit codes: 0 done, 1 failed, "
        "2 bad input, 3 interrupted: the same command goes on.",
        table(("command", "what it does"), index),
        "## Before the command",
        "These options stand between `freescale` and the command.",
        table(("option", "value", "default", "meaning"), list(options(root))),
    ]
    for name, command in found:
        parts += [f"## {name}", summary(command)]
        words = [argument(p) for p in command.params if p.param_type_name == "argument"]
        parts.append("```text\n" + " ".join([name, "[OPTIONS]", *words]) + "\n```")
        if words:
            parts.append(table(("argument", "meaning"), list(arguments(command))))
        if rows := list(options(command)):
            parts.append(table(("option", "value", "default", "meaning"), rows))
        if (command.context_settings or {}).get("allow_extra_args"):
            parts.append(
                "Every [parameter of the method](fields.md#methods) is an option too: `--detail-scale 1.0`, "
                "`--no-fusion`, `--freeu none`; it comes after the prompt. `freescale methods` lists them."
            )
    return "\n\n".join(parts) + "\n"


def summary(command: Any) -> str:
    """The help of a command as one paragraph."""
    return " ".join((command.help or "").split())


def arguments(command: Any) -> Iterator[tuple[str, str]]:
    """The arguments of a command: name and meaning."""
    for param in command.params:
        if param.param_type_name == "argument":
            words = [f"`{word}`" for word in argument(param).strip("[]").split("|")]
            name = " or ".join([*filter(None, [", ".join(words[:-1])]), words[-1]])
            yield name, cell(param.help or "") + ("" if param.required else " May be left out.")


def argument(param: Any) -> str:
    """An argument as it stands in a usage line."""
    word = param.metavar or str(param.name).upper()
    if not param.required and not word.startswith("["):
        word = f"[{word}]"
    return word + ("..." if param.nargs == -1 and not word.endswith("...") else "")


def options(command: Any) -> Iterator[tuple[str, str, str, str]]:
    """The options of a command: names, kind of value, default, meaning."""
    for param in command.params:
        if param.param_type_name == "argument" or param.name == "help" or getattr(param, "hidden", False):
            continue
        names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
        is_flag = bool(getattr(param, "is_flag", False))
        default = "required" if param.required else "" if is_flag or param.default is None else f"`{param.default}`"
        yield names, "" if is_flag else option_value(param), default, cell(param.help or "")


def option_value(param: Any) -> str:
    """What an option takes, in words."""
    hint = param.type_descriptor.annotation
    if get_origin(hint) in (list, tuple):
        hint = get_args(hint)[0]
    words = kind(hint, ())
    low, high = param.min, param.max
    if bounds := _bounds([annotated_types.Interval(ge=low, le=high)]):
        words += f", {bounds}"
    is_said = "may be repeated" in (param.help or "").lower()
    return words + (", may be repeated" if param.multiple and not is_said else "")


# ---------------------------------------------------------------- fields


def fields_page() -> str:
    """Every field of every file that a person writes."""
    from freescale import METHODS, Method
    from freescale.methods.ablations import CHANGES
    from stages import spec
    from stages.adapters.spec import LoraSpec
    from stages.metrics.grid import GridSpec, MethodEntry
    from stages.metrics.spec import Crops, EvaluationSpec, Reference, WeightSpec

    meanings = Meanings()
    parts = [
        HEAD,
        "# Fields",
        "Specs are YAML or JSON files. The same fields are options of `freescale render` and parameters of the Prefect "
        "deployments. An unknown field or an impossible value is refused before any work, in one sentence.",
        "## A render",
        "`freescale render FILE`. These fields decide the bytes of a picture or video. A file ends in `.yaml`, `.yml` "
        "or `.json`; an error names its line. In a file, `size: 512x512` may stand for `width` and `height`, a name "
        "for `model` and `method`, and `seed: -1` for a new random seed, which the command shows and the run keeps. "
        "`name` is that of the picture in the folder `--out`; `priority` is for the [jobs of a batch](jobs-file.md). "
        "Paths are relative to the folder of the file; pictures and masks lie in it, or in the folder that "
        "`--input-root` names.",
        meanings.table("RenderSpec", spec.RenderSpec),
    ]
    parts_of_spec: list[tuple[str, type[BaseModel]]] = [
        ("model", spec.ModelSpec),
        ("loras", LoraSpec),
        ("embeddings", spec.EmbeddingSpec),
        ("regions", spec.Region),
        ("redo", spec.Redo),
    ]
    for title, model in parts_of_spec:
        parts += [f"### {title}", sentence(model), meanings.table(model.__name__, model)]
    parts += ["## How it is run", sentence(spec.RunOptions), meanings.table("RunOptions", spec.RunOptions)]
    parts += ["## Methods", "`method: {name: NAME, …}`. Shares are parts of the schedule, from 0 (first step) to 1."]
    parts += ["### Which works with what", WORKS, methods_table()]
    for model in spec.METHOD_MODELS:
        name = model.model_fields["name"].default
        kinds = (kind for kind in METHODS[name].__mro__ if issubclass(kind, Method) and kind.name in METHODS)
        rows = meanings.table(name, model, without=("name",), also=[kind.name for kind in kinds])
        parts += [f"### {name}", " ".join((METHODS[name].__doc__ or "").split()), rows]
    changes = [(f"`{name}`", f"`{plain(change)[1:-1]}`") for name, change in CHANGES.items()]
    parts += ["### Ablations", "A name for FreeScale with one parameter changed.", table(("name", "sets"), changes)]
    parts += ["## A comparison", "`freescale compare FILE`.", meanings.table("GridSpec", GridSpec)]
    parts += ["### An entry of methods", "The name of a method, or a mapping of its parameters and of these fields."]
    parts += [meanings.table("MethodEntry", MethodEntry)]
    own = tuple(name for name in EvaluationSpec.model_fields if name in GridSpec.model_fields)
    parts += ["## An evaluation", "`freescale evaluate FILE`: the fields of a comparison, and these."]
    parts += [meanings.table("EvaluationSpec", EvaluationSpec, without=own)]
    for model in (Reference, Crops, WeightSpec):
        parts += [f"### {model.__name__}", sentence(model), meanings.table(model.__name__, model)]
    meanings.check()
    return "\n\n".join(parts) + "\n"


WORKS = (
    "A plan refuses every other pair. *Yes* is with the method's values as they are; else the table has what has to be "
    "said. Transformers stand under their class of pipeline ([Models](models.md#folders)). Every pair is tested at toy "
    "width; pictures of released transformers were not made."
)


def methods_table() -> str:
    """The methods, and what each of them works with: UNets, and the families of transformers by their pipelines."""
    from freescale import METHODS
    from stages.models.flow import FLOW_FAMILIES
    from stages.models.flow.methods import condition

    rows = []
    for name, method in METHODS.items():
        of = [condition(name, pipeline) for pipeline in FLOW_FAMILIES]
        cells = ("no" if needed is None else f"with {needed}" if needed else "yes" for needed in of)
        rows.append((f"`{name}`", "yes" if "unet" in method.backbones else "no", *cells))
    return table(("method", "UNets", *(name.removesuffix("Pipeline") for name in FLOW_FAMILIES)), rows)


# ---------------------------------------------------------------- presets


RATE = 75  # TFLOP/s: what FreeScale's published 51 s and 374 s on an A800 come to by this count


def presets_page() -> str:
    """Every preset of a method, with its values and its cost by family of models, and what was measured."""
    from stages.models.method_presets import FAMILIES, SCALES, TABLE
    from stages.models.presets import METHOD_PRESETS

    scales = [f"{scale}x" for scale in SCALES]
    what = [(f"`{name}`", f"`{METHOD_PRESETS[name]}`", preset.says) for name, preset in TABLE.items()]
    values: Table = []
    for name, preset in TABLE.items():
        if preset.few_steps:
            of = [(f.says, preset.values[key], f.source) for key, f in FAMILIES.items()]
            for says, own, source in (*of, ("for few steps, of any family", preset.few_steps, "proposed")):
                values.append((f"`{name}`", says, f"`{plain(own)[1:-1]}`", source))
    calls = [
        (family.says, f"`{name}`", *(f"{count:,}" for count in preset.calls[key]))
        for key, family in FAMILIES.items()
        for name, preset in TABLE.items()
    ]
    costs = [
        (f"`{name}`", f"{1024 * scale}x{1024 * scale}", f"{preset.calls['sdxl'][i]:,}", f"{preset.tflop[i]:,}",
         f"{preset.unet_gib[i]:g}", f"{preset.tflop[i] / RATE:,.0f}")
        for i, scale in enumerate(SCALES)
        for name, preset in TABLE.items()
    ]  # fmt: skip
    measured = [
        (f"`{name}`", scale, str(found.n), f"{right} ± {error}", f"{found.detail[scale]:.2f}")
        for name, found in ((name, preset.measured) for name, preset in TABLE.items())
        for scale, (right, error) in found.right.items()
    ]
    written = (ROOT / "docs/presets.md.in").read_text(encoding="utf-8").strip()
    for mark, rows in {
        "WHAT": table(("`preset`", "method", "what it is"), what),
        "VALUES": table(("`preset`", "model", "values", "where they come from"), values),
        "CALLS": table(("model", "`preset`", *scales), calls),
        "COSTS": table(("`preset`", "size", "calls", "TFLOP", "UNet, GiB", f"seconds at {RATE} TFLOP/s"), costs),
        "MEASURED": table(("`preset`", "scale", "n", "right, %", "detail"), measured),
    }.items():
        written = written.replace(f"{{{mark}}}", rows)
    return f"{HEAD}\n\n{written}\n"


class Meanings:
    """What fields mean: the line of `docs/meanings.yaml`, else the code's own description."""

    def __init__(self) -> None:
        self.written: dict[str, str] = yaml.safe_load((ROOT / "docs/meanings.yaml").read_text(encoding="utf-8"))
        self.used: set[str] = set()
        self.missing: list[str] = []

    def table(self, owner: str, model: type[BaseModel], without: Iterable[str] = (), also: Iterable[str] = ()) -> str:
        """A table of a model's fields. `owner` is the prefix of its names in `docs/meanings.yaml`, else `also`."""
        rows: Table = []
        for name, info in model.model_fields.items():
            if name not in set(without):
                value, meaning = kind(info.annotation, info.metadata), self.of((owner, *also), name, info)
                rows.append((f"`{name}`", value, default_of(info), meaning))
        return table(("field", "value", "default", "meaning"), rows)

    def of(self, owners: tuple[str, ...], name: str, info: FieldInfo) -> str:
        """The meaning of one field; a field without one is remembered for `check`."""
        for key in (f"{owner}.{name}" for owner in (*owners, "any")):
            if key in self.written:
                self.used.add(key)
                return cell(self.written[key])
        if info.description:
            return cell(info.description)
        self.missing.append(f"{owners[0]}.{name}")
        return ""

    def check(self) -> None:
        """Raise `LookupError` for fields without a meaning, and for meanings of fields that are not there."""
        stale = sorted(set(self.written) - self.used)
        if self.missing or stale:
            raise LookupError(f"docs/meanings.yaml lacks {self.missing}, and has {stale} for no field")


def kind(hint: Any, metadata: Iterable[Any]) -> str:
    """A type and its range in words."""
    words, metadata = _kind(hint, tuple(metadata)), tuple(metadata)
    bounds = _bounds(metadata)
    return f"{words}, {bounds}" if bounds else words


def _kind(hint: Any, metadata: tuple[Any, ...]) -> str:
    if any(isinstance(m, WithJsonSchema) and "anyOf" in m.json_schema for m in metadata if m is not None):
        return "bytes, or text such as `16GiB`"
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return kind(args[0], hint.__metadata__)
    if origin is Literal:
        return ", ".join(f"`{plain(value)}`" for value in args)
    if origin in (typing.Union, types.UnionType):
        kept = [arg for arg in args if arg is not type(None)]
        return " or ".join(dict.fromkeys(kind(arg, ()) for arg in kept)) if len(kept) < 4 else "[mapping](#methods)"
    if origin in (tuple, list):
        if origin is list or args[-1] is Ellipsis:
            return f"list of {kind(args[0], ())}"
        return f"[{', '.join(kind(arg, ()) for arg in args)}]"
    if origin is dict:
        return "mapping"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return f"[mapping](#{SECTIONS.get(hint.__name__, hint.__name__.lower())})"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)).lower())


def _bounds(metadata: Iterable[Any]) -> str:
    metadata = [part for m in metadata for part in (m if isinstance(m, annotated_types.GroupedMetadata) else (m,))]
    low = next((plain(m.ge) for m in metadata if isinstance(m, annotated_types.Ge)), None)
    high = next((plain(m.le) for m in metadata if isinstance(m, annotated_types.Le)), None)
    above = next((plain(m.gt) for m in metadata if isinstance(m, annotated_types.Gt)), None)
    below = next((plain(m.lt) for m in metadata if isinstance(m, annotated_types.Lt)), None)
    if low is not None and high is not None:
        return f"{low} to {high}"
    said = {"at least": low, "above": above, "at most": high, "below": below}
    return " and ".join(f"{words} {value}" for words, value in said.items() if value is not None)


def default_of(info: FieldInfo) -> str:
    """A field's default as it would be written in YAML; `required` where there is none."""
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    return "" if value is None else f"`{plain(value)}`"


def plain(value: Any) -> str:
    """A value as a person writes it in YAML."""
    if isinstance(value, BaseModel):
        given = value.model_dump(exclude_none=True)
        return str(given.get("name") or given.get("label") or plain(given))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {plain(part)}" for key, part in value.items()) + "}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(plain(part) for part in value) + "]"
    return f"2^{value.bit_length() - 1}" if isinstance(value, int) and value >= 2**32 else str(value)


def sentence(model: type[BaseModel]) -> str:
    """The docstring of a model as one paragraph."""
    return " ".join((model.__doc__ or "").split())


# ---------------------------------------------------------------- Markdown


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table; its columns that are empty in every row are left out."""
    rows = list(rows)
    keep = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    lines = [[head[i] for i in keep], ["---"] * len(keep), *[[row[i] for i in keep] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(text: str) -> str:
    """Text for one cell of a table."""
    return " ".join(text.split()).replace("|", PIPE)


def anchor(heading: str) -> str:
    """The anchor that Markdown renderers make of a heading of plain words."""
    return heading.lower().replace(" ", "-")


def main() -> int:
    """Write the pages, or compare them with `--check`. Returns the exit code."""
    stale = [path for path, text in pages().items() if not _same(ROOT / path, text)]
    if "--check" in sys.argv[1:]:
        print("\n".join(f"{path} is not what the code says; run python -m docs.generate" for path in stale))
        return 1 if stale else 0
    for path, text in pages().items():
        (ROOT / path).write_text(text, encoding="utf-8")
    return 0


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
