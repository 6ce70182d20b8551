"""What every method promises, for each line of the registry: a method added there is tested here."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from freescale import solvers
from freescale.cascade import Level
from freescale.compute import Compute
from freescale.forward_process import normal
from freescale.guidance import Conditioning, Denoiser
from freescale.methods import METHODS, Direct, Method
from freescale.methods.ablations import ABLATIONS, named
from freescale.moment import Moment
from freescale.sampling import Step, denoise
from freescale.schedule import Schedule, make_schedule
from freescale.unet_patches import patched
from tests.toys import (
    BASE,
    ON_UNETS,
    TARGET,
    Toward,
    goes_on,
    is_same,
    level_at,
    points,
    render,
    run_from,
    sd_text,
    sd_unet,
    snapshot,
)

TOPOLOGIES = ("sdxl", "sd1.5", "sd2.1")
PLACES = ("mid_block", "up_blocks.1")  # of a failure
SOLVERS = ("euler", "dpmpp_2m", "euler_ancestral")
TO_ZERO = tuple(name for name, row in solvers.SOLVERS.items() if row.ends_at_first_timestep is False)  # noise
OWN_GUIDANCE = {"scalecrafter", "fouriscale", "hiwave"}  # these ask the UNet more than once a step, not the denoiser
HELD = {"swift", "draft", "scalediff"}  # to the low band of the reference, which is another picture here

BRIEF = {
    "diffusehigh",
    "fam",
    "ap_ldm",
    "mrflow",
    "pixelrush",
    "hiwave",
}  # of parts of others: by default resumed, no more


def plain(name: str) -> Method:
    """The method without FreeU."""
    method = METHODS[name]()
    has_freeu = "freeu" in {f.name for f in dataclasses.fields(method)}
    return dataclasses.replace(method, **{"freeu": None} if has_freeu else {})


@pytest.fixture
def denoiser(sdxl_unet: Any, conditioning: Conditioning) -> Denoiser:
    return Denoiser(sdxl_unet, conditioning, 4.0)


@pytest.fixture(params=TOPOLOGIES)
def any_denoiser(request: pytest.FixtureRequest, denoiser: Denoiser) -> Denoiser:
    if request.param == "sdxl":
        return denoiser
    return Denoiser(sd_unet(request.param.removeprefix("sd")), sd_text(), 4.0)


def schedule_of(denoiser: Denoiser, config: dict[str, Any], steps: int = 4, solver: Any = "euler") -> Schedule:
    """Stable Diffusion 2.1 predicts v."""
    is_v = denoiser.network is sd_unet("2.1")
    return make_schedule(config | {"prediction_type": "v_prediction" if is_v else "epsilon"}, steps, solver)


@pytest.mark.parametrize("name", METHODS)
class TestRecord:
    """A method is a frozen record of plain values, and says where it goes."""

    def test_is_a_frozen_record_of_plain_values(self, name: str) -> None:
        method = METHODS[name]()
        assert (METHODS[name].name, METHODS[name].version >= 1) == (name, True)
        assert method == METHODS[name](**dataclasses.asdict(method))
        assert hash(method) == hash(METHODS[name]())
        with pytest.raises(dataclasses.FrozenInstanceError):
            method.anything = 1  # type: ignore[attr-defined]

    @pytest.mark.parametrize("size", [(320, 328), (64, 136), (136, 64), (72, 512), (192, 192)])
    def test_sizes_grow_to_the_target(self, name: str, size: tuple[int, int]) -> None:
        sizes = METHODS[name]().sizes(size, (64, 64))
        assert sizes[-1] == size
        assert len(set(sizes)) == len(sizes)
        assert sorted(sizes) == list(sizes) == sorted(sizes, key=lambda s: s[::-1])
        assert all(side % 8 == 0 for level in sizes for side in level)
        assert METHODS[name]().sizes((64, 64), (64, 64)) == ((64, 64),)

    def test_steps_lie_within_the_schedule(self, name: str) -> None:
        method = METHODS[name]()
        for steps in (1, 4, 20, 50):
            schedule = make_schedule({}, steps)
            assert 0 <= method.restart_step(schedule) < steps
            assert method.restart_step(schedule) <= method.detail_step(schedule) <= steps

    def test_parts_that_do_not_matter_are_reset(self, name: str) -> None:
        method = METHODS[name]()
        for reset in (method.at_base(), method.at_start()):
            assert type(reset) is METHODS[name]
        assert method.at_base().at_base() == method.at_base()
        assert method.at_start().at_start() == method.at_start()


def is_next(name: str, turn: int, topology: str) -> bool:
    """Whether a topology is the one that comes for a method when all take turns but rare ones."""
    return name not in BRIEF and TOPOLOGIES[(list(ON_UNETS).index(name) + turn) % len(TOPOLOGIES)] == topology


def is_one_of(few: int, name: str, turn: int, topology: str) -> bool:
    """Whether a method meets a case by default, on the topology whose turn it is: one case of `few`."""
    return (list(ON_UNETS).index(name) + turn) % few == 0 and is_next(name, turn, topology)


TURNS = points(ON_UNETS, TOPOLOGIES, kept=lambda name, unet: is_one_of(3, name, 0, unet))  # by default a third


class TestScaleOne:
    """At the training size every method is plain sampling, bit for bit."""

    @pytest.mark.parametrize(("name", "any_denoiser"), TURNS, indirect=["any_denoiser"])
    def test_level_zero(self, name: str, any_denoiser: Denoiser, scheduler_config: Any) -> None:
        schedule = schedule_of(any_denoiser, scheduler_config, 3)
        direct = render(any_denoiser, Direct(), level_at(0), schedule)
        assert torch.equal(render(any_denoiser, plain(name), level_at(0), schedule), direct)

    @pytest.mark.parametrize("name", points(ON_UNETS, kept=lambda name: name not in BRIEF))
    def test_prediction_above_level_zero(self, name: str, denoiser: Denoiser, scheduler_config: Any) -> None:
        schedule, method = make_schedule(scheduler_config, 4), plain(name)
        moment = Moment(level_at(1, BASE), 2, schedule, 7)
        latents = normal((1, 4, 8, 10), 1)
        with torch.no_grad(), patched(denoiser.network, method.patches(moment)):
            noise_pred = method.predict(denoiser, latents, moment)
        with torch.no_grad():
            assert torch.equal(noise_pred, denoiser(latents, 2, schedule))


class TestResume:
    """Whatever is left at a step and entered again ends with the same bits.

    By default every method with the solver that has a history, one method with every solver and at the base, where
    all are plain sampling; every method on two topologies, one method on all.
    """

    @pytest.mark.parametrize(
        ("name", "index", "solver"),
        points(
            ON_UNETS,
            (0, 1),
            SOLVERS,
            kept=lambda name, *rest: rest == (1, "dpmpp_2m" if name == "freescale" else "euler"),
        ),
    )
    def test_from_any_step(self, name: str, index: int, solver: Any, denoiser: Any, scheduler_config: Any) -> None:
        goes_on(denoiser, ON_UNETS[name](), level_at(index), make_schedule(scheduler_config, 3, solver))

    @pytest.mark.parametrize(
        ("name", "any_denoiser"),
        points(
            ON_UNETS, TOPOLOGIES, kept=lambda name, unet: (name, unet) in (("freescale", "sd2.1"), ("swift", "sd1.5"))
        ),
        indirect=["any_denoiser"],
    )
    def test_on_any_unet(self, name: str, any_denoiser: Denoiser, scheduler_config: Any) -> None:
        """In parts that stop where they are told to, and after a step with another seed."""
        method, level, schedule = ON_UNETS[name](), level_at(1), schedule_of(any_denoiser, scheduler_config)
        unbroken = render(any_denoiser, method, level, schedule)
        last = Step(2, normal((1, 4, *level.latent_hw), 8))
        (other,) = run_from(any_denoiser, method, level, schedule, last, seed=8)
        cuts = [step for step in (2, 3) if step > method.restart_step(schedule)]
        assert torch.equal(render(any_denoiser, method, level, schedule, cuts), unbroken)
        assert other.latents.isfinite().all()


class TestNoTrace:
    """The UNet is untouched at every yield, after the end, and after a failure inside a forward.

    By default topologies take turns: every method on one.
    """

    @pytest.mark.parametrize(("name", "any_denoiser"), TURNS, indirect=["any_denoiser"])
    def test_of_a_run(self, name: str, any_denoiser: Denoiser, scheduler_config: Any) -> None:
        level, schedule, method = level_at(1), schedule_of(any_denoiser, scheduler_config), ON_UNETS[name]()
        unet: Any = any_denoiser.network
        before, processors = snapshot(unet), unet.attn_processors
        latents = method.start((1, 4, *level.latent_hw), Moment(level, 0, schedule, 7))
        for _ in denoise(any_denoiser, latents, schedule, method, level, seed=7, start=method.restart_step(schedule)):
            assert is_same(before, snapshot(unet))
        assert all(unet.attn_processors[key] is processor for key, processor in processors.items())

    @pytest.mark.parametrize(
        ("name", "where", "any_denoiser"),
        points(
            ON_UNETS, PLACES, TOPOLOGIES, kept=lambda name, where, unet: is_one_of(4, name, PLACES.index(where), unet)
        ),
        indirect=["any_denoiser"],
    )
    def test_of_a_failure(self, name: str, where: str, any_denoiser: Denoiser, scheduler_config: Any) -> None:
        level, schedule, method = level_at(1), schedule_of(any_denoiser, scheduler_config), ON_UNETS[name]()
        before = snapshot(any_denoiser.network)

        def fail(*_: Any) -> None:
            raise RuntimeError("inside")

        handle = any_denoiser.network.get_submodule(where).register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="inside"):
            render(any_denoiser, method, level, schedule)
        handle.remove()
        assert is_same(before, snapshot(any_denoiser.network))


SIZES = {  # of a level: its base
    (280, 136): (136, 64),
    (104, 312): (40, 120),
    (168, 248): (64, 96),
    (88, 96): (64, 72),
}


@pytest.mark.parametrize(
    ("name", "size", "any_denoiser"),
    points(
        ON_UNETS, SIZES, TOPOLOGIES, kept=lambda name, size, unet: is_one_of(4, name, list(SIZES).index(size), unet)
    ),
    indirect=["any_denoiser"],
    ids=lambda given: given if isinstance(given, str) else f"{given[1]}x{given[0]}",
)
def test_any_size_on_any_unet(name: str, size: Any, any_denoiser: Denoiser, scheduler_config: Any) -> None:
    """Tall and wide, odd latents, a scale that rounds to 1."""
    schedule = schedule_of(any_denoiser, scheduler_config, 2)
    level = dataclasses.replace(level_at(1, size), base_size=SIZES[size])
    output = render(any_denoiser, ON_UNETS[name](), level, schedule)
    assert output.shape == (1, 4, size[0] // 8, size[1] // 8)
    assert output.isfinite().all()


@pytest.mark.parametrize(("name", "any_denoiser"), TURNS, indirect=["any_denoiser"])
def test_one_level_at_the_target(name: str, any_denoiser: Denoiser, scheduler_config: Any) -> None:
    """A cascade of one size, beyond the training size, starts from noise."""
    schedule = schedule_of(any_denoiser, scheduler_config, 2)
    output = render(any_denoiser, ON_UNETS[name](), Level(0, TARGET, BASE), schedule)
    assert output.isfinite().all()


@pytest.mark.parametrize(
    "name", points(ON_UNETS, kept=lambda name: name == "freescale" or name in OWN_GUIDANCE - BRIEF)
)
def test_guidance_may_be_split_and_windows_chunked(name: str, denoiser: Any, scheduler_config: Any) -> None:
    method, schedule, level = ON_UNETS[name](), make_schedule(scheduler_config, 2), level_at(1)
    whole = render(denoiser, method, level, schedule)
    frugal = dataclasses.replace(denoiser, compute=Compute(split_guidance=True, window_rows=2))
    torch.testing.assert_close(render(frugal, method, level, schedule), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "solver"),
    points(sorted(ON_UNETS.keys() - OWN_GUIDANCE - HELD), SOLVERS, kept=lambda name, solver: name not in BRIEF),
)
def test_perfect_noise_leads_to_the_picture(name: str, solver: Any, sdxl_unet: Any, scheduler_config: Any) -> None:
    """Whatever the reference: wrong noise levels, places or indices would show. The blur of DemoFusion is off, since
    it asks for the noise of a blurred picture by design, and so is what two others add to the noise."""
    changes: dict[str, Any] = {
        "demofusion": {"blur_sigma": 0.0},
        "diffusehigh": {"guidance": 1.0},
        "pixelrush": {"injection": 1.0},
    }.get(name, {})
    schedule, method = make_schedule(scheduler_config, 20, solver), dataclasses.replace(plain(name), **changes)
    truth = normal((1, 4, 17, 20), 9)
    output = render(Toward(truth, sdxl_unet), method, level_at(1, anchor=truth), schedule)
    torch.testing.assert_close(output, truth, atol=2e-5, rtol=0)


@pytest.mark.parametrize("solver", TO_ZERO)
@pytest.mark.parametrize("restart", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("levels", ["uniform", "karras"])
def test_perfect_noise_from_any_restart(scheduler_config: Any, solver: Any, restart: float, levels: str) -> None:
    """Also between the two calls of a step, where the method moves the latents towards its reference."""
    method = dataclasses.replace(plain("freescale"), restart=restart)
    truth = normal((1, 4, 17, 20), 9)
    schedule = make_schedule(scheduler_config | {f"use_{levels}_sigmas": True}, 20, solver)
    output = render(Toward(truth), method, level_at(1), schedule)
    torch.testing.assert_close(output, truth, atol=1e-5, rtol=0)


def ablated(name: str, unet: Any, conditioning: Conditioning, scheduler_config: Any) -> torch.Tensor:
    level = dataclasses.replace(level_at(1, (216, 264)), base_size=(64, 128))
    return render(Denoiser(unet, conditioning, 4.0), named(name), level, make_schedule(scheduler_config, 3))


@pytest.fixture(scope="module")
def whole(sdxl_unet: Any, conditioning: Conditioning, scheduler_config: Any) -> torch.Tensor:
    """FreeScale, with nothing left out."""
    return ablated("freescale", sdxl_unet, conditioning, scheduler_config)


@pytest.mark.parametrize("name", points(ABLATIONS, kept=lambda name: name in list(ABLATIONS)[::3]))
def test_ablations_run_and_differ(
    name: str, whole: torch.Tensor, sdxl_unet: Any, conditioning: Conditioning, scheduler_config: Any
) -> None:
    """From FreeScale, except where what they change lies outside the loop or is the default."""
    output = ablated(name, sdxl_unet, conditioning, scheduler_config)
    is_elsewhere = name in ("freescale/latent-upsampling", "freescale/rgb-upsampling")
    assert torch.equal(output, whole) == is_elsewhere
    assert (named(name) == named("freescale")) == (name == "freescale/rgb-upsampling")


def test_a_name_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"method is 'freescale/no', allowed: direct, freescale"):
        named("freescale/no")
    assert named("direct") == Direct()
