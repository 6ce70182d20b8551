"""`freescale evaluate` on the embedded model, with few steps and few pictures: numbers, resume, and refusals."""

from __future__ import annotations

import csv
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from flows.cli import app as cli
from flows.cli.run_evaluate import evaluation_from
from flows.evaluate.layout import REFERENCE, Evaluation, prepare_evaluation
from flows.evaluate.readings import Readings, cells, read_all
from flows.evaluate.report import as_csv, as_json, as_markdown, rows
from flows.home import Home
from flows.rendering.stop import SIGNALS
from stages.errors import SpecError, StageError
from stages.metrics.spec import EvaluationSpec, make_evaluation
from stages.metrics.validated import shown
from stages.runner import Interrupted, Runner
from stages.shapes.scenes import draw, sample_scene
from tests.homes import session_in
from tests.processes import freescale

if TYPE_CHECKING:
    from flows.evaluate.layout import Picture
    from flows.rendering.session import Session

SMALL: dict[str, Any] = {
    "methods": ["direct", {"name": "freescale", "label": "no fusion", "fusion": False}],
    "sizes": ["192x128"],
    "count": 3,
    "steps": 3,
    "crops": {"count": 2, "side": 96},
    "draws": 10,
}
ONE_METHOD = SMALL | {"methods": ["direct"]}  # what is rendered first of `SMALL`


def measured(spec: EvaluationSpec, home: Path) -> tuple[Evaluation, Readings]:
    evaluation = prepare_evaluation(spec, Home(home))
    return evaluation, read_all(evaluation, session_in(home, threads=1))


def numbers(evaluation: Evaluation, readings: Readings) -> list[dict[str, Any]]:
    found = rows(evaluation, list(cells(evaluation, readings)))
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in found]


def of_direct(whole: tuple[Evaluation, Readings]) -> list[dict[str, Any]]:
    """The numbers of `ONE_METHOD`, taken from those of `SMALL`."""
    return [row for row in numbers(*whole) if row["method"] == "direct"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def whole(home: Path) -> tuple[Evaluation, Readings]:
    """An evaluation never interrupted."""
    return measured(make_evaluation(SMALL), home)


def test_every_method_has_every_number_with_counts_and_interval(whole: tuple[Evaluation, Readings]) -> None:
    evaluation, readings = whole
    found = rows(evaluation, list(cells(evaluation, readings)))
    metrics = ["fid", "kid", "is", "fid_c", "kid_c", "objects", "one_object", "attributes", "right"]
    assert [(r["method"], r["metric"]) for r in found] == [(m, k) for m in ("direct", "no fusion") for k in metrics]
    for row in found:
        assert row["n"] == 3
        assert row["low"] <= row["high"]
        assert row["seconds"] > 0
        assert row["seconds_n"] == 3
        assert row["unet_samples"] == (6 if row["method"] == "direct" else 8)  # steps of two, guided: 3, and 1 above
    by = {(r["method"], r["metric"]): r for r in found}
    assert by["direct", "fid"]["n_reference"] == 3
    assert by["direct", "fid"]["protocol"] == "base"
    assert by["direct", "fid_c"]["crops"] == 6
    assert by["direct", "fid"]["value"] != by["no fusion", "fid"]["value"]
    assert by["direct", "fid"]["weights_sha256"] == evaluation.weights[0].sha256


def test_the_tables_agree(whole: tuple[Evaluation, Readings]) -> None:
    evaluation, readings = whole
    found = list(cells(evaluation, readings))
    table = list(csv.DictReader(as_csv(rows(evaluation, found)).splitlines()))
    record = json.loads(json.dumps(as_json(evaluation, found, readings)))
    assert [float(row["value"]) for row in table] == [row["value"] for row in record["rows"]]
    assert len(record["pictures"]) == 6
    assert {"run", "seed", "objects", "seconds"} <= record["pictures"][0].keys()
    page = as_markdown(evaluation, found).splitlines()
    marks = [seen.mark for metric in ("fid", "kid", "is") if (seen := shown(metric)) is not None]
    assert page[0].startswith("| method | size | n | FID {} | KID {} | IS {} |".format(*marks))
    assert page[2].startswith("| direct | 192x128 | 3 |")
    assert page[2].count("|") == page[0].count("|")


def test_the_table_says_what_each_column_was_shown_to_see(whole: tuple[Evaluation, Readings]) -> None:
    evaluation, readings = whole
    found = list(cells(evaluation, readings))
    right = shown("right")
    assert right is not None
    told = as_json(evaluation, found, readings)["seen"]["right"]
    assert told == {"verdict": right.word, "worse": right.worse, "better": right.better}
    page = as_markdown(evaluation, found)
    (line,) = (line for line in page.splitlines() if line.startswith("* ") and " right" in line)
    assert line.endswith(f": {', '.join(right.worse)}")
    assert "No column can judge on the model shapes: scale fusion" in page
    transformer = evaluation.spec.model.model_copy(update={"name": "shapes-dit"})
    drawn = replace(evaluation, spec=evaluation.spec.model_copy(update={"model": transformer}))
    assert "No column can judge" not in as_markdown(drawn, found)
    other = replace(evaluation, spec=evaluation.spec.model_copy(update={"prompts": ("a", "b", "c")}))
    assert as_json(other, found, readings)["seen"] == {}
    assert "No column was tested on true and damaged pictures of this kind" in as_markdown(other, found)


def test_texture_and_seams_are_read_beside_what_is_there(
    whole: tuple[Evaluation, Readings], home: Path, making: list[str]
) -> None:
    evaluation, readings = measured(make_evaluation(SMALL | {"metrics": ["objects", "texture", "seams"]}), home)
    assert set(making) <= {"render_features", "judge_texture", "seams"}, "nothing is rendered for them"
    found = [row for row in numbers(evaluation, readings) if row["method"] == "direct"]
    assert [row["metric"] for row in found][-4:] == ["texture", "period", "period_right", "seams"]
    asked = sum("striped" in p.prompt or "dotted" in p.prompt for p in evaluation.pictures if p.group == "direct")
    by = {row["metric"]: row for row in found}
    assert (by["texture"]["n"], by["period_right"]["n"], by["seams"]["n"]) == (3, asked, 3)
    assert {picture["texture_ok"] for picture in as_json(evaluation, [], readings)["pictures"]} <= {0, 1}
    assert (
        as_markdown(evaluation, list(cells(evaluation, readings)))
        .splitlines()[2]
        .startswith("| direct | 192x128 | 3 |")
    )


def test_the_reference_is_an_independent_draw_of_the_same_prompts(whole: tuple[Evaluation, Readings]) -> None:
    evaluation, _ = whole
    groups: dict[str, list[Picture]] = {}
    for picture in evaluation.pictures:
        groups.setdefault(picture.group, []).append(picture)
    reference, direct, other = groups[REFERENCE], groups["direct"], groups["no fusion"]
    assert [p.prompt for p in reference] == [p.prompt for p in direct] == [p.prompt for p in other]
    assert [p.seed for p in direct] == [p.seed for p in other]
    assert len({p.seed for p in (*reference, *direct)}) == 6
    assert {p.size for p in reference} == {(104, 160)}  # 192x128 at the area of 128x128
    assert [p.prompt for p in direct] == [sample_scene(3_000_000 + i).caption for i in range(3)]


def test_done_again_nothing_is_made(whole: tuple[Evaluation, Readings], home: Path, making: list[str]) -> None:
    again = measured(make_evaluation(SMALL), home)
    assert making == []
    assert numbers(*again) == numbers(*whole)


@pytest.mark.thorough
def test_other_crops_render_nothing(whole: tuple[Evaluation, Readings], home: Path, making: list[str]) -> None:
    evaluation, readings = measured(make_evaluation(SMALL | {"crops": {"side": 64, "grid": True}}), home)
    assert set(making) == {"render_features"}
    crops = [row["crops"] for row in numbers(evaluation, readings) if row["metric"] == "kid_c"]
    assert crops == [3 * 6, 3 * 6]


@pytest.mark.thorough
def test_stopped_and_gone_on_gives_the_same_numbers(
    whole: tuple[Evaluation, Readings], tmp_path: Path, making: list[str]
) -> None:
    evaluation = prepare_evaluation(make_evaluation(ONE_METHOD), Home(tmp_path))
    session = session_in(tmp_path, threads=1)

    def stop_after_two(done: int, picture: Picture) -> None:
        if done == 2:
            session.stop.set()

    with pytest.raises(Interrupted):
        read_all(evaluation, session, told=stop_after_two)
    before = len(making)
    assert before > 0
    again = measured(make_evaluation(ONE_METHOD), tmp_path)
    assert numbers(*again) == of_direct(whole)
    once = measured(make_evaluation(ONE_METHOD), tmp_path)
    assert numbers(*once) == of_direct(whole)
    assert len(making) == len(list((tmp_path / "store" / "manifests").glob("*/*.json")))  # each stage made once


@pytest.mark.thorough
def test_killed_and_typed_again_gives_the_same_numbers(whole: tuple[Evaluation, Readings], tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(ONE_METHOD))
    words = ["evaluate", str(spec), "--threads", "1", "--json"]
    words += ["--home", str(tmp_path / "home"), "--checkpoint-every", "0"]
    killed = freescale(tmp_path / "killed", *words)
    while not list(tmp_path.glob("home/store/manifests/*/*.json")) and killed.exitcode is None:
        time.sleep(0.01)
    time.sleep(0.2)
    killed.kill()
    killed.join()
    done = freescale(tmp_path / "told", *words)
    done.join(500)
    assert done.exitcode == 0, (tmp_path / "told.err").read_text()
    said = json.loads((tmp_path / "told.out").read_text().splitlines()[-1])
    kept = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in said["rows"]]
    assert kept == of_direct(whole)
    assert [Path(path).name for path in said["files"]] == ["evaluation.csv", "evaluation.md", "evaluation.json"]
    assert all(Path(path).stat().st_size for path in said["files"])


def test_truth_is_drawn_at_the_target_size_and_has_the_words_right(home: Path) -> None:
    """The truth measured as a method would be: objects are read from renders alone, so a distance must do."""
    values = SMALL | {"methods": ["direct"], "metrics": ["kid"], "reference": {"protocol": "truth", "count": 5}}
    evaluation, readings = measured(make_evaluation(values), home)
    reference = [r for r in readings.read if r.picture.group == REFERENCE]
    assert len(reference) == 5
    assert {r.picture.size for r in reference} == {(128, 192)}
    (row,) = numbers(evaluation, readings)
    assert row["n_reference"] == 5


@pytest.mark.thorough
def test_a_folder_is_the_reference_and_true_pictures_lie_nearer_than_noise(home: Path, tmp_path: Path) -> None:
    found = {}
    for kind in ("true", "noise"):
        folder = tmp_path / kind
        folder.mkdir()
        for index in range(4):
            image = draw(sample_scene(4_000_000 + index, 1.5), 128, 192)
            if kind == "noise":
                image = torch.rand(image.shape, generator=torch.Generator().manual_seed(index)) * 2 - 1
            levels = ((image + 1) * 127.5).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(levels).save(folder / f"{index}.png")
        values = SMALL | {"methods": ["direct"], "metrics": ["fid"], "sizes": ["128x128"], "steps": 12}
        spec = make_evaluation(values | {"reference": {"protocol": "real", "folder": str(folder)}})
        (row,) = numbers(*measured(spec, home))
        assert (row["protocol"], row["n_reference"]) == ("real", 4)
        found[kind] = row["value"]
    assert found["true"] < found["noise"]


def test_a_picture_that_cannot_be_right_is_named_and_left_out(whole: tuple[Evaluation, Readings], home: Path) -> None:
    from flows.evaluate.readings import Read, read_picture

    def fails(picture: Picture, evaluation: Evaluation, session: Session) -> Read:
        if picture.group == "direct" and picture.id == "1-0":
            raise StageError("decode 0: the picture is uniform")
        return read_picture(picture, evaluation, session)

    evaluation = whole[0]
    readings = read_all(evaluation, session_in(home, threads=1), fails)
    found = list(cells(evaluation, readings))
    assert [(cell.scores[0].n, cell.failed) for cell in found] == [(2, 1), (3, 0)]
    record = as_json(evaluation, found, readings)
    assert record["failed"] == {"direct 192x128 1-0": "decode 0: the picture is uniform"}


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that are made during a test."""
    made: list[str] = []
    plain = Runner.make

    def make(self: Runner, call: Any, key: str, outcomes: Any) -> Any:
        outcome = plain(self, call, key, outcomes)
        made.append(call.stage.name)
        return outcome

    monkeypatch.setattr(Runner, "make", make)
    return made


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"colour": 1}, "colour: unknown field"),
        ({"methods": ["magic"]}, "is not one of"),
        ({"methods": ["direct", "direct"]}, "methods has 'direct' twice; give each a label"),
        ({"methods": [{"name": "direct", "label": "a|b"}]}, "label"),
        ({"sizes": ["wide"]}, "'wide' is not WIDTHxHEIGHT"),
        ({"sizes": ["250x128"]}, "248 and 256"),
        ({"count": 1}, "count: 1 picture a method is too few"),
        ({"count": 2, "splits": 5}, "splits: 5 parts need as many pictures, and there are 2"),
        ({"metrics": ["vmaf"]}, "metrics.0: 'vmaf'"),
        ({"metrics": ["dynamic_degree"]}, "metrics: 'dynamic_degree' is of videos"),
        ({"resize": "antialias"}, "resize: 'antialias' is a choice for i3d; shapes has a resize of its own"),
        ({"metrics": ["fvd"]}, "metrics: 'fvd' is of videos, and shapes makes pictures"),
        ({"extractor": "shapes-motion"}, "extractor: 'shapes-motion' reads videos, and shapes makes pictures"),
        ({"prompts": "no-such-file.txt"}, "prompts: no-such-file.txt does not exist"),
        ({"prompts": ["a", "b"], "metrics": ["objects"]}, "'objects' is known only for prompts 'shapes'"),
        ({"prompts": ["a", "b"], "reference": {"protocol": "truth"}}, "'truth' is known only for prompts 'shapes'"),
        ({"reference": {"protocol": "real"}}, "folder belongs to protocol 'real'"),
        ({"reference": {"folder": "x"}}, "folder belongs to protocol 'real'"),
        ({"reference": {"protocol": "real", "folder": "/no/such"}}, "reference.folder: '/no/such' is not a folder"),
        ({"crops": {"side": 160}}, "crops.side: 160 pixels do not fit in direct 192x128 0-0"),
        ({"extractor": "inception"}, "weights.inception"),
        ({"metrics": ["clip_score"]}, "weights.clip"),
        ({"prompts": ["a", "b"], "metrics": ["texture"]}, "'texture' is known only for prompts 'shapes'"),
        ({"model": {"name": "nothing"}}, "model: 'nothing' is not on disk"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as raised:
        prepare_evaluation(make_evaluation(SMALL | changes), Home(tmp_path))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", ["empty", "one", "truncated", "text"])
def test_a_broken_reference_folder_is_named_before_any_render(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    if kind != "empty":
        Image.new("RGB", (128, 128), "red").save(folder / "a.png")
    if kind == "truncated":
        Image.effect_noise((128, 128), 50).convert("RGB").save(folder / "b.png")
        (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:600])
    if kind == "text":
        (folder / "b.png").write_text("not a picture")
    spec = make_evaluation(SMALL | {"reference": {"protocol": "real", "folder": str(folder)}})
    with pytest.raises(SpecError) as raised:
        prepare_evaluation(spec, Home(tmp_path / "home"))
    wanted = {"empty": "holds 0 pictures", "one": "holds 1 pictures"}.get(kind, "b.png")
    assert wanted in str(raised.value)
    assert not (tmp_path / "home" / "store").exists()


def test_prompts_are_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("# mine\na red disc on sand\n\n  a blue star on snow  \n")
    values = SMALL | {"prompts": str(tmp_path / "prompts.txt"), "count": None, "extractor": "shapes"}
    evaluation = prepare_evaluation(make_evaluation(values), Home(tmp_path))
    assert [p.prompt for p in evaluation.pictures if p.group == "direct"] == [
        "a red disc on sand",
        "a blue star on snow",
    ]
    assert "objects" not in evaluation.spec.measured
    with pytest.raises(SpecError, match="count: 9 is more than the 2 prompts"):
        prepare_evaluation(make_evaluation(values | {"count": 9}), Home(tmp_path))


def test_flags_lie_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("count: 8\nsizes: [256x256]\nreference: {protocol: truth, count: 9}\n")
    spec = evaluation_from(tmp_path / "spec.yaml", {"count": 4, "method": ["direct"], "size": [], "protocol": "truth"})
    assert (spec.count, spec.sizes, [e.label for e in spec.methods]) == (4, ((256, 256),), ["direct"])
    assert spec.reference.count == 9
    assert evaluation_from(None, {"reference": "x"}).reference.protocol == "real"


def test_the_command_plans_refuses_and_keeps_others_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["freescale", "evaluate", "--home", str(tmp_path / "home"), *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    kept = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        assert call("--count", "2", "--method", "direct", "--size", "256x256", "--plan", "--json") == 0
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (said["pictures"], said["to_read"]) == (4, 4)
        assert not (tmp_path / "home" / "store").exists()
        assert call("--metric", "nonsense") == 2
        assert "nonsense" in capsys.readouterr().err
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "evaluation.md").write_text("mine")
        assert call("--count", "2", "--plan", "--out", str(tmp_path / "out")) == 2
        assert "another evaluation" in capsys.readouterr().err
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
