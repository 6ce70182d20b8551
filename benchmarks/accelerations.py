"""What the accelerations that change pictures cost and save, on `shapes`: DeepCache, guidance for a part, ToDo.

    python -m benchmarks.accelerations --count 48

Captions and seeds are those of scenes that training never saw. A row is compared with the plain one of the same method
and size: the signal-to-noise ratio of a picture against the plain picture (PSNR, over 255), pictures with just the
object, colour, shape and ground asked for (*right*, `stages/shapes/metrics.py`), pictures with the texture asked for
(the extractor's texture head), and CPU seconds of a picture from encoded text, or from the picture of level 0, to
pixels. All rows are measured in turns, a picture of each, and their ratio to the plain row is the median over pictures:
a machine that slows down for a while slows all rows alike. What is measured goes to a file of lines, so a stopped run
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.harness import here
from flows.cli.terminal import Terminal
from flows.home import Home
from flows.rendering.job import prepare
from flows.rendering.session import Session
from stages.metrics.extractors import ShapesExtractor, find_weights, load_extractor
from stages.metrics.grid import FIRST_SCENE
from stages.shapes.metrics import judge
from stages.shapes.scenes import TEXTURES, sample_scene
from stages.spec import RunOptions, make_spec

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 30  # of level 0; larger pictures take 8


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a table: what it is called, and the fields of its spec beside those of the plain row."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows of one method and size; the first is the plain one."""

    name: str
    plain: dict[str, Any]
    rows: tuple[Row, ...]
    share: float = 1.0  # of the pictures asked for


HALF, THIRD = {"guidance_interval": [0.0, 0.5]}, {"guidance_interval": [0.0, 1 / 3]}
BASE = (
    Row("plain"),
    *(Row(f"DeepCache {n}, branch {b}", {"deepcache": n, "deepcache_branch": b}) for b in (2, 0) for n in (2, 3, 5)),
    Row("guidance off from 15", HALF),
    Row("guidance off from 10", THIRD),
    Row("off from 15 and DeepCache 2", HALF | {"deepcache": 2}),
)
THIN = (Row("plain"), Row("ToDo", {"todo": "auto"}))


def tables() -> tuple[Table, ...]:
    """Return level 0, and two methods at 2 and 4 times the training size."""

    def sized(side: int, method: str, steps: int) -> dict[str, Any]:
        return {"width": side, "height": side, "method": {"name": method}, "steps": steps}

    larger = [(side, method) for side in (256, 512) for method in ("freescale", "direct")]
    return (
        Table("level 0, 128x128", sized(128, "direct", STEPS), BASE),
        *(Table(f"{method}, {side}x{side}, 8 steps", sized(side, method, 8), THIN, 0.5) for side, method in larger),
    )


@dataclass
class Bench:
    """A session, a reader of textures, and the lines that are there."""

    session: Session
    extractor: ShapesExtractor
    path: Path
    done: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what an earlier run measured."""
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            found = json.loads(line)
            self.done[found["table"], found["row"], found["scene"]] = found

    def picture(self, fields: dict[str, Any], scene: int) -> tuple[Tensor, float]:
        """Return a picture (3, H, W) in [-1, 1], and the CPU seconds of what its row does not share with others."""
        spec = make_spec({"prompt": sample_scene(scene).caption, "seed": scene, **fields})
        job = prepare(spec, self.session.home)
        runner, images = self.session.runner(job), [export.parents["image"] for export in job.plan.exports]
        text = next(call for call in job.plan.calls if call.stage.part == "text")
        runner.ensure(images[0] if len(images) > 1 else text, {})
        began = time.process_time()
        image = runner.read(images[-1], {})["image"][0].float()
        return image, time.process_time() - began

    def measure(self, table: Table, row: Row, scene: int) -> None:
        """Render and judge one picture, and write a line, where there is none."""
        if (table.name, row.name, scene) in self.done:
            return
        image, seconds = self.picture(table.plain | row.fields, scene)
        plain, _ = self.picture(table.plain, scene)
        error = float((image - plain).div(2).square().mean())
        wanted = sample_scene(scene)
        logits = self.extractor.net.classify(self.extractor.extract((image[None] + 1) * 127.5)["features"])["texture"]
        line = {
            "table": table.name,
            "row": row.name,
            "scene": scene,
            "psnr": None if error == 0.0 else -10 * math.log10(error),
            "right": judge(image, wanted).right,
            "texture": TEXTURES[int(logits.argmax())] == wanted.texture,
            "seconds": seconds,
        }
        self.done[table.name, row.name, scene] = line
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def summary(row: str, lines: list[dict[str, Any]], plain: list[dict[str, Any]]) -> str:
    """Return one line of a table: means, and medians of PSNR, of seconds and of their ratio to the plain row."""
    right, texture = (100 * sum(line[name] for line in lines) / len(lines) for name in ("right", "texture"))
    apart = [line["psnr"] for line in lines if line["psnr"] is not None]
    psnr = f"{median(apart):.0f} dB" if apart else "-"
    seconds = median(line["seconds"] for line in lines)
    ratio = median(line["seconds"] / other["seconds"] for line, other in zip(lines, plain, strict=True))
    return f"| {row} | {right:.0f} | {texture:.0f} | {psnr} | {seconds:.2f} | {ratio:.2f} |"


def main() -> None:
    """Parse, measure what is missing, print a table for each method and size."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--count", type=int, default=48, help="pictures of each row")
    asked.add_argument("--home", type=Path, default=Path("build/accelerations"))
    asked.add_argument("--threads", type=int, default=1)
    given = asked.parse_args()
    torch.set_num_threads(given.threads)
    given.home.mkdir(parents=True, exist_ok=True)
    session = Session(Home(given.home), RunOptions(threads=given.threads), Terminal(quiet=True))
    extractor = load_extractor(find_weights("shapes", given.home), torch.device("cpu"))
    assert isinstance(extractor, ShapesExtractor)
    bench = Bench(session, extractor, given.home / "accelerations.jsonl")
    bench.picture({"width": 128, "height": 128, "method": {"name": "direct"}, "steps": 2}, FIRST_SCENE - 1)  # warms up
    for table in tables():
        scenes = range(FIRST_SCENE, FIRST_SCENE + max(1, round(given.count * table.share)))
        for scene in scenes:
            for row in table.rows:
                bench.measure(table, row, scene)
        print(f"\n{table.name}, n = {len(scenes)}\n\n| | right % | texture % | PSNR to plain | s | of plain |")
        print("|---|---|---|---|---|---|")
        lines = {row: [bench.done[table.name, row.name, scene] for scene in scenes] for row in table.rows}
        for row in table.rows:
            print(summary(row.name, lines[row], lines[table.rows[0]]), flush=True)
    print(json.dumps(here(torch.device("cpu"))))


if __name__ == "__main__":
    main()
