"""The options of prompts: how they are read, and what they may name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from flows.cli.options import MODEL, PICTURE, text


@dataclass(frozen=True)
class Prompts:
    """How prompts are read."""

    prompt_syntax: Annotated[
        str | None,
        text(
            PICTURE,
            "NAME",
            "Of both prompts: plain (cut where the model reads no more), a1111 or comfy (of any length, with weights). "
            "Default: a1111 for a model in a single file, else plain.",
        ),
    ] = None
    emphasis: Annotated[
        str | None,
        text(
            PICTURE,
            "NAME",
            "How weights act: original or no_norm as in A1111, comfy, or off. Default: as in the program whose syntax "
            "it is.",
        ),
    ] = None
    embedding: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="A textual inversion, besides those in the home's folder embeddings/. May be repeated. Default: none.",
            rich_help_panel=MODEL,
        ),
    ] = None
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE:WEIGHT:TEXT_WEIGHT",
            help="A LoRA or kin: a path, or a name under the home's loras, with its weights of the UNet and of the "
            "text encoders, -100 to 100. May be repeated; merged in order. Default: none; weights of 1.",
            rich_help_panel=MODEL,
        ),
    ] = None
    clip_skip: Annotated[
        str | None,
        text(MODEL, "NUMBER", "CLIP skip as pages of models give it, 1 to 32. Default: what the model is trained for."),
    ] = None
