"""PixelRush and HiWave: walks that begin without noise, feathered patches, injection, wavelet guidance."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from freescale.compute import Compute
from freescale.forward_process import normal
from freescale.guidance import Conditioning, Denoiser
from freescale.methods import METHODS, HiWave, Method, PixelRush
from freescale.methods.pixelrush import slerp
from freescale.moment import Moment
from freescale.sampling import Step
from freescale.schedule import Schedule, make_schedule
from freescale.view_prediction import pair_views, predict_views, window_views
from freescale.views import feather
from freescale.walk import descent, inversion, pairs_of, rises, walked
from freescale.wavelets import dwt2, idwt2
from freescale.windows import place_windows
from tests.toys import BASE, TARGET, Toward, goes_on, level_at, points, render, run_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

ONE, TWO, FOUR = (1024, 1024), (2048, 2048), (4096, 4096)
WALKED: list[Method] = [PixelRush(), PixelRush(steps=2), HiWave(skip=1.0)]  # every step of the way down asks back


@pytest.fixture
def denoiser(sdxl_unet: Any, conditioning: Conditioning) -> Denoiser:
    return Denoiser(sdxl_unet, conditioning, 4.0)


def walk_of(method: Method, config: dict[str, Any], steps: int = 3, solver: Any = "ddim") -> Schedule:
    """That of level 1."""
    return method.walk(make_schedule(config, steps, solver), 1, (BASE, TARGET))


def noise_of(latents: Tensor, i: int) -> Tensor:
    return torch.sin(3.0 * latents + i)


class TestWalk:
    """From 0 up and down again."""

    @pytest.mark.parametrize("steps", [1, 4])
    def test_goes_up_through_the_levels_of_the_way_down(self, steps: int, scheduler_config: dict[str, Any]) -> None:
        schedule = make_schedule(scheduler_config, 10)
        down = descent(schedule, 249.0, steps)
        walk = inversion(down)
        assert walk.sigmas == (0.0, *down.sigmas[steps - 1 :: -1], *down.sigmas[1:])
        assert walk.timesteps == (0.0, *down.timesteps[:0:-1], *down.timesteps)
        assert [rises(walk, i) for i in range(len(walk))] == [True] * steps + [False] * steps
        assert walked(schedule, pairs_of(walk)) == walk
        assert (walk.sigmas[steps], walk.final_scale) == (pytest.approx(0.69, abs=0.01), 1.0)

    @pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "euler_ancestral", "heun", "lcm"])
    def test_is_euler_s_whatever_the_solver(self, solver: Any, scheduler_config: dict[str, Any]) -> None:
        walk = inversion(make_schedule(scheduler_config, 5, solver))
        assert (walk.solver, walk.eta, len(walk)) == ("euler", 0.0, 10)
        assert [walk.noise_sigma(i) for i in range(10)] == [0.0] * 10
        assert walk.sigmas == inversion(make_schedule(scheduler_config, 5, "euler")).sigmas

    def test_up_and_down_with_one_noise_is_no_change(self, scheduler_config: dict[str, Any]) -> None:
        walk = inversion(make_schedule(scheduler_config, 6, "ddim"))
        start, noise_pred = normal((1, 4, 3, 3), 1, "z"), normal((1, 4, 3, 3), 1, "e")
        latents = start
        for i in range(len(walk)):
            latents, _ = walk.advance(noise_pred, i, latents)
        torch.testing.assert_close(latents, start, atol=2e-5, rtol=0)

    def test_a_step_up_is_ddim_inversion(self, scheduler_config: dict[str, Any]) -> None:
        """In the latents of diffusers, x = z sqrt(a): arXiv:2010.02502, equation 12, from less to more noise."""
        walk = inversion(make_schedule(scheduler_config, 6))
        latents, noise_pred = normal((1, 4, 3, 3), 1, "z").double(), normal((1, 4, 3, 3), 1, "e").double()
        for i in range(6):
            a, after = (1.0 / (1.0 + sigma**2) for sigma in walk.sigmas[i : i + 2])
            x = latents * math.sqrt(a)
            x0 = (x - math.sqrt(1.0 - a) * noise_pred) / math.sqrt(a)
            wanted = math.sqrt(after) * x0 + math.sqrt(1.0 - after) * noise_pred
            latents, _ = walk.advance(noise_pred, i, latents)
            torch.testing.assert_close(latents * math.sqrt(after), wanted, atol=1e-12, rtol=0)
            noise_pred = noise_of(latents, i)

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
    def test_a_prediction_without_noise_is_finite(self, kind: str, scheduler_config: dict[str, Any]) -> None:
        walk = inversion(make_schedule(scheduler_config | {"prediction_type": kind}, 6))
        latents, output = normal((1, 4, 3, 3), 1, "z"), normal((1, 4, 3, 3), 1, "e")
        noise_pred = walk.to_noise(output, latents, 0)
        if kind == "sample":
            output = (latents - output) / walk.train_sigmas[0]
        torch.testing.assert_close(noise_pred, output, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("method", [PixelRush(), HiWave()], ids=lambda method: method.name)
    def test_a_level_starts_from_its_reference(self, method: Method, scheduler_config: dict[str, Any]) -> None:
        level, walk = level_at(1), walk_of(method, scheduler_config)
        assert level.reference is not None
        assert torch.equal(method.start(level.reference.shape, Moment(level, 0, walk, 7)), level.reference)

    @pytest.mark.parametrize(
        ("method", "target", "steps"),
        [(PixelRush(), FOUR, [50, 2, 2]), (PixelRush(steps=3), TWO, [50, 6]), (HiWave(), FOUR, [50, 100, 100])],
        ids=str,
    )
    def test_steps_at_each_size(self, method: Method, target: Any, steps: list[int], scheduler_config: Any) -> None:
        schedule, sizes = make_schedule(scheduler_config, 50, "ddim"), method.sizes(target, ONE)
        assert [len(method.walk(schedule, level, sizes)) for level in range(len(sizes))] == steps
        assert method.walk(schedule, 0, (ONE,)) is schedule


class TestFeather:
    """Weights of the cells of a view."""

    def test_falls_from_the_centre(self) -> None:
        weights = feather((7, 10), 0.2)
        assert torch.equal(weights, weights.flip(0))
        assert torch.equal(weights, weights.flip(1))
        assert float(weights[3, 4]) == pytest.approx(math.exp(-(0.5**2) / 2 / 2.0**2))
        assert float(weights[0, 0]) == pytest.approx(math.exp(-((3 / 1.4) ** 2 + (4.5 / 2.0) ** 2) / 2))

    def test_is_a_weighted_mean(self) -> None:
        """Cell by cell, against loops."""
        windows = place_windows((9, 14), (9 / 4, 14 / 6))
        views, weights = window_views(windows, 8), feather((4, 6), 0.2)
        parts = normal((len(views), 2, 4, 6), 1)
        total, count = torch.zeros(1, 2, 9, 14), torch.zeros(9, 14)
        views.add(parts, total, count, weights)
        sums, shares = torch.zeros(2, 9, 14), torch.zeros(9, 14)
        for (top, left), part in zip(windows.origins, parts, strict=True):
            for y in range(4):
                for x in range(6):
                    sums[:, top + y, left + x] += weights[y, x] * part[:, y, x]
                    shares[top + y, left + x] += weights[y, x]
        torch.testing.assert_close((total / count)[0], sums / shares)

    def test_weights_of_one_are_none(self) -> None:
        views = window_views(place_windows((9, 14), (9 / 4, 14 / 6)), 8)
        made = []
        for weights in (None, torch.ones(4, 6)):
            total, count = torch.zeros(1, 2, 9, 14), torch.zeros(9, 14)
            views.add(normal((len(views), 2, 4, 6), 1), total, count, weights)
            made.append((total, count))
        assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


class TestInjection:
    """Noise in the prediction of the way down."""

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.95, 1.0])
    def test_lies_on_the_great_circle(self, share: float) -> None:
        first, second = normal((3, 4, 9, 9), 1).double(), normal((3, 4, 9, 9), 2).double()
        between = slerp(first, second, share)
        for row in range(3):
            a, b, c = (x[row].flatten() for x in (first, second, between))
            angle = torch.acos(a @ b / (a.norm() * b.norm()))
            wanted = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)
            torch.testing.assert_close(c, wanted)
        at_right_angle = slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 0.95)
        torch.testing.assert_close(at_right_angle, torch.tensor([[0.0785, 0.9969]]), atol=1e-4, rtol=0)

    def test_parallel_ones_are_joined_by_a_line(self) -> None:
        x = normal((2, 4, 3, 3), 1)
        torch.testing.assert_close(slerp(x, 2.0 * x, 0.25), 1.25 * x)

    def test_is_keyed_and_of_the_way_down(self, scheduler_config: dict[str, Any]) -> None:
        """On the way up, and with a share of 1, the prediction is that of the views."""
        walk, level = walk_of(PixelRush(), scheduler_config), level_at(1)
        toward: Any = Guided(normal((1, 4, 17, 20), 9))
        latents = normal((1, 4, 17, 20), 1)

        def predicted(step: int, seed: int = 7, **changes: Any) -> Tensor:
            return PixelRush(**changes).predict(toward, latents, Moment(level, step, walk, seed))

        assert torch.equal(predicted(0), predicted(0, seed=8))
        assert torch.equal(predicted(1), predicted(1))
        assert not torch.equal(predicted(1), predicted(1, seed=8))
        assert torch.equal(predicted(1, injection=1.0), predicted(1, seed=8, injection=1.0))

    def test_of_a_flow_model_is_in_its_noise(self) -> None:
        """The velocity that comes back is that of the mixed noise and the latents."""
        flow = make_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler"}, 10)
        walk, level = PixelRush().walk(flow, 1, (BASE, TARGET)), level_at(1)
        latents, velocity = normal((1, 4, 17, 20), 1), normal((1, 4, 17, 20), 2)
        sigma = walk.sigmas[1]
        moment = Moment(level, 1, walk, 7)
        noise = latents + (1.0 - sigma) * velocity
        fresh = normal(noise.shape, 7, "inject", 1, 1)
        x0 = (latents - sigma * slerp(fresh, noise, 0.95)) / (1.0 - sigma)
        found = PixelRush().inject(velocity, latents, moment)
        torch.testing.assert_close(latents - sigma * found, x0, atol=1e-5, rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Guided:
    """A denoiser whose passes are functions of the latents, as fields that a method may replace."""

    truth: Any
    network: Any = dataclasses.field(default_factory=torch.nn.Module)
    conditioning: Conditioning = dataclasses.field(default_factory=lambda: Conditioning(torch.zeros(1, 1, 1)))
    guidance_scale: float = 4.0
    compute: Compute = dataclasses.field(default_factory=Compute)

    def for_views(self, views: Any, batch: int) -> Guided:
        return dataclasses.replace(self, truth=views.take(self.truth))

    def __call__(self, latents: Tensor, i: int, schedule: Schedule) -> Tensor:
        return (latents - self.truth) * self.guidance_scale


def samples(denoiser: Denoiser, method: Method, walk: Schedule, steps: Sequence[int]) -> list[int]:
    """Rows of the UNet's calls in each of these steps of level 1."""
    found = []
    for step in steps:
        seen = list[int]()
        handle = denoiser.network.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(len(given[0])))
        latents = normal((1, 4, 17, 20), 1)
        with torch.no_grad():
            method.predict(denoiser, latents, Moment(level_at(1), step, walk, 7))
        handle.remove()
        found.append(sum(seen))
    return found


def test_one_sample_a_patch_on_the_way_up_and_two_down(denoiser: Denoiser, scheduler_config: dict[str, Any]) -> None:
    """Of 17 x 20 cells in patches of 8 x 10, half overlapping: 4 by 3."""
    count = 12
    rush, wave = PixelRush(), HiWave()
    assert samples(denoiser, rush, walk_of(rush, scheduler_config), [0, 1]) == [count, 2 * count]
    assert samples(denoiser, wave, walk_of(wave, scheduler_config, 1), [0, 1]) == [count, 2 * count]
    plain = dataclasses.replace(denoiser, guidance_scale=1.0)
    assert samples(plain, wave, walk_of(wave, scheduler_config, 1), [1]) == [count]


@torch.no_grad()
def test_wavelet_guidance_is_that_of_x0(denoiser: Denoiser, scheduler_config: dict[str, Any]) -> None:
    """LL of the conditional x0 alone; LH, HL and HH of D_u + w_d (D_c - D_u)."""
    walk, level, step = walk_of(HiWave(), scheduler_config), level_at(1), 4
    latents, sigma = normal((1, 4, 17, 20), 1), walk.sigmas[4]
    moment = Moment(level, step, walk, 7)
    views, weights = window_views(place_windows((17, 20), level.scale), 8), feather((8, 10), 0.2)
    negative, positive = (latents - sigma * output for output in pair_views(denoiser, latents, views, moment, weights))
    (_, fine_u), (low, fine_c) = (dwt2(x0, "sym4") for x0 in (negative, positive))
    guided: Any = tuple(u + 8.0 * (c - u) for u, c in zip(fine_u, fine_c, strict=True))
    wanted = idwt2(low, guided, "sym4", (17, 20))
    noise_pred = HiWave(detail_guidance=2.0).predict(denoiser, latents, moment)
    torch.testing.assert_close(latents - sigma * noise_pred, wanted, atol=1e-4, rtol=1e-4)
    alike = HiWave(detail_guidance=0.25).predict(denoiser, latents, moment)  # w_d = 1: the conditional prediction
    plain = predict_views(dataclasses.replace(denoiser, guidance_scale=1.0), latents, views, moment, weights)
    torch.testing.assert_close(alike, plain, atol=1e-5, rtol=1e-5)


class TestSkipResidual:
    """The latents of the way up, asked back on the way down."""

    @pytest.mark.parametrize(("skip", "scale", "count"), [(None, 2, 15), (None, 4, 30), (0.1, 4, 5), (0.0, 4, 0)])
    def test_steps_are_those_of_the_paper(self, skip: Any, scale: int, count: int, scheduler_config: Any) -> None:
        method = HiWave(skip=skip)
        level = dataclasses.replace(level_at(1), size=(64 * scale, 80 * scale))
        moment = Moment(level, 0, walk_of(method, scheduler_config, 50), 7)
        assert method.skipped(moment) == count

    def test_weight_falls_from_one(self, scheduler_config: dict[str, Any]) -> None:
        """Of the inverted latents, by timestep; as printed of the others."""
        walk, level = walk_of(HiWave(), scheduler_config, 10), level_at(1)
        zeros, ones = torch.zeros(1, 4, 17, 20), torch.ones(1, 4, 17, 20)

        def weight(step: int, **changes: Any) -> float:
            moment = Moment(level, step, walk, 7, extra={f"inverted{step - 10}": ones})
            return float(HiWave(skip=1.0, **changes).blend(zeros, moment).mean())

        found = [weight(step) for step in range(11, 20)]
        assert found == sorted(found, reverse=True)
        assert found[0] == pytest.approx(((1 + math.cos(math.pi * (1 - walk.timesteps[11] / 1000))) / 2) ** 3)
        assert weight(11, as_printed=True) == pytest.approx(1.0 - found[0])

    def test_what_is_kept_is_what_is_asked_for(self, scheduler_config: dict[str, Any]) -> None:
        """Before and after every step, and each tensor is what the way up stood at."""
        method, level = Plain(skip=0.7), level_at(1)
        walk = walk_of(method, scheduler_config, 10)
        start = method.start((1, 4, 17, 20), Moment(level, 0, walk, 7))
        toward: Any = Toward(normal((1, 4, 17, 20), 9))
        steps = run_from(toward, method, level, walk, Step(-1, start))
        before = [start, *(step.latents for step in steps)]
        for step in steps[:-1]:
            assert set(step.extra) == set(method.kept(Moment(level, step.index + 1, walk, 7)))
            for name, tensor in step.extra.items():
                assert torch.equal(tensor, before[10 - int(name.removeprefix("inverted"))])
        assert len(steps[9].extra) == 6
        assert not steps[-1].extra

    def test_without_the_way_up_is_refused(self, scheduler_config: dict[str, Any]) -> None:
        moment = Moment(level_at(1), 7, walk_of(HiWave(), scheduler_config, 6), 7)
        with pytest.raises(ValueError, match="step 7 lacks inverted1, allowed: the latents of the way up"):
            HiWave(skip=1.0).blend(normal((1, 4, 17, 20), 1), moment)


class Plain(HiWave):
    """HiWave on a denoiser that has no views."""

    def predict(self, denoiser: Denoiser, latents: Tensor, moment: Moment) -> Tensor:
        return 0.1 * noise_of(latents, moment.step)


@pytest.mark.parametrize("method", points(WALKED, kept=lambda method: method != PixelRush(steps=2)), ids=str)
def test_killed_at_every_step_it_goes_on(method: Method, denoiser: Denoiser, scheduler_config: dict[str, Any]) -> None:
    walk = walk_of(method, scheduler_config, 2)
    steps = goes_on(denoiser, method, level_at(1), walk)
    assert [len(step.extra) for step in steps] == ([0, 1, 1, 0] if isinstance(method, HiWave) else [0] * len(walk))
    assert steps[-1].latents.isfinite().all()


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["pixelrush", "hiwave"])
def test_at_the_training_size_a_level_comes_back_as_it_was(name: str, scheduler_config: dict[str, Any]) -> None:
    """Up and down with a noise that does not change is no change."""
    method = METHODS[name](**({"injection": 1.0} if name == "pixelrush" else {}))
    level = level_at(1, BASE)
    assert level.reference is not None

    class Constant(Guided):
        def __call__(self, latents: Tensor, i: int, schedule: Schedule) -> Tensor:
            return self.truth

    constant: Any = Constant(normal((1, 4, 8, 10), 4))
    output = render(constant, method, level, walk_of(method, scheduler_config, 5))
    torch.testing.assert_close(output, level.reference, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("pixelrush", {"start_timestep": 0.0}),
        ("pixelrush", {"steps": 0}),
        ("pixelrush", {"injection": 1.5}),
        ("pixelrush", {"injection": math.nan}),
        ("pixelrush", {"feather": -0.1}),
        ("pixelrush", {"posterior": "mean"}),
        ("hiwave", {"detail_guidance": -1.0}),
        ("hiwave", {"skip": 1.2}),
        ("hiwave", {"feather": -0.1}),
        ("hiwave", {"wavelet": "haar"}),
        ("hiwave", {"filter": "area"}),
    ],
)
def test_values_without_a_meaning_are_refused(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        METHODS[name](**values)
