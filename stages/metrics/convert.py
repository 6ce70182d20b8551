"""Weights of the measuring networks as they are in circulation -> safetensors under the same names.

Every tensor must have a place and every place a tensor of its shape, or nothing is written; the file appears whole, by
a rename. Counts of batches are of training and are left out.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import nn

from stages.errors import SpecError
from stages.metrics.extractors import FILES, WeightFile, find_weights
from stages.metrics.i3d import I3D
from stages.metrics.inception import InceptionV3
from stages.metrics.raft import Raft
from stages.models.checkpoint_file import COUNTS, misfit, read_checkpoint, shapes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

PARALLEL = "module."  # what data parallelism puts before every name
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "inception": InceptionV3,
    "i3d": I3D,
    "raft": Raft,
    "aesthetic": lambda: nn.Linear(768, 1),
}
PUBLISHED = {  # the file to take, where there are several of a network
    "inception": "pt_inception-2015-12-05-6726825d.pth, of pytorch-fid,",
    "i3d": "i3d_pretrained_400.pt, of TATS and cd-fvd,",
    "raft": "raft-things.pth, of the authors' models.zip,",
    "aesthetic": "sa_0_4_vit_l_14_linear.pth, of LAION,",
}


def convert(name: str, file: Path, folder: Path) -> WeightFile:
    """Write the weights of network `name` to their file in `folder`, and return it with its checksum.

    Raises `SpecError` in one sentence, and writes nothing, for whatever cannot be converted.
    """
    path = folder / FILES[name]
    if path.exists():
        raise SpecError(f"folder: {str(path)!r} exists; move it away or name another folder")
    state = fitting(name, read_checkpoint(file, PUBLISHED[name]))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except OSError as error:
        raise SpecError(f"folder: {str(folder)!r} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return find_weights(name, folder, str(path))


def fitting(name: str, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in float32 under the network's names, each with memory of its own.

    Raises one `SpecError` that lists all that are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        wanted = shapes_of(NETWORKS[name]())
    if all(key.startswith(PARALLEL) for key in given):
        given = {key.removeprefix(PARALLEL): tensor for key, tensor in given.items()}
    if found := misfit(given, wanted):
        raise SpecError(f"file: its tensors are not those of {name}: {found}; {PUBLISHED[name]} works")
    kept = {key: tensor for key, tensor in given.items() if not key.endswith(COUNTS)}
    return {key: tensor.float().contiguous().clone() for key, tensor in kept.items()}
