"""What the commands share: options with their help, and what is made of them."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from flows.home import Home
    from stages.spec import RunOptions

SIGNALS = (signal.SIGINT, signal.SIGTERM)

HomeOption = Annotated[Path | None, typer.Option("--home", help="Where everything lives; else FREESCALE_HOME.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, mps, cuda or cuda:N.")]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads.")]
EveryOption = Annotated[float, typer.Option("--checkpoint-every", help="Seconds between checkpoints inside a stage.")]
SplitOption = Annotated[bool, typer.Option("--split-guidance", help="Half the memory, two passes a step.")]
MemoryOption = Annotated[str | None, typer.Option(help="Memory a render may take: 16GiB; default: what is free.")]
VaeMemoryOption = Annotated[
    str | None,
    typer.Option(help="The VAE works by exact tiles where it would take more: 6GiB; never: whole, come what may."),
]
VaeTileOption = Annotated[int, typer.Option(help="Edge of its tiles in pixels: 64, 128, 256, 512 or 1024.")]
OutOption = Annotated[Path | None, typer.Option(help="File or folder for the final picture; default: this folder.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a file that this run did not make.")]
FramesOption = Annotated[int | None, typer.Option(help="Of a video; default: as many as the model makes.")]
FpsOption = Annotated[str | None, typer.Option(help="Playback rate of a video: 24, 23.976 or 24000/1001.")]
MaskOption = Annotated[list[str] | None, typer.Option(help="PATH:DETAIL_SCALE, a soft region; may be repeated.")]
WorkersOption = Annotated[int | None, typer.Option(help="Processes here that share the work, one a GPU.")]
DaskOption = Annotated[str | None, typer.Option(help="Address of a Dask scheduler whose workers do it.")]
RootOption = Annotated[Path | None, typer.Option(help="Refuse pictures and masks outside this folder.")]


def home_of(given: Path | None) -> Home:
    """The home of `--home`, of the environment, or of the user."""
    from flows.home import Home

    return Home.find(given)


def options_of(**values: Any) -> RunOptions:
    """How to run, checked. Raises `SpecError`."""
    from pydantic import ValidationError

    from stages.spec import RunOptions, SpecError, sentence

    try:
        return RunOptions.model_validate(values)
    except ValidationError as error:
        raise SpecError(sentence(error)) from None


def stop_on_signals() -> threading.Event:
    """SIGINT and SIGTERM ask for a stop between steps; a second one ends at once."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in SIGNALS:
        signal.signal(number, ask)
    return stop
