"""Adapters merged into a network that was just loaded: W' = cast(float32(W) + the sum of s dW), tensor by tensor.

Each weight is read once, changed by every adapter in the order of the spec, in float32 on the device it lies on, and
cast back once. So memory grows by one weight and its change. A render with adapters then costs what one without costs.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch

from freescale.gradients import without_gradients
from stages.adapters.kinds import Scaling, changed_bias, changed_weight, changes_bias
from stages.adapters.metadata import peft_scalings
from stages.adapters.read import contents, read_adapter
from stages.adapters.spellings import UNET, is_of_text, targets
from stages.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from stages.adapters.applied import Adapter
    from stages.adapters.read import AdapterFile
    from stages.adapters.spellings import Target

log = logging.getLogger(__name__)
MERGED = "merged_adapters"  # the attribute of a network that has them


@dataclass(frozen=True)
class _Change:
    """What one adapter does to one module."""

    adapter: Adapter
    file: AdapterFile
    tensors: Any  # of the open file
    roles: Mapping[str, str]
    target: Target

    def applied(self, values: Mapping[str, Tensor], changed: Callable[..., Tensor]) -> dict[str, Tensor]:
        """Return the weights or biases of its modules with the change, of those that have one."""
        if self.target.modules[0] not in values:
            return {}
        pieces = self.target.pieces
        rows = [values[module][first:end] for module, first, end in pieces]
        value = torch.cat(rows) if pieces else values[self.target.module]
        group = {role: self.tensors.get_tensor(name).to(value.device).float() for role, name in self.roles.items()}
        value = changed(value, group, self.strength, self.scaling)
        if not pieces:
            return {self.target.module: value}
        parts = dict(zip(pieces, torch.split(value, [len(each) for each in rows]), strict=True))
        return {
            module: torch.cat([parts[piece] for piece in sorted(pieces) if piece[0] == module])
            for module in self.target.modules
        }

    @property
    def scaling(self) -> Scaling | None:
        said = peft_scalings(self.file.metadata, self.target.part, self.target.module)
        return None if said is None else Scaling(*said)

    @property
    def strength(self) -> float:
        return self.adapter.strength(self.target.part, self.target.block)


@without_gradients
def merge(part: str, network: nn.Module, adapters: Sequence[Adapter]) -> None:
    """Change the weights of a part, `unet`, `text_encoder` or `text_encoder_2`, by adapters, in their order.

    Raises `StageError` for a network that has some already, for a file that has changed since it was planned with, and
    for a weight that is no longer finite.
    """
    acting = [adapter for adapter in adapters if adapter.changes(part)]
    if not acting:
        return
    if hasattr(network, MERGED):
        raise StageError(f"{part} has its adapters already; they can be merged once")
    setattr(network, MERGED, tuple(adapter.file.name for adapter in acting))
    tables = {name: targets({part: network}, name) for name in dict.fromkeys(each.network for each in acting)}
    with ExitStack() as stack:
        changes: dict[tuple[str, ...], list[_Change]] = {}
        together = _together(target for table in tables.values() for target in table.values())
        for adapter in acting:
            for change in _changes(part, adapter, tables[adapter.network], stack):
                modules = change.target.modules
                changes.setdefault(together.get(modules[0], modules), []).append(change)
        for each in changes.values():
            _change(network, each)
    log.info("merged %s into %s", ", ".join(adapter.file.name for adapter in acting), part)


def _changes(part: str, adapter: Adapter, table: Mapping[str, Target], stack: ExitStack) -> list[_Change]:
    """What one adapter does to the modules of a part."""
    from safetensors import safe_open

    file = read_adapter(adapter.file)
    found = contents(file)
    if (found.unet, found.text) != (adapter.unet, adapter.text):
        raise StageError(f"{adapter.file} has changed since the render was planned")
    tensors = stack.enter_context(safe_open(adapter.file, "pt"))
    wanted = {name: roles for name, roles in file.groups.items() if is_of_text(name) == (part != UNET)}
    return [_Change(adapter, file, tensors, roles, table[name]) for name, roles in wanted.items() if name in table]


def _together(every: Iterable[Target]) -> dict[str, tuple[str, ...]]:
    """Return, for each module that files have as one with others, all of those: their changes are made in one order."""
    fused = sorted({target.modules for target in every if target.pieces}, key=len)
    return {module: modules for modules in fused for module in modules}


def _change(network: nn.Module, changes: Sequence[_Change]) -> None:
    """Change the weights and the biases of the modules that some changes have in common."""
    for name, changed in (("weight", changed_weight), ("bias", changed_bias)):
        acting = [change for change in changes if name == "weight" or changes_bias(change.roles)]
        parameters = {
            module: parameter
            for change in acting
            for module in change.target.modules
            if (parameter := _parameter(network, module, name)) is not None
        }
        if not parameters:
            continue
        values = {module: parameter.float() for module, parameter in parameters.items()}
        for change in acting:
            values |= change.applied(values, changed)
        for module, parameter in parameters.items():
            parameter.copy_(values[module])
            if not bool(parameter.sum(dtype=torch.float32).isfinite()):  # one entry that is not makes the sum so
                names = ", ".join(change.adapter.file.name for change in acting)
                raise StageError(f"{names} made {module} infinite in {parameter.dtype}; a smaller weight works")


def _parameter(network: nn.Module, module: str, name: str) -> Tensor | None:
    """Return the weight or bias of a module; a table that a network has beside its modules is a weight."""
    found: Any = attrgetter(module)(network)
    if isinstance(found, torch.Tensor):
        return found if name == "weight" else None
    parameter: Tensor | None = getattr(found, name, None)
    return parameter
