"""Folders of model files: those of the home, and those of other programs that are linked and read in place.

The home remembers a linked folder by its path alone. What it holds is found anew each time, by the names that ComfyUI,
A1111, Forge, SD.Next and InvokeAI give their folders; a folder of no known layout is read by what its files hold.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from stages.errors import SpecError, cause, not_one_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FileKind: TypeAlias = Literal["model", "lora", "embedding", "vae", "text_encoder"]
KINDS: tuple[FileKind, ...] = get_args(FileKind)
OWN: Mapping[FileKind, str] = {
    "model": "models",
    "lora": "loras",
    "embedding": "embeddings",
    "vae": "vaes",
    "text_encoder": "text_encoders",
}
"""The folders of the home."""
LINKS = "linked-folders.json"
EXTRA_PATHS = "extra_model_paths.yaml"
MAX_BYTES = 2**20  # of either file

Layout: TypeAlias = "Mapping[FileKind, tuple[str, ...]]"
COMFYUI: Layout = {
    "model": ("checkpoints", "diffusion_models", "unet", "diffusers"),
    "lora": ("loras",),
    "embedding": ("embeddings",),
    "vae": ("vae",),
    "text_encoder": ("text_encoders", "clip"),
}  # below `models`, and as the keys of `extra_model_paths.yaml`
WEBUI: Layout = {
    "model": ("models/Stable-diffusion", "models/Diffusers"),
    "lora": ("models/Lora", "models/LyCORIS"),
    "embedding": ("embeddings", "models/embeddings"),
    "vae": ("models/VAE",),
    "text_encoder": ("models/text_encoder", "models/Text-encoder"),
}  # A1111, Forge, SD.Next
INVOKEAI: Layout = {
    "model": ("main",),
    "lora": ("lora",),
    "embedding": ("embedding",),
    "vae": ("vae",),
    "text_encoder": ("clip_embed",),
}  # below `models/sdxl` and the like, up to its version 5; later ones name folders by a number


@dataclass(frozen=True)
class KindFolder:
    """A folder with files of one kind, also in folders below it. None: of any kind, by what they hold."""

    kind: FileKind | None
    path: Path


def folders_of(home: Path) -> Iterator[KindFolder]:
    """Yield the folders in which files are looked for: the home's, then those of linked folders that are there."""
    for kind, name in OWN.items():
        yield KindFolder(kind, home / name)
    for linked in linked_folders(home):
        yield from folders_in(linked)


def folders_in(linked: Path) -> tuple[KindFolder, ...]:
    """Return the folders of a linked one; none where it is not there. Raises `SpecError` for a damaged YAML file."""
    if linked.is_file():
        return tuple(_extra_paths(linked))
    if not linked.is_dir():
        return ()
    for root in (linked, linked.parent):  # embeddings lie beside `models`
        if (linked == root or linked.name == "models") and any((root / name).is_dir() for name in WEBUI["model"]):
            return tuple(_laid_out(root, WEBUI))
    models = linked / "models" if (linked / "models").is_dir() else linked
    if found := tuple(_laid_out(models, COMFYUI)):
        extra = models.parent / EXTRA_PATHS
        return (*found, *(_extra_paths(extra) if extra.is_file() else ()))
    if found := tuple(folder for base in sorted(models.iterdir()) for folder in _laid_out(base, INVOKEAI)):
        return found
    return (KindFolder(None, models),)


def _laid_out(folder: Path, layout: Layout) -> Iterator[KindFolder]:
    for kind, names in layout.items():
        yield from (KindFolder(kind, folder / name) for name in names if (folder / name).is_dir())


def _extra_paths(file: Path) -> Iterator[KindFolder]:
    """The folders that ComfyUI's `extra_model_paths.yaml` names, by its own rules. Raises `SpecError`."""
    from stages.textfiles.documents import read_yaml
    from stages.textfiles.text import UnreadableError, read_text

    try:
        programs, _ = read_yaml(read_text(file, MAX_BYTES))
    except UnreadableError as error:
        raise SpecError(f"models: {file}{'' if error.line is None else f':{error.line}'}: {error}") from None
    for program in programs.values() if isinstance(programs, dict) else ():
        if not isinstance(program, dict):
            continue
        base = file.parent / _expanded(program.get("base_path") or "")
        for kind, names in COMFYUI.items():
            lines = [line for name in names for line in str(program.get(name) or "").splitlines() if line.strip()]
            yield from (KindFolder(kind, base / _expanded(line.strip())) for line in lines)


def _expanded(path: Any) -> str:
    return os.path.expandvars(os.path.expanduser(str(path)))


def linked_folders(home: Path) -> list[Path]:
    """Return the linked folders in the order in which they were linked. Raises `SpecError` for a damaged file."""
    file = home / LINKS
    if not file.is_file():
        return []
    try:
        folders = json.loads(file.read_text(encoding="utf-8"))["folders"]
        if not (isinstance(folders, list) and all(isinstance(each, str) for each in folders)):
            raise ValueError("its `folders` is not a list of paths")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpecError(
            f"models: {file} cannot be read ({cause(error)}); delete it, and link the folders again"
        ) from None
    return [Path(each) for each in folders]


def link(home: Path, folder: Path) -> tuple[KindFolder, ...]:
    """Remember a folder of another program; return the folders of files in it. Raises `SpecError` for one without."""
    path = Path(os.path.abspath(folder))
    if not path.is_dir() and path.name != EXTRA_PATHS:
        what = "is a file" if path.is_file() else "does not exist"
        raise SpecError(f"folder: {str(folder)!r} {what}; give the folder of another program, or its {EXTRA_PATHS}")
    if not path.exists():
        raise SpecError(f"folder: {str(folder)!r} does not exist")
    if path.resolve().is_relative_to(home.resolve()) or home.resolve().is_relative_to(path.resolve()):
        raise SpecError(f"folder: {str(folder)!r} is in the home {str(home)!r}, or has it inside; give another one")
    folders = linked_folders(home)
    if path in folders:
        raise SpecError(f"folder: {str(folder)!r} is linked already")
    found = folders_in(path)
    if not found:
        raise SpecError(f"folder: {str(folder)!r} names no folder of models; it needs keys such as `checkpoints`")
    _write(home, [*folders, path])
    return found


def unlink(home: Path, folder: Path) -> Path:
    """Forget a linked folder, which stays as it is; return its path. Raises `SpecError` for one that is not linked."""
    folders = linked_folders(home)
    path = Path(os.path.abspath(folder))
    if path not in folders:
        known = [str(each) for each in folders]
        raise SpecError(f"folder: {not_one_of(str(folder), known) if known else 'no folder is linked'}")
    _write(home, [each for each in folders if each != path])
    return path


def _write(home: Path, folders: Sequence[Path]) -> None:
    file = home / LINKS
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        home.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"folders": [str(each) for each in folders]}, indent=1) + "\n", encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise SpecError(f"home: {str(home)!r} cannot be written to ({cause(error)}); name another") from None
