"""Names and rows of transformers in diffusers -> those in the files of their authors. Pure: no file is opened.

`transformer_names` has the tables. A *layout* is the name of one of them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from stages.models.files.transformer_names import MLP, NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping

Rows = tuple[tuple[int, int], ...]  # (first, end) of rows of an original tensor, in the order of diffusers
Pieces = tuple[tuple[str, int, int], ...]  # (module of diffusers, first, end) of its rows, in the order of the original

_LEAF = re.compile(r"(.+?)(\.weight|\.bias)?")
_PARTS = ("to_q", "to_k", "to_v", "proj_mlp", "add_q_proj", "add_k_proj", "add_v_proj")
_PART = re.compile(rf".*\.({'|'.join(_PARTS)})(\.weight|\.bias)?")


def transformer_name(layout: str, name: str) -> str:
    """Return the original name of a tensor or module that is called `name` in diffusers. Raises `KeyError`."""
    module, leaf = _split(name)
    original = NAMES[layout].module(module)
    return original + NAMES[layout].leaf(original, leaf)


def transformer_order(name: str) -> int:
    """Return the number of a tensor or module among those that one original tensor holds, from its first row on."""
    match = _PART.fullmatch(name)
    return _PARTS.index(match[1]) if match else 0


def transformer_rows(layout: str, config: Mapping[str, Any], name: str, total: int) -> Rows | None:
    """Return which rows of its original tensor, of `total` rows, a tensor or module is. None: all, as they are.

    `config` is the network's. Raises `ValueError` where so many rows cannot be shared out.
    """
    if NAMES[layout].is_swapped(_split(name)[0], config):
        half = _share(total, 2)
        return ((half, total), (0, half))
    match = _PART.fullmatch(name)
    if match is None or not NAMES[layout].fuses:
        return None
    is_single = name.startswith("single_transformer_blocks.")
    width, number = _share(total, 3 + MLP if is_single else 3), transformer_order(name)
    if match[1] == "proj_mlp":
        return ((3 * width, total),)
    return (((number % 4) * width, (number % 4 + 1) * width),)


def _split(name: str) -> tuple[str, str]:
    """Return the module of a tensor, and its ending; empty for a module itself, and for a tensor without one."""
    match = _LEAF.fullmatch(name)
    assert match is not None
    return match[1], match[2] or ""


def _share(total: int, parts: int) -> int:
    if total % parts:
        raise ValueError(f"{total} rows are no {parts} equal parts")
    return total // parts


def fused(layout: str, config: Mapping[str, Any], names: Mapping[str, int]) -> dict[str, Pieces]:
    """Return the pieces of each original module that is not one of diffusers' as it is.

    `names` are modules of diffusers with the number of their rows, `config` is the network's.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(transformer_name(layout, name), []).append(name)
    pieces: dict[str, Pieces] = {}
    for original, modules in found.items():
        if NAMES[layout].is_swapped(modules[0], config):
            half = names[modules[0]] // 2
            pieces[original] = ((modules[0], half, 2 * half), (modules[0], 0, half))
        elif len(modules) > 1:
            pieces[original] = tuple((name, 0, names[name]) for name in sorted(modules, key=transformer_order))
    return pieces
