"""How the command line is read: `~` is the home folder, and what cannot be read is told in one sentence.

typer prints usage, a hint and a frame for every typo. Here an error is one line that names the word, what is allowed
and the nearest to it; `flows.cli.app.main` prints it.
"""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from flows.home import user_path
from stages.errors import SpecError, nearest, not_one_of, sentence

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")
FILES = (".yaml", ".yml", ".json", ".jsonl", ".csv", ".txt")


class Command(TyperCommand):
    """A command whose paths may begin with `~`, and whose options have values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of a command. Raises `SpecError` for an option whose value is missing or empty."""
        self._check_values(args)
        left: list[str] = super().parse_args(ctx, args)
        ctx.params |= {name: _at_home(value) for name, value in ctx.params.items()}
        return left

    def _check_values(self, args: list[str]) -> None:
        options = {word: param for param in self.params for word in param.opts if param.param_type_name == "option"}
        for word, following in itertools.pairwise([*args, None]):
            name, equals, own = str(word).partition("=")
            param: Any = options.get(name)
            if param is None or param.is_flag:
                continue
            value = own if equals else following
            if value == "" and param.name != "negative_prompt":
                raise SpecError(f"{name}: its value is empty; leave the option out for its default")
            if not equals and value in options:
                raise SpecError(f"{name}: its value is missing; {value} is the next option")
        for param in self.params:
            if param.param_type_name == "argument" and "" in args and _holds_paths(param):
                raise SpecError(f"{param.metavar or str(param.name).upper()}: it is empty; name a file or a folder")


class Commands(TyperGroup):
    """A group of commands that answers an unknown one with the nearest."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first word names, and the words after it. Raises `SpecError` for another word."""
        name = args[0]
        if name not in self.commands:
            raise SpecError(f"command: {_other_command(name, list(self.commands), ctx.command_path)}")
        return super().resolve_command(ctx, args)


class App(typer.Typer):
    """A typer application of such commands; `-h` is `--help`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=Commands, context_settings={"help_option_names": ["--help", "-h"]}, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[F], F]:
        """Return the decorator that adds a command."""
        return super().command(name, cls=Command, **settings)


def options_of(ctx: typer.Context) -> list[str]:
    """The options of the command that runs, as they are written."""
    return [word for param in ctx.command.params for word in param.opts if word.startswith("--")]


def usage(error: typer.TyperException) -> str:
    """Return in one sentence what is wrong with the words of a command line."""
    ctx: Any = getattr(error, "ctx", None)
    command = "freescale" if ctx is None else ctx.command_path
    shows = f"`{command} --help` shows the options"
    message = " ".join(error.format_message().split())
    param: Any = getattr(error, "param", None)
    if (option := getattr(error, "option_name", None)) is not None:
        return _bad_option(option, message, command, [] if ctx is None else ctx.command.params)
    if param is not None and message.startswith("Missing"):
        return f"{_name(param)} is missing; {shows}"
    if param is not None:
        found: Any = error.__cause__  # pydantic's, where a value was no number
        what = sentence(found).partition(": ")[2] if hasattr(found, "errors") else error.message
        return f"{_name(param)}: {what}"
    if extra := re.fullmatch(r"Got unexpected extra argument\(s\) \((.*)\)", message):
        return f"{extra[1]!r} is one word too many for {command}; quote words that belong together, {shows}"
    return message


def _bad_option(option: str, message: str, command: str, params: list[Any]) -> str:
    """Return what is wrong with an option: it is none, it lacks its value, or it has one."""
    if "requires" in message:
        return f"{option}: its value is missing"
    if "does not take" in message:
        return f"{option}: it takes no value"
    found = nearest(option, [word for param in params for word in param.opts if word.startswith("--")])
    hint = f"`{command} --help` lists its options" if found is None else f"the nearest is {found}"
    return f"{option}: {command} has no such option; {hint}"


def _other_command(name: str, commands: list[str], path: str) -> str:
    """Return what to type in place of a word that is no command."""
    word = shlex.quote(name)
    if name == "help":
        return f"'help' is an option: `{path} --help`"
    if path == "freescale" and Path(name).suffix.lower() in FILES:
        return f"{name!r} is a file; `freescale render {word}` renders a spec, `freescale batch {word}` a list of jobs"
    if path == "freescale" and " " in name:
        return f"{name!r} is not one; to draw it: freescale render {word}"
    return not_one_of(name, sorted(commands), listed_by=f"{path} --help")


def _name(param: Any) -> str:
    """The name of a parameter as a person writes it."""
    return max(param.opts, key=len) if param.param_type_name == "option" else param.metavar or str(param.name).upper()


def _holds_paths(param: Any) -> bool:
    return "Path" in str(param.type_descriptor.annotation)


def _at_home(value: Any) -> Any:
    """The value, with `~` at the beginning of a path as the home folder."""
    if isinstance(value, Path):
        return user_path(value)
    return [_at_home(one) for one in value] if isinstance(value, list) else value
