"""Train the feature network of the `shapes-motion` metrics on true videos.

    python -m benchmarks.shapes_motion.train_extractor --work build/motion_extractor      # one core: some minutes

Deterministic and resumable as `benchmarks/shapes/train_extractor.py` is. Videos 0 to 999 999 train it, seeds from
1 000 000 on test it; it never sees what a model draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.shapes.train import HELD_OUT, steps, stream, training
from benchmarks.shapes.train_extractor import averaged, bring_to_unit, finish, forget_beyond, options_of
from stages.metrics.motion_net import FRAMES, HEADS, INPUT, WEIGHTS, MotionNet
from stages.shapes.scenes import BACKGROUNDS, COLORS
from stages.shapes_motion.videos import MOTIONS, SHAPES, draw_video, sample_video

if TYPE_CHECKING:
    from pathlib import Path

STEPS, BATCH, RATE, TEST = 400, 16, 4e-3, 256
ASPECTS = (1.6, 1.0)


def example(seed: int, aspect: float = 1.6) -> tuple[Tensor, dict[str, int]]:
    """A video (3, 8, 64, 64) in [-1, 1], drawn as it would be squashed, with its labels."""
    video = sample_video(seed, aspect)
    frames = draw_video(video, FRAMES, INPUT, round(INPUT * aspect))
    if frames.shape[-1] != INPUT:
        frames = F.interpolate(frames, (INPUT, INPUT), mode="bilinear", antialias=True)
    labels = {
        "motion": MOTIONS.index(video.motion),
        "color": list(COLORS).index(video.scene.color),
        "shape": SHAPES.index(video.scene.shape),
        "background": list(BACKGROUNDS).index(video.scene.background),
    }
    return frames, labels


def batch(step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Videos (B, 3, 8, 64, 64), a little noisy, with labels."""
    g = stream(step, "motion extractor batch")
    seeds = torch.randint(0, HELD_OUT, (BATCH,), generator=g).tolist()
    made = [example(seed, ASPECTS[seed % 2]) for seed in seeds]
    videos = torch.stack([video for video, _ in made])
    noise = torch.rand((BATCH, 1, 1, 1, 1), generator=g) * 0.08 * torch.randn(videos.shape, generator=g)
    return videos + noise, {name: torch.tensor([labels[name] for _, labels in made]) for name in HEADS}


def train(work: Path, total: int) -> MotionNet:
    """The averaged network after `total` steps, going on from what `work` holds."""
    torch.manual_seed(5)
    state = training({"net": MotionNet()}, work / "extractor.safetensors", RATE, 1e-3)
    forget_beyond(work / "extractor.jsonl", state.step)
    for step, losses in steps(state, total, RATE, work / "extractor.jsonl", every=20):
        videos, labels = batch(step)
        logits = state.modules["net"](videos)
        loss = sum((F.cross_entropy(logits[name], labels[name]) for name in HEADS), torch.zeros(()))
        state.descend(loss, 0.98)
        losses.append(loss.item())
    return averaged(MotionNet(), work)


@torch.no_grad()
def accuracy(net: MotionNet) -> dict[str, float]:
    """Share of held-out videos whose word each head says."""
    made = [example(HELD_OUT + i) for i in range(TEST)]
    said = {name: row.argmax(-1) for name, row in net(torch.stack([video for video, _ in made])).items()}
    wanted = {name: torch.tensor([labels[name] for _, labels in made]) for name in HEADS}
    return {name: round(float((said[name] == wanted[name]).float().mean()), 4) for name in HEADS}


def main() -> None:
    """Parse, train, test, and write the weights."""
    options = options_of(__doc__, "build/motion_extractor", WEIGHTS, STEPS)
    net = train(options.work, options.steps)
    bring_to_unit(net, torch.stack([example(HELD_OUT + 10_000 + i)[0] for i in range(TEST)]))
    finish(net, options, accuracy)


if __name__ == "__main__":
    main()
