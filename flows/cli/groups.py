"""Options in groups: a dataclass of options stands in a command's signature for all of its fields.

    @dataclass(frozen=True)
    class Where:
        home: Annotated[Path | None, typer.Option(help="…")] = None

    @app.command()
    @grouped
    def runs(where: Where) -> None: ...        # freescale runs --home FOLDER

typer sees one parameter a field; the command gets the dataclass. So an option is written once, with one help text, one
default and one panel of the help, whatever the number of commands that have it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with each parameter that is a dataclass replaced by the fields of that dataclass.

    Raises `TypeError` where two parameters would be one option.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    parameters = inspect.signature(command).parameters
    groups = {name: hints[name] for name in parameters if dataclasses.is_dataclass(hints[name])}
    flat = [option for name in parameters for option in _options(parameters[name], hints[name])]
    names = [option.name for option in flat]
    if len(set(names)) < len(names):
        raise TypeError(f"{command.__name__}: an option stands twice among {', '.join(names)}")

    @functools.wraps(command)
    def run(**given: Any) -> None:
        """Collect the options of each group, and call the command with the groups."""
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
        command(**given)

    run.__signature__ = inspect.Signature(flat, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in flat}
    return run


def _options(parameter: inspect.Parameter, hint: Any) -> Iterator[inspect.Parameter]:
    """The parameter by itself, or one for each field of its dataclass. By keyword, so that no order is needed."""
    if not dataclasses.is_dataclass(hint):
        yield parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY)
        return
    hints = typing.get_type_hints(hint, include_extras=True)
    for field in dataclasses.fields(hint):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )
