"""What only a method together with a model or a size can say is said before any work."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from stages.models.folder import EMBEDDED
from tests.doorstep.harness import Case, check, table

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

UNKNOWN = ("method: 'scalecrafter' with shapes: layer 'mid_blok' is unknown", "the nearest is 'mid_block'")


def two_levels(path: Path) -> None:
    """Make the embedded model with a UNet of two levels, which has random weights."""
    import torch
    from diffusers import UNet2DConditionModel

    shutil.copytree(EMBEDDED, path)
    config = json.loads((path / "unet" / "config.json").read_text())
    config |= {
        "block_out_channels": [16, 32],
        "attention_head_dim": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
    }
    with torch.random.fork_rng():
        UNet2DConditionModel.from_config(config).save_pretrained(path / "unet")


@table(
    Case("layer", "plan x --method scalecrafter --layers '[[mid_blok, 2]]'", says=UNKNOWN),
    Case("layer-rendered", "render x --method scalecrafter --layers '[[mid_blok, 2]]'", says=UNKNOWN),
    Case(
        "layer-in-a-spec",
        "render s.yaml",
        files={"s.yaml": "prompt: x\nmethod:\n  name: scalecrafter\n  layers: [[mid_blok, 2]]\n"},
        says=UNKNOWN,
    ),
    Case(
        "layer-in-a-job",
        "batch j.yaml",
        files={"j.yaml": "- prompt: x\n- prompt: y\n  method: {name: scalecrafter, layers: [[mid_blok, 2]]}\n"},
        says=("j.yaml:3", *UNKNOWN),
        lines=2,
    ),
    Case(
        "layer-of-a-weaker-net",
        "plan x --method scalecrafter --ndcfg-layers '[[up_blocks.5, 2]]' --ndcfg-stop 0",
        says=("layer 'up_blocks.5'", "the nearest is 'up_blocks."),
    ),
    Case(
        "layer-to-disperse",
        "plan x --method scalecrafter --disperse-layers '[middle_block]'",
        says=("layer 'middle_block'", "'mid_block'"),
    ),
    Case(
        "layer-of-attention",
        "plan x --method fouriscale --layers '[mid_block.attentions.0]'",
        says=("'fouriscale' with shapes", "'mid_block.attentions.0'"),
    ),
    Case(
        "bucket-rule",
        "plan x --method fouriscale --bucket-rule released --size 1024x128",
        says=("bucket_rule is 'released' at 1024x128", "'nearest'"),
    ),
    Case(
        "two-levels-scalecrafter",
        "render x --method scalecrafter --model {folder}/m",
        files={"m": two_levels},
        says=("the UNet has 2 levels, allowed: 3 (SDXL) or 4", "direct, freescale, "),
    ),
    Case(
        "two-levels-hidiffusion",
        "render x --method hidiffusion --model {folder}/m",
        files={"m": two_levels},
        says=("the UNet has 2 levels, allowed: one or more below", "direct, freescale, "),
    ),
    Case(
        "two-levels-in-a-comparison",
        "compare --method direct --method fouriscale --model {folder}/m --prompts p.txt --size 128x128",
        files={"m": two_levels, "p.txt": "a red disc\n"},
        says=("method: 'fouriscale'", "the UNet has 2 levels"),
    ),
    Case(
        "right-two-levels",
        "plan x --size 128x128 --steps 2 --model {folder}/m",
        files={"m": two_levels},
        code=0,
        says=("base_denoise",),
    ),
    Case(
        "right-layer",
        "plan x --size 128x128 --steps 2 --method scalecrafter --layers '[[mid_block, 2]]'",
        code=0,
        says=("base_denoise",),
    ),
)
def test_methods(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)
