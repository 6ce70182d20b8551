"""`freescale prune` on real renders: pictures and unfinished runs stay, and what went is made again to the bit."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from flows.cli import app as cli
from flows.cli.flags import redo_spec
from flows.cli.terminal import Terminal
from flows.home import Home
from flows.rendering.job import prepare
from flows.rendering.prune import needless, parse_age, parse_max_size, prune
from stages.errors import SpecError, sentence
from stages.planner.amounts import ALLOWED, parse_bytes
from stages.runner import Interrupted, Runner
from stages.spec import RunOptions, make_spec
from tests.homes import session_in
from tests.processes import freescale

if TYPE_CHECKING:
    from pathlib import Path

    from flows.rendering.job import Job
    from flows.rendering.session import Result, Session
    from flows.rendering.stop import StopEvent

SMALL: dict[str, Any] = {"prompt": "a red disc on sand", "width": 160, "height": 128, "steps": 4}
SMALL["method"] = {"name": "freescale", "restart": 0.3, "dilation": [0.0, 0.7]}
NONE = timedelta(0)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one render, which every test gets a copy of."""
    folder = tmp_path_factory.mktemp("rendered")
    done(Home(folder))
    return folder


@pytest.fixture
def home(rendered: Path, tmp_path: Path) -> Home:
    shutil.copytree(rendered, tmp_path / "home")
    return Home(tmp_path / "home")


def session(home: Home) -> Session:
    return session_in(home.root, threads=1, checkpoint_every=0)


def done(home: Home, **changes: Any) -> tuple[Job, Result]:
    job = prepare(make_spec(SMALL | changes), home)
    return job, session(home).render(job)


def gone(home: Home, **wanted: Any) -> set[str]:
    found = needless(home, NONE, **wanted)
    return {one.name for one in prune(home, found, found)[0]}


@pytest.mark.thorough
def test_pictures_stay_and_what_they_were_made_from_is_made_again(home: Home) -> None:
    job, first = done(home)
    exports = {call.key for call in job.plan.exports}
    assert gone(home) == {call.key for call in job.plan.calls} - exports
    assert set(home.store.list_keys()) == exports
    again = session(home).render(job)
    assert all(outcome.reused for outcome in again.outcomes)
    spec = redo_spec(
        job.spec, "detail_pass", len(job.plan.sizes) - 1, {"seed": None, "guidance_scale": 2.0, "mask": None}, []
    )
    quiet = Home(home.root / "quiet")
    expected = session(quiet).render(prepare(spec, quiet)).pixels_sha256
    assert session(home).render(prepare(spec, home)).pixels_sha256 == expected != first.pixels_sha256


@pytest.mark.thorough
def test_an_unfinished_run_keeps_all_and_goes_on(tmp_path: Path) -> None:
    home = Home(tmp_path)
    job = prepare(make_spec(SMALL), home)
    working = session(home)
    working.observer = Stopping(working.stop)
    with pytest.raises(Interrupted):
        working.render(job)
    before = {str(path) for path in home.store.root.rglob("*")}
    assert gone(home) == set()
    assert {str(path) for path in home.store.root.rglob("*")} == before
    resumed = session(home).render(job)
    assert any(outcome.resumed_at_step for outcome in resumed.outcomes)
    quiet = Home(home.root / "quiet")
    assert resumed.pixels_sha256 == session(quiet).render(prepare(make_spec(SMALL), quiet)).pixels_sha256


class Stopping(Terminal):
    """Asks to stop inside the second level."""

    def __init__(self, stop: StopEvent) -> None:
        super().__init__(quiet=True)
        self.stop = stop

    def stepped(self, call: Any, step: int) -> None:
        if call.level == 1:
            self.stop.set()


def test_what_another_run_shares_stays_when_one_run_is_pruned(home: Home) -> None:
    one, _ = done(home)
    other, _ = done(home, method=SMALL["method"] | {"fusion": False})
    shared = {c.key for c in one.plan.calls} & {c.key for c in other.plan.calls}
    went = gone(home, run=one.run)
    assert went
    assert not went & shared
    with pytest.raises(SpecError, match="run: 'nobody' "):
        needless(home, NONE, run="nobody")


def test_a_limit_takes_the_oldest_and_no_more(home: Home) -> None:
    done(home)
    everything = needless(home, NONE)
    first = needless(home, NONE, most=sum(f.stat().st_size for f in home.store.root.rglob("*") if f.is_file()) - 1)
    assert first == everything[:1]
    assert needless(home, NONE, most=2**40) == []


def test_readings_stay_unless_asked_for(home: Home) -> None:
    done(home)
    with home.store.writing("ab" * 32, stage="features", version=1) as writer:
        writer.put_file("reading", b"1")
    assert "ab" * 32 not in {one.name for one in needless(home, NONE)}
    assert "ab" * 32 in {one.name for one in needless(home, NONE, readings=True)}


def test_an_unreadable_record_stops_all(home: Home) -> None:
    job, _ = done(home)
    (home.runs.folder(job.run) / "run.json").write_text("{}")
    with pytest.raises(SpecError, match=f"run: {job.run} cannot be read, so nothing is pruned"):
        needless(home, NONE)


def test_an_artifact_pruned_under_a_reader_is_made_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    job, first = done(home)
    ensure, swept = Runner.ensure, list[str]()

    def vanishing(self: Runner, call: Any, outcomes: Any) -> str:
        key = ensure(self, call, outcomes)
        if not swept and call.stage.name == "export" and call.level == 1:
            manifest = home.store.find(key)
            assert manifest is not None
            home.store.drop(manifest)
            swept.append(key)
        return key

    monkeypatch.setattr(Runner, "ensure", vanishing)
    assert session(home).render(job).pixels_sha256 == first.pixels_sha256
    assert swept


@pytest.mark.thorough
def test_beside_a_running_worker(home: Home) -> None:
    """Pruned with no grace for as long as another process renders."""
    done(home)  # something to sweep that the other process will want
    code = ["render", SMALL["prompt"], "--size", "160x128", "--steps", "4", "--restart", "0.3", "--seed", "1"]
    words = [*code, "--home", str(home.root), "--threads", "1", "--json", "--out", str(home.root / "out.png")]
    process = freescale(home.root / "told", *words)
    while process.exitcode is None:
        gone(home)
    assert process.exitcode == 0, (home.root / "told.err").read_text()
    out = (home.root / "told.out").read_text()
    quiet = Home(home.root / "quiet")
    expected = session(quiet).render(prepare(make_spec(SMALL | {"seed": 1}), quiet)).pixels_sha256
    assert json.loads(out.splitlines()[-1])["pixels_sha256"] == expected


def test_command_line(home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["freescale", *words, "--home", str(home.root)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    done(home)
    before = set(home.store.list_keys())
    assert call("prune", "--older-than", "0h") == 0
    assert "nothing was deleted; --delete does it" in capsys.readouterr().out
    assert set(home.store.list_keys()) == before
    assert call("prune", "--older-than", "0h", "--delete", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["deleted"]
    assert told["counts"]["artifact"] == len(before - set(home.store.list_keys()))
    for bad in (("--older-than", "soon"), ("--max-size", "much"), ("--run", "nobody")):
        assert call("prune", *bad) == 2
        assert bad[1] in capsys.readouterr().err
    assert call("pause") == 0
    assert (home.root / "paused").exists()
    assert call("unpause") == 0
    assert not (home.root / "paused").exists()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("16GiB", 16 * 2**30),
        ("50GB", 50 * 10**9),
        ("1.5 gib", 3 * 2**29),
        ("800MB", 800_000_000),
        ("2g", 2 * 10**9),
        ("2Gi", 2 * 2**30),
        ("7 kB", 7000),
        ("3TiB", 3 * 2**40),
        ("4096", 4096),
        (" 1B ", 1),
    ],
)
def test_an_amount_is_the_same_at_every_door(text: str, count: int) -> None:
    assert parse_max_size(text) == count
    assert RunOptions(memory=text).memory == count  # type: ignore[arg-type]
    assert RunOptions(vae_memory=text).vae_memory == count  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "-1GiB", "+1GiB", "1e9", "1.2.3", "16 gallons", "8bit", "16GiB more", "nan", "True", "\u0661GiB"],
)
def test_what_is_no_amount_is_refused_at_every_door_in_one_sentence(text: str) -> None:
    with pytest.raises(SpecError) as refused:
        parse_max_size(text)
    assert str(refused.value) == f"max_size: {text!r} {ALLOWED}"
    for name in ("memory", "vae_memory"):
        assert said_of(name, text) == f"{name}: {text!r} {ALLOWED}"


@pytest.mark.parametrize("value", [True, False, -1, 1.5, float("inf"), float("nan")])
def test_a_number_of_bytes_is_whole_and_not_negative(value: object) -> None:
    with pytest.raises(ValueError, match="not a number of bytes"):
        parse_bytes(value)
    for name in ("memory", "vae_memory"):
        assert said_of(name, value) == f"{name}: {value!r} {ALLOWED}"


def test_zero_is_the_size_of_an_empty_store_and_no_memory_to_render_in() -> None:
    assert parse_max_size("0GiB") == 0
    assert [RunOptions(vae_memory=zero).vae_memory for zero in (0, "never")] == [0, 0]  # type: ignore[arg-type]
    for name, zero in (("memory", 0), ("memory", "0"), ("memory", "0GiB"), ("vae_memory", "0")):
        assert said_of(name, zero) == f"{name}: {zero!r} {ALLOWED}"


def said_of(name: str, value: object) -> str:
    """The sentence in which an option of a run refuses a value."""
    with pytest.raises(ValidationError) as refused:
        RunOptions.model_validate({name: value})
    return sentence(refused.value)


def test_ages() -> None:
    assert parse_age("12h") == timedelta(hours=12)
    assert parse_age("2w") == timedelta(weeks=2)
