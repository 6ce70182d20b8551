"""DemoFusion against a step taken view by view, and what must hold whatever the model."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from freescale.cascade import Level
from freescale.compute import Compute
from freescale.detail import detail_weight
from freescale.forward_process import generator, normal, renoise
from freescale.frequency import blur_plane, gaussian_taps, is_identity
from freescale.guidance import Conditioning, Denoiser
from freescale.methods import DemoFusion, Direct
from freescale.methods.demofusion.method import dilated_factor
from freescale.methods.demofusion.views import dilated_views, match_moments
from freescale.moment import Moment
from freescale.schedule import Schedule, make_schedule
from freescale.view_prediction import predict_views, window_views
from freescale.windows import Windows, place_windows
from tests.oracles import demofusion as oracle
from tests.toys import level_at, render

if TYPE_CHECKING:
    from freescale.views import Views

GRID = (13, 19)


def moment_at(
    step: int, size: tuple[int, int] = (104, 152), base: tuple[int, int] = (64, 64), **options: Any
) -> Moment:
    level = dataclasses.replace(level_at(1, size), base_size=base)
    return Moment(level, step, make_schedule({"beta_schedule": "scaled_linear"}, 20), 7, **options)


class Places:
    """A made-up model whose noise depends on the view's content, on neighbours in it, and on where it lies."""

    unet, compute = torch.nn.Module(), Compute()

    def __init__(self, views: Views | None = None) -> None:
        self.views = views

    def for_views(self, views: Views, batch: int) -> Places:
        return Places(views)

    def __call__(self, latents: Tensor, i: int, schedule: Schedule) -> Tensor:
        assert self.views is not None
        parts = latents.chunk(len(self.views))
        rows, columns = self.views.rows.tolist(), self.views.columns.tolist()
        return torch.cat([
            self.noise(p[0], self._known(y, 0), self._known(x, 1))[None]
            for p, y, x in zip(parts, rows, columns, strict=True)
        ])  # fmt: skip

    def _known(self, places: list[int], axis: int) -> list[int | None]:
        assert self.views is not None
        return [k if 0 <= k < self.views.canvas[axis] else None for k in places]

    @staticmethod
    def noise(view: Tensor, rows: Any, columns: Any) -> Tensor:
        place = torch.tensor([[math.sin(3.0 * (r or 0) + (c or 0)) for c in columns] for r in rows], dtype=view.dtype)
        return torch.tanh(view + 0.5 * view.roll(1, 1) - 0.3 * view.roll(1, 2)) + place


@pytest.mark.parametrize("border", ["clamp", "zero"])
@pytest.mark.parametrize("step", [0, 9, 18])
def test_step_is_the_average_of_stepped_views(border: Any, step: int) -> None:
    """One step with averaged noise, and a step in every view: the same to rounding (float64)."""
    method, moment = DemoFusion(border=border), moment_at(step)
    z = normal((1, 4, *GRID), 1).double()
    kappa = detail_weight(moment.timestep)
    noise = method.predict(Places(), z, moment)  # type: ignore[arg-type]
    ours = moment.schedule.advance(noise, step, z)[0][0]

    dt = moment.schedule.sigmas[step + 1] - moment.sigma
    windows = method.windows(moment)
    assert (windows.window, dilated_factor(moment.level)) == ((8, 8), 3)
    local = oracle.local(z[0], Places.noise, windows.window, windows.origins, dt)
    seen = oracle.smooth(z[0], 5, 0.99 * kappa + 0.01)
    dilated = oracle.dilated(z[0], seen, Places.noise, 3, dt, mirror=border == "clamp")
    torch.testing.assert_close(ours, (1 - kappa) * local + kappa * dilated, atol=1e-10, rtol=0)


@given(
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    factor=st.integers(1, 5),
    outside=st.sampled_from(["mirror", "zero"]),
)
def test_dilated_views_interleave(grid: tuple[int, int], factor: int, outside: Any) -> None:
    """Taken apart and put together again is the canvas, also where sides do not divide."""
    views = dilated_views(grid, factor, outside)
    canvas = torch.arange(2.0 * grid[0] * grid[1]).view(1, 2, *grid)
    total, count = torch.zeros_like(canvas), torch.zeros(grid)
    for chunk in views.chunks(3):
        chunk.add(chunk.take(canvas), total, count)
    assert torch.equal(total, canvas)
    assert torch.equal(count, torch.ones(grid))
    assert len(views) == factor**2
    assert views.rows.shape[1] == -(-grid[0] // factor)


@given(grid=st.tuples(st.integers(4, 40), st.integers(4, 40)), scale=st.floats(1.0, 5.0), seed=st.integers(0, 99))
def test_windows_put_back_what_they_took(grid: tuple[int, int], scale: float, seed: int) -> None:
    for border in ("clamp", "mask"):
        windows = place_windows(grid, (scale, scale), jitter=generator(seed), border=border)  # type: ignore[arg-type]
        views, canvas = window_views(windows, 8, "zero"), normal((2, 3, 2, *grid), 1)
        total, count = torch.zeros_like(canvas), torch.zeros(grid)
        views.add(views.take(canvas), total, count)
        torch.testing.assert_close(total, canvas * count)
        assert torch.equal(count, windows.count())
        assert count.min() >= 1


def test_beyond_the_canvas_lie_zeros_or_the_mirrored_inside() -> None:
    windows = Windows((4, 6), (3, 3), torch.tensor([[-1, 4]]))
    canvas = torch.arange(24.0).view(1, 1, 4, 6)
    zero, mirror = (window_views(windows, 8, outside).take(canvas)[0, 0] for outside in ("zero", "mirror"))
    assert zero.tolist() == [[0, 0, 0], [4, 5, 0], [10, 11, 0]]
    assert mirror.tolist() == [[10, 11, 10], [4, 5, 4], [10, 11, 10]]


def test_views_of_several_pictures_keep_apart(sdxl_unet: Any, conditioning: Conditioning) -> None:
    """Rows of text go with their picture: two together are each alone."""
    text = [dataclasses.replace(conditioning, prompt_embeds=normal((1, 5, 32), i)) for i in (1, 2)]
    both = dataclasses.replace(conditioning, prompt_embeds=torch.cat([t.prompt_embeds for t in text]))
    moment, z = moment_at(3), normal((2, 4, *GRID), 4)
    with torch.no_grad():
        together = DemoFusion().predict(Denoiser(sdxl_unet, both, 3.0), z, moment)
        for i in range(2):
            alone = DemoFusion().predict(Denoiser(sdxl_unet, text[i], 3.0), z[i : i + 1], moment)
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("crops", "first", "last"), [("origin", (0, 0), (192, 320)), ("padded", (32, 48), (224, 368)),
                                                      ("none", (0, 0), (0, 0))])  # fmt: skip
def test_windows_are_told_their_crop(crops: Any, first: Any, last: Any, conditioning: Conditioning) -> None:
    views = window_views(place_windows((56, 88), (56 / 32, 88 / 48)), 8, "mirror", crops)
    ids = conditioning.for_views(views.crops, 1).added["time_ids"]
    assert ids.shape == (len(views), 6)
    assert (tuple(ids[0, 2:4].tolist()), tuple(ids[-1, 2:4].tolist())) == (first, last)
    assert torch.equal(ids[:, [0, 1, 4, 5]], conditioning.added["time_ids"][:, [0, 1, 4, 5]].expand(len(views), 4))
    assert conditioning.added["time_ids"].shape == (1, 6)


def test_crops_matter_to_a_model_that_is_told_them(sdxl_unet: Any, conditioning: Conditioning) -> None:
    denoiser, moment, z = Denoiser(sdxl_unet, conditioning, 3.0), moment_at(9), normal((1, 4, *GRID), 4)
    with torch.no_grad():
        told, not_told = (DemoFusion(crops=c).predict(denoiser, z, moment) for c in ("origin", "none"))
    assert (told - not_told).abs().max() > 1e-5


class TestLimits:
    """The exponents at their ends."""

    def test_dilated_scale(self) -> None:
        moment, z = moment_at(9), normal((1, 4, *GRID), 4)
        method = DemoFusion()
        local = predict_views(Places(), z, window_views(method.windows(moment), 8), moment)  # type: ignore[arg-type]
        views = dilated_views(GRID, 3)
        dilated = predict_views(Places(), method.smooth(z, moment), views, moment)  # type: ignore[arg-type]
        for scale, only in ((math.inf, local), (0.0, dilated)):
            noise = DemoFusion(dilated_scale=scale).predict(Places(), z, moment)  # type: ignore[arg-type]
            assert torch.equal(noise, only)

    def test_skip_scale(self) -> None:
        moment, z = moment_at(9), normal((1, 4, *GRID), 4)
        assert torch.equal(DemoFusion(skip_scale=math.inf).blend(z, moment), z)
        anchor = renoise(moment.level.reference, moment.level.noise, moment.sigma)  # type: ignore[arg-type]
        assert torch.equal(DemoFusion(skip_scale=0.0).blend(z, moment), anchor)
        half = DemoFusion().blend(z, moment)
        torch.testing.assert_close(half, torch.lerp(z, anchor, detail_weight(moment.timestep) ** 3))
        assert torch.equal(DemoFusion().blend(z, moment_at(0)), z)

    def test_blur_fades_to_the_identity(self) -> None:
        """Late, and the standardisation with it."""
        z = normal((1, 4, *GRID), 4)
        assert DemoFusion(blur_sigma=0.0).smooth(z, moment_at(0)) is z
        changes = [(DemoFusion().smooth(z, moment_at(i)) - z).abs().max().item() for i in range(20)]
        assert changes[0] > 0.5
        assert changes == sorted(changes, reverse=True)
        assert DemoFusion().smooth(z, moment_at(17)) is z
        assert DemoFusion().smooth(z, moment_at(10)) is not z

    def test_pointwise_model_needs_no_views(self) -> None:
        """A model of single cells gives the same in windows, in dilated views and on the canvas."""

        class Pointwise:
            def for_views(self, views: Views, batch: int) -> Pointwise:
                return self

            def __call__(self, latents: Tensor, i: int, schedule: Schedule) -> Tensor:
                return torch.sin(latents)

        for step in (0, 9, 19):
            for border in ("clamp", "zero"):
                z = normal((1, 4, *GRID), 4).double()
                method = DemoFusion(blur_sigma=0.0, border=border)  # type: ignore[arg-type]
                noise = method.predict(Pointwise(), z, moment_at(step))  # type: ignore[arg-type]
                torch.testing.assert_close(noise, torch.sin(z), atol=1e-14, rtol=0)

    def test_one_window_is_the_whole(self, sdxl_unet: Any, conditioning: Conditioning) -> None:
        denoiser, moment = Denoiser(sdxl_unet, conditioning, 3.0), moment_at(3)
        z, windows = normal((1, 4, *GRID), 4), place_windows(GRID, (1.0, 1.0), jitter=generator(1))
        with torch.no_grad():
            local = predict_views(denoiser, z, window_views(windows, 8), moment)
            assert torch.equal(local, denoiser(z, 3, moment.schedule))


@pytest.mark.parametrize(("base", "size", "phases"), [
    ((1024, 1024), (2048, 2048), [2]),
    ((1024, 1024), (4096, 4096), [2, 3, 4]),
    ((1024, 1024), (8192, 8192), [2, 3, 4, 5, 6, 7, 8]),
    ((1024, 512), (4096, 2048), [2, 3, 4]),
    ((128, 128), (320, 320), [2, 2.5]),
    ((128, 128), (192, 192), [1.5]),
    ((128, 128), (264, 264), [2.0625]),
])  # fmt: skip
def test_phases(base: Any, size: Any, phases: list[float]) -> None:
    """Whole multiples, and the target."""
    expected = [(int(base[0] * k), int(base[1] * k)) for k in [1, *phases]]
    assert list(DemoFusion().sizes(size, base)) == expected
    for k, phase in zip(phases, expected[1:], strict=True):
        assert dilated_factor(Level(1, phase, base)) == (2 if k == 2.0625 else math.ceil(k))


@pytest.mark.parametrize(("size", "phases"), [
    ((1024, 1024), [2, 4, 8]),
    ((768, 768), [2, 4, 6]),
    ((320, 320), [2.5]),
    ((128, 128), []),
])  # fmt: skip
def test_doublings_are_the_sizes_of_the_cascade(size: Any, phases: list[float]) -> None:
    base = (128, 128)
    assert DemoFusion(phases="doublings").sizes(size, base) == (base, *((int(128 * k),) * 2 for k in phases))


@pytest.mark.parametrize(("size", "local", "dilated"), [(2048, 9, 4), (3072, 25, 9), (4096, 49, 16), (8192, 225, 64)])
def test_number_of_views_is_the_papers(size: int, local: int, dilated: int) -> None:
    level = Level(1, (size, size), (1024, 1024))
    windows = DemoFusion().windows(Moment(level, 0, make_schedule({}, 4), 0))
    assert (len(windows.origins), dilated_factor(level) ** 2) == (local, dilated)
    assert windows.window == (128, 128)


def test_most_views_at_once_follow_from_memory() -> None:
    sizes: list[int] = []

    class Counting(Places):
        def for_views(self, views: Views, batch: int) -> Places:
            sizes.append(len(views))
            return Places(views)

    z, views = normal((1, 4, *GRID), 1), dilated_views(GRID, 5)
    whole = predict_views(Counting(), z, views, moment_at(3))  # type: ignore[arg-type]
    assert sizes == [16, 9]
    sizes.clear()
    frugal = predict_views(Counting(), z, views, moment_at(3, compute=Compute(window_rows=8)))  # type: ignore[arg-type]
    assert sizes == [8, 8, 8, 1]
    assert torch.equal(whole, frugal)


def test_a_phase_ends_with_the_moments_of_the_anchor(sdxl_unet: Any, conditioning: Any, scheduler_config: Any) -> None:
    denoiser, level = Denoiser(sdxl_unet, conditioning, 3.0), level_at(1)
    output = render(denoiser, DemoFusion(), level, make_schedule(scheduler_config, 2))
    anchor = level.anchor
    assert anchor is not None
    torch.testing.assert_close(output.mean(), anchor.mean(), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.std(), anchor.std(), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="level 1 lacks its anchor, allowed: the latents of level 0"):
        render(denoiser, DemoFusion(), level_at(1, anchor=None), make_schedule(scheduler_config, 2))


def test_moments_are_matched_picture_by_picture() -> None:
    x, like = normal((2, 4, 5, 6), 1), normal((2, 4, 3, 3), 2) * 3 + 1
    matched = match_moments(x, like)
    for i in range(2):
        expected = oracle.standardised(x[i].double(), like[i].double())
        torch.testing.assert_close(matched[i].double(), expected, atol=1e-5, rtol=0)


def test_blur_is_the_two_dimensional_gaussian() -> None:
    z = normal((1, 2, 7, 9), 1).double()
    blurred = match_moments(blur_plane(z, gaussian_taps(5, 0.8)), z)
    torch.testing.assert_close(blurred[0], oracle.smooth(z[0], 5, 0.8), atol=1e-12, rtol=0)
    assert is_identity(gaussian_taps(5, 0.1))
    assert not is_identity(gaussian_taps(5, 0.3))


def test_jitter_follows_from_seed_level_and_step() -> None:
    def origins(step: int = 3, **options: Any) -> Any:
        return DemoFusion(**options).windows(moment_at(step, (520, 520), (256, 256))).origins

    assert origins() == origins()
    assert origins(4) != origins()
    assert origins(4, jitter=False) == origins(jitter=False)


def test_told_size_is_that_of_the_last_phase() -> None:
    sizes = ((128, 128), (256, 256))
    told = [m.told_size(sizes, sizes[0]) for m in (DemoFusion(), DemoFusion(size_ids="base"), Direct())]
    assert told == [(256, 256), (128, 128), (128, 128)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_scale": -1.0}, "skip_scale is -1.0, allowed: 0 or more"),
        ({"blur_sigma": math.nan}, "blur_sigma is nan"),
        ({"phases": "all"}, "phases is 'all', allowed: multiples, doublings"),
        ({"border": "wrap"}, "border is 'wrap', allowed: clamp, zero"),
        ({"crops": "true"}, "crops is 'true', allowed: origin, padded, none"),
    ],
    ids=str,
)
def test_values_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DemoFusion(**options)
