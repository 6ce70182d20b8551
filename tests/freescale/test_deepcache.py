"""DeepCache: full steps are plain, steps between use what a full one kept, and nothing stays on the UNet."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from freescale.compute import Compute
from freescale.deepcache import DeepCache, branches, cut_at, full_steps
from freescale.forward_process import normal
from freescale.freeu import freeu
from freescale.guidance import Conditioning, Denoiser
from freescale.methods import METHODS, Direct, FreeScale, Method
from freescale.moment import Moment
from freescale.sampling import Step
from freescale.schedule import Schedule, make_schedule
from freescale.unet_patches import patched
from tests.toys import is_same, level_at, render, run_from, sd_text, sd_unet, snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    ("asked", "full"),
    [
        ((0, 7, 3), {0, 3, 6, 7}),
        ((2, 7, 2), {2, 4, 6, 7}),
        ((0, 4, 1), {0, 1, 2, 3, 4}),
        ((0, 8, 2, 2), {0, 1, 4, 5, 8}),  # of a solver that calls the UNet twice a step
        ((0, 8, 3, 1, [4, 20]), {0, 3, 4, 6, 8}),
        ((0, 12, 3, 2, [2]), {0, 1, 2, 3, 6, 7, 12}),
    ],
)
def test_which_steps_are_full(asked: Any, full: set[int]) -> None:
    assert full_steps(*asked) == full
    with pytest.raises(ValueError, match="deepcache is 0, allowed: 1"):
        full_steps(0, 4, 0)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def latents(rows: int = 1, size: tuple[int, int] = (17, 20)) -> Tensor:
    return normal((rows, 4, *size), 11)


@pytest.fixture
def schedule(scheduler_config: Any) -> Schedule:
    return make_schedule(scheduler_config, 6)


def denoisers(sdxl_unet: Any, conditioning: Conditioning) -> list[Denoiser]:
    return [Denoiser(sdxl_unet, conditioning, 4.0), Denoiser(sd_unet("1.5"), sd_text(), 4.0)]


@pytest.mark.parametrize("kind", [0, pytest.param(1, marks=pytest.mark.thorough)], ids=["sdxl", "sd"])
def test_what_is_kept_says_all_of_the_inner_part(
    kind: int, sdxl_unet: Any, conditioning: Conditioning, schedule: Schedule
) -> None:
    """With the latents of the full step, the outer layers alone compute the same bits: at every branch, under FreeU
    and with odd sizes, of two pictures with guidance."""
    plain = denoisers(sdxl_unet, conditioning)[kind]
    before, count = snapshot(plain.network), branches([len(block.resnets) for block in plain.network.down_blocks])
    with patched(plain.network, [freeu(1.3, 1.4, 0.9, 0.2)]):
        whole = plain(latents(2), 1, schedule)
        for branch in range(count):
            cache = DeepCache({1}, branch)
            asked = replace(plain, deep_cache=cache)
            assert torch.equal(asked(latents(2), 1, schedule), whole), "a full step is a plain one"
            cache.full = frozenset()
            assert torch.equal(asked(latents(2), 1, schedule), whole), f"branch {branch}"
    assert is_same(before, snapshot(plain.network))
    with pytest.raises(ValueError, match=f"deepcache_branch is {count}, allowed: 0 to {count - 1}"):
        cut_at(plain.network, count)


def test_the_inner_part_does_not_run_between(sdxl_unet: Any, conditioning: Conditioning, schedule: Schedule) -> None:
    ran: list[str] = []
    names = ("down_blocks.0", "down_blocks.0.resnets.1", "down_blocks.1", "mid_block", "up_blocks.1", "up_blocks.2")
    handles = [sdxl_unet.get_submodule(n).register_forward_hook(lambda *_, name=n: ran.append(name)) for n in names]
    asked = Denoiser(sdxl_unet, conditioning, 4.0, deep_cache=DeepCache({0}, 1))
    try:
        first = asked(latents(), 0, schedule)
        assert set(ran) == set(names)
        ran.clear()
        second = asked(latents(), 1, schedule)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == ["down_blocks.0", "up_blocks.2"]
    plain = replace(asked, deep_cache=None)(latents(), 1, schedule)
    assert not torch.equal(second, plain), "the features are those of another step"
    assert (second - plain).norm() < (first - plain).norm(), "and the outer layers are of this one"


def test_split_guidance_and_guidance_that_ends(sdxl_unet: Any, conditioning: Conditioning, schedule: Schedule) -> None:
    """Features are kept by side: a full step of both serves calls of either one."""
    cache = DeepCache({1}, 2)
    asked = Denoiser(sdxl_unet, conditioning, 4.0, deep_cache=cache)
    whole = asked.pair(latents(), 1, schedule)
    cache.full = frozenset()
    split = replace(asked, compute=Compute(split_guidance=True)).pair(latents(), 1, schedule)
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=0)  # a batch of one adds up in another order
    (positive,) = asked.passes(latents(), 1, schedule, "positive")
    assert torch.equal(positive, split[1])
    with pytest.raises(KeyError):
        replace(asked, deep_cache=DeepCache({3})).pair(latents(), 1, schedule)


def test_after_an_error_nothing_stays(sdxl_unet: Any, conditioning: Conditioning, schedule: Schedule) -> None:
    before = snapshot(sdxl_unet)
    asked = Denoiser(sdxl_unet, conditioning, 4.0, deep_cache=DeepCache({0}))
    asked(latents(), 0, schedule)
    for step in (1, 0):
        with pytest.raises(RuntimeError):
            asked(latents()[:, :3], step, schedule)
    assert is_same(before, snapshot(sdxl_unet))


def steps_of(method: Method, asked: Denoiser, index: int, schedule: Schedule, interval: int) -> Any:
    """The level with a full step every `interval` steps and where the method switches; all steps, and the full ones."""
    level = level_at(index)
    start = 0 if level.is_base else method.restart_step(schedule)
    full = full_steps(start, len(schedule), interval, schedule.calls, method.switches(schedule) if index else ())
    first = method.start((1, 4, *level.latent_hw), Moment(level, start, schedule, 7))

    def run(last: Any) -> Any:
        return run_from(replace(asked, deep_cache=DeepCache(full)), method, level, schedule, last)

    whole = run(Step(start - 1, first))
    for step in whole[:-1]:
        if step.index + 1 in full:
            assert torch.equal(run(step)[-1].latents, whole[-1].latents), f"left before step {step.index + 1}"
    return whole, full


@pytest.mark.parametrize(
    "solver", ["dpmpp_2m", *(pytest.param(n, marks=pytest.mark.thorough) for n in ("ddim", "heun"))]
)
def test_a_loop_that_is_left_before_a_full_step_gives_the_same_bits(
    solver: Any, sdxl_unet: Any, conditioning: Conditioning, scheduler_config: Any
) -> None:
    asked, schedule = Denoiser(sdxl_unet, conditioning, 4.0), make_schedule(scheduler_config, 5, solver)
    plain = render(asked, Direct(), level_at(0), schedule)
    assert torch.equal(steps_of(Direct(), asked, 0, schedule, 1)[0][-1].latents, plain), "every step is full"
    whole, full = steps_of(Direct(), asked, 0, schedule, 2)
    assert len(full) < len(schedule)
    assert not torch.equal(whole[-1].latents, plain)


def test_a_step_at_which_dilation_begins_or_ends_is_full(
    sdxl_unet: Any, conditioning: Conditioning, scheduler_config: Any
) -> None:
    method, schedule = FreeScale(restart=0.4, dilation=(0.5, 0.7)), make_schedule(scheduler_config, 10)
    assert method.switches(schedule) == (5, 7)
    _, full = steps_of(method, Denoiser(sdxl_unet, conditioning, 4.0), 1, schedule, 4)
    assert full == {4, 5, 7, 8, 10}
    assert FreeScale(dilate=False).switches(schedule) == ()


def test_a_method_that_goes_with_it_leaves_the_unet_of_level_0_alone(scheduler_config: Any) -> None:
    """What changes from step to step would not be that of the kept features."""
    schedule = make_schedule(scheduler_config, 6)
    for name, kind in METHODS.items():
        if kind.keeps_features != "none":
            made = [list(kind().patches(Moment(level_at(0), i, schedule, 0))) for i in range(6)]
            assert not any(made), name
    assert {name for name, kind in METHODS.items() if kind.keeps_features == "all"} == {"direct", "freescale"}
