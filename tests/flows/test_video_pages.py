"""Videos on the pages: a night and a comparison of a toy video model, in a real browser where there is one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from flows.batch.jobs_file import read_jobs
from flows.batch.page import write_page
from flows.cli.terminal import Terminal
from flows.compare.layout import prepare_comparison
from flows.compare.page import write
from flows.compare.study import make_study
from flows.deployments.artifacts import picture_link
from flows.home import Home
from flows.rendering.session import Session
from stages.errors import SpecError
from stages.metrics.grid import FIRST_SCENE, make_grid
from stages.shapes_motion.videos import sample_video
from stages.spec import RunOptions
from tests.toys import VIDEO_FRAMES, video_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Folders of a comparison and of a night, and of the night's run: one video of 3 frames by two methods."""
    root = tmp_path_factory.mktemp("pages")
    home, model = Home(root / "home"), video_folder(root, "modelscope", layers=1)
    method = {"name": "freescale", "restart": 0.3, "dilation": [0.0, 0.7]}
    grid = {"model": str(model), "methods": [method, "direct"], "sizes": ["96x64"], "prompts": ["a ring"]}
    grid |= {"model": {"name": str(model)}, "frames": VIDEO_FRAMES - 1, "fps": "25/2", "steps": 2}
    comparison = prepare_comparison(make_grid(grid), home)
    session = Session(home, RunOptions(threads=1), Terminal(quiet=True))
    results = [session.render(queued.job) for queued in comparison.jobs]
    write(root / "comparison", comparison, {queued.job.run: "done" for queued in comparison.jobs}, home)
    line = {"prompt": "a ring", "size": "96x64", "frames": VIDEO_FRAMES - 1, "steps": 2, "format": "ffv1"}
    line |= {"model": str(model), "method": "direct", "seed": 0}
    (root / "jobs.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"frames": 0}))
    listed = read_jobs(root / "jobs.jsonl", home)
    assert [str(problem).split(": ")[:2] for problem in listed.problems] == [["jobs.jsonl:2", "frames"]]
    result = session.render(listed.jobs[0].job)
    assert [o.call.stage.name for o in result.outcomes if not o.reused] == ["export"]  # another file, the same video
    write_page(root / "night", listed.jobs, {listed.jobs[0].job.run: "done"}, home)
    return root / "comparison", root / "night", results[0].outputs[0].parent


@pytest.mark.thorough
def test_the_records_name_video_and_preview(told: tuple[Path, Path, Path]) -> None:
    cells = json.loads((told[0] / "comparison.json").read_text())["rows"][0]["cells"]
    for cell in cells:
        video = cell["video"]
        assert (video["width"], video["height"], video["frames"], video["fps"]) == (96, 64, VIDEO_FRAMES - 1, "25/2")
        assert video["plays"]
        assert (told[0] / video["file"]).suffix == ".mp4"
        with Image.open(told[0] / video["thumbnail"]) as preview:
            assert (preview.format, preview.size) == ("WEBP", (96, 64))
    job = json.loads((told[1] / "night.json").read_text())["jobs"][0]
    assert not job["video"]["plays"]  # no browser plays FFV1: its preview is shown
    with Image.open(told[0] / "contact-sheet.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(2**24) or ()) > 50


def test_captions_of_a_video_model_say_what_moves(tmp_path: Path) -> None:
    grid = make_grid({"model": {"name": "shapes-motion"}, "sizes": ["128x80"], "frames": 8, "count": 3})
    rows = prepare_comparison(grid, Home(tmp_path)).rows
    assert [row.prompt for row in rows] == [sample_video(FIRST_SCENE + index).caption for index in range(3)]


@pytest.mark.thorough
def test_the_preview_of_a_level_is_small_enough_for_prefect(told: tuple[Path, Path, Path]) -> None:
    strip = next(told[2].glob("level-*-strip.png"))
    assert picture_link("level 0", strip).startswith("![level 0](data:image/jpeg;base64,")


def test_a_study_asks_about_pictures_alone(told: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="shows videos; a study asks about pictures"):
        make_study(told[0], tmp_path / "study", 0, False)


def test_the_pages_show_them(told: tuple[Path, Path, Path], browser: Any) -> None:
    browser.open(told[0] / "index.html")
    shown = "[...document.querySelectorAll('figure video, figure img')]"
    assert browser.run(f"{shown}.length") == 2
    assert all(browser.run(f"{shown}.map((e) => (e.currentSrc || e.src).endsWith('.mp4') || e.tagName === 'IMG')"))
    browser.open(told[1] / "index.html")
    assert browser.run(f"{shown}.map((e) => e.tagName)") == ["IMG"]


def test_videos_of_a_row_play_together(told: tuple[Path, Path, Path], browser: Any) -> None:
    """What happens to one happens to the others, whatever the browser can decode."""
    browser.open(told[0] / "index.html")
    browser.run(
        """window.videos = [0, 1].map(() => document.createElement("video"));
        window.asked = [];
        videos.forEach((video, index) => {
          document.body.append(video);
          video.play = () => asked.push(`play ${index}`);
        });
        Videos.together(videos);"""
    )
    browser.run("videos[0].onplay(); videos[1].playbackRate = 0.5; videos[1].onratechange();")
    assert browser.run("asked") == ["play 1"]
    assert browser.run("videos[0].playbackRate") == 0.5
