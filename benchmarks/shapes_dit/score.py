"""Score `shapes-dit` at the training size: pictures with just the object, colour, shape and background asked for.

    python -m benchmarks.shapes_dit.score --count 128                    # drawn by the stock FluxPipeline
    python -m benchmarks.shapes_dit.score --count 64 --round-trip        # true scenes through the VAE: the ceiling

Prompts are captions of scenes that training never saw, one seed each; the counting rules are those of
`stages/shapes/metrics.py`, with the training size of this model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FluxPipeline

from benchmarks.shapes.score import summary
from benchmarks.shapes_dit.train import SIDE, TEXT_TOKENS
from stages.metrics.grid import FIRST_SCENE
from stages.shapes.metrics import judge
from stages.shapes.scenes import draw, sample_scene, stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

MODEL = Path(__file__).parents[2] / "stages" / "shapes_dit" / "model"
TOGETHER = 8  # pictures in one batch; a picture does not depend on it


def drawn(pipeline: FluxPipeline, seeds: list[int], options: argparse.Namespace) -> Tensor:
    """Return the pictures (B, 3, side, side) in [-1, 1] that the pipeline draws for the captions of these scenes."""
    captions = [sample_scene(seed).caption for seed in seeds]
    pictures = pipeline(
        captions,
        negative_prompt=[""] * len(seeds),
        true_cfg_scale=options.guidance_scale,
        num_inference_steps=options.steps,
        height=options.side,
        width=options.side,
        max_sequence_length=TEXT_TOKENS,
        generator=[stream(seed, "shapes-dit score") for seed in seeds],
        output_type="pt",
    ).images
    return torch.as_tensor(pictures * 2 - 1)


def round_trip(pipeline: FluxPipeline, seeds: list[int], options: argparse.Namespace) -> Tensor:
    """Return the true pictures of these scenes after the VAE's encoder and decoder."""
    true = torch.stack([draw(sample_scene(seed), options.side, options.side) for seed in seeds])
    with torch.no_grad():
        return torch.as_tensor(pipeline.vae.decode(pipeline.vae.encode(true).latent_dist.mean).sample.clamp(-1, 1))


def scored(pipeline: FluxPipeline, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield what each picture shows of its caption."""
    source = round_trip if options.round_trip else drawn
    for first in range(0, options.count, TOGETHER):
        seeds = [FIRST_SCENE + index for index in range(first, min(first + TOGETHER, options.count))]
        for seed, picture in zip(seeds, source(pipeline, seeds, options), strict=True):
            caption = sample_scene(seed).caption
            verdict = judge(picture, caption, base_area=options.side**2)
            attributes = (verdict.color_ok + verdict.shape_ok + verdict.background_ok) / 3
            yield {"caption": caption, "count": verdict.count, "attributes": attributes, "right": verdict.right}


def main() -> None:
    """Parse, draw, print the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--side", type=int, default=SIDE, help="pixels; 128 while the training is coarse")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--round-trip", action="store_true")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = FluxPipeline.from_pretrained(options.model, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    rows = list(scored(pipeline, options))
    print("| n | objects | exactly one | attributes | right |\n|---|---|---|---|---|")
    print(summary(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
