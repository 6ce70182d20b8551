"""Commands that turn checkpoints of other formats into safetensors: a model folder, or the weights of a metric."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import HomeOption, home_of
from flows.cli.parsing import App

convert = App(no_args_is_help=True, help="Turn a checkpoint of another format into safetensors.")
NETWORKS = {
    "inception": "InceptionV3 of FID, KID and IS, from pt_inception-2015-12-05-6726825d.pth.",
    "i3d": "I3D of FVD and KVD, from i3d_pretrained_400.pt.",
    "raft": "RAFT of the dynamic degree, from raft-things.pth.",
    "aesthetic": "LAION's linear aesthetic head, from sa_0_4_vit_l_14_linear.pth.",
}


@convert.command("videocrafter2")
def videocrafter2(
    file: Annotated[Path, typer.Argument(help="VideoCrafter2's model.ckpt.")],
    folder: Annotated[Path, typer.Argument(help="The folder to make; put it under the models folder to name it.")],
    tokenizer: Annotated[
        Path, typer.Option(help="CLIP's tokenizer: a local folder of it, or bpe_simple_vocab_16e6.txt.gz.")
    ],
) -> None:
    """Write a diffusers folder in safetensors, whole or not at all; nothing in the file is run."""
    from stages.models.convert_videocrafter2 import convert as run

    run(file, folder, tokenizer)
    typer.echo(f"{folder}: render with --model {folder}")


@convert.command("embedding")
def embedding(
    file: Annotated[Path, typer.Argument(help="A textual inversion as .pt or .bin.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to make; its name is the word in prompts.")],
) -> None:
    """Write a pickled textual inversion as safetensors, whole or not at all; nothing in the file is run."""
    from stages.prompts.convert import convert as run

    shape = run(file, target)
    typer.echo(f"{target}: {'x'.join(map(str, shape))}; put it into the folder embeddings/ of the home")


def add_command(name: str) -> None:
    """Add the command for the weights of one network."""

    @convert.command(name, help=f"{NETWORKS[name]} Nothing in the file is run; written whole or not at all.")
    def command(
        file: Annotated[Path, typer.Argument(help="The file as published.")],
        folder: Annotated[
            Path | None,
            typer.Argument(help="Folder for the result. Default: the home's folder, where `evaluate` looks."),
        ] = None,
        home: HomeOption = None,
    ) -> None:
        from stages.metrics.convert import convert as run
        from stages.metrics.extractors import metrics_folder

        made = run(name, file, folder or metrics_folder(home_of(home).root))
        typer.echo(f"{made.path}\nweights.{name}.sha256: {made.sha256}")


for name in NETWORKS:
    add_command(name)
