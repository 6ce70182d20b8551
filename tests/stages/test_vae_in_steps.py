"""A method that uses the VAE within its steps: what is in the key, on the device, and in the plan."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

from stages.denoise import DenoiseStage
from stages.models.load import Models, describe
from stages.plan import make_plan
from stages.planner.budget import next_saving
from stages.planner.estimate import estimate, resident, rough_bytes
from stages.planner.networks import TracedNetworks
from stages.spec import ModelSpec, RunOptions, make_spec

if TYPE_CHECKING:
    from stages.call import Call
    from stages.models.info import ModelInfo


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    return describe(ModelSpec(), tmp_path_factory.mktemp("home"))


def steps_of(info: ModelInfo, level: int, **method: Any) -> Call:
    """The one denoising call of a level of DiffuseHigh, ten steps of which five are taken and three use the VAE."""
    named = {"name": "diffusehigh", "restart": 0.5, "structure": 0.8, **method}
    spec = make_spec({"prompt": "a disc", "steps": 10, "width": 256, "height": 256, "method": named})
    (found,) = (c for c in make_plan(spec, info).calls if c.level == level and isinstance(c.stage, DenoiseStage))
    return found


def test_the_vae_and_the_picture_below_decide_the_bytes(info: ModelInfo) -> None:
    other = dataclasses.replace(info, fingerprints={**info.fingerprints, "vae": "other"})
    assert steps_of(info, 0).stage.parts == ("unet",)
    assert steps_of(info, 0).model == steps_of(other, 0).model
    call = steps_of(info, 1)
    assert call.stage.parts == ("unet", "vae")
    assert call.parents["image"].label == "decode 0"
    assert call.model != steps_of(other, 1).model
    assert call.model.endswith(":float32")


def test_both_networks_are_on_the_device(info: ModelInfo) -> None:
    class Part:
        place = "cuda"

        def to(self, device: Any) -> None:
            self.place = str(device)

    models, unet, vae = Models(info, "float32", torch.device("cuda")), Part(), Part()
    models.__dict__ |= {"unet": unet, "vae": vae}
    for parts, offload, places in (
        (("unet",), False, ("cuda", "cpu")),
        (("unet", "vae"), True, ("cuda", "cuda")),
        (("vae",), True, ("cpu", "cuda")),
    ):
        models.make_room(parts, offload)
        assert (unet.place, vae.place) == places
    options, (low, high) = RunOptions(offload=True), (steps_of(info, level) for level in (0, 1))
    weights = {call.label: resident(call, info, options, "cuda") for call in (low, high)}
    assert weights["highres_denoise 1"] > weights["base_denoise 0"] > 0


def test_the_plan_counts_both_ways_through_the_vae(info: ModelInfo) -> None:
    options = RunOptions()
    networks = TracedNetworks(info, "float32", options)
    held, free = (steps_of(info, 2, structure=share) for share in (0.8, 0.5))
    size = held.size
    passes = networks.decode(size), networks.encode(size, size)
    with_vae, without = (call.stage.cost(networks, size, 1) for call in (held, free))
    assert with_vae.flops == pytest.approx(without.flops + 3 * sum(one.flops for one in passes), rel=0.02)
    assert with_vae.activations > max(one.activations for one in passes)
    assert rough_bytes(held, info) > estimate(held, info, options).memory


def test_savings_are_those_of_both_networks() -> None:
    taken, parts = list[str](), ("unet", "vae")
    while (saving := next_saving(parts, taken, RunOptions())) is not None:
        taken.append(saving.name)
    assert taken[0] == "split guidance"
    assert taken[-1] == "the VAE by exact tiles within 6 GiB"
