"""`freescale compare` on the embedded model: the folder it writes, the page in a real browser, and refusals."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageChops

from flows.cli import app as cli
from flows.compare.layout import prepare_comparison
from flows.home import Home
from flows.pages.html import contact_sheet, html
from flows.pages.pyramid import TILE, write_pyramid
from flows.rendering.session import Result, Session
from stages.errors import SpecError
from stages.metrics.grid import make_grid

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.rendering.job import Job

SMALL = ["--size", "192x128", "--steps", "3", "--threads", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def compare(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command; return exit code, output and errors."""

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["freescale", "compare", *words, *SMALL, "--home", str(home)])
            patch.setattr("signal.signal", lambda *given: None)
            with pytest.raises(SystemExit) as end:
                cli.main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return run


@pytest.fixture
def folder(compare: Callable[..., tuple[int, str, str]], tmp_path: Path) -> Path:
    """A finished comparison of two methods on two prompts."""
    out = tmp_path / "compared"
    code, _, errors = compare(
        "--method", "freescale/no-fusion", "--method", "direct", "--count", "2", "--out", str(out)
    )
    assert code == 0, errors
    return out


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "comparison.json").read_text()))


@pytest.mark.thorough
def test_a_cell_is_the_picture_that_render_makes(folder: Path, home: Path) -> None:
    row = record(folder)["rows"][0]
    for cell in row["cells"]:
        made = Home(home).outputs(cell["run"]) / f"level-{0 if cell['method'] == 'direct' else 1}-192x128.png"
        assert (folder / cell["picture"]["file"]).read_bytes() == made.read_bytes()
    job = prepare_comparison(
        make_grid({"methods": ["direct"], "prompts": [row["prompt"]], "sizes": ["192x128"], "steps": 3}), Home(home)
    )
    assert job.jobs[0].job.run == row["cells"][1]["run"]


def test_the_record_has_every_cell_and_an_ablation_is_what_it_says(folder: Path) -> None:
    found = record(folder)
    assert found["methods"] == ["freescale/no-fusion", "direct"]
    assert [[c["method"] for c in row["cells"]] for row in found["rows"]] == [found["methods"]] * 2
    assert all(c["state"] == "done" and c["seconds"] > 0 for row in found["rows"] for c in row["cells"])
    assert found["spec"]["methods"][0]["method"] | {"fusion": False} == found["spec"]["methods"][0]["method"]


def test_the_record_says_the_models_own_values_and_is_the_same_comparison_again(folder: Path, home: Path) -> None:
    found = record(folder)
    assert found["spec"]["methods"][0]["method"]["restart"] == 0.9  # of the card of `shapes`; a method's own is 0.3
    again = prepare_comparison(make_grid(found["spec"]), Home(home))
    assert again.name == found["comparison"]
    assert [cell.queued.job.spec.method for cell in again.rows[0].cells] == [e.method for e in again.spec.methods]


def test_a_method_may_have_steps_and_guidance_of_its_own(home: Path) -> None:
    slow = {"name": "direct", "label": "slow", "steps": 9, "guidance_scale": 0.0}
    grid = make_grid({"methods": ["direct", slow], "prompts": ["a red disc on snow"], "sizes": ["128x128"], "steps": 3})
    plain, own = (cell.queued.job.spec for cell in prepare_comparison(grid, Home(home)).rows[0].cells)
    assert (plain.steps, own.steps, own.guidance_scale) == (3, 9, 0.0)
    assert plain.guidance_scale != 0
    with pytest.raises(SpecError, match=r"methods.*steps"):
        make_grid({"methods": [slow | {"steps": 0}]})


def test_the_sheet_shows_every_picture(folder: Path) -> None:
    sheet = Image.open(folder / "contact-sheet.png")
    assert sheet.size == (8 + 2 * (256 + 8), 40 + 2 * (256 + 20 + 8))
    for number, row in enumerate(record(folder)["rows"]):
        for column, cell in enumerate(row["cells"]):
            picture = Image.open(folder / cell["picture"]["file"]).convert("RGB")
            left, top = 8 + column * 264, 20 + number * 284 + 20
            assert not ImageChops.difference(sheet.crop((left, top, left + 192, top + 128)), picture).getbbox()


def test_typed_again_nothing_is_rendered_and_nothing_changes(
    folder: Path, compare: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    code, _, errors = compare(
        "--method", "freescale/no-fusion", "--method", "direct", "--count", "2", "--out", str(folder)
    )
    assert code == 0
    assert "reused" in errors
    assert " s\n" not in errors
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_another_comparison_is_not_written_over(folder: Path, compare: Callable[..., tuple[int, str, str]]) -> None:
    before = (folder / "comparison.json").read_bytes()
    code, _, errors = compare("--method", "direct", "--count", "1", "--out", str(folder))
    assert (code, "is of another comparison" in errors) == (2, True)
    assert (folder / "comparison.json").read_bytes() == before


@pytest.mark.thorough
def test_what_fails_is_set_aside_and_shown_as_such(
    compare: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = Session.render

    def faulty(self: Session, job: Job, out: Path | None = None, overwrite: bool = False) -> Result:
        if job.spec.method.name == "direct":
            raise SpecError("<poisoned>")
        return render(self, job, out, overwrite)

    monkeypatch.setattr(Session, "render", faulty)
    words = (
        "--method",
        "freescale",
        "--method",
        "direct",
        "--count",
        "1",
        "--seed",
        "5",
        "--out",
        str(tmp_path / "out"),
    )
    code, _, errors = compare(*words)
    assert (code, "1 done, 1 set aside" in errors) == (1, True)
    cell = record(tmp_path / "out")["rows"][0]["cells"][1]
    assert (cell["state"], cell["error"], "picture" in cell) == ("set aside", "SpecError: <poisoned>", False)
    assert "<poisoned>" not in (tmp_path / "out" / "index.html").read_text()  # escaped inside the page's data
    monkeypatch.undo()
    code, _, _ = compare(*words, "--again")
    assert (code, "picture" in record(tmp_path / "out")["rows"][0]["cells"][1]) == (0, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--method", "nothing"), "methods.0.method"),
        (("--method", "direct", "--method", "direct"), "methods has 'direct' twice"),
        (("--prompts", "none.txt"), "none.txt does not exist"),
        (("--size", "1001x512"), "1001"),
        (("--model", "nowhere"), "model"),
    ],
)
def test_refusals(compare: Callable[..., tuple[int, str, str]], words: tuple[str, ...], says: str) -> None:
    code, _, errors = compare(*words)
    assert (code, says in errors, errors.count("\n")) == (2, True, 1), errors


def test_a_sheet_of_many_rows_stays_small() -> None:
    cells = [{"method": "m", "state": "left"}]
    sheet = Image.open(BytesIO(contact_sheet(Path(), ["m"], [("long words " * 9, cells)] * 800)))
    assert max(sheet.size) <= 16_384


# ---------------------------------------------------------------- tiles and the page


def gradient(width: int, height: int) -> Image.Image:
    """Red by column, green by row: every place has its colour."""
    red = Image.linear_gradient("L").rotate(90).resize((width, height))
    green = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (red, green, Image.new("L", (width, height), 128)))


def png(picture: Image.Image) -> bytes:
    out = BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_tiles_put_together_are_the_picture(tmp_path: Path) -> None:
    picture = gradient(2500, 1300)
    pyramid = write_pyramid(png(picture), tmp_path, "wide")
    assert (pyramid.levels, pyramid.folder) == (3, "pictures/wide")
    whole = Image.new("RGB", picture.size)
    for path in (tmp_path / "pictures" / "wide").glob("0-*.png"):
        _, x, y = map(int, path.stem.split("-"))
        whole.paste(Image.open(path), (x * TILE, y * TILE))
    assert not ImageChops.difference(whole, picture).getbbox()
    smallest = Image.open(tmp_path / pyramid.thumbnail)
    assert smallest.size == (625, 325)
    difference = ImageChops.difference(smallest.convert("RGB"), picture.resize((625, 325), Image.Resampling.BOX))
    assert max(high for _, high in difference.getextrema()) <= 2


def test_a_small_picture_is_its_own_tile(tmp_path: Path) -> None:
    data = png(gradient(64, 64))
    pyramid = write_pyramid(data, tmp_path, "small")
    assert (pyramid.levels, pyramid.folder, pyramid.thumbnail) == (1, None, "pictures/small.png")
    assert (tmp_path / pyramid.file).read_bytes() == data


def test_the_page_shows_the_row_and_zooms_all_at_once(folder: Path, browser: Any) -> None:
    browser.open(folder / "index.html")
    assert browser.run("[...document.querySelectorAll('h2')].map((h) => h.textContent)") == [
        f"{row['prompt']} · seed 0 · 192x128" for row in record(folder)["rows"]
    ]
    assert browser.run("[...document.images].every((i) => i.naturalWidth === 192)")
    browser.run("document.querySelector('img').click()")
    assert browser.run("document.querySelectorAll('.pane').length") == 2
    shown = []
    for pane in range(2):
        view = f"document.querySelectorAll('.pane')[{pane}].getBoundingClientRect()"
        shown.append([browser.run(f"{view}.{side}") for side in ("left", "top", "width", "height")])
    browser.until("document.querySelector('.percent').textContent !== ''")
    browser.drawn()
    x, y, width, height = shown[1]
    middle = (x + width / 2, y + height / 2)
    for _ in range(3):  # the wheel over one pane turns both
        browser.call("Input.dispatchMouseEvent", type="mouseWheel", x=middle[0], y=middle[1], deltaX=0, deltaY=-300)
    browser.drawn()
    screen = browser.screenshot()
    for (left, top, w, h), cell in zip(shown, record(folder)["rows"][0]["cells"], strict=True):
        picture = Image.open(folder / cell["picture"]["file"]).convert("RGB")
        seen = screen.getpixel((int(left + w / 2), int(top + h / 2)))
        near = picture.crop((94, 62, 98, 66)).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        assert max(abs(a - b) for a, b in zip(seen, near, strict=True)) < 24, cell["method"]
    browser.run("dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    assert not browser.run("document.querySelector('#viewer').classList.contains('open')")


def test_the_viewer_loads_only_the_tiles_in_sight(tmp_path: Path, browser: Any) -> None:
    picture = gradient(4096, 4096)
    pyramid = write_pyramid(png(picture), tmp_path, "large").as_json()
    cells = [{"method": "large", "state": "done", "seconds": None, "picture": pyramid}]
    rows = [{"prompt": "</script><b>", "seed": 0, "size": "4096x4096", "cells": cells}]
    page = tmp_path / "index.html"
    page.write_text(html("compare", "large", {"rows": rows}), encoding="utf-8")
    browser.open(page)
    browser.run(
        """(() => {
          window.loaded = [];
          const src = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, 'src');
          const set = function (path) { loaded.push(path.split('/').pop()); src.set.call(this, path); };
          Object.defineProperty(HTMLImageElement.prototype, 'src', { get: src.get, set });
        })()"""
    )
    browser.run("document.querySelector('img').click()")
    loaded = "window.loaded"
    browser.until(f"{loaded}.includes('2-0-0.png')")
    assert not any(name.startswith("0-") for name in browser.run(loaded))
    browser.run("[...document.querySelectorAll('#viewer button')].find((b) => b.textContent === '1:1').click()")
    browser.until(f"{loaded}.includes('0-2-2.png')")
    near = {f"0-{x}-{y}.png" for x in (1, 2) for y in (1, 2)}
    assert {name for name in browser.run(loaded) if name.startswith("0-")} <= near
    assert browser.run("document.querySelector('.percent').textContent") == "100 %"
    browser.drawn()
    box = [
        browser.run(f"document.querySelector('.pane').getBoundingClientRect().{s}") for s in ("width", "height", "top")
    ]
    seen = browser.screenshot().getpixel((int(box[0] / 2) + 40, int(box[2] + box[1] / 2) + 40))
    true = picture.getpixel((2048 + 40, 2048 + 40))
    assert max(abs(a - b) for a, b in zip(seen, true, strict=True)) <= 2
