"""Whole renders of the embedded model, in one process: same bytes, reuse, healing, and refusals."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from flows.cli.flags import redo_spec
from flows.cli.terminal import Terminal
from flows.home import Home
from flows.rendering.job import prepare
from flows.rendering.session import Result, Session
from stages.errors import SpecError, StageError
from stages.export import Export
from stages.runner import Runner
from stages.spec import RenderSpec, RunOptions, make_spec
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, Any] = {"prompt": "a green ring on sand", "seed": 5, "width": 192, "height": 128, "steps": 4}
SMALL["method"] = {"name": "freescale", "restart": 0.3, "dilation": [0.0, 0.7]}  # early: every stage has steps to do


def render(home: Path, spec: RenderSpec, **options: Any) -> Result:
    session = session_in(home, **options)
    return session.render(prepare(spec, session.home))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def first(home: Path) -> Result:
    return render(home, make_spec(SMALL))


@pytest.mark.thorough
def test_same_bytes_after_another_render_and_in_an_empty_home(first: Result, home: Path, tmp_path: Path) -> None:
    session = Session(Home(tmp_path), RunOptions(), Terminal(quiet=True))
    session.render(prepare(make_spec(SMALL | {"seed": 6, "width": 64, "height": 64}), session.home))
    assert session.render(prepare(make_spec(SMALL), session.home)).pixels_sha256 == first.pixels_sha256
    again = render(home, make_spec(SMALL))
    assert all(outcome.reused for outcome in again.outcomes)


@pytest.mark.thorough
def test_split_guidance_changes_rounding_at_most(first: Result, home: Path, tmp_path: Path) -> None:
    split = render(tmp_path, make_spec(SMALL), split_guidance=True, window_rows=2)
    pair = [
        torch.from_numpy(__import__("numpy").asarray(Image.open(r.outputs[0])).astype("int16")) for r in (first, split)
    ]
    assert (pair[0] - pair[1]).abs().max() <= 1


@pytest.mark.thorough
def test_redo_from_the_detail_pass_reuses_everything_before(first: Result, home: Path) -> None:
    spec = redo_spec(make_spec(SMALL), "detail_pass", 1, {"seed": None, "guidance_scale": None, "mask": None},
                     ["--detail-scale", "0.5"])  # fmt: skip
    result = render(home, spec)
    made = [(o.call.stage.name, o.call.level) for o in result.outcomes if not o.reused]
    assert made == [("detail_pass", 1), ("decode", 1), ("export", 1)]
    assert result.pixels_sha256 != first.pixels_sha256


@pytest.mark.parametrize("where", [pytest.param("manifest", marks=pytest.mark.thorough), "chunk"])
@pytest.mark.parametrize(
    "stage",
    [
        "base_denoise",
        pytest.param("export", marks=pytest.mark.thorough),
        *(pytest.param(s, marks=pytest.mark.thorough) for s in ("highres_denoise", "decode")),
    ],
)
def test_a_flipped_bit_is_found_and_healed(first: Result, home: Path, where: str, stage: str) -> None:
    spec = make_spec(SMALL)
    plan = prepare(spec, Home(home)).plan
    store = Home(home).store
    key = next(c.key for c in reversed(plan.calls) if c.stage.name == stage)
    manifest = store.find(key)
    if manifest is None:  # an earlier healing made nothing that nobody asked for
        render(home, spec)
        pytest.skip("not needed by the exports that are there")
    path = store.root / "manifests" / key[:2] / f"{key}.json"
    if where == "chunk":
        path = max((p for p in store.folder(manifest).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    assert store.verify(key) is not None
    for export in plan.exports:  # so that everything below is asked for
        if (found := store.find(export.key)) is not None and stage != "export":
            store.move_to_trash(found.key, "test")
    for call in plan.calls:
        if call.stage.name in ("decode", "detail_pass") and call.stage.name != stage and store.find(call.key):
            store.move_to_trash(call.key, "test")
    assert render(home, spec).pixels_sha256 == first.pixels_sha256
    assert store.verify(key) is None


@pytest.mark.thorough
@pytest.mark.parametrize(("width", "height"), [pytest.param(200, 88, marks=pytest.mark.thorough), (88, 256), (64, 64)])
def test_any_aspect(tmp_path: Path, width: int, height: int) -> None:
    result = render(tmp_path, make_spec(SMALL | {"width": width, "height": height, "steps": 3}))
    with Image.open(result.outputs[0]) as picture:
        assert picture.size == (width, height)
        assert '"seed": 5' in picture.text["freescale"]  # type: ignore[attr-defined]


def test_a_picture_and_a_mask(first: Result, tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    Image.linear_gradient("L").resize((192, 128)).save(mask)
    regions = [{"mask": str(mask), "detail_scale": 4.0}]
    spec = make_spec(SMALL | {"image": str(first.outputs[0]), "regions": regions, "steps": 4})
    plain = make_spec(SMALL | {"image": str(first.outputs[0]), "steps": 4})
    assert render(tmp_path, spec).pixels_sha256 != render(tmp_path, plain).pixels_sha256


@pytest.mark.thorough
def test_without_guidance_a_few_steps(tmp_path: Path) -> None:
    spec = make_spec(SMALL | {"steps": 3, "guidance_scale": 0.0, "solver": "euler_ancestral"})
    result = render(tmp_path, spec)
    assert "negative_embeds" not in Home(tmp_path).store.read(result.outcomes[0].key)


def test_out_of_memory_takes_the_next_saving(first: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from freescale import guidance

    run, failed = guidance.Denoiser.passes, []

    def once(self: Any, latents: torch.Tensor, i: int, schedule: Any, *sides: Any) -> tuple[torch.Tensor, ...]:
        if len(sides) == 2 and len(failed) < 3:
            failed.append(1)
            raise torch.OutOfMemoryError("no memory left")
        return run(self, latents, i, schedule, *sides)

    monkeypatch.setattr(guidance.Denoiser, "passes", once)
    result = render(tmp_path, make_spec(SMALL | {"steps": 3}))
    savings = [Home(tmp_path).store.find(o.key).savings for o in result.outcomes]  # type: ignore[union-attr]
    assert ("split guidance",) in savings


def test_not_a_number_fails_the_stage_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from freescale import guidance

    run = guidance.Denoiser.passes
    monkeypatch.setattr(guidance.Denoiser, "passes", lambda *a: tuple(one * float("nan") for one in run(*a)))
    spec = make_spec(SMALL)
    with pytest.raises(StageError, match="after step 1"):
        render(tmp_path, spec)
    plan = prepare(spec, Home(tmp_path)).plan
    assert Home(tmp_path).store.find(next(c.key for c in plan.calls if c.stage.name == "base_denoise")) is None
    assert [r.state for r in Home(tmp_path).runs.list()] == ["failed"]


def test_an_existing_file_is_not_overwritten(first: Result, home: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.png"
    out.write_bytes(b"mine")
    session = Session(Home(home), RunOptions(), Terminal(quiet=True))
    with pytest.raises(SpecError, match="exists"):
        session.render(prepare(make_spec(SMALL), session.home), out)
    assert out.read_bytes() == b"mine"


def test_runner_is_a_dataclass_of_what_it_needs() -> None:
    assert {f.name for f in dataclasses.fields(Runner)} == {"store", "models", "options", "observer", "stop", "helpers"}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"colour": 1}, "colour: unknown field"),
    ({"width": 1001}, "1000 and 1008"),
    ({"width": 1024, "height": 64}, "aspect"),
    ({"method": {"name": "magic"}}, "freescale"),
    ({"method": {"name": "freescale", "restart": 2.0}}, "restart"),
    ({"prompt": "bell\x07"}, "control characters"),
    ({"seed": -1}, "seed"),
    ({"cascade": [[64, 64], [128, 128]]}, "cascade must end at"),
]


@pytest.mark.parametrize(("change", "says"), BAD)
def test_bad_specs_are_one_sentence(change: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says) as error:
        make_spec(SMALL | change)
    assert "\n" not in str(error.value)


def test_bad_pictures_and_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"no picture")
    Image.new("RGB", (300, 300)).save(tmp_path / "square.png")
    whole = (tmp_path / "square.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    for name, says in (("none", "not a file"), ("text", "not a picture in PNG"), ("cut", "cut off or damaged"),
                       ("square", "aspect"), ("bomb", "over the limit")):  # fmt: skip
        with pytest.raises(SpecError, match=says):
            prepare(make_spec(SMALL | {"image": str(tmp_path / f"{name}.png")}), Home(tmp_path / "home"))
    with pytest.raises(SpecError, match="outside the allowed folder"):
        prepare(make_spec(SMALL | {"image": "/etc/hostname"}), Home(tmp_path / "home"), tmp_path)
    with pytest.raises(SpecError, match="looked at"):
        prepare(make_spec(SMALL | {"model": {"name": "no-such-model"}}), Home(tmp_path / "home"))
    (tmp_path / "one.safetensors").write_bytes(b"")
    with pytest.raises(SpecError, match="is empty; download it again"):
        prepare(make_spec(SMALL | {"model": {"name": str(tmp_path / "one.safetensors")}}), Home(tmp_path / "home"))
    assert not (tmp_path / "home" / "store").exists()


def test_a_recorded_path_holds_from_anywhere_and_stays_out_of_the_file(
    first: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "pictures"
    place.mkdir()
    (place / "start.png").write_bytes(first.outputs[0].read_bytes())
    Image.new("L", (192, 128), 128).save(place / "mask.png")
    regions = [{"mask": "mask.png", "detail_scale": 4.0}]
    spec = make_spec(SMALL | {"image": "start.png", "regions": regions, "width": 384, "height": 256})
    job = prepare(spec, Home(tmp_path), place)
    monkeypatch.chdir(tmp_path)
    recorded = make_spec(json.loads(json.dumps(job.spec.model_dump(mode="json"))))
    again = prepare(recorded, Home(tmp_path))
    assert again.run == job.run
    assert recorded.image == str(place / "start.png")
    export = again.plan.exports[-1].stage
    assert isinstance(export, Export)
    assert str(place) not in export.provenance
    assert '"image": "start.png"' in export.provenance
