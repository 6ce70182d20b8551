"""The page of a night: what became of every job, in a real browser."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from flows.batch.jobs_file import read_jobs
from flows.batch.page import costs, page_folder, write_page
from flows.batch.runner import Batch
from flows.cli.terminal import Terminal
from flows.home import Home
from flows.rendering.export import file_name
from flows.rendering.session import Session
from stages.spec import RunOptions

if TYPE_CHECKING:
    from pathlib import Path

    from flows.rendering.job import Job
    from flows.rendering.session import Result

JOBS = """
- {prompt: a red disc on sand, size: 192x128, steps: 3, name: good}
- {prompt: "<b>poison</b> & </script>", size: 192x128, steps: 3, name: poison}
- {prompt: a green ring on snow, size: 128x192, steps: 3, name: later}
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, Path]:
    """The page of a night with one job done after a retry, one set aside, one left."""
    home = Home(tmp_path_factory.mktemp("home"))
    path = home.root / "jobs.yaml"
    path.write_text(JOBS, encoding="utf-8")
    jobs = read_jobs(path, home).jobs
    render, tried = Session.render, list[str]()

    def faulty(self: Session, job: Job, out: Path | None = None, overwrite: bool = False) -> Result:
        tried.append(job.spec.prompt)
        if "poison" in job.spec.prompt:
            raise RuntimeError("a <poisoned> stage")
        return render(self, job, out, overwrite)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "render", faulty)
        patch.setattr("flows.batch.runner.BACKOFF_SECONDS", (0.0, 0.0))
        night = Batch(home, RunOptions(threads=1), Terminal(quiet=True))
        states = night.run(jobs[:2]) | {jobs[2].job.run: "left"}
    page = write_page(page_folder(home, jobs), jobs, states, home)[0]
    assert [line["state"] for line in costs(jobs, states, home)] == ["done", "set aside", "not begun"]
    return home, page


def test_the_record_has_seconds_memory_attempts_and_the_reason(told: tuple[Home, Path]) -> None:
    good, poison, later = json.loads(told[1].with_name("night.json").read_text())["jobs"]
    assert good["seconds"] == pytest.approx(sum(stage["seconds"] for stage in good["stages"]))
    assert good["peak_memory"] > 2**20
    assert [attempt["state"] for attempt in good["attempts"]] == ["done"]
    assert (poison["error"], poison["again"]) == (
        "RuntimeError: a <poisoned> stage",
        f"freescale resume {poison['run']}",
    )
    assert "Traceback" in poison["traceback"]
    assert "picture" not in later


@pytest.mark.thorough
def test_a_picture_damaged_since_costs_its_place_and_no_more(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / "jobs.txt").write_text("a red disc on sand\na green ring on snow\n", encoding="utf-8")
    defaults = {"width": 64, "height": 64, "steps": 1, "method": {"name": "direct"}}
    jobs = read_jobs(tmp_path / "jobs.txt", home, defaults).jobs
    night = Batch(home, RunOptions(threads=1), Terminal(quiet=True))
    states = night.run(jobs)
    export = jobs[0].job.plan.exports[-1]
    file = home.store.file_path(export.key, file_name(export))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    page = write_page(tmp_path / "night", jobs, states, home)[0]
    damaged, whole = json.loads(page.with_name("night.json").read_text())["jobs"]
    assert (damaged["state"], damaged["again"]) == ("damaged", f"freescale resume {damaged['run']}")
    assert "differs from its checksum" in damaged["error"]
    assert whole["state"] == "done"
    assert (page.parent / whole["picture"]["file"]).is_file()


def test_the_page_shows_every_job_and_hides_what_is_not_asked_for(told: tuple[Home, Path], browser: Any) -> None:
    browser.open(told[1])
    assert browser.run("document.querySelector('#tally').textContent").startswith("1 done, 1 set aside, 1 not begun")
    cards = browser.run("[...document.querySelectorAll('main > figure')].map((f) => f.innerText)")
    assert ["good" in cards[0], "a <poisoned> stage" in cards[1], "not begun" in cards[2]] == [True] * 3
    assert "freescale resume" in cards[1]
    assert not browser.run("document.querySelector('main b')")  # words are words, never markup
    browser.run("document.querySelectorAll('nav input')[0].click()")
    assert browser.run("[...document.querySelectorAll('main > figure')].map((f) => f.offsetParent !== null)") == [
        False,
        True,
        True,
    ]
    browser.run("document.querySelectorAll('nav input')[0].click()")


def test_a_picture_is_seen_at_full_resolution(told: tuple[Home, Path], browser: Any) -> None:
    browser.open(told[1])
    browser.run("document.querySelector('main img').click()")
    browser.run("[...document.querySelectorAll('#viewer button')].find((b) => b.textContent === '1:1').click()")
    browser.drawn()
    assert browser.run("document.querySelector('.percent').textContent") == "100 %"
    box = "document.querySelector('.pane').getBoundingClientRect()"
    width, height, top = (browser.run(f"{box}.{side}") for side in ("width", "height", "top"))
    left, upper = round(width / 2 - 96), round(top + height / 2 - 64)
    seen = browser.screenshot().crop((left + 8, upper + 8, left + 184, upper + 120))
    good = json.loads(told[1].with_name("night.json").read_text())["jobs"][0]
    with Image.open(told[1].parent / good["picture"]["file"]) as picture:
        true = picture.convert("RGB").crop((8, 8, 184, 120))
    difference = sum(
        abs(a - b) for a, b in zip(seen.resize((22, 14)).tobytes(), true.resize((22, 14)).tobytes(), strict=True)
    )
    assert difference / (22 * 14 * 3) < 3
