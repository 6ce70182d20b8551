"""Files of `torch.save`, read as tensors alone; they are read here and nowhere else. Nothing in a file is run."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

DEEPSPEED = "_forward_module."
COUNTS = "num_batches_tracked"  # of batch norms
LISTED = 20  # names of each kind in an error


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that a network is saved with, by name."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def read_checkpoint(file: Path, instead: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by their own names. Raises `SpecError` for a file with anything else in it.

    Lightning keeps them under `state_dict`, DeepSpeed under `module` with a prefix; a plain mapping is taken as it is.
    `instead`, in an error: the file to take where a TorchScript program is given.
    """
    if not file.is_file():
        raise SpecError(f"file: {str(file)!r} is not a file")
    if _is_program(file):
        raise SpecError(
            f"file: {str(file)!r} is a TorchScript program, which would have to be run; "
            f"{instead or 'a checkpoint with a state_dict of tensors alone'} works"
        )
    loaded = read_plain(file)
    if isinstance(loaded, Mapping) and "state_dict" in loaded:
        loaded = loaded["state_dict"]
    elif isinstance(loaded, Mapping) and "module" in loaded:
        loaded = {str(name).removeprefix(DEEPSPEED): tensor for name, tensor in loaded["module"].items()}
    if not isinstance(loaded, Mapping) or not loaded:
        raise SpecError(f"file: {str(file)!r} holds no named tensors; a checkpoint with a state_dict works")
    if odd := [str(name) for name, tensor in loaded.items() if not isinstance(tensor, Tensor)]:
        raise SpecError(f"file: {str(file)!r} holds {odd[0]}, which is no tensor; a state_dict of tensors alone works")
    return dict(loaded)


def read_plain(file: Path) -> Any:
    """Return what a file of tensors and plain values holds. Raises `SpecError` for a file with anything else in it."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except Exception as error:  # the unpickler has many
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SpecError(
            f"file: {str(file)!r} holds more than tensors or is no checkpoint, so it was not read ({reason:.200}); "
            "one saved from a state_dict alone works"
        ) from None


def _is_zip(file: Path) -> bool:
    with file.open("rb") as start:
        return start.read(4) == b"PK\x03\x04"


def _is_program(file: Path) -> bool:
    """Return whether it is an archive of TorchScript: one with code beside the tensors."""
    return zipfile.is_zipfile(file) and any("/code/" in name for name in _names(file))


def _names(file: Path) -> list[str]:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return []  # damaged: torch says how


def misfit(given: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """What keeps tensors from being those of a network, in words; empty where they are: names and shapes, all of them.

    Counts of batches need not be there: they are of training, and not in every copy of a file.
    """
    counted = {name: tensor for name, tensor in given.items() if not name.endswith(COUNTS)}
    shapes = {name: tuple(tensor.shape) for name, tensor in counted.items() if name in wanted}
    other = [f"{name} {shape} for {wanted[name]}" for name, shape in shapes.items() if shape != wanted[name]]
    missing = [name for name in wanted if name not in given and not name.endswith(COUNTS)]
    return listed({"missing": missing, "unknown": [n for n in counted if n not in wanted], "of another shape": other})


def listed(kinds: Mapping[str, list[str]]) -> str:
    """Return names in words, kind by kind, the first few of each; empty where there are none."""
    said = []
    for kind, names in kinds.items():
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        said += [f"{len(names)} {kind} ({', '.join(names[:LISTED])}{more})"] if names else []
    return "; ".join(said)
