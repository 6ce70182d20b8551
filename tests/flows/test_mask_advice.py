"""Masks that cannot show are told before a render, with what would make them show; the pictures agree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from flows.cli.flags import asked
from flows.home import Home
from flows.rendering.advice import remarks
from flows.rendering.export import file_name
from flows.rendering.job import prepare
from flows.rendering.mask_advice import mask_remarks
from flows.rendering.session import Session
from stages.errors import SpecError
from stages.observer import NullObserver
from stages.spec import RunOptions, make_spec

if TYPE_CHECKING:
    from flows.rendering.job import Job

EXAMPLES = Path(__file__).parents[2] / "examples"
MASK = str(EXAMPLES / "middle.png")
PLAIN = {"detail_scale": 0.5, "restart": 0.3}


def job(home: Path, mask: str = MASK, scale: float = 20.0, redo: str | None = None, **method: Any) -> Job:
    spec = {"prompt": "a red disc", "width": 256, "height": 256, "method": {"name": "freescale", **method}}
    regions = [{"mask": mask, "detail_scale": scale}]
    changed = {"redo": [{"stage": redo, "level": 1, "regions": regions}]} if redo else {"regions": regions}
    return prepare(make_spec(spec | changed), Home(home), origin="a-red-disc-0-00000000" if redo else None)


@pytest.mark.parametrize(
    ("values", "why", "way"),
    [
        ({"detail_scale": 0.5}, "hardly shows: its detail scale is 20 and that around it 0.5, in 2 of 30", "0.7 or"),
        ({}, "hardly shows: its detail scale is 20 and that around it 2, in 2 of 30", "a detail scale of 0 in it"),
        ({"detail_scale": 20.0, "restart": 0.3}, "does nothing: its detail scale is 20 and that around it 20", "of 0."),
        ({"lerp": False}, "does nothing: with lerp off", "leave out --no-lerp"),
        ({"redo": "detail_pass", "restart": 0.3}, "hardly shows: its detail scale is 20 and", "--from highres_denoise"),
        ({"redo": "detail_pass", "dilation": [0, 1]}, "does nothing: its detail scale is 20", "--from renoise --rest"),
        ({"redo": "renoise"}, "hardly shows", "--from renoise --restart 0.4"),
    ],
)
def test_a_mask_that_cannot_show_is_told(tmp_path: Path, values: dict[str, Any], why: str, way: str) -> None:
    made = job(tmp_path, **values)
    (said,) = mask_remarks(made)
    assert said.startswith(f"mask 'middle.png' {why}")
    assert way in said
    assert f"one: {said}" in remarks([("one", made)], torch.device("cpu"))


@pytest.mark.parametrize(
    "values",
    [
        PLAIN,
        {"detail_scale": 0.5, "restart": 0.7},
        {"detail_scale": 0.0},
        {"scale": 0.0},
        {"redo": "renoise", **PLAIN},
        {"redo": "highres_denoise", **PLAIN},
    ],
)
def test_a_mask_that_shows_needs_no_word(tmp_path: Path, values: dict[str, Any]) -> None:
    assert list(mask_remarks(job(tmp_path, **values))) == []


def test_what_is_said_to_work_works(tmp_path: Path) -> None:
    """The options that the remarks above name."""
    assert list(mask_remarks(job(tmp_path, restart=0.4))) == []
    assert list(mask_remarks(job(tmp_path, scale=0.0))) == []
    assert list(mask_remarks(job(tmp_path, redo="highres_denoise", restart=0.3))) == []


def test_a_mask_without_white_is_told(tmp_path: Path) -> None:
    black, dot, spot = Image.new("L", (64, 64)), Image.new("L", (1024, 1024)), Image.new("L", (1024, 1024))
    dot.paste(255, (8, 8, 10, 10))
    spot.paste(255, (0, 0, 64, 64))
    said = {}
    for name, picture in (("black", black), ("dot", dot), ("spot", spot)):
        picture.save(tmp_path / f"{name}.png")
        said[name] = list(mask_remarks(job(tmp_path, str(tmp_path / f"{name}.png"), 3.0, **PLAIN)))
    assert [sentence.partition(";")[0] for sentence in (*said["black"], *said["dot"])] == [
        "mask 'black.png' does nothing: it is black in every latent cell",
        "mask 'dot.png' hardly shows: its whitest latent cell is 0.39 % white",
    ]
    assert said["spot"] == []


def test_a_mask_at_one_level_is_told_and_checked(tmp_path: Path) -> None:
    spec = {"prompt": "a red disc", "width": 64, "height": 64, "regions": [{"mask": MASK, "detail_scale": 3}]}
    (said,) = mask_remarks(prepare(make_spec(spec), Home(tmp_path)))
    assert said == (
        "mask 'middle.png' does nothing: a mask acts where a picture is enlarged, and this render has one level; "
        "256x256 has more"
    )
    (said,) = mask_remarks(prepare(make_spec(spec | {"cascade": [[64, 64]]}), Home(tmp_path)))
    assert said.endswith("give the cascade more")
    spec["regions"] = [{"mask": str(tmp_path / "none.png"), "detail_scale": 3}]
    with pytest.raises(SpecError, match=r"regions\.0\.mask: .*none\.png' is not a file"):
        prepare(make_spec(spec), Home(tmp_path))


def test_a_redo_with_a_mask_needs_detail_control() -> None:
    redo = [{"stage": "detail_pass", "level": 1, "regions": [{"mask": MASK, "detail_scale": 3}]}]
    with pytest.raises(SpecError, match="regions need a method with detail control; 'scalecrafter' has none"):
        make_spec({"prompt": "a red disc", "method": {"name": "scalecrafter"}, "redo": redo})


def test_the_example_shows_its_mask_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = asked(str(EXAMPLES / "regions.yaml"), {}, [], Home(tmp_path), None)
    assert list(mask_remarks(found.job)) == []


@pytest.mark.thorough
def test_the_pictures_agree_with_what_is_said(tmp_path: Path) -> None:
    """Where a mask is told not to show, no pixel changes by more than 10 levels; where nothing is said, many do."""
    home = Home(tmp_path)
    home.make()
    session = Session(home, RunOptions(device="cpu", threads=1), NullObserver())

    def made(regions: list[dict[str, Any]], restart: float) -> tuple[torch.Tensor, list[str]]:
        values = {"width": 128, "height": 128, "cascade": [[64, 64], [128, 128]], "steps": 6, "regions": regions}
        method = {"name": "freescale", "detail_scale": 0.5, "restart": restart}
        whole = prepare(make_spec({"prompt": "a striped red disc", "method": method, **values}), home)
        export = whole.plan.exports[-1]
        with Image.open(session.runner(whole).file_path(export, file_name(export), {})) as picture:
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return pixels.view(128, 128, 3)[48:80, 48:80].int(), list(mask_remarks(whole))

    for restart, shows in ((0.75, False), (0.25, True)):
        plain, _ = made([], restart)
        masked, said = made([{"mask": MASK, "detail_scale": 20.0}], restart)
        assert bool(said) is not shows
        largest = int((plain - masked).abs().max())
        assert (largest > 25) if shows else (largest <= 10)
