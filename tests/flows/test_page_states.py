"""The page of a night with every way that a job may end, in a real browser: words, narrow screens, dark."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from flows.batch.jobs_file import read_jobs
from flows.batch.page import write_page, write_running_page
from flows.batch.runner import Batch
from flows.batch.set_aside import write_set_aside
from flows.home import Home
from flows.rendering.attempts import begin_attempt, end_attempt, reached
from flows.rendering.live import LiveProgress
from flows.rendering.states import boot_id
from stages.observer import NullObserver
from stages.spec import RunOptions
from storage import Attempt

if TYPE_CHECKING:
    from collections.abc import Iterator

JOBS = """
- {prompt: a red disc on sand, name: good}
- {prompt: a job that kills its process, name: a-rather-long-name-without-any-space-that-kills-its-process, seed: 1}
- {prompt: a lost one, name: lost-one, seed: 2}
- {prompt: a cancelled one, name: cancelled-one, seed: 3}
- {prompt: a stopped one, name: stopped-one, seed: 4}
- {prompt: one that runs, name: running-one, seed: 5}
- {prompt: one that waits, name: next-one, seed: 6}
- {prompt: a bad one, steps: -3, name: bad}
"""
HERE = {"host": socket.gethostname(), "boot": boot_id()}
DEAD = 2**22 + 1  # above the largest process number of Linux
NOW = datetime.now(UTC)
# the shortest line on which a text of six letters or more is broken, in letters
SHORTEST = """
(() => {
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), range = document.createRange();
  let least = Infinity;
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const text = node.textContent.trim();
    if (text.length < 6 || !node.parentElement.getClientRects().length) continue;
    range.selectNodeContents(node);
    const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
    if (lines.size > 1) least = Math.min(least, text.length / lines.size);
  }
  return least === Infinity ? 1000 : least;
})()
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The page of a night that runs, and that of its end."""
    home = Home(tmp_path_factory.mktemp("home"))
    path = home.root / "jobs.yaml"
    path.write_text(JOBS, encoding="utf-8")
    listed = read_jobs(path, home, {"width": 64, "height": 64, "steps": 2, "method": {"name": "direct"}})
    good, killer, lost, cancelled, stopped, runs, _ = listed.jobs
    Batch(home, RunOptions(threads=1), NullObserver()).run([good])
    record, where = begin_attempt(killer.job, home), reached(killer.job, home)
    died = (
        Attempt(started=NOW - timedelta(hours=9 - number), process=DEAD, reached=where, **HERE) for number in range(3)
    )
    home.runs.save(record.revised(attempts=tuple(died)))
    write_set_aside(home, killer, RuntimeError("its process died 3 times at 0 of 4 stages"))
    record = begin_attempt(lost.job, home)
    home.runs.save(record.revised(attempts=(Attempt(started=NOW, process=DEAD, reached=where, **HERE),)))
    end_attempt(home.runs, begin_attempt(cancelled.job, home), "cancelled", "stopped in base_denoise 0 after step 1")
    end_attempt(
        home.runs, begin_attempt(stopped.job, home), "interrupted", "stopped in base_denoise 0 after step 1 (SIGHUP)"
    )
    begin_attempt(runs.job, home)
    at = LiveProgress(
        stage="base_denoise 0", step=1, steps=2, percent=37.0, seconds_left=80.0, at=datetime.now(UTC),
        host=socket.gethostname(), process=os.getpid(),
    )  # fmt: skip
    progress = home.root / "cache" / "progress"
    progress.mkdir(parents=True, exist_ok=True)
    (progress / f"{runs.job.run}.json").write_text(at.model_dump_json(), encoding="utf-8")
    running = write_running_page(home.root / "running", listed.jobs, home, listed.problems, {}, 600.0)
    ended = write_page(home.root / "ended", listed.jobs, {}, home, listed.problems)[0]
    return running, ended


@pytest.fixture
def narrow_and_dark(browser: Any) -> Iterator[Any]:
    """The browser with a telephone's width of 390 pixels that prefers dark pages."""
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    yield browser
    browser.call("Emulation.setEmulatedMedia", features=[])
    browser.call("Emulation.clearDeviceMetricsOverride")


def cards(browser: Any) -> dict[str, str]:
    """What each card says, by its name."""
    each = "(card) => [card.querySelector('strong').textContent, card.innerText]"
    return dict(browser.run(f"[...document.querySelectorAll('main > figure')].map({each})"))


def kept(browser: Any, name: str) -> None:
    """Keep what is to be seen in the folder `FREESCALE_SCREENSHOTS`, where that is set."""
    if folder := os.environ.get("FREESCALE_SCREENSHOTS"):
        browser.screenshot().save(Path(folder) / f"{name}.png")


def test_every_way_to_end_is_said_in_words(pages: tuple[Path, Path], browser: Any) -> None:
    browser.open(pages[1])
    says = cards(browser)
    tally = browser.run("document.querySelector('#tally').textContent")
    assert tally.startswith(
        "1 running, 1 done, 1 set aside, 1 left out, 1 lost, 1 cancelled, 1 stopped, 1 not begun · "
    )
    assert says["jobs.yaml:9"].startswith("left out\nsteps: -3")
    killed = says["a-rather-long-name-without-any-space-that-kills-its-process"]
    assert killed.startswith("set aside\nRuntimeError: its process died 3 times")
    assert killed.count("no progress at 0 of") == 3
    assert killed.count(" died; counted: no progress") == 3
    assert "at least 0.0 s in 3 attempts · 2 retries" in killed
    assert says["lost-one"].startswith("lost\nIts process died.\nSo far: 0 of")
    assert "freescale resume a-lost-one-2-" in says["lost-one"]
    assert says["cancelled-one"].startswith("cancelled\nstopped in base_denoise 0 after step 1\nSo far: 0 of")
    assert says["stopped-one"].startswith("stopped after step 1\n")
    assert "(SIGHUP)" in says["stopped-one"]
    assert says["next-one"].startswith("not begun\n")
    assert not browser.run("document.querySelector('#now').offsetParent")
    kept(browser, "ended")


def test_a_page_that_runs_says_what_runs_and_what_is_next(pages: tuple[Path, Path], browser: Any) -> None:
    browser.open(pages[0])
    now = browser.run("document.querySelector('#now').innerText")
    assert now.startswith("running-one base_denoise 0, step 1 of 2, ")
    assert "s left" in now
    assert "Next: cancelled-one" in now  # those that died wait for the others
    assert "Set aside: a-rather-long-name" in now
    assert browser.run("document.querySelector('#now progress').value") == 37
    kept(browser, "running")


def test_a_page_that_runs_loads_itself_again(pages: tuple[Path, Path], browser: Any) -> None:
    quick = pages[0].with_name("quick.html")
    text = pages[0].read_text(encoding="utf-8")
    quick.write_text(text.replace('"seconds":600.0', '"seconds":0.3'), encoding="utf-8")
    browser.open(quick)
    quick.write_text(text.replace("running-one", "renewed-one"), encoding="utf-8")
    browser.until("document.querySelector('#now strong')?.textContent === 'renewed-one'")


def test_nothing_is_cut_or_broken_by_letters_on_a_narrow_dark_screen(
    pages: tuple[Path, Path], narrow_and_dark: Any
) -> None:
    browser = narrow_and_dark
    for page in pages:
        browser.open(page)
        kept(browser, f"{page.parent.name}-dark-390")
        browser.run("document.querySelectorAll('details').forEach((box) => { box.open = true; })")
        browser.drawn()
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert browser.run(SHORTEST) >= 8
        browser.run("document.querySelectorAll('figure')[1].scrollIntoView()")
        browser.drawn()
        kept(browser, f"{page.parent.name}-dark-390-open")
        picture = browser.screenshot()
        assert sum(picture.getpixel((2, 400))) < 3 * 60, "a dark page"
        bad = browser.run("getComputedStyle(document.querySelector('.bad')).color")
        assert bad == "rgb(255, 138, 128)"
