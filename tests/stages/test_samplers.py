"""Names of samplers, presets, and every scheduler_config.json that diffusers writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from freescale import SOLVERS, make_schedule
from stages.denoise import Sampling
from stages.errors import SpecError
from stages.models.presets import PRESETS, named_in
from stages.models.samplers import WORDS, nearest_sampler, sampler_named
from stages.models.schedulers import KINDS, read_scheduler
from stages.spec import RenderSpec, make_spec

FILE = Path("scheduler_config.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras", "auto")),
        ("DPM++ 2M SDE Karras", ("dpmpp_2m_sde", "karras", "auto")),
        ("DPM++ 3M SDE Exponential", ("dpmpp_3m_sde", "exponential", "auto")),
        ("DPM++ 2M SDE", ("dpmpp_2m_sde", "auto", "auto")),
        ("DPM++ SDE Karras", ("dpmpp_sde", "karras", "auto")),
        ("DPM++ 2S a Karras", ("dpmpp_2s_ancestral", "karras", "auto")),
        ("DPM++ 2M SGM Uniform", ("dpmpp_2m", "uniform", "sgm_uniform")),
        ("DPM++ 2M Automatic", ("dpmpp_2m", "karras", "auto")),
        ("Euler a", ("euler_ancestral", "auto", "auto")),
        ("Euler a Automatic", ("euler_ancestral", "uniform", "auto")),
        ("Euler", ("euler", "auto", "auto")),
        ("Heun", ("heun", "auto", "auto")),
        ("LMS Karras", ("lms", "karras", "auto")),
        ("DPM2 a Karras", ("dpm_2_ancestral", "karras", "auto")),
        ("UniPC", ("unipc", "auto", "auto")),
        ("DDIM", ("ddim", "auto", "auto")),
        ("LCM", ("lcm", "auto", "auto")),
        ("TCD", ("tcd", "auto", "auto")),
        ("dpmpp_2m karras", ("dpmpp_2m", "karras", "auto")),
        ("dpmpp_2m sgm_uniform", ("dpmpp_2m", "uniform", "sgm_uniform")),
        ("dpmpp_2m_sde_gpu exponential", ("dpmpp_2m_sde", "exponential", "auto")),
        ("euler normal", ("euler", "uniform", "linspace")),
        ("euler simple", ("euler", "uniform", "trailing")),
        ("ddim ddim_uniform", ("ddim", "uniform", "leading")),
        ("uni_pc_bh2", ("unipc", "auto", "auto")),
        ("euler_k", ("euler", "karras", "auto")),
        ("euler_a", ("euler_ancestral", "auto", "auto")),
        ("dpmpp_2m_sde_k", ("dpmpp_2m_sde", "karras", "auto")),
        ("kdpm_2_a", ("dpm_2_ancestral", "auto", "auto")),
        ("unipc_k", ("unipc", "karras", "auto")),
        ("lms_k", ("lms", "karras", "auto")),
    ],
)
def test_names_of_other_programs(text: str, expected: tuple[str, str, str]) -> None:
    """A1111's, with and without a schedule type, then ComfyUI's sampler and scheduler, then InvokeAI's."""
    assert tuple(sampler_named(text)) == expected
    spec = make_spec({"prompt": "x", "solver": text})
    assert (spec.solver, spec.sigmas, spec.timestep_spacing) == expected


def test_our_own_names_are_names() -> None:
    assert set(WORDS) <= set(SOLVERS)
    for name in SOLVERS:
        assert tuple(sampler_named(name)) == (name, "auto", "auto")


@pytest.mark.parametrize(("text", "solver"), [("PLMS", "ddim"), ("PNDM", "ddim"), ("DEIS Karras", "dpmpp_2m")])
def test_what_is_not_here_is_refused_with_the_nearest(text: str, solver: str) -> None:
    with pytest.raises(SpecError, match=f"the nearest is '{solver}'"):
        sampler_named(text)
    found = nearest_sampler(text)
    assert found is not None
    assert found.solver == solver
    assert nearest_sampler("zzz") is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"solver": "Euler Karras", "sigmas": "beta"}, "'Euler Karras' has sigmas 'karras', and sigmas is 'beta'"),
        ({"timesteps": [999, 499], "steps": 4}, "steps is 4, and there are 2 timesteps"),
        ({"timesteps": [999, 499], "sigmas": "karras"}, "sigmas is 'karras'; leave one out"),
        ({"timesteps": []}, "timesteps"),
        ({"timesteps": [1, 2]}, "fall"),
        ({"guidance_interval": [0.5, 0.5]}, "0 <= START < END <= 1"),
        ({"guidance_interval": [0.5]}, "START:END"),
        ({"preset": "lightning"}, "preset: 'lightning' is not one of"),
        ({"sigmas": "kerras"}, "the nearest is 'karras'"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec({"prompt": "x", **values})
    assert message in str(caught.value)


def sampled(spec: RenderSpec) -> Sampling:
    """A spec's own settings, on a model that says nothing."""
    return Sampling(
        spec.steps or 50, spec.solver, spec.eta or 0.0, spec.guidance_scale or 0.0, 0.0, spec.sigmas,
        spec.timestep_spacing, spec.timesteps or (),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "solver", "timesteps", "guidance", "eta"),
    [
        ("turbo", "euler_ancestral", (999, 749, 499, 249), 0, None),
        ("lightning-1", "euler", (999,), 0, None),
        ("lightning-2", "euler", (999, 499), 0, None),
        ("lightning-4", "euler", (999, 749, 499, 249), 0, None),
        ("lightning-8", "euler", (999, 874, 749, 624, 499, 374, 249, 124), 0, None),
        ("hyper-1", "tcd", (999,), 0, 1.0),
        ("hyper-2", "ddim", (999, 499), 0, 0.0),
        ("hyper-4", "ddim", (999, 749, 499, 249), 0, 0.0),
        ("hyper-8", "ddim", (999, 874, 749, 624, 499, 374, 249, 124), 0, 0.0),
        ("hyper-cfg-8", "ddim", (999, 874, 749, 624, 499, 374, 249, 124), 5, 0.0),
        ("hyper-cfg-12", "ddim", (999, 916, 832, 749, 666, 582, 499, 416, 332, 249, 166, 82), 5, 0.0),
        ("lcm", "lcm", (999, 759, 499, 259), 0, None),
        ("dmd2", "lcm", (999, 749, 499, 249), 0, None),
        ("dmd2-1", "lcm", (399,), 0, None),
    ],
)
def test_presets(preset: str, solver: str, timesteps: tuple[int, ...], guidance: float, eta: float | None) -> None:
    """By the cards of their authors, whatever the model's scheduler says."""
    spec = make_spec({"prompt": "x", "preset": preset})
    assert (spec.solver, spec.guidance_scale, spec.eta) == (solver, guidance, eta)
    stock = {"beta_schedule": "scaled_linear", "timestep_spacing": "leading", "steps_offset": 1}
    assert sampled(spec).schedule_on(stock).timesteps == timesteps
    assert spec.model.prediction == ("sample" if preset == "lightning-1" else "auto")
    assert make_spec(spec.model_dump(mode="json")) == spec


def test_every_preset_is_tried() -> None:
    (mark,) = test_presets.pytestmark
    assert [case[0] for case in mark.args[1]] == list(PRESETS)


def test_timesteps_and_an_interval_as_text() -> None:
    spec = make_spec({"prompt": "x", "timesteps": "999, 499", "guidance_interval": "0.2:0.8"})
    assert (spec.timesteps, spec.steps, spec.guidance_interval) == ((999, 499), 2, (0.2, 0.8))


def test_what_a_spec_says_wins_over_its_preset() -> None:
    said = {"steps": 6, "guidance_scale": 1.5, "solver": "dpmpp_sde", "sigmas": "karras"}
    spec = make_spec({"prompt": "x", "preset": "lightning-8", **said})
    assert {name: getattr(spec, name) for name in said} == said
    assert make_spec({"prompt": "x", "preset": "dmd2-1", "steps": 4}).timesteps is None
    own = {"name": "shapes", "prediction": "epsilon"}
    assert make_spec({"prompt": "x", "preset": "lightning-1", "model": own}).model.prediction == "epsilon"


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("sdxl_lightning_4step_unet.safetensors", "lightning-4"),
        ("sdxl_lightning_8step_lora", "lightning-8"),
        ("Hyper-SDXL-2steps-lora.safetensors", "hyper-2"),
        ("Hyper-SDXL-12steps-CFG-lora", "hyper-cfg-12"),
        ("Hyper-SDXL-1step-lora", "hyper-1"),
        ("lcm-lora-sdxl", "lcm"),
        ("dmd2_sdxl_4step_unet", "dmd2"),
        ("dmd2_sdxl_1step_unet", "dmd2-1"),
        ("sdxl-turbo", "turbo"),
        ("juggernautXL_v9Rundiffusion", None),
        ("calcmeister", None),
    ],
)
def test_names_of_few_step_models(name: str, preset: str | None) -> None:
    assert named_in(name) == preset


@pytest.mark.parametrize(
    ("name", "config", "solver", "exact"),
    [
        ("DDIMScheduler", {}, "ddim", True),
        ("PNDMScheduler", {}, "ddim", False),
        ("DDPMScheduler", {}, "euler", False),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, "euler", True),
        ("EulerAncestralDiscreteScheduler", {}, "euler_ancestral", True),
        ("HeunDiscreteScheduler", {}, "heun", True),
        ("KDPM2DiscreteScheduler", {}, "dpm_2", True),
        ("KDPM2AncestralDiscreteScheduler", {}, "dpm_2_ancestral", True),
        ("LMSDiscreteScheduler", {"use_exponential_sigmas": True}, "lms", True),
        ("DPMSolverMultistepScheduler", {}, "dpmpp_2m", True),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "dpmpp_2m", True),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde", True),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
            "dpmpp_3m_sde",
            False,
        ),
        ("DPMSolverMultistepScheduler", {"solver_order": 1}, "euler", True),
        (
            "DPMSolverMultistepScheduler",
            {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"},
            "euler_ancestral",
            True,
        ),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, "dpmpp_2m", False),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, "dpmpp_2m", False),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "dpmpp_2m", False),
        ("DPMSolverSinglestepScheduler", {}, "euler", False),
        ("DPMSolverSDEScheduler", {}, "dpmpp_sde", True),
        ("DEISMultistepScheduler", {}, "euler", False),
        ("UniPCMultistepScheduler", {"use_beta_sigmas": True}, "unipc", True),
        ("UniPCMultistepScheduler", {"solver_order": 3}, "unipc", False),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "unipc", False),
        ("SASolverScheduler", {}, "dpmpp_2m_sde", False),
        ("LCMScheduler", {"timestep_spacing": "leading"}, "lcm", True),
        ("TCDScheduler", {}, "tcd", True),
    ],
)
def test_schedulers_of_diffusers(name: str, config: dict[str, Any], solver: str, exact: bool) -> None:
    config = {"_class_name": name, **config}
    read = read_scheduler(FILE, config)
    assert (read.solver, read.remark is None) == (solver, exact)
    if not exact:
        assert read.remark == f"the model's scheduler is {name}; {solver} is the nearest solver here, and is taken"
    schedule = make_schedule({**config, **read.decided}, 7, read.solver)
    assert schedule.by_time == any(config.get(f"use_{kind}_sigmas") for kind in ("karras", "exponential", "beta"))
    if name in ("LCMScheduler", "TCDScheduler"):
        assert schedule.timesteps == (999, 859, 719, 579, 439, 299, 159)
    assert name in KINDS


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "is of the class EDMEulerScheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "is of the class FlowMatch"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 100}, "original_inference_steps = 100"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}, "use_lu_lambdas = true"),
        ({"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}, "must be 'linear'"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas = true"),
    ],
    ids=str,
)
def test_other_schedulers_are_refused_in_words(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_scheduler(FILE, config)
    assert message in str(caught.value)


def test_a_record_of_settings_is_what_it_was_and_comes_back() -> None:
    plain = Sampling(8, "euler", 0.0, 7.5, 0.0)
    assert plain.record() == {
        "steps": 8, "solver": "euler", "eta": 0.0, "guidance_scale": 7.5, "guidance_rescale": 0.0
    }  # fmt: skip
    full = Sampling(2, "lcm", 1.0, 0.0, 0.0, "auto", "trailing", (999, 399), (0.2, 0.8))
    for sampling in (plain, full):
        assert Sampling.from_record(json.loads(json.dumps(sampling.record()))) == sampling
