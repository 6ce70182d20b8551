"""Commands that make a model folder from a checkpoint of another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

convert = typer.Typer(no_args_is_help=True, help="Make a model folder from a checkpoint of another format.")


@convert.callback()
def formats() -> None:
    """A callback keeps the format's name a word of its own while there is one."""


@convert.command("videocrafter2")
def videocrafter2(
    file: Annotated[Path, typer.Argument(help="VideoCrafter2's model.ckpt.")],
    folder: Annotated[Path, typer.Argument(help="The folder to make; put it under the models folder to name it.")],
    tokenizer: Annotated[
        Path, typer.Option(help="CLIP's tokenizer: a local folder of it, or bpe_simple_vocab_16e6.txt.gz.")
    ],
) -> None:
    """Write a diffusers folder in safetensors, whole or not at all; nothing in the file is run."""
    from stages.convert_videocrafter2 import convert as run

    run(file, folder, tokenizer)
    typer.echo(f"{folder}: render with --model {folder}")
