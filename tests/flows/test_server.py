"""The Prefect flows against a temporary server: the results of the command line, each picture or job a task."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from prefect import get_client
from prefect.client.schemas.sorting import ArtifactSort
from prefect.exceptions import Pause
from prefect.states import Cancelling, Paused, Scheduled, Suspended

from flows.batch.jobs_file import read_jobs
from flows.deployments.compare import compare
from flows.deployments.evaluate import evaluate
from flows.deployments.overnight import overnight
from flows.deployments.render import render
from flows.deployments.tasks import FlowState
from flows.home import Home
from flows.rendering.job import prepare
from flows.rendering.session import Session
from stages.metrics.grid import make_grid
from stages.metrics.spec import make_evaluation
from stages.observer import NullObserver
from stages.spec import RunOptions, make_spec
from tests.homes import session_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from uuid import UUID

    from prefect.client.schemas.objects import Artifact
    from prefect.client.schemas.objects import State as PrefectState

    from flows.rendering.job import Job
    from flows.rendering.session import Result
    from stages.call import Call

OPTIONS = RunOptions(threads=1)

pytestmark = [
    pytest.mark.server,
    pytest.mark.thorough,
    pytest.mark.filterwarnings("default"),  # Prefect's own warnings are not ours
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: str) -> Home:
    monkeypatch.setenv("FREESCALE_HOME", str(tmp_path))
    return Home(tmp_path)


def task_runs() -> dict[str, str]:
    """Name and state of every task run, from the server."""
    with get_client(sync_client=True) as client:
        return {run.name: run.state_name or "" for run in client.read_task_runs(limit=200)}


def artifacts() -> dict[str, Artifact]:
    """The newest artifact of each key, from the server."""
    with get_client(sync_client=True) as client:
        newest_last = reversed(client.read_artifacts(sort=ArtifactSort.CREATED_DESC))
        return {artifact.key: artifact for artifact in newest_last if artifact.key is not None}


@pytest.mark.thorough
def test_evaluate_measures_and_goes_on(home: Home) -> None:
    values: dict[str, Any] = {"methods": ["direct"], "sizes": ["64x64"], "count": 2, "steps": 3, "metrics": ["kid"]}
    spec = make_evaluation(values)
    first = evaluate(spec, OPTIONS)
    before = sorted((home.root / "store" / "manifests").glob("*/*.json"))
    again = evaluate(spec, OPTIONS)
    assert [row["metric"] for row in first["rows"]] == ["kid"]
    assert again["rows"] == first["rows"]
    assert sorted((home.root / "store" / "manifests").glob("*/*.json")) == before
    assert all(
        (home.root / "evaluations" / first["evaluation"] / path.split("/")[-1]).is_file() for path in first["files"]
    )


def test_render_is_the_command_lines_and_its_stages_are_tasks(home: Home) -> None:
    spec = make_spec({"prompt": "a red disc on sand", "width": 192, "height": 128, "steps": 3})
    made = render(spec, OPTIONS)
    elsewhere = Home(home.root / "elsewhere")
    plain = session_in(elsewhere.root, threads=1).render(prepare(spec, elsewhere))
    assert made["pixels_sha256"] == plain.pixels_sha256
    states = task_runs()
    assert {states[name] for name in states if name.startswith("detail_pass 1")} == {"Completed"}


@pytest.mark.thorough
def test_compare_shows_its_pictures_and_the_server_their_states(home: Home) -> None:
    spec = make_grid(
        {"methods": ["direct", "hidiffusion"], "sizes": ["64x64"], "prompts": ["a red disc {x}"], "steps": 2}
    )
    made = compare(spec, OPTIONS)
    assert made["tally"] == {"done": 2}
    record = json.loads((home.root / "comparisons" / made["comparison"] / "comparison.json").read_text())
    for cell in record["rows"][0]["cells"]:
        assert task_runs()[f"{cell['method']}: {cell['run']}"] == "Completed"


def jobs(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def job(prompt: str, steps: int = 2) -> str:
    return json.dumps({"prompt": prompt, "size": "64x64", "steps": steps, "name": prompt.replace(" ", "-")}) + "\n"


def test_a_night_renders_what_is_in_the_folder_and_sets_aside_the_poison(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = Session.render

    def faulty(self: Session, job: Job, out: Path | None = None, overwrite: bool = False) -> Result:
        if "poison" in job.spec.prompt:
            raise RuntimeError("poisoned")
        jobs(home.root / "jobs", late=job_line("a late ring"))  # put there while the night goes on
        return render(self, job, out, overwrite)

    job_line = job
    monkeypatch.setattr(Session, "render", faulty)
    monkeypatch.setattr("flows.batch.runner.BACKOFF_SECONDS", (0.0, 0.0))
    monkeypatch.setattr("flows.deployments.running.LOOK_SECONDS", 0.05)
    jobs(home.root / "jobs", one=job("a red disc") + job("a poison square"))
    ended = overnight(options=OPTIONS, return_state=True)
    assert (ended.name, ended.type.value) == ("Incomplete", "FAILED")
    assert str(ended.message).startswith("2 done, 1 set aside; page: ")
    shown = artifacts()
    disc = next(record.run for record in home.runs.list() if record.run.startswith("a-red-disc"))
    progress, preview = shown[f"progress-{disc[-8:]}"], shown[f"preview-{disc[-8:]}"]
    assert (progress.data, progress.description) == (100.0, "a-red-disc: done")
    assert "![a-red-disc](data:image/jpeg;base64," in preview.data
    assert len({artifact.flow_run_id for artifact in (progress, preview)}) == 1
    assert progress.flow_run_id is not None
    states = task_runs()
    assert [states[name] for name in ("a-red-disc", "a-poison-square", "a-late-ring")] == [
        "Completed",
        "Failed",
        "Completed",
    ]
    page = Path(str(ended.message).split("page: ")[1])
    record = json.loads(page.with_name("night.json").read_text())
    assert {j["name"]: j["state"] for j in record["jobs"]}["a-poison-square"] == "set aside"
    again = overnight(options=OPTIONS, return_state=True)
    assert str(again.message).split("; page: ")[0] == "2 done, 1 set aside"  # the next night has nothing new to do


@pytest.mark.thorough
def test_a_night_with_a_job_left_out_is_incomplete(home: Home) -> None:
    jobs(home.root / "jobs", one=job("a red disc") + job("a blue disc").replace("64x64", "63x64"))
    ended = overnight(options=OPTIONS, skip_bad=True, return_state=True)
    assert (ended.name, ended.type.value) == ("Incomplete", "FAILED")
    assert str(ended.message).startswith("1 done, 1 left out; page: ")


def test_an_empty_folder_is_a_quiet_night(home: Home) -> None:
    assert overnight(options=OPTIONS) == {"tally": {}, "page": None}


def set_state(run: UUID, state: PrefectState[Any]) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, state, force=True)


@contextmanager
def running(home: Home, **settings: Any) -> Iterator[tuple[UUID, Future[PrefectState[Any]]]]:
    """A night in another thread, once its first step is done, and its end."""
    found: list[UUID] = []
    stepped = threading.Event()
    consume = NullObserver.stepped

    def told(self: NullObserver, call: Call, step: int) -> None:
        stepped.set()
        time.sleep(0.2)  # so that twenty steps outlast what is asked of the server
        consume(self, call, step)

    def started(flow: Any, run: Any, state: Any) -> None:
        found.append(run.id)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(NullObserver, "stepped", told)
        patch.setattr(FlowState, "POLL_SECONDS", 0.2)
        flow = overnight.with_options()
        flow.on_running(started)
        end = pool.submit(copy_context().run, flow, options=OPTIONS, return_state=True, **settings)
        assert stepped.wait(60)
        yield found[0], end


def committed(home: Home) -> int:
    return len(list((home.root / "store").glob("manifests/*/*.json")))


@pytest.mark.thorough
def test_paused_the_device_is_free_and_resumed_it_goes_on(home: Home) -> None:
    jobs(home.root / "jobs", one=job("a red disc", steps=20) + job("a green ring"))
    released: list[float] = []
    with pytest.MonkeyPatch.context() as patch, running(home) as (run, end):
        patch.setattr(Session, "release", lambda self: released.append(time.monotonic()))
        asked = time.monotonic()
        set_state(run, Paused(timeout_seconds=300))
        while not released:
            assert time.monotonic() - asked < 30
            time.sleep(0.05)
        before = committed(home)
        time.sleep(1)  # five looks at the server
        assert committed(home) == before
        assert not end.done()
        with get_client(sync_client=True) as client:
            client.resume_flow_run(run)
        assert end.result(120).result()["tally"] == {"done": 2}


@pytest.mark.thorough
def test_cancelled_it_ends_with_a_checkpoint_and_the_next_night_goes_on(home: Home) -> None:
    jobs(home.root / "jobs", one=job("a red disc", steps=20))
    with running(home) as (run, end):
        set_state(run, Cancelling())
        assert end.result(60).name == "Cancelled"
    checkpoints = list((home.root / "store" / "steps").glob("*/*"))
    assert checkpoints
    quiet = Home(home.root / "quiet")
    queued = read_jobs(home.root / "jobs", home).jobs[0]
    plain = session_in(quiet.root, threads=1).render(queued.job)
    resumed: list[int | None] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NullObserver, "started", lambda self, call, at: resumed.append(at))
        assert overnight(options=OPTIONS)["tally"] == {"done": 1}
    assert any(at for at in resumed)
    again = session_in(home.root, threads=1).render(queued.job)
    assert again.pixels_sha256 == plain.pixels_sha256


@pytest.mark.thorough
def test_suspended_the_flow_ends_suspended(home: Home) -> None:
    """The job has many steps, so that it runs still when a server that is busy is heard."""
    jobs(home.root / "jobs", one=job("a red disc", steps=400))
    with running(home) as (run, end):
        set_state(run, Suspended(timeout_seconds=300))
        with pytest.raises(Pause):  # so the engine leaves it as it is; resumed, it is started again
            end.result(60)
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(run).state
    assert found is not None
    assert found.name == "Suspended"


def test_a_night_that_starts_late_starts_nothing_after_its_end(home: Home) -> None:
    jobs(home.root / "jobs", one=job("a red disc"))
    evening = datetime(2026, 11, 1, 21, 0, tzinfo=UTC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlowState, "__init__", late(FlowState.__init__, evening))
        ended = overnight(options=OPTIONS, until="06:30", zone="UTC", return_state=True)
    assert (ended.name, ended.result()["tally"]) == ("Jobs left", {"left": 1})


def test_a_night_run_again_after_a_crash_keeps_the_window_of_the_first(home: Home) -> None:
    jobs(home.root / "jobs", one=job("a red disc"))
    evening = datetime(2026, 11, 1, 21, 0, tzinfo=UTC)
    with get_client(sync_client=True) as client:
        first = client.create_flow_run(overnight, state=Scheduled(scheduled_time=evening))
    ended = overnight(options=OPTIONS, until="06:30", zone="UTC", crashed=(uuid4(), first.id), return_state=True)
    assert (ended.name, ended.result()["tally"]) == ("Jobs left", {"left": 1})


def late(init: Any, due: datetime) -> Any:
    def made(self: FlowState, stop: threading.Event) -> None:
        init(self, stop)
        self.due = due

    return made
