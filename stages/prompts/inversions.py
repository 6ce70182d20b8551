"""Textual inversions: embeddings that a prompt names, each a few vectors in place of tokens.

A file is safetensors: `emb_params`, or any one tensor, for a model with one text encoder; `clip_l` and `clip_g` for
SDXL. Its name in a prompt, the trigger, is the file's name without the ending, or the spec's. Its tensors decide the
bytes of a render, its name and its metadata do not.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stages.errors import SpecError, StageError
from stages.models.library import find, library_files
from stages.models.weights import PICKLED, headers
from stages.prompts.chunks import chunk_length
from stages.prompts.names import ENDING, Embedding, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from stages.models.folder import ModelInfo
    from stages.models.weights import Header
    from stages.spec import ModelSpec

NAMES = {  # of the tensors for SDXL's two text encoders
    "text_encoder": ("clip_l", "text_encoders_0"),
    "text_encoder_2": ("clip_g", "text_encoders_1"),
}
MADE_FOR = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "SDXL's second text encoder"}
MOST_BYTES = 2**26


class Inversion(NamedTuple):
    """An embedding that fits a model: how many vectors it has, and a sha256 of its tensors."""

    trigger: str
    file: Path
    vectors: int
    sha256: str


def known(info: ModelInfo, spec: ModelSpec, home: Path) -> ModelInfo:
    """Return `info` with the embeddings that prompts may name: the spec's, then those in the home's folder.

    Raises `SpecError` for one of the spec that is not there, or does not fit the model.
    """
    library = tuple(_library(home))
    given = list[Embedding]()
    for each in spec.embeddings:
        file = _file(each.file, home)
        found = Embedding(each.trigger or file.stem, file, True)
        if any(key_of(other.trigger) == key_of(found.trigger) for other in given):
            raise SpecError(
                f"model.embeddings: two have the trigger {found.trigger!r}; give one of them another trigger"
            )
        inversion(found, info)
        given.append(found)
    own = {key_of(each.trigger) for each in given}
    return replace(info, embeddings=(*given, *(each for each in library if key_of(each.trigger) not in own)))


def _library(home: Path) -> Iterator[Embedding]:
    """Yield the embeddings in the home and in linked folders."""
    for each in library_files(home, "embedding"):
        if each.kind is not None:
            yield Embedding(each.path.stem, each.path, False)


def _file(name: str, home: Path) -> Path:
    """Return the file of an embedding by its path, or by its name in the home. Raises `SpecError`."""
    try:
        return find("embedding", name, home).absolute()
    except SpecError as error:
        raise SpecError(f"model.embeddings: {str(error).removeprefix('embedding: ')}") from None


def inversion(each: Embedding, info: ModelInfo) -> Inversion:
    """Return a known embedding as the model takes it. Raises `SpecError` for one that it cannot take."""
    if each.file.suffix in PICKLED:
        raise SpecError(
            f"model.embeddings: {str(each.file)!r} is a pickle, which would have to be run to be read; "
            f"`freescale convert embedding {each.file} {each.file.with_suffix(ENDING)}` reads its tensors alone"
        )
    try:
        found = headers(each.file)
    except SpecError as error:
        raise SpecError(f"model.embeddings: {str(error).removeprefix('model: ')}") from None
    tensors = _tensors(each.file, found, info)
    counts = {name: 1 if len(found[name].shape) == 1 else found[name].shape[0] for name in tensors.values()}
    if len(set(counts.values())) > 1:
        said = " and ".join(f"{count} in {name}" for name, count in counts.items())
        raise SpecError(f"model.embeddings: {str(each.file)!r} has {said}; as many in both work")
    count, most = next(iter(counts.values())), chunk_length(info.texts)
    if not 1 <= count <= most:
        raise SpecError(f"model.embeddings: {str(each.file)!r} has {count} vectors; 1 to {most} fit into a prompt")
    return Inversion(each.trigger, each.file, count, _sha256(each.file))


def _tensors(file: Path, found: Mapping[str, Header], info: ModelInfo) -> dict[str, str]:
    """Return the name of the tensor for each text encoder. Raises `SpecError` that says what the file is made for."""
    widths = {part: int(config.get("hidden_size", 512)) for part, config in info.texts.items()}
    if len(widths) > 1:
        names = {part: next((name for name in NAMES[part] if name in found), None) for part in widths}
    else:
        names = dict.fromkeys(widths, next(iter(found)) if len(found) == 1 else None)
        if "emb_params" in found:
            names = dict.fromkeys(widths, "emb_params")
    wanted = " and ".join(f"{width} wide" for width in widths.values())
    has = ", ".join(f"{name} {'x'.join(map(str, each.shape))}" for name, each in list(found.items())[:3])
    made = MADE_FOR.get(next((each.shape[-1] for each in found.values() if each.shape), 0))
    for_whom = "SDXL" if {"clip_l", "clip_g"} <= set(found) else made
    says = f"has {has}" + (f", made for {for_whom}" if for_whom else "")
    for part, name in names.items():
        shape = found[name].shape if name is not None else ()
        if len(shape) not in (1, 2) or shape[-1] != widths[part] or not found[str(name)].dtype.startswith(("F", "BF")):
            raise SpecError(f"model.embeddings: {str(file)!r} {says}; {info.name} takes vectors that are {wanted}")
    return {part: str(name) for part, name in names.items()}


def _sha256(file: Path) -> str:
    """Return the sha256 of names, shapes and bytes of a file's tensors. Raises `SpecError` for a file beyond 64 MiB."""
    if file.stat().st_size > MOST_BYTES:
        raise SpecError(
            f"model.embeddings: {str(file)!r} has {file.stat().st_size} bytes; an embedding has up to 64 MiB"
        )
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = {name: each for name, each in json.loads(data[8:end]).items() if name != "__metadata__"}
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode() + data[end:]).hexdigest()


def vectors(file: str, sha256: str, info: ModelInfo) -> dict[str, Tensor]:
    """Return the vectors (n, width) of an embedding in float32, by text encoder.

    Raises `StageError` for a file that has changed, and for numbers that are not finite.
    """
    from safetensors.torch import load_file

    path = Path(file)
    if not path.is_file() or _sha256(path) != sha256:
        raise StageError(f"the embedding {file} is not as it was when the render was planned")
    found = load_file(path)
    rows = {part: found[name].float() for part, name in _tensors(path, headers(path), info).items()}
    if bad := [part for part, row in rows.items() if not row.isfinite().all()]:
        raise StageError(f"the embedding {file} has numbers that are not finite for {bad[0]}")
    return {part: row.reshape(-1, row.shape[-1]) for part, row in rows.items()}
