"""The options of a model in single files: where its parts come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flows.cli.options import MODEL, text


@dataclass(frozen=True)
class ModelFiles:
    """Parts of a model that come from elsewhere."""

    vae: Annotated[
        str | None, text(MODEL, "FILE", "A .safetensors file with another VAE. Default: the model's own.")
    ] = None
    text_encoders: Annotated[
        str | None,
        text(
            MODEL, "PATH", "Text encoders of a model in a single file: a file or a folder. Default: those in the file."
        ),
    ] = None
    config: Annotated[
        str | None,
        text(
            MODEL,
            "FOLDER",
            "A diffusers folder with the configurations of a single file that is of no known family; for a transformer "
            "(FLUX.1, Chroma) also with its tokenizers, text encoders and VAE. Default: none.",
        ),
    ] = None
