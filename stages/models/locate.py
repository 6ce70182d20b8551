"""Where a model lies: embedded, a folder or file by its path, or in the home or the hub's cache by its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import SpecError, nearest
from stages.models.library import library_files, without_ending
from stages.models.weights import PICKLED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stages.spec import ModelSpec

INDEX = "model_index.json"
SUFFIXES = (".safetensors", ".sft", ".gguf")  # of models in single files
EMBEDDED = Path(__file__).parents[1] / "shapes" / "model"
EMBEDDED_MODELS: Mapping[str, Path] = {
    "shapes": EMBEDDED,
    "shapes-dit": Path(__file__).parents[1] / "shapes_dit" / "model",
    "shapes-motion": Path(__file__).parents[1] / "shapes_motion" / "model",
}


def models_folder(home: Path) -> Path:
    """Return the folder in which named models are looked for."""
    return home / "models"


def locate(spec: ModelSpec, home: Path) -> Path:
    """Return the folder or file that a model's name or path leads to. Raises `SpecError` that says where it looked."""
    if spec.name in EMBEDDED_MODELS:
        folder = EMBEDDED_MODELS[spec.name]
        if not (folder / INDEX).is_file():
            raise SpecError(f"model: {spec.name!r} is not in this installation ({folder} is missing)")
        return folder
    if "://" in spec.name:
        raise SpecError(
            f"model: {spec.name!r} is an address, and nothing is downloaded; download the model and give its path"
        )
    given = Path(os.path.expanduser(spec.name))
    is_name = not given.is_absolute() and ".." not in given.parts
    looked: list[Path] = [given, *([*_named(spec.name, home), *_cached_snapshots(spec)] if is_name else ())]
    for candidate in looked:
        if os.path.isfile(candidate / INDEX):  # False also for a name that no file can have
            return candidate.resolve()
        if candidate.suffix.lower() in SUFFIXES and os.path.isfile(candidate):
            return candidate.resolve()
    for candidate in looked:
        if os.path.exists(candidate) and candidate.name != "snapshots":
            raise SpecError(f"model: {spec.name!r} {_not_a_model(candidate)}")
    near = nearest(spec.name, [name for name, _ in available(home)])
    paths = ", ".join(str(path) for path in looked)
    raise SpecError(
        f"model: {spec.name!r} is not on disk (looked at {paths}); "
        f"{f'the nearest is {near!r}; ' if near else ''}give the path of a .safetensors file or of a local diffusers "
        f"folder with {INDEX}, put or link it at {models_folder(home)}/NAME, or use 'shapes'"
    )


def _named(name: str, home: Path) -> list[Path]:
    """Return where a model of this name lies in the home or a linked folder. Raises `SpecError` where it is in two."""
    hits: dict[Path, Path] = {}
    for each in library_files(home, "model"):
        if name in (each.name, each.path.name, without_ending(each.name), without_ending(each.path.name)):
            hits.setdefault(each.path.resolve(), each.path)
    if len(hits) > 1:
        first, second = sorted(hits.values())[:2]
        raise SpecError(f"model: {name!r} is the name of {first} and of {second}; give the path of one of them")
    return [*hits.values()] or [models_folder(home) / name]


def _not_a_model(path: Path) -> str:
    """What a path is that exists and is no model, and what would work."""
    if path.is_file():
        if path.name == INDEX:
            return f"is a file of a model; give its folder, {path.parent}"
        if path.suffix in PICKLED:
            return (
                "is a pickled checkpoint, which would have to be run to be read; "
                "the .safetensors file of the same model works"
            )
        return f"is a file; a .safetensors file or a diffusers folder with {INDEX} works"
    if (path.parent / INDEX).is_file():
        return f"is a part of a model; give the whole one, {path.parent}"
    inside = sorted(each.parent for each in (*path.glob(f"*/{INDEX}"), *path.glob(f"snapshots/*/{INDEX}")))
    nearest = f"; {inside[0]} has one" if inside else ""
    return f"is a folder without {INDEX}, so it is no model{nearest}"


def _cached_snapshots(spec: ModelSpec) -> list[Path]:
    """Return where the hub's own cache would hold this repository; nothing is fetched."""
    from huggingface_hub import constants  # it reads HF_HOME, HF_HUB_CACHE and XDG_CACHE_HOME

    root = Path(constants.HF_HUB_CACHE) / f"models--{spec.name.replace('/', '--')}"
    named = root / "refs" / (spec.revision or "main")
    if named.is_file():
        return [root / "snapshots" / named.read_text(encoding="utf-8").strip()]
    return [root / "snapshots" / (spec.revision or "")]


def available(home: Path) -> Iterator[tuple[str, Path]]:
    """Return every model that can be named: the embedded ones, then folders and files under the models folder."""
    yield from ((name, folder) for name, folder in EMBEDDED_MODELS.items() if folder.is_dir())
    root = models_folder(home)
    for index in sorted(root.glob("*/model_index.json")) if root.is_dir() else []:
        yield index.parent.name, index.parent
    for file in sorted(root.glob("*")) if root.is_dir() else []:
        if file.suffix.lower() in SUFFIXES:
            yield file.stem, file
