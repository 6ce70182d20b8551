"""Values that would be taken for others: flags for numbers, nothing for something, words for lists, long names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.doorstep.harness import Case, check, table

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

LONG, WIDE = "a" * 300, "\u00e9" * 130
TOO_LONG = ("is too long for a file's name",)
ADDRESS = ("is an address; name a file or a folder of this machine",)


def written(name: str, field: str, *says: str) -> Case:
    """A spec of a prompt with one more field, in line 2."""
    return Case(name, "plan s.yaml", says=("s.yaml:2: ", *says), files={"s.yaml": f"prompt: x\n{field}\n"})


@table(
    written("seed", "seed: true", "seed: true is a flag, and this field takes none"),
    written("steps", "steps: false", "steps: false is a flag"),
    written("guidance", "guidance_scale: true", "guidance_scale: true is a flag"),
    written("width", "width: true", "width: true is a flag"),
    written("of-a-method", "method: {name: freescale, restart: true}", "method.restart: true is a flag"),
    written("of-a-region", "regions: [{mask: a.png, detail_scale: true}]", "regions.0.detail_scale: true is a flag"),
    written("of-a-redo", "redo: [{stage: upscale, level: true}]", "redo.0.level: true is a flag"),
    written("of-a-model", "model: {name: true}", "model.name: true is a flag"),
    Case(
        "in-json",
        "plan s.json",
        says=("s.json:1: seed: true is a flag",),
        files={"s.json": '{"prompt": "x", "seed": true}'},
    ),
    Case(
        "in-jobs",
        "batch j.yaml",
        says=("j.yaml:1: seed: true is a flag", "j.yaml:2: priority: True"),
        files={"j.yaml": "- {prompt: x, seed: true}\n- {prompt: x, priority: true}\n"},
        lines=3,
    ),
    Case("right", "plan s.yaml", code=0, files={"s.yaml": "prompt: x\nsize: 128x128\nmethod: {fusion: false}\n"}),
)
def test_flags_for_numbers(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    written("seed", "seed:", "seed: is null, not a whole number; give one, or leave the field out"),
    written("width", "width: null", "width: is null"),
    written("model", "model:", "model: is null, not a mapping"),
    written("regions", "regions: ~", "regions: is null, not a list"),
    written("image", "image: ''", "image: is empty; name a picture"),
    written("mask", "regions: [{mask: '', detail_scale: 1}]", "regions.0.mask: is empty"),
    Case("right", "plan s.yaml", code=0, files={"s.yaml": "prompt: x\nsize: 128x128\nsteps:\nimage:\n"}),
)
def test_nothing_for_something(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    written("layers", "method: {name: scalecrafter, layers: mid_block}", "write [[text, number], ...]"),
    written("disperse", "method: {name: scalecrafter, disperse_layers: mid_block}", "write [text, ...]"),
    written("dilation", "method: {name: freescale, dilation: 0.5}", "write [number, number]"),
    written("regions", "regions: {mask: a.png, detail_scale: 2}", "write [{mask: ..., detail_scale: ...}, ...]"),
    written("redo", "redo: {stage: upscale}", "is not a list; write [{stage: ..."),
    written("short", "method: {name: freescale, freeu: [1, 2, 3]}", "method.freeu: [1, 2, 3] has no entry 4"),
    written(
        "short-inside", "method: {name: scalecrafter, layers: [[mid_block]]}", "method.layers.0: ['mid_block'] has no"
    ),
    Case(
        "option",
        "plan x --method hidiffusion --rad 0.5",
        says=("method.rad: 0.5 is not a list; write [number, number]",),
    ),
    Case(
        "size-as-a-mapping", "plan s.yaml", says=("128x128",), files={"s.yaml": "prompt: x\nsize: {w: 128, h: 128}\n"}
    ),
)
def test_words_for_lists(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    Case("out", f"render x --out {LONG}.png", says=TOO_LONG),
    Case("out-folder", f"render x --out {LONG}/x.png", says=TOO_LONG),
    Case("home", f"runs --home {LONG}", says=TOO_LONG),
    Case("image", f"plan x --image {LONG}.png", says=("image: ", *TOO_LONG)),
    Case("mask", f"plan x --mask {LONG}.png:3", says=("mask: ", *TOO_LONG)),
    Case("input-root", f"plan x --input-root {LONG}", says=TOO_LONG),
    Case("spec", f"plan {LONG}.yaml", says=TOO_LONG),
    Case("jobs", f"batch {LONG}.yaml", says=TOO_LONG),
    Case("of-a-comparison", f"compare --out {LONG}", says=TOO_LONG),
    Case("of-a-conversion", f"convert inception {LONG}.pth", says=TOO_LONG),
    Case("model", f"plan x --model {LONG}", says=("is not on disk",)),
    Case("run", f"show {LONG}", says=("does not exist",)),
    Case("two-bytes-a-letter", f"render x --out {WIDE}.png", says=TOO_LONG),
    Case("right-words", f"plan {LONG} --size 128x128 --steps 2", code=0, says=("base_denoise",)),
)
def test_names_that_no_file_can_have(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@table(
    Case("out", "render x --out https://x.org/y.png", says=ADDRESS),
    Case("home", "runs --home s3://bucket/prefix", says=ADDRESS),
    Case("image", "plan x --image https://x.org/y.png", says=("image: 'https://x.org/y.png'", *ADDRESS)),
    Case("mask", "plan x --mask https://x.org/m.png:3", says=("mask: ", *ADDRESS)),
    Case("spec", "plan https://x.org/y.yaml", says=ADDRESS),
    Case("jobs", "batch https://x.org/j.yaml", says=ADDRESS),
    Case("input-root", "plan x --input-root file:///x", says=ADDRESS),
    written("in-a-spec", "image: https://x.org/y.png", "image: 'https://x.org/y.png'", *ADDRESS),
    Case("standard-input", "plan -", says=("'-' would be standard input",)),
    Case("options-behind-two-dashes", "plan -- x --size 128x128", says=("--size: behind `--`", "write it before")),
    Case("no-workers", "render x --workers 0", says=("workers: 0",)),
    Case("file-as-a-folder", "render x --out x.png/y.png", says=("it is no folder",), files={"x.png": "x"}),
    Case("device-as-a-folder", "render x --out /dev/null", says=("it is no folder",)),
    Case("state", "runs --state don", says=("the nearest is 'done'",)),
    written("not-like-it", "options: {}", "options: unknown field; allowed: prompt"),
)
def test_places_that_are_none(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)
