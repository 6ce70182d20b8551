"""What the command line writes where there is no terminal, or a poor one."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest

from flows.cli.app import main
from flows.cli.terminal import Terminal
from flows.home import Home
from flows.rendering.job import Job, prepare
from flows.rendering.session import begin_attempt
from stages.spec import make_spec

if TYPE_CHECKING:
    from pathlib import Path

NAME = "Pr\u00fcfung \u65e5\u672c"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with the record of one run, whose prompt no ASCII terminal can show, in a folder of that name."""
    home = Home(tmp_path / NAME)
    begin_attempt(small(home), home)
    return home


def small(home: Home) -> Job:
    spec = {"prompt": NAME, "width": 128, "height": 128, "steps": 2, "method": {"name": "direct"}}
    return prepare(make_spec(spec), home)


class Stream(io.TextIOWrapper):
    """A stream in an encoding, which is a terminal or not."""

    def __init__(self, encoding: str, is_terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding, write_through=True)
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize("command", ["runs", "show"])
def test_what_an_encoding_lacks_is_escaped(home: Home, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [small(home).run] if command == "show" else []
    monkeypatch.setattr(sys, "stdout", out := Stream("ascii"))
    monkeypatch.setattr(sys, "argv", ["freescale", command, *words, "--home", str(home.root)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = out.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert small(home).run in said
    if command == "show":
        assert NAME.encode("ascii", "backslashreplace").decode() in said


@pytest.mark.parametrize(
    ("env", "is_terminal", "is_drawn"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "xterm", "FORCE_COLOR": "1"}, False, False),
        ({"TERM": "xterm", "TTY_COMPATIBLE": "1"}, False, False),
    ],
)
def test_a_bar_is_drawn_only_in_a_terminal_that_can_redraw_a_line(
    home: Home, env: dict[str, str], is_terminal: bool, is_drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", err := Stream("utf-8", is_terminal))
    terminal = Terminal()
    terminal.begin(small(home).plan)
    terminal.say("a line")
    terminal.end()
    said = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert ("\x1b" in said) == is_drawn
    assert "a line" in said


def test_a_run_is_one_line_however_long_its_path_is(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    from flows.cli.tables import print_runs

    record = home.record(small(home).run)
    home.runs.save(record.revised(outputs=("/" + "long/" * 80 + "a.png",)))
    print_runs(home, as_json=False)
    assert len(capsys.readouterr().out.splitlines()) == 2
