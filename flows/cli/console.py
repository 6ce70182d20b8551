"""A console that prints text as it is: paths, prompts and errors may hold `[` and `:`, which rich would interpret."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterable


def plain_console(stderr: bool = False, width: int | None = None) -> Console:
    """Return a console without markup, emoji codes and highlighting, which breaks no line."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)


def tell_seeds(drawn: Iterable[int | None], where: str = "") -> None:
    """Say on standard error which seeds were drawn for -1; `where` names the line that asked for them."""
    for seed in drawn:
        typer.echo(f"note: {where and f'{where}: '}the seed -1 is {seed}", err=True)
