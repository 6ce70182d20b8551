"""Whether a transformer has positions for the tokens of a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.errors import SpecError
from stages.models.flow import FLOW_FAMILIES

if TYPE_CHECKING:
    from stages.models.info import ModelInfo


def check_positions(info: ModelInfo, size: tuple[int, int], rule: str) -> None:
    """Check the rule of positions for a level of `size` pixels (height, width).

    Raises `SpecError` for a rule that the family has no meaning for, and for a side beyond its table of positions.
    """
    if info.pipeline is None:
        return
    family = FLOW_FAMILIES[info.pipeline]
    if family.rules and rule not in family.rules:
        raise SpecError(
            f"method: positions is {rule!r}, and those of {info.name} are a table; {', '.join(family.rules)} work"
        )
    table, interpolates = family.table(info.configs), "pi" in family.rules
    if table is None or (interpolates and rule == "pi") or max(size) <= table * info.grain:
        return
    ways = "; positions pi interpolates them" if interpolates else ""
    raise SpecError(
        f"size: {size[1]}x{size[0]} has sides of {max(size) // info.grain} tokens, and {info.name} has positions for "
        f"{table}, which are {table * info.grain} pixels{ways}"
    )
