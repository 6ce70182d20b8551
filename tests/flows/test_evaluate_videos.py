"""`freescale evaluate` on a toy video model: numbers by hand from the stored frames, going on, truth, and refusals."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from flows.evaluate.layout import REFERENCE, Evaluation, prepare_evaluation
from flows.evaluate.readings import Readings, cells, read_all
from flows.evaluate.report import as_csv, as_json, as_markdown, rows
from flows.home import Home
from flows.rendering.session import Session
from stages.errors import SpecError
from stages.metrics import motion_net
from stages.metrics.extractors import find_weights, load_extractor
from stages.metrics.spec import make_evaluation
from stages.metrics.video_extractors import load_video_network
from stages.metrics.video_readings import VIDEO_WORDS, levels
from stages.metrics.videos import aesthetic_pixels
from stages.models.folder import EMBEDDED
from stages.runner import Interrupted
from stages.shapes_motion.metrics import judge_video
from stages.shapes_motion.videos import frame_scene, sample_video
from tests.homes import session_in
from tests.toys import VIDEO_FRAMES, VIDEO_SIZE, video_folder

if TYPE_CHECKING:
    from flows.evaluate.layout import Picture

WIDE, HIGH = 120, 96  # twice the area of what the toy says it was trained at
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A toy model's evaluation: two captions, two methods, two steps."""
    folder = video_folder(tmp_path_factory.mktemp("models"), "videocrafter2", layers=1)
    card = json.loads((folder / "freescale.json").read_text())
    (folder / "freescale.json").write_text(json.dumps(card | {"native": list(VIDEO_SIZE)}))
    return {
        "model": {"name": str(folder)},
        "methods": ["direct", {"name": "freescale", "label": "FreeScale", "restart": 0.5}],
        "sizes": [f"{WIDE}x{HIGH}"],
        "count": 2,
        "steps": 2,
        "draws": 10,
        "metrics": ["fvd", "kvd", "objects", "flicker"],
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def prepared(values: dict[str, Any], home: Path) -> Evaluation:
    return prepare_evaluation(make_evaluation(values), Home(home))


def read(evaluation: Evaluation, home: Path, **more: Any) -> Readings:
    return read_all(evaluation, session_in(home, threads=1), **more)


def numbers(evaluation: Evaluation, readings: Readings) -> list[dict[str, Any]]:
    found = rows(evaluation, list(cells(evaluation, readings)))
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in found]


@pytest.fixture(scope="module")
def whole(small: dict[str, Any], home: Path) -> tuple[Evaluation, Readings]:
    """Stopped after the second video and typed again."""
    evaluation, session = prepared(small, home), session_in(home, threads=1)

    def stop_after_two(done: int, picture: Picture) -> None:
        if done == 2:
            session.stop.set()

    with pytest.raises(Interrupted):
        read_all(evaluation, session, told=stop_after_two)
    return evaluation, read(evaluation, home)


def test_a_record_says_the_models_own_values_and_is_the_same_evaluation_again(home: Path) -> None:
    values = {"model": {"name": "shapes-motion"}, "methods": ["freescale"], "sizes": ["256x160"], "count": 2}
    evaluation = prepared(values, home)
    known = json.loads(json.dumps(evaluation.spec.model_dump(mode="json")))
    method = known["methods"][0]["method"]
    assert (method["restart"], method["upsample"]) == (0.75, "rgb")  # of the card; a video's are 0.3 and latent
    again = prepared(known, home)
    assert again.name == evaluation.name
    made = {picture.job.spec.method for picture in again.pictures if picture.job and picture.group != REFERENCE}
    assert made == {entry.method for entry in again.spec.methods}


@pytest.mark.thorough
def test_every_method_has_every_number(whole: tuple[Evaluation, Readings]) -> None:
    evaluation, readings = whole
    assert not readings.failed
    found = rows(evaluation, list(cells(evaluation, readings)))
    words = ["fvd", "kvd", *VIDEO_WORDS, "flicker"]
    assert [(row["method"], row["metric"]) for row in found] == [
        (method, word) for method in ("direct", "FreeScale") for word in words
    ]
    by = {(row["method"], row["metric"]): row for row in found}
    for row in found:
        assert row["n"] == 2
        assert row["low"] <= row["high"]
        assert row["seconds"] > 0
    for metric in ("fvd", "kvd"):
        row = by["direct", metric]
        assert (row["n_reference"], row["protocol"], row["network"]) == (2, "base", "shapes-motion")
        assert row["weights_sha256"] == evaluation.weights[0].sha256
        assert row["value"] != by["FreeScale", metric]["value"]
    assert by["direct", "flicker"]["network"] is None


@pytest.mark.thorough
def test_the_numbers_are_those_of_the_stored_frames(whole: tuple[Evaluation, Readings], home: Path) -> None:
    evaluation, readings = whole
    network = load_video_network(evaluation.weights[0], CPU, "clean")
    for one in readings.read:
        assert one.picture.job is not None
        key = one.picture.job.plan.exports[-1].parents["image"].key
        frames = [levels(frame) for frame in Home(home).store.open_frames(key)["image"]]
        assert len(frames) == VIDEO_FRAMES
        chosen = [frames[index] for index in motion_net.frame_numbers(VIDEO_FRAMES)]
        assert torch.equal(one.tensors["features"], network.extract(chosen))
        if one.picture.group == REFERENCE:
            assert one.picture.size == VIDEO_SIZE
            continue
        verdict = judge_video(
            [frame / 127.5 - 1 for frame in frames], one.picture.prompt, base_area=VIDEO_SIZE[0] * VIDEO_SIZE[1]
        )
        said = dict(zip(VIDEO_WORDS, one.tensors["clip_verdict"].tolist(), strict=True))
        assert said["objects"] == verdict.objects
        assert said["motion"] == float(verdict.motion_ok)
        assert said["ground_flicker"] == verdict.flicker
        steps = [(b.double() - a.double()).abs().mean() for a, b in pairwise(frames)]
        assert float(one.tensors["flicker"]) == pytest.approx(float(sum(steps)) / len(steps))


@pytest.mark.thorough
def test_captions_are_of_moving_scenes_and_the_reference_is_another_draw(whole: tuple[Evaluation, Readings]) -> None:
    evaluation, _ = whole
    groups: dict[str, list[Picture]] = {}
    for picture in evaluation.pictures:
        groups.setdefault(picture.group, []).append(picture)
    captions = [sample_video(3_000_000 + index).caption for index in range(2)]
    said = {group: [p.prompt for p in found] for group, found in groups.items()}
    assert said == dict.fromkeys(("direct", "FreeScale", REFERENCE), captions)
    assert not {p.seed for p in groups[REFERENCE]} & {p.seed for p in groups["direct"]}


@pytest.mark.thorough
def test_done_again_nothing_is_rendered_and_the_tables_agree(
    whole: tuple[Evaluation, Readings], small: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "render", lambda *_: pytest.fail("rendered again"))
    evaluation = prepared(small, home)
    readings = read(evaluation, home)
    assert numbers(evaluation, readings) == numbers(*whole)
    found = list(cells(evaluation, readings))
    assert as_csv(rows(evaluation, found)).count("\n") == 1 + 2 * 9
    page = as_markdown(evaluation, found)
    assert page.startswith("| method | size | n | FVD | KVD | objects |")
    assert "seconds a video" in page
    record = json.loads(json.dumps(as_json(evaluation, found, readings)))
    assert {"run", "motion", "ground_flicker", "flicker"} <= record["pictures"][0].keys()


@pytest.mark.thorough
def test_true_videos_are_drawn_at_the_target_size_and_rate(
    whole: tuple[Evaluation, Readings], small: dict[str, Any], home: Path
) -> None:
    from stages.shapes.scenes import draw

    reference = {"protocol": "truth", "count": 3}
    evaluation = prepared(small | {"metrics": ["fvd"], "methods": ["direct"], "reference": reference}, home)
    readings = read(evaluation, home)
    (row,) = numbers(evaluation, readings)
    assert (row["protocol"], row["n"], row["n_reference"]) == ("truth", 2, 3)
    true = next(one for one in readings.read if one.picture.group == REFERENCE)
    video = sample_video(true.picture.seed, WIDE / HIGH)
    rated = type(video)(video.scene, video.motion, video.reach, 28.0)  # the toy's own rate
    frames = [levels(draw(frame_scene(rated, i), HIGH, WIDE)[None]) for i in motion_net.frame_numbers(VIDEO_FRAMES)]
    assert torch.equal(
        true.tensors["features"], load_video_network(evaluation.weights[0], CPU, "clean").extract(frames)
    )


@pytest.fixture
def judges(tmp_path: Path) -> dict[str, dict[str, str]]:
    """A CLIP of toy width that reads 224 pixels a side, and a head for it."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path / "clip"
    shutil.copytree(EMBEDDED / "tokenizer", folder)
    narrow = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=narrow, vision_config=narrow | {"image_size": 224, "patch_size": 56})
    config.projection_dim = 12
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    stream = torch.Generator().manual_seed(1)
    head = tmp_path / "head.safetensors"
    save_file({"weight": torch.randn(1, 12, generator=stream), "bias": torch.tensor([5.0])}, head)
    return {"clip": {"path": str(folder)}, "aesthetic": {"path": str(head)}}


@pytest.mark.thorough
def test_the_aesthetic_score_is_the_head_over_each_frame(
    whole: tuple[Evaluation, Readings], small: dict[str, Any], home: Path, judges: dict[str, dict[str, str]]
) -> None:
    from safetensors.torch import load_file

    values = small | {"metrics": ["aesthetic"], "methods": ["direct"], "weights": judges}
    evaluation = prepared(values, home)
    readings = read(evaluation, home)
    (row,) = numbers(evaluation, readings)
    assert (row["network"], row["resize"], row["n"]) == ("aesthetic", "bicubic", 2)
    network = load_extractor(find_weights("clip", home, judges["clip"]["path"]), CPU)
    head = load_file(judges["aesthetic"]["path"])
    scores = []
    for one in readings.read:
        assert one.picture.job is not None
        key = one.picture.job.plan.exports[-1].parents["image"].key
        for frame in Home(home).store.open_frames(key)["image"]:
            seen = network.embed_pixels(aesthetic_pixels(levels(frame))[None])[0].double()  # type: ignore[attr-defined]
            scores.append(float((seen / seen.norm() * head["weight"][0]).sum() + 5) / 10)
    assert row["value"] == pytest.approx(sum(scores) / len(scores))


def test_a_head_of_another_width_is_refused(
    small: dict[str, Any], judges: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    values = small | {"metrics": ["aesthetic"], "weights": judges}
    head = Path(judges["aesthetic"]["path"])
    for tensors, says in (
        ({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, r"weights.aesthetic: its weight \(1, 768\) is not"),
        ({"weight": torch.zeros(1, 12)}, "weights.aesthetic: .* it holds"),
    ):
        head.unlink()
        head = head.with_name(f"{len(tensors)}.safetensors")
        save_file(tensors, head)
        changed = values | {"weights": judges | {"aesthetic": {"path": str(head)}}}
        with pytest.raises(SpecError, match=says):
            prepared(changed, tmp_path / "home")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metrics": ["fid"]}, "metrics: 'fid' is of pictures, and "),
        ({"metrics": ["clip_score"]}, "makes videos: fvd, kvd, dynamic_degree, flicker, aesthetic, objects"),
        ({"extractor": "inception"}, "extractor: 'inception' reads pictures"),
        ({"reference": {"protocol": "real", "folder": "/x"}}, "reference.protocol: 'real' is a folder of pictures"),
        ({"prompts": ["a dog", "a cat"], "metrics": ["fvd"]}, "models/metrics/i3d-kinetics-400.safetensors"),
        ({"extractor": "i3d"}, "weights.i3d.path; weights.i3d.sha256 pins its checksum"),
        ({"extractor": "i3d"}, "`freescale convert i3d`"),
        ({"resize": "antialias"}, "resize: 'antialias' is a choice for i3d; shapes-motion has a resize of its own"),
        ({"extractor": "i3d", "resize": "bicubic"}, "resize: 'bicubic'"),
        ({"metrics": ["dynamic_degree"], "frames": 8, "fps": 8, "weights": {"raft": {"path": "/none"}}}, "'/none'"),
        ({"metrics": ["dynamic_degree"], "fps": 8, "frames": 8}, "`freescale convert raft`"),
        (
            {"metrics": ["dynamic_degree"], "fps": 30, "frames": 8},
            "frames: of 8 at 30 a second the dynamic degree",
        ),
        ({"count": 1}, "count: 1 video a method is too few"),
        ({"metrics": ["aesthetic"]}, "weights.clip"),
        ({"methods": ["hidiffusion"]}, "method: 'hidiffusion' makes images only"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(
    changes: dict[str, Any], says: str, small: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as raised:
        prepared(small | changes, tmp_path)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "store").exists()


def test_a_missing_head_says_where_it_goes_and_which_field_pins_it(
    small: dict[str, Any], judges: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as raised:
        prepared(small | {"metrics": ["aesthetic"], "weights": {"clip": judges["clip"]}}, tmp_path)
    for words in ("models/metrics/aesthetic-vit-l-14-linear.safetensors", "weights.aesthetic.sha256", "768"):
        assert words in str(raised.value)


def test_other_prompts_are_measured_without_a_network(small: dict[str, Any], tmp_path: Path) -> None:
    values = {name: value for name, value in small.items() if name != "metrics"} | {"prompts": ["a dog", "a cat"]}
    evaluation = prepared(values, tmp_path)
    assert evaluation.spec.measured == ("flicker",)
    assert {p.group for p in evaluation.pictures} == {"direct", "FreeScale"}
    assert evaluation.weights == ()
