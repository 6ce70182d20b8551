"""What a UNet predicts: which source decides, the probe, and renders of a model that predicts v."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from flows.home import Home
from flows.rendering import job as jobs
from flows.rendering.job import prepare
from flows.rendering.probing import probe_model, probed
from flows.rendering.sampling_advice import sampling_remarks
from flows.rendering.stop import StopEvent
from stages.errors import SpecError
from stages.models.describe import describe
from stages.models.folder import EMBEDDED
from stages.models.folder import describe as describe_base
from stages.models.predicted import V_TENSOR, Header, detected
from stages.models.prediction import decided, remember
from stages.observer import NullObserver
from stages.runner import Interrupted
from stages.spec import ModelSpec, RunOptions, make_spec
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path

    from stages.models.load import Models

V, SMALL = "v_prediction", {"width": 64, "height": 64, "steps": 3, "method": {"name": "direct"}}


def yaml_of(folder: Path, text: str) -> None:
    (folder / "m.yaml").write_text(text, encoding="latin-1")


@pytest.mark.parametrize(
    ("header", "kind", "why"),
    [
        ({"keys": ["v_pred", "x"]}, V, "its tensor v_pred"),
        ({"metadata": {"modelspec.prediction_type": "v"}}, V, "modelspec.prediction_type v"),
        ({"metadata": {"modelspec.prediction_type": "v_prediction"}}, V, "v_prediction"),
        ({"metadata": {"modelspec.prediction_type": "epsilon"}}, "epsilon", "epsilon"),
        ({"metadata": {"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}}, V, "stable-diffusion-v2-768-v"),
        ({"is_sd2": True, "global_step": 110000}, V, "global_step 110000"),
        ({"is_sd2": True, "global_step": 875000, "native": 768}, "epsilon", "global_step 875000"),
        ({"is_sd2": True, "norm_deviation": 0.12}, V, f"{V_TENSOR}, 0.120"),
        ({"is_sd2": True, "norm_deviation": 0.05}, "epsilon", "0.050"),
        ({"keys": ["v_pred"], "metadata": {"modelspec.prediction_type": "epsilon"}}, V, "its tensor v_pred"),
    ],
    ids=str,
)
def test_the_first_source_that_says_it_decides(header: dict[str, Any], kind: str, why: str) -> None:
    found = detected(Header(**{"keys": (), **header}))
    assert (found.type, found.is_sure, found.ztsnr) == (kind, True, False)
    assert why in found.why


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("model:\n  params:\n    parameterization: v\n", V),
        ('model:\n  params:\n    parameterization: "v"  # of 768\n', V),
        ("model:\n  params:\n    parameterization: eps\n", "epsilon"),
        ("scaling_config:\n  target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n", V),
        ("scaling_config:\n  target: sgm.modules.diffusionmodules.denoiser_scaling.EpsScaling\n", "epsilon"),
        ("# parameterization: v\nmodel: {}\n", None),
        ("\x00\xff", None),
    ],
    ids=str,
)
def test_a_yaml_beside_the_file(tmp_path: Path, text: str, kind: str | None) -> None:
    yaml_of(tmp_path, text)
    found = detected(Header.of_file(tmp_path / "m.safetensors", (), {}, is_sd2=False, native=512))
    assert (found.type, found.is_sure) == (kind or "epsilon", kind is not None)


def test_what_nothing_says_is_usual_and_open() -> None:
    assert not detected(Header(())).is_sure
    large = detected(Header((), is_sd2=True, native=768))
    assert (large.type, large.is_sure) == (V, False)
    assert detected(Header({"ztsnr", "v_pred"})).ztsnr


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_header_a_probe_and_a_spec(home: Home) -> None:
    """A probe's answer is taken where a header says nothing; a spec wins over both, with a remark."""
    base = describe_base(ModelSpec(), home.root)
    key = base.fingerprints["unet"]
    still = decided(base, ModelSpec(), home.root, Header(()))
    assert still.prediction is not None
    assert (still.prediction.is_sure, still.fingerprints) == (False, base.fingerprints)
    remember(home.root, key, 0.03)
    asked = decided(base, ModelSpec(), home.root, Header(()))
    assert asked.prediction is not None
    assert (asked.prediction.type, asked.prediction.is_sure) == (V, True)
    assert "0.03 of the noise came back" in str(asked.prediction.remark)
    assert asked.fingerprints["unet"] != key
    assert asked.scheduler["prediction_type"] == V
    remember(home.root, key, 0.999)
    assert decided(base, ModelSpec(), home.root, Header(())).fingerprints == base.fingerprints
    header = Header({"v_pred", "ztsnr"})
    told = decided(base, ModelSpec(prediction="epsilon", ztsnr="off"), home.root, header)
    assert told.prediction is not None
    assert told.fingerprints == base.fingerprints
    assert told.prediction.remark == (
        "prediction is epsilon, and the model says v_prediction (its tensor v_pred); epsilon is taken"
    )
    zero = decided(base, ModelSpec(), home.root, header)
    assert {**base.scheduler, **zero.scheduler} == {
        **base.scheduler, "prediction_type": V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"
    }  # fmt: skip


def test_a_card_says_it_and_a_spec_says_otherwise(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "m")
    card = tmp_path / "m" / "freescale.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "prediction": V, "ztsnr": "on"}))
    info = describe(ModelSpec(name=str(tmp_path / "m")), tmp_path)
    assert info.prediction is not None
    assert (info.prediction.type, info.prediction.ztsnr, info.prediction.why) == (V, True, "its card")
    other = describe(ModelSpec(name=str(tmp_path / "m"), prediction="epsilon", ztsnr="off"), tmp_path)
    assert other.fingerprints == describe_base(ModelSpec(name=str(tmp_path / "m")), tmp_path).fingerprints


def test_the_probe_knows_the_embedded_model(home: Home) -> None:
    says = probe_model("shapes", home, RunOptions(device="cpu"))
    assert says.startswith("0.999")
    assert says.endswith("predicts the noise (epsilon)")
    assert "video" in probe_model("shapes-motion", home, RunOptions(device="cpu"))


def test_a_checkpoint_that_does_not_say_it_is_asked_once_before_it_renders(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planned as usual with a remark, refused by a session, and planned anew after the probe, which runs once."""
    calls = []

    def of_a_file(spec: ModelSpec, root: Path) -> Any:
        return decided(describe_base(spec, root), spec, root, Header(()))

    def answer(models: Models) -> float:
        calls.append(models.info.name)
        return 0.02

    monkeypatch.setattr(jobs, "describe", of_a_file)
    monkeypatch.setattr("flows.rendering.probing.correlation", answer)
    spec = make_spec({"prompt": "a red disc", **SMALL})
    planned = prepare(spec, home)
    assert [text for text in sampling_remarks(planned) if "a probe decides" in text]
    with pytest.raises(SpecError, match="does not say what it predicts"):
        session_in(home.root).render(planned)
    job = probed(planned, home, RunOptions(device="cpu"))
    assert job.run != planned.run
    assert probed(prepare(spec, home), home, RunOptions(device="cpu")).run == job.run
    assert calls == ["shapes"]
    assert [text for text in sampling_remarks(job) if "0.02 of the noise came back" in text]


class AfterOneStep(NullObserver):
    """Asks for a stop after the first step that it sees."""

    def __init__(self, stop: StopEvent) -> None:
        self.stop = stop

    def stepped(self, call: Any, step: int) -> None:
        self.stop.set()


@pytest.mark.parametrize(
    "solver",
    [pytest.param("euler", marks=pytest.mark.thorough), pytest.param("unipc", marks=pytest.mark.thorough), "heun"],
)
def test_a_render_of_v_goes_on_to_the_same_bytes(home: Home, solver: str, tmp_path: Path) -> None:
    """With zero terminal SNR. The embedded UNet's answers are read as v: no picture, but the same one."""
    values = {"prompt": "a red disc", "solver": solver, **SMALL, "model": {"prediction": V, "ztsnr": "on"}}
    job = prepare(make_spec(values), home)
    whole = session_in(home.root).render(job)
    other, steps = tmp_path / "other", next(call.stage.passes for call in job.plan.calls if call.stage.passes > 1)
    for step in range(1, steps):
        session = session_in(other, AfterOneStep(stop := StopEvent()), checkpoint_every=0)
        session.stop = stop
        with pytest.raises(Interrupted, match=f"after step {step}"):
            session.render(job)
    assert session_in(other).render(job).pixels_sha256 == whole.pixels_sha256
    plain = prepare(make_spec({"prompt": "a red disc", **SMALL}), home)
    shared = {call.key for call in plain.plan.calls} & {call.key for call in job.plan.calls}
    assert [call.stage.name for call in plain.plan.calls if call.key in shared] == ["conditioning"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, []),
        ({"preset": "lightning-4"}, []),
        ({"preset": "lightning-4", "steps": 6}, ["the preset lightning-4 is for 4 steps, and 6 are taken"]),
        ({"preset": "lcm", "steps": 12}, ["the preset lcm is for 1 to 8 steps, and 12 are taken"]),
        ({"preset": "dmd2-1", "width": 256, "height": 256}, []),
        (
            {"preset": "lightning-2", "steps": 1, "width": 256, "height": 256},
            ["the preset lightning-2", "with one step"],
        ),
        ({"model": {"prediction": V}}, ["prediction is v_prediction, and the model says epsilon"]),
        (
            {"model": {"prediction": V, "ztsnr": "on"}, "guidance_scale": 7.5},
            ["prediction is", "with zero terminal SNR a guidance scale of 7.5"],
        ),
        (
            {"model": {"prediction": V, "ztsnr": "on"}, "guidance_scale": 4, "timestep_spacing": "leading"},
            ["prediction is", "timestep_spacing leading does not begin at the last timestep"],
        ),
        (
            {"model": {"prediction": V, "ztsnr": "on"}, "guidance_scale": 7.5, "guidance_rescale": 0.7},
            ["prediction is"],
        ),
    ],
    ids=str,
)
def test_what_is_said_before_a_render(home: Home, values: dict[str, Any], said: list[str]) -> None:
    found = list(sampling_remarks(prepare(make_spec({"prompt": "x", "width": 128, "height": 128, **values}), home)))
    assert len(found) == len(said), found
    assert all(text.startswith(begin) for text, begin in zip(found, said, strict=True)), found


def test_a_nearest_solver_and_a_name_are_told(home: Home) -> None:
    folder = home.root / "models" / "sdxl_lightning_4step"
    shutil.copytree(EMBEDDED, folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "PNDMScheduler"}))
    values = {"prompt": "x", "width": 128, "height": 128, "model": {"name": folder.name}}
    told = list(sampling_remarks(prepare(make_spec(values), home)))
    assert told[0] == "the model's scheduler is PNDMScheduler; ddim is the nearest solver here, and is taken"
    assert told[1].startswith(
        "the name sdxl_lightning_4step speaks of few steps, and 30 are taken; --preset lightning-4"
    )
    assert len(list(sampling_remarks(prepare(make_spec({**values, "solver": "euler"}), home)))) == 1
    assert list(sampling_remarks(prepare(make_spec({**values, "preset": "lightning-4"}), home))) == []


def test_a_preset_brings_values_of_methods(home: Home) -> None:
    """Over the model's card, under the spec's own."""

    def method(**values: Any) -> Any:
        return prepare(make_spec({"prompt": "x", "width": 256, "height": 256, **values}), home).spec.method

    assert (method(preset="lightning-4").restart, method(preset="lightning-4").dilation) == (0.5, (0.0, 1.0))
    assert method(preset="lightning-4", method={"name": "freescale", "restart": 0.25}).restart == 0.25
    assert method(preset="lightning-8").restart == method().restart


@pytest.mark.thorough
def test_guidance_within_an_interval_calls_the_unet_for_one_side_outside(home: Home) -> None:
    """And the planner counts so."""
    from stages.denoise import BaseDenoise
    from stages.planner.networks import TracedNetworks

    flops, samples = {}, {}
    for interval in (None, (0.0, 0.5), (0.5, 1.0)):
        values = {"prompt": "x", **SMALL, "steps": 4, "guidance_scale": 5, "guidance_interval": interval}
        job = prepare(make_spec(values), home)
        (stage,) = (call.stage for call in job.plan.calls if isinstance(call.stage, BaseDenoise))
        networks = TracedNetworks(job.plan.info, "float32", RunOptions())
        flops[interval] = networks.denoise(stage, 1).flops
        session = session_in(home.root)
        models = session.runner(job).models
        before = models.unet_samples
        session.render(job)
        samples[interval] = models.unet_samples - before
    assert samples == {None: 8, (0.0, 0.5): 6, (0.5, 1.0): 6}
    for interval in ((0.0, 0.5), (0.5, 1.0)):
        assert flops[interval] == pytest.approx(0.75 * flops[None], rel=0.03)
