"""The options that commands share, in groups (`flows/cli/groups.py`), and what is made of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from flows.home import Home
    from stages.spec import RunOptions

PICTURE, MODEL, SAMPLING = "Picture or video", "Model", "Sampling"  # panels of the help
METHOD, RUNNING, OUTPUT = "Method", "Running", "Output"


def text(panel: str, metavar: str, help: str) -> Any:
    """Return an option that takes text, in a panel of the help."""
    return typer.Option(metavar=metavar, help=help, rich_help_panel=panel)


SizeOption = Annotated[
    str | None,
    text(
        PICTURE, "WIDTHxHEIGHT", "Size in pixels: 64 to 16384, multiples of 8, an aspect up to 8:1. Default: 512x512."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Name of an embedded model (shapes, shapes-dit, shapes-motion) or of one in the home's models folder, or "
        "the path of a .safetensors file or of a diffusers folder; `freescale models` lists them. Default: shapes.",
        rich_help_panel=MODEL,
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        help="direct, freescale, swift, draft, scalecrafter, demofusion, hidiffusion, fouriscale, rectifiedhr, frecas, "
        "scalediff, diffusehigh, fam, ap_ldm, mrflow, pixelrush, hiwave, enlarge; with transformers cinescale, "
        "cinescale_2026, hiflow, imax; or an ablation such as freescale/no-fusion. Its parameters are options too: "
        "--detail-scale 1.0, --no-fusion, --freeu none. `freescale methods` lists all. Default: freescale.",
        rich_help_panel=METHOD,
    ),
]
StepsOption = Annotated[
    int | None,
    typer.Option(help="Denoising steps, 1 to 1000. Default: the model's own.", rich_help_panel=SAMPLING),
]
FramesOption = Annotated[
    int | None,
    typer.Option(help="Frames of a video, 1 to 1024. Default: as many as the model makes.", rich_help_panel=PICTURE),
]
FpsOption = Annotated[
    str | None,
    text(PICTURE, "NUMBER", "Playback rate, 1 to 240 frames a second: 24, 23.976 or 24000/1001. Default: the model's."),
]
MaskOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH:DETAIL_SCALE",
        help="A grey picture, and the detail scale (0 to 50) where it is white. May be repeated. Default: none.",
        rich_help_panel=METHOD,
    ),
]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--input-root",
        help="Folder that pictures and masks must lie in. Default: for those that a file names, the folder of the "
        "file; for --image and --mask, no limit.",
        rich_help_panel=PICTURE,
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
    typer.Option(
        "--json", help="Print one JSON object as the last line of standard output. Default: no.", rich_help_panel=OUTPUT
    ),
]


@dataclass(frozen=True)
class Picture:
    """What one render makes. What may also be `none` is text here, and checked with the spec."""

    size: SizeOption = None
    negative_prompt: Annotated[str | None, text(PICTURE, "WORDS", "What to avoid. Default: the model's own.")] = None
    image: Annotated[
        str | None, text(PICTURE, "PATH", "A picture to enlarge, in place of one made from noise. Default: none.")
    ] = None
    cascade: Annotated[
        str | None,
        text(PICTURE, "SIZES", "auto, or the size of every level: 128x128,256x256. Default: auto, the method's own."),
    ] = None
    frames: FramesOption = None
    fps: FpsOption = None
    motion_fps: Annotated[
        str | None,
        text(
            PICTURE,
            "NUMBER",
            "Frames a second of a model with an fps branch, up to 240; more is less motion. Default: its own.",
        ),
    ] = None
    model: ModelOption = None
    dtype: Annotated[
        str | None,
        text(
            MODEL,
            "NAME",
            "Of UNet and text encoders: float32, float16, bfloat16 or float8_e4m3fn (8 bits stored, 16 computed). "
            "Default: float32.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of all noise, 0 to 2^63 - 1; -1: a new random one. Default: 0.", rich_help_panel=SAMPLING
        ),
    ] = None
    steps: StepsOption = None
    guidance_scale: Annotated[
        str | None,
        text(
            SAMPLING,
            "NUMBER",
            "Scale of classifier-free guidance (CFG), 0 to 50; 1 or less: none. Default: the model's.",
        ),
    ] = None
    guidance_rescale: Annotated[
        str | None, text(SAMPLING, "NUMBER", "Share of rescaled guidance, 0 to 1. Default: 0, none.")
    ] = None
    solver: Annotated[
        str | None,
        text(SAMPLING, "NAME", "auto, euler, euler_ancestral, ddim or dpmpp_2m. Default: the method's or the model's."),
    ] = None
    eta: Annotated[
        str | None, text(SAMPLING, "NUMBER", "Stochasticity of ddim, 0 to 1. Default: 0, or the method's own.")
    ] = None
    method: MethodOption = None
    mask: MaskOption = None


@dataclass(frozen=True)
class Format:
    """The format of the file that a render makes."""

    format: Annotated[
        str | None,
        text(
            OUTPUT, "NAME", "png, tiff, webp; of a video mp4, hevc, ffv1, frames (a zip of PNGs). Default: png or mp4."
        ),
    ] = None
    crf: Annotated[
        str | None, text(OUTPUT, "NUMBER", "Quality of mp4 and hevc, 0 to 51; smaller is better. Default: 18.")
    ] = None
    pixel_format: Annotated[
        str | None, text(OUTPUT, "NAME", "Of mp4 and hevc: yuv420p or yuv444p. Default: yuv420p.")
    ] = None


@dataclass(frozen=True)
class Grid:
    """What a comparison or an evaluation renders: prompts x methods x sizes x seeds."""

    model: ModelOption = None
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A method, as for render; may be repeated. Methods with parameters go into a file. "
            "Default: freescale and direct.",
            rich_help_panel=METHOD,
        ),
    ] = None
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="Pixels, 64 to 16384; may be repeated. Default: 512x512.",
            rich_help_panel=PICTURE,
        ),
    ] = None
    prompts: Annotated[
        str | None,
        typer.Option(
            help="shapes (captions that the embedded models know) or a text file, one prompt a line. Default: shapes.",
            rich_help_panel=PICTURE,
        ),
    ] = None
    count: Annotated[
        int | None,
        typer.Option(help="How many of the prompts are used, 1 to 100000. Default: all.", rich_help_panel=PICTURE),
    ] = None
    seed: Annotated[
        list[int] | None,
        typer.Option(
            help="A seed, 0 to 2^63 - 1, or -1 for a new random one; may be repeated. Default: 0.",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    steps: StepsOption = None
    frames: FramesOption = None
    fps: FpsOption = None


@dataclass(frozen=True)
class Memory:
    """The device, and what is split so that a render fits into it."""

    device: Annotated[
        str, typer.Option(help="auto (the first GPU, else the CPU), cpu, mps, cuda or cuda:N.", rich_help_panel=RUNNING)
    ] = "auto"
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory that a render may take, such as 16GiB. Default: what the device has free.",
            rich_help_panel=RUNNING,
        ),
    ] = None
    split_guidance: Annotated[
        bool,
        typer.Option(
            "--split-guidance",
            help="Run the guided and the unguided half of a step one after the other: half of the memory. Default: no.",
            rich_help_panel=RUNNING,
        ),
    ] = False
    vae_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory that the VAE may take, such as 6GiB; larger pictures go through it in exact tiles. "
            "never: always the whole picture. Default: as --memory asks.",
            rich_help_panel=RUNNING,
        ),
    ] = None
    vae_tile: Annotated[
        int, typer.Option(help="Edge of these tiles in pixels: 64, 128, 256, 512 or 1024.", rich_help_panel=RUNNING)
    ] = 512


@dataclass(frozen=True)
class Running(Memory):
    """How work is run on the device. Nothing here changes a picture beyond rounding."""

    threads: Annotated[
        int | None, typer.Option(help="CPU threads, 1 to 1024. Default: torch's own number.", rich_help_panel=RUNNING)
    ] = None
    checkpoint_every: Annotated[
        float,
        typer.Option(
            "--checkpoint-every",
            help="Seconds between two checkpoints inside a stage, 0 to 86400.",
            rich_help_panel=RUNNING,
        ),
    ] = 60.0


@dataclass(frozen=True)
class Sharing:
    """Processes that share the work."""

    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes on this machine that share the work, one for each GPU; 1 or more. "
            "Default: this process alone.",
            rich_help_panel=RUNNING,
        ),
    ] = None
    dask: Annotated[
        str | None,
        typer.Option(
            help="Address of a Dask scheduler, such as tcp://host:8786, whose workers do the work. Default: none.",
            rich_help_panel=RUNNING,
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

    from stages.errors import SpecError, sentence
    from stages.spec import RunOptions

    try:
        return RunOptions.model_validate(dataclasses.asdict(given))
    except ValidationError as error:
        raise SpecError(sentence(error, RunOptions)) from None


def flags_of(given: DataclassInstance) -> dict[str, Any]:
    """What was said on the command line, by field; what was not said is None."""
    return dataclasses.asdict(given)
