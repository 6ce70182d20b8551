"""Options in groups: one dataclass for the options that commands share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from flows.cli.groups import grouped
from flows.cli.options import Grid, Memory, Output, Picture, Running, Sharing, Where


@dataclass(frozen=True)
class Cooking:
    heat: Annotated[int, typer.Option(help="Degrees.")] = 180
    fan: Annotated[bool, typer.Option("--fan")] = False


@dataclass(frozen=True)
class Serving:
    plates: Annotated[list[str] | None, typer.Option()] = None


def test_a_command_gets_the_group_and_the_help_names_its_fields() -> None:
    app, got = typer.Typer(), list[object]()

    @app.command()
    @grouped
    def bake(what: str, cooking: Cooking, serving: Serving, again: bool = False) -> None:
        """Bake."""
        got.extend([what, cooking, serving, again])

    told = CliRunner().invoke(app, ["bread", "--heat", "200", "--fan", "--plates", "a", "--plates", "b"])
    assert told.exit_code == 0, told.output
    assert got == ["bread", Cooking(200, True), Serving(["a", "b"]), False]
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "--heat" in shown
    assert "Degrees." in shown


def test_an_option_that_stands_twice_is_refused() -> None:
    def bake(cooking: Cooking, heat: int = 3) -> None:
        """Bake."""

    with pytest.raises(TypeError, match="bake: an option stands twice among heat, fan, heat"):
        grouped(bake)


@pytest.mark.parametrize("group", [Picture, Grid, Memory, Running, Sharing, Output, Where])
def test_every_shared_option_says_what_it_does(group: type) -> None:
    import typing

    hints = typing.get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        option = hints[field.name].__metadata__[0]
        assert option.help, field.name
        assert option.rich_help_panel, field.name
