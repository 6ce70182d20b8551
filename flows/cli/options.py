"""The options that commands share, in groups (`flows/cli/groups.py`), and what is made of them."""

from __future__ import annotations

import dataclasses
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from flows.home import Home
    from stages.spec import RunOptions

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WHAT, MEMORY, HOW, OUTPUT = "What to make", "Memory", "How to run", "Output"  # panels of the help

SizeOption = Annotated[
    str | None,
    typer.Option(help="Width and height in pixels, such as 768x512; multiples of 8.", rich_help_panel=WHAT),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Name of an embedded model (shapes, shapes-motion) or of a folder in the home's models folder, "
        "or the path of a diffusers folder. Default: shapes.",
        rich_help_panel=WHAT,
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        help="direct, freescale, scalecrafter, demofusion, hidiffusion, fouriscale, or an ablation such as "
        "freescale/no-fusion. Default: freescale. The parameters of a method are options too: --detail-scale 1.0.",
        rich_help_panel=WHAT,
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(help="Denoising steps, 1 to 1000. Default: the model's own.", rich_help_panel=WHAT),
]
FramesOption = Annotated[
    int | None,
    typer.Option(help="Frames of a video, 1 to 1024. Default: as many as the model makes.", rich_help_panel=WHAT),
]
FpsOption = Annotated[
    str | None,
    typer.Option(
        help="Playback rate of a video, frames a second: 24, 23.976 or 24000/1001. Default: the model's.",
        rich_help_panel=WHAT,
    ),
]
MaskOption = Annotated[
    list[str] | None,
    typer.Option(
        help="PATH:DETAIL_SCALE: a grey picture, and the detail scale (0 to 50) where it is white. May be repeated.",
        rich_help_panel=WHAT,
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--input-root",
        help="Folder that pictures and masks must lie in. Default: for those that a file names, the folder of the "
        "file; for --image and --mask, no limit.",
        rich_help_panel=WHAT,
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace a file that this run did not make. Default: no.", rich_help_panel=OUTPUT),
]
HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Folder for the store, runs and models. Default: FREESCALE_HOME, else a folder of your user data.",
        rich_help_panel=OUTPUT,
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object as the last line of standard output.", rich_help_panel=OUTPUT),
]


@dataclass(frozen=True)
class Picture:
    """What one render makes."""

    size: SizeOption = None
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of all noise, 0 or larger; -1: a new random one. Default: 0.", rich_help_panel=WHAT),
    ] = None
    steps: StepsOption = None
    method: MethodOption = None
    model: ModelOption = None
    image: Annotated[
        str | None,
        typer.Option(help="A picture to enlarge, in place of one made from noise.", rich_help_panel=WHAT),
    ] = None
    frames: FramesOption = None
    fps: FpsOption = None
    mask: MaskOption = None


@dataclass(frozen=True)
class Grid:
    """What a comparison or an evaluation renders: prompts x methods x sizes x seeds."""

    model: ModelOption = None
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A method, as for render; may be repeated. Methods with parameters go into a file.",
            rich_help_panel=WHAT,
        ),
    ] = None
    size: Annotated[
        list[str] | None, typer.Option(help="WIDTHxHEIGHT in pixels; may be repeated.", rich_help_panel=WHAT)
    ] = None
    prompts: Annotated[
        str | None,
        typer.Option(
            help="shapes (captions that the embedded models know) or a text file, one prompt a line.",
            rich_help_panel=WHAT,
        ),
    ] = None
    count: Annotated[
        int | None, typer.Option(help="How many of the prompts are used. Default: all.", rich_help_panel=WHAT)
    ] = None
    seed: Annotated[
        list[int] | None,
        typer.Option(help="A seed, 0 or larger, or -1 for a new random one; may be repeated.", rich_help_panel=WHAT),
    ] = None
    steps: StepsOption = None
    frames: FramesOption = None
    fps: FpsOption = None


@dataclass(frozen=True)
class Memory:
    """The device, and what is split so that a render fits into it."""

    device: Annotated[
        str, typer.Option(help="auto (the first GPU, else the CPU), cpu, mps, cuda or cuda:N.", rich_help_panel=MEMORY)
    ] = "auto"
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory that a render may take, such as 16GiB. Default: what the device has free.",
            rich_help_panel=MEMORY,
        ),
    ] = None
    split_guidance: Annotated[
        bool,
        typer.Option(
            "--split-guidance",
            help="Run the guided and the unguided half of a step one after the other: half of the memory. Default: no.",
            rich_help_panel=MEMORY,
        ),
    ] = False
    vae_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory that the VAE may take, such as 6GiB; larger pictures go through it in exact tiles. "
            "never: always the whole picture. Default: as --memory asks.",
            rich_help_panel=MEMORY,
        ),
    ] = None
    vae_tile: Annotated[
        int, typer.Option(help="Edge of these tiles in pixels: 64, 128, 256, 512 or 1024.", rich_help_panel=MEMORY)
    ] = 512


@dataclass(frozen=True)
class Running(Memory):
    """How work is run on the device. Nothing here changes a picture beyond rounding."""

    threads: Annotated[
        int | None, typer.Option(help="CPU threads, 1 to 1024. Default: torch's own number.", rich_help_panel=HOW)
    ] = None
    checkpoint_every: Annotated[
        float,
        typer.Option(
            "--checkpoint-every",
            help="Seconds between two checkpoints inside a stage, 0 to 86400.",
            rich_help_panel=HOW,
        ),
    ] = 60.0


@dataclass(frozen=True)
class Sharing:
    """Processes that share the work."""

    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes on this machine that share the work, one for each GPU. Default: this process alone.",
            rich_help_panel=HOW,
        ),
    ] = None
    dask: Annotated[
        str | None,
        typer.Option(
            help="Address of a Dask scheduler, such as tcp://host:8786, whose workers do the work.", rich_help_panel=HOW
        ),
    ] = None


@dataclass(frozen=True)
class Output:
    """Where the result of one render goes."""

    out: Annotated[
        Path | None,
        typer.Option(
            help="File or folder for the final picture or video. Default: this folder.", rich_help_panel=OUTPUT
        ),
    ] = None
    overwrite: OverwriteOption = False


@dataclass(frozen=True)
class Where:
    """The home, and whether the answer is for a script."""

    home: HomeOption = None
    as_json: JsonOption = False


def home_of(given: Path | None) -> Home:
    """The home of `--home`, of the environment, or of the user."""
    from flows.home import Home

    return Home.find(given)


def run_options(given: Memory) -> RunOptions:
    """The options of a run, checked. Raises `SpecError`."""
    from pydantic import ValidationError

    from stages.errors import SpecError
    from stages.spec import RunOptions, sentence

    try:
        return RunOptions.model_validate(dataclasses.asdict(given))
    except ValidationError as error:
        raise SpecError(sentence(error)) from None


def flags_of(given: DataclassInstance) -> dict[str, Any]:
    """What was said on the command line, by field; what was not said is None."""
    return dataclasses.asdict(given)


def stop_on_signals() -> threading.Event:
    """SIGINT and SIGTERM ask for a stop between steps; a second one ends at once."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        """Ask for a stop; at the second signal raise `KeyboardInterrupt`."""
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in SIGNALS:
        signal.signal(number, ask)
    return stop
