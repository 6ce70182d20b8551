"""Load one network from a file: built on the meta device, then given its tensors one by one. No number is left random.

A tensor that already has the wanted dtype stays mapped from the file; any other is cast alone, so that no more than one
is held twice. The file stays open for as long as its tensors live.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from freescale.backbones import BACKBONES
from freescale.backbones.base import stays_in_float32
from stages.errors import StageError
from stages.models.files.header import read_header
from stages.models.files.keys import unpacked
from stages.models.files.quantised import scaled, scales_of
from stages.models.networks import empty_network
from stages.models.weights import current

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from stages.models.files.record import NetworkFile


class Tensors(Protocol):
    """A file of tensors by name."""

    def get_tensor(self, name: str) -> Tensor:
        """Return one tensor on the host."""


def load_network(network: NetworkFile, dtype: torch.dtype) -> Any:
    """Return a network with the weights of its file, in `dtype`, without gradients, in evaluation mode.

    Raises `StageError` where the file has changed since it was checked.
    """
    module: Any = empty_network(network.kind, network.config)
    scales = scales_of(read_header(network.path))
    with open_tensors(network.path) as file:
        state: dict[str, Tensor] = {}
        for name, first in _first_names(module):
            stored = current(first, network.kind)
            stays = network.kind in BACKBONES and stays_in_float32(module, name)
            kind = torch.float32 if stays else dtype
            if network.is_identity(stored):
                state[name] = torch.eye(*module.state_dict()[name].shape, dtype=kind)
            else:
                state[name] = state[first] if first in state else _tensor(file, network, stored, scales, kind)
    module.load_state_dict(state, strict=True, assign=True)
    if network.kind in ("T5EncoderModel", "UMT5EncoderModel"):
        module.set_input_embeddings(module.shared)
    _fill_buffers(module)
    _remake_tables(module)
    if empty := [name for name, each in _tensors(module) if each.is_meta]:
        raise StageError(f"{network.kind} was loaded from {network.path} without {empty[0]}")
    return module.eval().requires_grad_(False)


def load_folder(kind: str, config: Mapping[str, Any], files: Iterable[Path], dtype: torch.dtype) -> Any:
    """Return a network of a class that keeps parts of it in float32, from the weight files of its folder.

    diffusers loads such a class with accelerate alone. Raises `StageError` where the files have changed since they were
    checked.
    """
    module: Any = empty_network(kind, config)
    state: dict[str, Tensor] = {}
    for path in files:
        if path.suffix != ".safetensors":
            continue  # an index
        with open_tensors(path) as file:
            for name in read_header(path).tensors:
                kept = torch.float32 if stays_in_float32(module, name) else dtype
                state[name] = file.get_tensor(name).to(kept).contiguous()
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise StageError(f"the weights of a {kind} were read, and have changed ({error})") from None
    _fill_buffers(module)
    return module


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of a network: parameters, buffers, and those that are attributes of its modules."""
    yield from module.named_parameters()
    yield from module.named_buffers()
    for name, each in module.named_modules():
        yield from ((f"{name}.{at}", value) for at, value in vars(each).items() if isinstance(value, torch.Tensor))


@contextmanager
def open_tensors(path: Path) -> Iterator[Tensors]:
    """Open a file of tensors."""
    from safetensors import safe_open

    if path.suffix.lower() == ".gguf":
        from stages.models.files.gguf import GgufTensors

        yield GgufTensors(path)
        return
    with safe_open(path, "pt") as file:
        yield file


def _tensor(file: Tensors, network: NetworkFile, name: str, scales: dict[str, str], dtype: torch.dtype) -> Tensor:
    stored = network.stored(name)
    try:
        found = file.get_tensor(stored)
        scale = file.get_tensor(scales[stored]) if stored in scales else None
    except Exception as error:  # the library has its own for a name that is gone
        raise StageError(f"{network.path} was read without {stored}: it has changed ({error})") from None
    if "diffusers" not in network.layout:
        found = unpacked(network.layout, network.config, name, found)  # type: ignore[arg-type]
    if scale is not None:
        found = scaled(found, scale)
    return (found.to(dtype) if found.is_floating_point() else found).contiguous()


def _first_names(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of a network's tensors, each with the first name of the same tensor: T5's embeddings have two."""
    first: dict[int, str] = {}
    for name, each in module.state_dict(keep_vars=True).items():
        yield name, first.setdefault(id(each), name)


def _fill_buffers(module: nn.Module) -> None:
    """Make the tables that classes keep in buffers which no file has: places of Chroma and of Wan, a text encoder's."""
    for name, buffer in list(module.named_buffers()):
        if name.endswith("position_ids") and buffer.is_meta:
            owner = module.get_submodule(name.rpartition(".")[0])
            owner.register_buffer("position_ids", torch.arange(buffer.shape[-1])[None], persistent=False)
        elif name.endswith("rope.freqs_cos"):
            owner = module.get_submodule(name.rpartition(".")[0])
            table: Any = type(owner)(owner.attention_head_dim, owner.patch_size, owner.max_seq_len)
            owner.freqs_cos, owner.freqs_sin = table.freqs_cos, table.freqs_sin
        elif name.endswith("time_text_embed.mod_proj"):
            owner = module.get_submodule(name.rpartition(".")[0])
            made: Any = type(owner)(num_channels=buffer.shape[1] // 2, out_dim=buffer.shape[0]).mod_proj
            owner.register_buffer("mod_proj", made, persistent=False)


def _remake_tables(module: nn.Module) -> None:
    """Make the modules with tables of positions once more, which no file has, and which have no numbers on `meta`."""
    for name, each in list(module.named_modules()):
        made: Any = each
        if type(each).__name__.endswith("RotaryEmbedding"):  # of a text encoder
            module.set_submodule(name, type(made)(made.config))
        elif type(each).__name__ == "QwenEmbedRope":
            module.set_submodule(name, type(made)(made.theta, made.axes_dim, made.scale_rope))
