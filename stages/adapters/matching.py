"""A file of an adapter and the modules of a model: which goes to which, strictly, and why something does not.

A file with one module that the model lacks, or with one factor of another width, is refused: it was made for another
model, or with a spelling that is not known, and a part of it would make another picture than its author's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stages.adapters.families import OTHERS
from stages.adapters.kinds import changed_bias, changed_weight, changes_bias, form_of
from stages.adapters.metadata import family_said
from stages.adapters.read import WIDTHS, family_by_shapes, text_width
from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stages.adapters.read import AdapterFile
    from stages.adapters.spellings import Target

LISTED = 3  # names in an error
T5 = re.compile(r"encoder[._]block[._]\d")  # one of its modules
KIN = {"Chroma": "Flux", "Wan": "Wan or a kin of it"}  # families whose adapters cannot be told from those of another


@dataclass(frozen=True)
class Match:
    """Where each module of a file goes: its place in the model, and the tensors of its roles by name."""

    groups: Mapping[Target, Mapping[str, str]]
    unmatched: tuple[str, ...]  # names of modules and tensors that the model has no place for


def match(file: AdapterFile, table: Mapping[str, Target], model: str, *, allow_unmatched: bool = False) -> Match:
    """Return where the modules of a file go in a model, by the table of `spellings.targets`.

    Raises `SpecError` with names, their number and the likely reason for what has no place or does not fit in it.
    """
    groups: dict[Target, Mapping[str, str]] = {}
    spelled: dict[Target, str] = {}
    taken: dict[tuple[str, str], str] = {}
    lost = list(file.unknown)
    for module, roles in file.groups.items():
        target = table.get(module)
        if target is None:
            lost.append(module)
            continue
        for each in target.modules:
            if (other := taken.setdefault((target.part, each), module)) != module:
                raise SpecError(f"lora: {file} has {other} and {module}, which are one module of {model!r}")
        groups[target], spelled[target] = roles, module
    if lost and not allow_unmatched:
        raise SpecError(
            f"lora: {file} has {len(lost)} of {len(file.groups) + len(file.unknown)} modules that the model {model!r} "
            f"lacks ({_listed(lost)}); {_reason(file, table, lost)}; allow_unmatched leaves them out"
        )
    if not groups:
        raise SpecError(f"lora: {file} has no module of the model {model!r}; {_reason(file, table, lost)}")
    for target in groups:
        if (wrong := _misfit(file, spelled[target], target)) is not None:
            raise SpecError(
                f"lora: {file} does not fit the model {model!r}: {spelled[target]}: {wrong}{_hint(file, table)}"
            )
    return Match(groups, tuple(lost))


def _misfit(file: AdapterFile, module: str, target: Target) -> str | None:
    """What keeps a module's tensors from changing a weight of this shape, in words; None where nothing does."""
    shapes = {role: shape for role, shape in file.shapes(module).items() if role != "alpha"}
    try:
        form_of(file.groups[module])
        group = {role: torch.empty(shape, device="meta") for role, shape in shapes.items()}
        changed_weight(torch.empty(target.shape, device="meta"), group, 1.0)
        if changes_bias(group):
            if target.bias is None:
                return f"{target.module} has no bias"
            changed_bias(torch.empty(target.bias, device="meta"), group, 1.0)
    except ValueError as error:
        return str(error)
    return None


def _reason(file: AdapterFile, table: Mapping[str, Target], lost: Iterable[str]) -> str:
    """The likely reason for modules without a place: another family, else another spelling."""
    if hint := _hint(file, table):
        return hint.removeprefix("; ")
    if any("motion_modules" in name for name in lost):
        return "motion modules are those of an AnimateDiff folder with UNetMotionModel alone"
    if any(T5.search(name) for name in lost):
        return "changes of a T5 text encoder are not merged"
    if all(name in file.unknown for name in lost):
        return "they are no tensors of an adapter's kinds"
    return "it was made for a model with other blocks, or by a program that names them otherwise"


def _hint(file: AdapterFile, table: Mapping[str, Target]) -> str:
    """What the file was made for, where that is another family than the model's; else empty. Shapes come first."""
    own = next((target.shape[1] for name, target in table.items() if name.endswith("attn2.to_k")), None)
    width, said = text_width(file), family_said(file.metadata)
    family = family_by_shapes(file) or said
    if model := next((target.family for target in table.values() if target.family), None):
        is_other = family not in (None, OTHERS, model, KIN.get(model))
        return f"; it was made for {family}, and this model is {model}" if is_other else ""
    if width is not None and own is not None and width != own:
        made_for = WIDTHS.get(width) or said
        return (
            f"; it was made for {made_for or 'another family'} (rows of text of {width}), and this model's have {own}"
        )
    own_family = WIDTHS.get(own or 0)
    if width is None and family is not None and family != own_family:
        return f"; it was made for {family}" + ("" if own_family is None else f", and this model is {own_family}")
    return ""


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
