"""What a person writes, in a spec, in a job or as flags, as the fields of a `RenderSpec`.

`size` stands for `width` and `height`, a name for a method or a model, `-1` for a new random seed. A relative path is
relative to the file that has it.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.home import user_path
from stages.adapters.spec import lora_list
from stages.errors import SpecError
from stages.models.folder import EMBEDDED_MODELS
from stages.models.presets import method_of
from stages.spec import expand_method, parse_size

if TYPE_CHECKING:
    from stages.textfiles.values import Lines

RANDOM_SEEDS = 2**32  # a random seed is below it
PLACES = ("vae", "text_encoders", "config")  # fields of a model that are files or folders
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,120}")


@dataclass
class Origin:
    """Where fields were written: what their paths are relative to, and the seeds that were drawn for them."""

    folder: Path
    root: Path | None  # the folder that pictures and masks must lie in; None: no limit
    name: str  # of the file, or `the command line`
    drawn: list[int] = field(default_factory=list)  # for every -1 in order; those that are there are taken first
    _taken: int = 0

    def __post_init__(self) -> None:
        """Raise `SpecError` where the root is not a folder."""
        if self.root is not None and not self.root.is_dir():
            raise SpecError(f"input_root: {str(self.root)!r} is not a folder")

    def seed(self, given: Any) -> Any:
        """Return a seed as it is, or for -1 one that nothing decides, from 0 to 2**32 - 1."""
        if isinstance(given, bool) or given not in (-1, "-1"):
            return given
        if self._taken == len(self.drawn):
            self.drawn.append(secrets.randbelow(RANDOM_SEEDS))
        self._taken += 1
        return self.drawn[self._taken - 1]


def render_fields(written: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """Return fields of a `RenderSpec` for fields that a person wrote; fields that are none stay as they are.

    A seed of -1 is drawn now. Raises `SpecError` for two sizes, and for a path that leads outside of `origin.root`.
    """
    fields = with_sides(written)
    for named in ("method", "model"):
        if isinstance(fields.get(named), str):
            fields[named] = {"name": fields[named]}
    if isinstance(fields.get("method"), dict):
        fields["method"] = expand_method({"name": method_of(fields.get("preset")), **fields["method"]})
        if isinstance(fields["method"].get("upscaler"), str):
            fields["method"]["upscaler"] = _file_name(fields["method"]["upscaler"], origin)
    if isinstance(fields.get("model"), dict):
        fields["model"] = model_fields(fields["model"], origin)
    if "cascade" in fields:
        fields["cascade"] = cascade(fields["cascade"])
    for record in (fields, *_mappings(fields.get("redo"))):
        if "seed" in record:
            record["seed"] = origin.seed(record["seed"])
    return with_whole_paths(fields, origin)


def queue_fields(fields: dict[str, Any]) -> tuple[str | None, int]:
    """Take `name` and `priority`, which order and name a job, out of fields; return them. Raises `SpecError`."""
    name, priority = fields.pop("name", None), fields.pop("priority", None)
    if priority is not None and (not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) > 1000):
        raise SpecError(f"priority: {priority!r} is not a whole number from -1000 to 1000")
    if name is not None and (not isinstance(name, str) or not NAME.fullmatch(name)):
        allowed = "1 to 121 of a-z, 0-9, '.', '_' and '-', starting with one of the first"
        raise SpecError(f"name: {name!r} is not {allowed}")
    return name, priority or 0


def with_sides(written: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with `width` and `height` in place of `size`. Raises `SpecError` for both."""
    fields = dict(written)
    size = fields.pop("size", None)
    if size is None:
        return fields
    for side in ("width", "height"):
        if side in fields:
            raise SpecError(f"size: {size!r} and {side} {fields[side]!r} are both given; write one of them")
    fields["width"], fields["height"] = parse_size(str(size))
    return fields


def cascade(value: Any) -> Any:
    """Return the sizes of `128x128,256x256`, or of a list of such, as pairs; other values stay."""
    if isinstance(value, str) and value != "auto":
        value = value.split(",")
    if isinstance(value, list):
        return [parse_size(part.strip(), "cascade") if isinstance(part, str) else part for part in value]
    return value


def with_whole_paths(fields: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """Return the fields with absolute paths of pictures and masks. Raises `SpecError` for one outside of the root."""

    def whole(record: Any, field: str, name: str) -> Any:
        """The record with the path of one field made absolute; errors call the field `name`."""
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            return record
        return record | {field: picture_path(name, record[field], origin)}

    def regions(record: dict[str, Any], name: str) -> dict[str, Any]:
        """The record with the paths of its masks made absolute."""
        if not isinstance(record.get("regions"), list):
            return record
        found = [whole(each, "mask", f"{name}.{index}.mask") for index, each in enumerate(record["regions"])]
        return record | {"regions": found}

    fields = regions(whole(fields, "image", "image"), "regions")
    if isinstance(fields.get("redo"), list):
        fields["redo"] = [
            regions(change, f"redo.{index}.regions") if isinstance(change, dict) else change
            for index, change in enumerate(fields["redo"])
        ]
    return fields


def picture_path(field: str, path: str, origin: Origin) -> str:
    """Return the absolute path of a picture, which need not be there. Raises `SpecError` for one outside of the root.

    A path that leads outside by a link is outside.
    """
    if not path:
        raise SpecError(f"{field}: is empty; name a picture, or leave it out")
    if "\0" in path:
        return path  # the picture is refused by who reads it
    found = origin.folder.absolute() / user_path(path, field)
    if origin.root is not None and not _is_in(found, origin.root):
        raise SpecError(
            f"{field}: {path!r} leads outside of {str(origin.root)!r}, the folder that pictures of {origin.name} "
            "must lie in; --input-root FOLDER names another"
        )
    here = user_path(path)
    if not os.path.lexists(found) and os.path.lexists(here):
        near = os.path.relpath(here, origin.folder)
        raise SpecError(
            f"{field}: {path!r} is not in {str(origin.folder)!r}, the folder of {origin.name}; write {near!r}"
        )
    return str(found)


def _is_in(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _mappings(value: Any) -> list[dict[str, Any]]:
    """The mappings of a list, if it is one."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def model_fields(model: dict[str, Any], origin: Origin) -> dict[str, Any]:
    """Return the fields of a model with paths relative to the file that has them; a name of an embedding is its file's.

    An adapter may be `FILE:WEIGHT:TEXT_WEIGHT`. What no file relative to that one has stays, and is looked for in the
    home.
    """
    found = dict(model)
    if isinstance(found.get("name"), str):
        found["name"] = _model_name(found["name"], origin)
    for name in PLACES:
        if isinstance(found.get(name), str):
            found[name] = _file_name(found[name], origin)
    embeddings = found.get("embeddings")
    if isinstance(embeddings, str):
        embeddings = [name.strip() for name in embeddings.split(",")]
    if isinstance(embeddings, list):
        found["embeddings"] = _placed(
            [{"file": each} if isinstance(each, str) else each for each in embeddings], origin
        )
    if "loras" in found:
        found["loras"] = _placed(lora_list(found["loras"]), origin)
    return found


def _placed(records: Any, origin: Origin) -> Any:
    """The records with the absolute path of each `file` that lies where it was written; what is no record stays."""
    if not isinstance(records, list):
        return records
    return [
        each | {"file": _file_name(each["file"], origin)}
        if isinstance(each, dict) and isinstance(each.get("file"), str)
        else each
        for each in records
    ]


def _file_name(name: str, origin: Origin) -> str:
    """The absolute path of a file or folder that lies relative to `origin.folder`, else the name as it is."""
    found = origin.folder.absolute() / user_path(name)
    return str(found) if name and "\0" not in name and os.path.exists(found) else name


def _model_name(name: str, origin: Origin) -> str:
    """The name of a model, or the path of its folder or file where one lies relative to a file elsewhere.

    A name is part of keys, so that it stays as it is where the file lies in the working folder.
    """
    found = (origin.folder / user_path(name)).absolute()
    if name in EMBEDDED_MODELS or origin.folder.absolute() == Path.cwd() or not os.path.exists(found):
        return name
    return str(found)


def line_of(error: SpecError, lines: Lines, around: Lines | None = None) -> int:
    """Return the line of the field that an error begins with, in the fields of a job or else in those around it."""
    path = str(error).partition(":")[0].split(".")
    if path[0] in ("width", "height") and not lines.has(path[0]):
        path = ["size"]
    if around is not None and not lines.has(path[0]) and around.has(path[0]):
        return around.line_of(*path)
    return lines.line_of(*path)
