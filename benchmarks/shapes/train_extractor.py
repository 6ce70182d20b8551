"""Train the feature network of the `shapes` metrics on true scenes with none to five objects.

    python -m benchmarks.shapes.train_extractor --work build/extractor      # one core: a few minutes

Deterministic on one kind of processor with one thread, and resumable: every batch is drawn from a generator keyed by
its step, and the whole state is saved every two minutes. Scenes 0 to 999 999 train it, seeds from 1 000 000 on test it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.shapes.train import HELD_OUT, steps, stream, training
from stages.metrics.shapes_net import HEADS, INPUT, MAX_COUNT, WEIGHTS, ShapesNet
from stages.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, TEXTURES, Scene, draw, draw_objects, sample_scene

if TYPE_CHECKING:
    from collections.abc import Callable

Net = TypeVar("Net", bound=nn.Module)
STEPS, BATCH, RATE = 800, 32, 3e-3
COUNTS = (0.06, 0.62, 0.08, 0.08, 0.08, 0.08)  # share of scenes with 0, 1, … 5 objects
TEST = 256
SIZES = (128, 128, 192, 256)  # pixels a side a scene is drawn at before it is brought to the network's own
NAMES = {"color": list(COLORS), "shape": list(SHAPES), "texture": list(TEXTURES), "background": list(BACKGROUNDS)}
UNLABELLED = -100  # cross_entropy's own word for it


def sample_objects(seed: int) -> tuple[Scene, tuple[Scene, ...]]:
    """The ground and the objects of one training scene; several objects keep apart, each in a cell of a 3x3 grid."""
    ground, g = sample_scene(seed), stream(seed, "objects")
    count = int(torch.multinomial(torch.tensor(COUNTS), 1, generator=g))
    if count <= 1:
        return ground, (ground,) * count
    side = 2 if count <= 4 else 3
    found = []
    for cell in torch.randperm(side * side, generator=g)[:count].tolist():
        a, b, c = torch.rand(3, generator=g, dtype=torch.float64).tolist()
        radius = (0.24 + 0.2 * a) / side
        room = 0.5 / side - 1.04 * radius
        center = (
            (cell // side + 0.5) / side - 0.5 + (2 * b - 1) * room,
            (cell % side + 0.5) / side - 0.5 + (2 * c - 1) * room,
        )
        look = sample_scene(int(torch.randint(0, 2**31, (1,), generator=g)))
        found.append(dataclasses.replace(look, center=center, radius=radius))
    return ground, tuple(found)


def example(seed: int, size: int = INPUT) -> tuple[Tensor, dict[str, int]]:
    """A picture (3, 128, 128) in [-1, 1], drawn at `size` pixels a side, with its labels."""
    ground, objects = sample_objects(seed)
    picture = draw_objects(ground, objects, size, size)
    if size != INPUT:
        picture = F.interpolate(picture[None], (INPUT, INPUT), mode="bicubic", antialias=True)[0].clamp(-1, 1)
    labels = {"background": NAMES["background"].index(ground.background), "count": min(len(objects), MAX_COUNT)}
    for name in ("color", "shape", "texture"):  # of several objects, the caption's words would be of none
        labels[name] = NAMES[name].index(getattr(objects[0], name)) if len(objects) == 1 else UNLABELLED
    return picture, labels


def batch(step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Pictures (B, 3, 128, 128), a little noisy, with labels."""
    g = stream(step, "extractor batch")
    seeds = torch.randint(0, HELD_OUT, (BATCH,), generator=g).tolist()
    sizes = torch.randint(0, len(SIZES), (BATCH,), generator=g).tolist()
    made = [example(seed, SIZES[size]) for seed, size in zip(seeds, sizes, strict=True)]
    pictures = torch.stack([picture for picture, _ in made])
    noise = torch.rand((BATCH, 1, 1, 1), generator=g) * 0.08 * torch.randn(pictures.shape, generator=g)
    return pictures + noise, {name: torch.tensor([labels[name] for _, labels in made]) for name in HEADS}


def train(work: Path, total: int) -> ShapesNet:
    """The averaged network after `total` steps, going on from what `work` holds."""
    torch.manual_seed(3)
    state = training({"net": ShapesNet()}, work / "extractor.safetensors", RATE, 1e-3)
    forget_beyond(work / "extractor.jsonl", state.step)
    for step, losses in steps(state, total, RATE, work / "extractor.jsonl"):
        pictures, labels = batch(step)
        logits = state.modules["net"](pictures)
        loss = sum((F.cross_entropy(logits[name], labels[name]) for name in HEADS), torch.zeros(()))
        state.descend(loss, 0.99)
        losses.append(loss.item())
    return averaged(ShapesNet(), work)


def averaged(net: Net, work: Path) -> Net:
    """`net` with the averages of the training that `work` holds."""
    prefix = "ema.net."
    trained = load_file(work / "extractor.safetensors")
    net.load_state_dict({k.removeprefix(prefix): v for k, v in trained.items() if k.startswith(prefix)})
    return net


@torch.no_grad()
def bring_to_unit(net: Any, inputs: Tensor) -> None:
    """Scale the features so that their mean square over held-out `inputs` is 1; every logit stays as it is.

    The cubic kernel is no power of one scale: at 1 its three terms weigh alike, and values have the size of those of
    other networks.
    """
    scale = float(net.features(inputs).square().mean().sqrt())
    net.hidden.weight /= scale
    net.hidden.bias /= scale
    for head in net.heads.values():
        head.weight *= scale


def forget_beyond(log: Path, step: int) -> None:
    """Drop the log's rows of steps that will be made again."""
    rows = log.read_text().splitlines() if log.exists() else []
    log.write_text("".join(f"{row}\n" for row in rows if json.loads(row).get("step", step + 1) <= step))


@torch.no_grad()
def accuracy(net: ShapesNet) -> dict[str, float]:
    """Share of held-out scenes whose word each head says, and of single objects alone."""
    made = [example(HELD_OUT + i) for i in range(TEST)]
    said = {name: row.argmax(-1) for name, row in net(torch.stack([p for p, _ in made])).items()}
    found = {}
    for name in HEADS:
        wanted = torch.tensor([labels[name] for _, labels in made])
        known = wanted != UNLABELLED
        found[name] = round(float((said[name] == wanted)[known].float().mean()), 4)
    ones = net(torch.stack([draw(sample_scene(HELD_OUT + TEST + i), INPUT, INPUT) for i in range(TEST)]))
    found["one object"] = round(float((ones["count"].argmax(-1) == 1).float().mean()), 4)
    return found


def finish(net: Any, options: argparse.Namespace, tested: Callable[[Any], dict[str, float]]) -> None:
    """Write the weights in float16, and the log's last row: what they say of held-out scenes."""
    half = {name: weight.half().contiguous() for name, weight in net.state_dict().items()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(half, options.out)
    net.load_state_dict({name: weight.float() for name, weight in half.items()})
    row = {"held_out": TEST, "accuracy": tested(net), "bytes": options.out.stat().st_size}
    with (options.work / "extractor.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row)


def options_of(about: str | None, work: str, out: Path, steps: int) -> argparse.Namespace:
    """The command's options; one thread and deterministic from here on."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(work))
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--steps", type=int, default=steps)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    options.work.mkdir(parents=True, exist_ok=True)
    return options


def main() -> None:
    """Parse, train, test, and write the weights."""
    options = options_of(__doc__, "build/extractor", WEIGHTS, STEPS)
    net = train(options.work, options.steps)
    bring_to_unit(net, torch.stack([example(HELD_OUT + 10_000 + i)[0] for i in range(TEST)]))
    finish(net, options, accuracy)


if __name__ == "__main__":
    main()
