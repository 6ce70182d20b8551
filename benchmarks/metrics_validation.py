"""Which metric tells good from bad: every metric of an evaluation on true scenes of `shapes`, and on them made worse.

    python -m benchmarks.metrics_validation                    # writes stages/metrics/validated.json
    python -m benchmarks.metrics_validation --count 8 --sizes 256 --out found.json

Every fault is made of the same scenes, so a metric is compared in pairs: its value with the fault less that of the
untouched scenes, with a 99 % interval of a bootstrap over scenes. A verdict of `worse` or `better` needs two things.
The interval is without zero, and the difference is one to speak of. For a mean over pictures that is an AUC of 0.7 or
more: how often a picture with the fault is on the worse side of an untouched one of any scene (0.5 is chance). For a
distance of sets it is a value outside of the interval of the untouched scenes. References are other scenes again.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from freescale.forward_process import normal
from stages.decode import decoded_whole
from stages.metrics.bootstrap import resample
from stages.metrics.crops import random_boxes
from stages.metrics.detail import WORDS as DETAIL_WORDS
from stages.metrics.detail import read_detail
from stages.metrics.extractors import find_weights, load_extractor
from stages.metrics.frechet import frechet_distance
from stages.metrics.inception_score import inception_score
from stages.metrics.kid import mmd2
from stages.metrics.score import WORDS as OBJECT_WORDS
from stages.metrics.score import Sample
from stages.metrics.seams import seam_score
from stages.metrics.texture import WORDS as TEXTURE_WORDS
from stages.metrics.texture import judge_texture
from stages.metrics.validated import FILE
from stages.models.load import Models, describe
from stages.shapes.metrics import judge
from stages.shapes.scenes import Scene, draw, draw_objects, sample_scene
from stages.shapes.texture import WITHIN
from stages.spec import ModelSpec, RunOptions
from stages.upscale import encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BASE = 128  # pixels, the training size
FIRST, REFERENCE = 3_700_000, 3_800_000  # scenes that nothing else uses
CROPS, DRAWS, LEVEL = 10, 300, 0.99
CLEAR = 0.7  # AUC from which a difference is one to speak of
LARGER_IS_WORSE = {"fid", "kid", "fid_c", "kid_c", "repetition", "seams"}
SMALLER_IS_WORSE = {"is", "one_object", "attributes", "right", "texture", "period_right", "sharpness"}
ONE_IS_RIGHT = {"objects", "detail_2", "detail_4", "detail_8", "period"}  # compared by the distance from 1
SETS = ("fid", "kid", "fid_c", "kid_c", "is")
FAULTS = {
    "through the VAE": "decoded from their own latents: the best that the model could make",
    "enlarged": "drawn at 128x128 and enlarged, bicubic",
    "blurred": "the mean of 5x5 pixels",
    "noisy": "noise of a twentieth of the range",
    "tiled": "copies of 128x128 side by side",
    "objects repeated": "the object drawn four times, half as large",
    "seams": "brightness steps of a hundredth of the range between windows of 64 pixels",
    "texture too small": "stripes and dots at the scale of 128x128",
    "other words": "the picture of another caption",
}


def _enlarged(scene: Scene, side: int) -> Tensor:
    return F.interpolate(draw(scene, BASE, BASE)[None], size=(side, side), mode="bicubic")[0]


def _blurred(scene: Scene, side: int) -> Tensor:
    return F.avg_pool2d(F.pad(draw(scene, side, side)[None], (2,) * 4, mode="replicate"), 5, 1)[0]


def _repeated(scene: Scene, side: int) -> Tensor:
    places = [(y, x) for y in (-0.25, 0.25) for x in (-0.25, 0.25)]
    objects = [replace(scene, center=place, radius=scene.radius / 2) for place in places]
    return draw_objects(scene, objects, side, side)


def _seamed(scene: Scene, side: int) -> Tensor:
    step = BASE // 2
    offsets = normal((1, 1, side // step, side // step), scene.seed, "seams") * 0.02  # of a range of 2
    return draw(scene, side, side) + F.interpolate(offsets, scale_factor=step, mode="nearest")[0]


def _through_vae(models: Models, scene: Scene, side: int) -> Tensor:
    options = RunOptions()
    latents = encode(models, options, draw(scene, side, side)[None], "mode", 0)
    return decoded_whole(latents, models, options)[0]


def makers(models: Models | None = None) -> Mapping[str, Callable[[Scene, int], Tensor]]:
    """How a scene is drawn (3, side, side) with each of `FAULTS`; without `models`, with all but `vae`."""
    made: dict[str, Callable[[Scene, int], Tensor]] = {
        "enlarged": _enlarged,
        "blurred": _blurred,
        "noisy": lambda scene, side: draw(scene, side, side) + 0.1 * normal((3, side, side), scene.seed, "noise"),
        "tiled": lambda scene, side: draw(scene, BASE, BASE).repeat(1, side // BASE, side // BASE),
        "objects repeated": _repeated,
        "seams": _seamed,
        "texture too small": lambda scene, side: draw_objects(scene, (scene,), side, side, BASE / side),
        "other words": lambda scene, side: draw(sample_scene(scene.seed + 50_000), side, side),
    }
    if models is not None:
        made["through the VAE"] = lambda scene, side: _through_vae(models, scene, side)
    return made


def read(pictures: list[tuple[Tensor, str]]) -> Sample:
    """Read pictures (3, H, W) in [-1, 1] with their captions, as an evaluation reads a method's."""
    network = load_extractor(find_weights("shapes", Path()), torch.device("cpu"))
    rows: dict[str, list[Tensor]] = {}
    for number, (image, caption) in enumerate(pictures):
        pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        image = pixels.float() / 127.5 - 1
        found = network.extract(pixels[None])
        boxes = random_boxes((image.shape[1], image.shape[2]), network.input_size, CROPS, 0, str(number))
        verdict = judge(image, caption)
        found |= {
            "crops": network.extract(torch.stack([box.of(pixels) for box in boxes]))["features"],
            "verdicts": torch.tensor([[verdict.count, verdict.color_ok, verdict.shape_ok, verdict.background_ok]]),
            "detail": read_detail(pixels, BASE)[None],
            "texture": torch.tensor([judge_texture(image, caption, BASE * BASE)], dtype=torch.float64),
            "seams": torch.tensor([seam_score(pixels, (BASE // 2, BASE // 2))], dtype=torch.float64),
        }
        for name, row in found.items():
            rows.setdefault(name, []).append(row)
    owner = torch.repeat_interleave(torch.arange(len(pictures)), torch.tensor([len(r) for r in rows["crops"]]))
    return Sample(len(pictures), owner=owner, **{name: torch.cat(found) for name, found in rows.items()})


def of_pictures(sample: Sample, reference: Sample) -> dict[str, Tensor]:
    """Return each metric's values (n) that is a mean over pictures; NaN where a picture has none."""
    objects, kept = sample.verdicts[:, 0].double(), sample.verdicts[:, 1:].double().mean(1)
    one = (objects == 1).double()
    pattern, texture, ratio = sample.texture.T
    nothing = torch.full_like(ratio, math.nan)
    usual = torch.cat([reference.detail.mean(0)[:3], torch.ones(2)])
    near = torch.where(pattern == 1, ((ratio - 1).abs() <= WITHIN).double(), nothing)
    return {
        **dict(zip(OBJECT_WORDS, (objects, one, kept, one * (kept == 1)), strict=True)),
        **dict(zip(DETAIL_WORDS, (sample.detail / usual).T, strict=True)),
        **dict(zip(TEXTURE_WORDS, (texture, torch.where(ratio > 0, ratio, nothing), near), strict=True)),
        "seams": sample.seams,
    }


def of_sets(metric: str, sample: Sample, reference: Sample, drawn: Tensor, other: Tensor) -> float:
    """Return a metric of the pictures numbered `drawn` against those of the reference numbered `other`."""
    if metric == "is":
        return inception_score(sample.logits[drawn], 1)[0]
    distance = frechet_distance if metric.startswith("fid") else mmd2
    x, y = (_rows(side, metric, numbers) for side, numbers in ((sample, drawn), (reference, other)))
    return distance(x, y)


def _rows(sample: Sample, metric: str, drawn: Tensor) -> Tensor:
    rows, _ = sample.rows(metric)
    return rows.reshape(sample.count, -1, rows.shape[1])[drawn].flatten(0, 1)


@dataclass(frozen=True)
class Separation:
    """One metric on one fault: means, the difference with its interval, and the verdict."""

    truth: float
    value: float
    low: float
    high: float
    auc: float | None
    verdict: str


def separate(metric: str, bad: Sample, good: Sample, reference: Sample, draws: int = DRAWS) -> Separation:
    """Return how a metric that is a mean over pictures tells those with a fault from the untouched ones."""
    x, y = (of_pictures(side, reference)[metric] for side in (bad, good))
    auc, resamples = _auc(metric, x, y), [resample(good.count, 0, "scenes", n) for n in range(draws)]
    worse = torch.stack([_badness(metric, x[d].nanmean()) - _badness(metric, y[d].nanmean()) for d in resamples])
    low, high = _interval(worse)
    is_clear = auc is not None and max(auc, 1 - auc) >= CLEAR
    return Separation(float(y.nanmean()), float(x.nanmean()), low, high, auc, _verdict(low, high, is_clear))


def separate_sets(metric: str, bad: Sample, reference: Sample, truth: Tensor) -> Separation:
    """Return how a metric of whole sets tells pictures with a fault from the untouched ones.

    `truth` is what `drawn_values` gives of the untouched ones.
    """
    found = drawn_values(metric, bad, reference, len(truth) - 1)
    values, usual = (side[1:] - side[1:].mean() + side[0] for side in (found, truth))  # repeats shift a distance
    sign = -1 if metric in SMALLER_IS_WORSE else 1
    low, high = _interval(sign * (values - usual))
    least, most = _interval(usual)
    is_clear = not least <= float(found[0]) <= most
    return Separation(float(truth[0]), float(found[0]), low, high, None, _verdict(low, high, is_clear))


def drawn_values(metric: str, sample: Sample, reference: Sample, draws: int) -> Tensor:
    """Return a metric of whole sets (1 + draws), first of all pictures and then of resamples of both sides."""
    pairs = [(torch.arange(sample.count), torch.arange(reference.count))]
    sides = ((sample.count, "scenes"), (reference.count, "reference"))
    for number in range(draws):
        first, second = (resample(count, 0, side, number) for count, side in sides)
        pairs.append((first, second))
    return torch.tensor([of_sets(metric, sample, reference, *pair) for pair in pairs], dtype=torch.float64)


def _badness(metric: str, value: Tensor) -> Tensor:
    """The mean of a metric, so that larger is worse."""
    if metric in ONE_IS_RIGHT:
        return (value - 1).abs()
    return -value if metric in SMALLER_IS_WORSE else value


def _interval(values: Tensor) -> tuple[float, float]:
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = torch.nanquantile(values.double(), tails).tolist()
    return low, high


def _verdict(low: float, high: float, is_clear: bool) -> str:
    if not is_clear or low <= 0 <= high:
        return "no difference"
    return "worse" if low > 0 else "better"


def _auc(metric: str, bad: Tensor, good: Tensor) -> float | None:
    """How often a picture with the fault is on the worse side; of metrics that should be 1, on its own side."""
    bad, good = bad[~bad.isnan()], good[~good.isnan()]
    if not len(bad) or not len(good):
        return None
    apart = bad[:, None] - good[None, :]
    above = float(((apart > 0).double() + 0.5 * (apart == 0).double()).mean())
    if metric in ONE_IS_RIGHT:
        return max(above, 1 - above)
    return 1 - above if metric in SMALLER_IS_WORSE else above


def validate(side: int, count: int, models: Models | None, draws: int = DRAWS) -> dict[str, dict[str, Separation]]:
    """Return every metric's separations by fault, of `count` scenes at `side` pixels."""
    scenes = [sample_scene(FIRST + index) for index in range(count)]
    good = read([(draw(scene, side, side), scene.caption) for scene in scenes])
    others = [sample_scene(REFERENCE + index) for index in range(count)]
    reference = read([(draw(scene, side, side), scene.caption) for scene in others])
    truth = {metric: drawn_values(metric, good, reference, draws) for metric in SETS}
    metrics = (*SETS, *of_pictures(good, reference))
    found: dict[str, dict[str, Separation]] = {metric: {} for metric in metrics}
    made = makers(models)
    for fault in (name for name in FAULTS if name in made):
        bad = read([(made[fault](scene, side), scene.caption) for scene in scenes])
        for metric in SETS:
            found[metric][fault] = separate_sets(metric, bad, reference, truth[metric])
        for metric in metrics[len(SETS) :]:
            found[metric][fault] = separate(metric, bad, good, reference, draws)
        print(f"{side} {fault}", flush=True)
    return found


def record(found: Mapping[int, dict[str, dict[str, Separation]]], count: int) -> dict[str, Any]:
    """Return the file's content."""
    sizes = {side: f"{side}x{side}" for side in found}
    metrics = list(next(iter(found.values())))
    return {
        "world": "shapes",
        "made_by": "python -m benchmarks.metrics_validation",
        "scenes": count,
        "interval": LEVEL,
        "sizes": list(sizes.values()),
        "faults": FAULTS,
        "cannot_be_judged": ["scale fusion", "seams of attention windows", "repetition far away"],
        "metrics": {
            metric: {
                sizes[side]: {fault: _plain(s) for fault, s in by_metric[metric].items()}
                for side, by_metric in found.items()
            }
            for metric in metrics
        },
    }


def _plain(found: Separation) -> dict[str, Any]:
    numbers = {name: getattr(found, name) for name in ("truth", "value", "low", "high", "auc")}
    short = {k: None if v is None or math.isnan(v) else float(f"{v:.3g}") for k, v in numbers.items()}
    return {"verdict": found.verdict, **short}


def table(content: Mapping[str, Any], size: str) -> str:
    """Return a Markdown table of one size: the AUC of metrics of pictures, else the difference, and what it means."""
    faults = list(content["faults"])
    lines = [f"| metric | {' | '.join(faults)} |", f"|{'---|' * (len(faults) + 1)}"]
    signs = {"worse": "**{}**", "better": "*{}*", "no difference": "{}"}
    for metric, by_size in content["metrics"].items():
        cells = []
        for fault in faults:
            found = by_size[size][fault]
            number = f"{found['auc']:.2f}" if found["auc"] is not None else f"{found['value']:.3g}"
            cells.append(signs[found["verdict"]].format(number))
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write the file, print a table a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=48, help="scenes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="sides in pixels")
    parser.add_argument("--out", type=Path, default=FILE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    models = Models(describe(ModelSpec(name="shapes"), Path()), "float32", torch.device("cpu"))
    found: dict[int, dict[str, dict[str, Separation]]] = {}
    for side in given.sizes:
        with torch.no_grad():
            found[side] = validate(side, given.count, models)
        content = record(found, given.count)
        given.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"\n{side}x{side}\n\n{table(content, f'{side}x{side}')}", flush=True)


if __name__ == "__main__":
    main()
