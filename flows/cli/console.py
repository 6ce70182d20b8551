"""A console that prints text as it is: paths, prompts and errors may hold `[` and `:`, which rich would interpret."""

from __future__ import annotations

from rich.console import Console


def plain_console(stderr: bool = False, width: int | None = None) -> Console:
    """Return a console without markup, emoji codes and highlighting, which breaks no line."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False, soft_wrap=True)
