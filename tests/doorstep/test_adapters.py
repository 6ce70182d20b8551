"""Adapters as people have them: of another model, of another kind, cut off, named twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tests.adapter_files import SHAPES, SHAPES_UNET, lora_file, low_rank
from tests.doorstep.harness import Case, check, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from torch import Tensor

PLAN = "plan 'a red disc' --size 128x128 --lora"
SD1 = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def made(tensors: dict[str, Tensor] | None = None) -> Callable[[Path], object]:
    """Return what writes a file of these tensors; None: a LoRA that fits the embedded model."""
    return lambda path: lora_file(path, tensors)


def cut(path: Path) -> None:
    lora_file(path)
    path.write_bytes(path.read_bytes()[:-4])


UNKNOWN = low_rank({SHAPES_UNET: (96, 96), "lora_unet_nowhere_proj": (8, 8)})
IA3 = {"lora_unet_x.on_input": torch.ones(1), "lora_unet_x.weight": torch.ones(4)}
SPEC = "prompt: a red disc\nsize: 128x128\nmodel: {name: shapes, loras: [{file: a.safetensors, blocks: {IN77: 1}}]}\n"


@table(
    Case("a-file", f"{PLAN} a.safetensors:0.8", ("LoRA + LoCon a: weight 0.8",), 0, {"a.safetensors": made()}),
    Case("a-name", f"{PLAN} a:0.8:0.5", ("of the text encoders 0.5",), 0, {"home/loras/x/a.safetensors": made()}),
    Case("a-colon", f"{PLAN} b:c/a.safetensors:2", ("LoCon a: weight 2",), 0, {"b:c/a.safetensors": made()}),
    Case(
        "in-the-prompt",
        "plan 'a disc <lora:a:0.8>' --prompt-syntax a1111 --size 128x128",
        ("LoCon a: weight 0.8",),
        0,
        {"home/loras/a.safetensors": made()},
    ),
    Case("no-file", f"{PLAN} grian", says=("lora: 'grian'", "'grain'"), files={"home/loras/grain.safetensors": made()}),
    Case(
        "two-files",
        f"{PLAN} a",
        says=("loras/x/a.safetensors", "loras/y/a.safetensors"),
        files={"home/loras/x/a.safetensors": made(), "home/loras/y/a.safetensors": made()},
    ),
    Case("a-weight", f"{PLAN} a.safetensors:1000", says=("1000", "100"), files={"a.safetensors": made()}),
    Case("cut-off", f"{PLAN} a.safetensors", says=("cut off",), files={"a.safetensors": cut}),
    Case("a-web-page", f"{PLAN} a.safetensors", says=("web page",), files={"a.safetensors": b"<!DOCTYPE html>"}),
    Case("a-pickle", f"{PLAN} a.pt", says=("pickled", ".safetensors"), files={"a.pt": b"PK"}),
    Case("another-kind", f"{PLAN} a.safetensors", says=("IA3", "LoKr"), files={"a.safetensors": made(IA3)}),
    Case(
        "another-model",
        f"{PLAN} a.safetensors",
        says=("Stable Diffusion 1 (rows of text of 768)", "have 96", SD1),
        files={"a.safetensors": made(low_rank({SD1: (320, 768)}))},
    ),
    Case(
        "an-unknown-module",
        f"{PLAN} a.safetensors",
        says=("1 of 2 modules", "lora_unet_nowhere_proj", "allow_unmatched"),
        files={"a.safetensors": made(UNKNOWN)},
    ),
    Case(
        "another-width",
        f"{PLAN} a.safetensors",
        says=("makes 64x96 of a weight 96x96", SHAPES_UNET),
        files={"a.safetensors": made(low_rank({SHAPES_UNET: (64, 96)}))},
    ),
    Case(
        "an-unknown-block",
        "plan spec.yaml",
        says=("'IN77'", "IN00", "spec.yaml"),
        files={"a.safetensors": made(low_rank(SHAPES)), "spec.yaml": SPEC},
    ),
    Case(
        "another-network",
        "plan 'a <hypernet:a:1>' --prompt-syntax a1111 --size 128x128",
        says=("hypernet", "<lora:NAME:WEIGHT>"),
    ),
)
def test_adapters(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)
