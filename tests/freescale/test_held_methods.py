"""DiffuseHigh, FAM, AP-LDM and MrFlow: their sizes and walks as published, and what holds the picture in each."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from freescale.enlarge import sharpened_region
from freescale.forward_process import normal, renoise
from freescale.frequency import box_mask, fourier_filter
from freescale.guidance import Conditioning, Denoiser
from freescale.methods import APLDM, FAM, METHODS, DiffuseHigh, Method, MrFlow
from freescale.methods.ap_ldm import attended
from freescale.methods.diffusehigh import hold_pixels
from freescale.moment import Moment
from freescale.schedule import make_schedule
from freescale.wavelets import WAVELETS, dwt2, idwt2
from tests.toys import goes_on, level_at

if TYPE_CHECKING:
    from freescale.cascade import Level

ONE = (1024, 1024)


@pytest.fixture
def denoiser(sdxl_unet: Any, conditioning: Conditioning) -> Denoiser:
    return Denoiser(sdxl_unet, conditioning, 4.0)


@pytest.mark.parametrize(
    ("method", "target", "sides"),
    [
        (DiffuseHigh(), 2048, (1536, 2048)),
        (DiffuseHigh(), 4096, (2048, 3072, 4096)),
        (DiffuseHigh(), 8192, (2048, 3072, 4096, 5120, 6144, 7168, 8192)),
        (DiffuseHigh(), 1032, (1032,)),
        (FAM(), 4096, (4096,)),
        (APLDM(), 4096, (4096,)),
        (APLDM(levels=3), 4096, (2512, 3400, 4096)),
        (MrFlow(), 4096, (4096,)),
    ],
    ids=str,
)
def test_sizes(method: Method, target: int, sides: tuple[int, ...]) -> None:
    """Areas of AP-LDM with three levels: 6, 11 and 16 times that of the training size, rounded up to cells."""
    assert method.sizes((target, target), ONE) == (ONE, *((side, side) for side in sides))


def test_steps_as_published(scheduler_config: dict[str, Any]) -> None:
    schedule = make_schedule(scheduler_config, 50)
    high = DiffuseHigh()
    assert len(schedule) - high.restart_step(schedule) == 15
    assert [step for step in range(50) if high.uses_vae(step, schedule)] == [35, 36, 37, 38, 39]
    assert not any(DiffuseHigh(structure=0.7).uses_vae(step, schedule) for step in range(50))
    assert len(schedule) - APLDM().restart_step(schedule) == 10
    walk = MrFlow().walk(schedule, 1, (ONE, (2048, 2048)))
    assert walk.sigmas == pytest.approx((0.136, 0.0), rel=1e-3)
    assert MrFlow().walk(schedule, 0, (ONE, (2048, 2048))) is schedule


def test_db4_is_orthonormal_with_four_vanishing_moments() -> None:
    taps = torch.tensor(WAVELETS["db4"], dtype=torch.float64)
    overlaps = [(taps[: 8 - 2 * shift] * taps[2 * shift :]).sum().item() for shift in range(4)]
    assert overlaps == pytest.approx([1, 0, 0, 0], abs=1e-11)
    high = taps.flip(0) * torch.tensor([1.0, -1.0] * 4)
    places = torch.arange(8, dtype=torch.float64)
    assert [(high * places**power).sum().item() for power in range(4)] == pytest.approx([0] * 4, abs=1e-8)
    assert taps.sum().item() == pytest.approx(math.sqrt(2))


def test_held_pixels_have_the_low_band_of_the_picture() -> None:
    """With a VAE that loses nothing: LL is the picture's, the rest that of x0."""

    class Lossless:
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents

        def encode(self, image: torch.Tensor) -> torch.Tensor:
            return image

    x0, picture = (normal((1, 3, 136, 160), n).double().clamp(-1, 1) for n in (1, 2))
    level = level_at(1, codec=Lossless(), picture=picture)
    held = hold_pixels(x0, level)
    low, details = dwt2(held, "db4")
    expected = idwt2(dwt2(picture, "db4")[0], dwt2(x0, "db4")[1], "db4", (136, 160))
    torch.testing.assert_close(held, expected, atol=1e-9, rtol=0)
    inside = (..., slice(3, -3), slice(3, -3))  # nearer to the border bands are not free of each other
    torch.testing.assert_close(low[inside], dwt2(picture, "db4")[0][inside], atol=1e-9, rtol=0)
    torch.testing.assert_close(details[2][inside], dwt2(x0, "db4")[1][2][inside], atol=1e-9, rtol=0)
    torch.testing.assert_close(hold_pixels(picture, level), picture, atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="lacks codec or picture"):
        hold_pixels(x0, level_at(1, codec=None))


@torch.no_grad()
def test_diffusehigh_holds_its_first_steps_alone(denoiser: Denoiser, scheduler_config: dict[str, Any]) -> None:
    schedule, method = make_schedule(scheduler_config, 10), DiffuseHigh(guidance=1.0)
    level, latents = level_at(1), normal((1, 4, 17, 20), 1)
    for step, is_held in ((7, True), (8, False)):
        moment = Moment(level, step, schedule, 7)
        found, plain = method.predict(denoiser, latents, moment), denoiser(latents, step, schedule)
        assert torch.equal(found, plain) != is_held
        if is_held:
            wanted = hold_pixels(latents - moment.sigma * plain, level)
            torch.testing.assert_close(latents - moment.sigma * found, wanted, atol=1e-5, rtol=1e-5)


def test_an_unsharp_mask_by_regions() -> None:
    """That of the whole picture; a constant passes, an edge is steeper."""
    picture = normal((1, 3, 12, 9), 1)

    def read(rows: tuple[int, int], columns: tuple[int, int]) -> torch.Tensor:
        return picture[..., slice(*rows), slice(*columns)]

    whole = sharpened_region(read, (12, 9), (0, 12), (0, 9), 1.0, 1.05)
    part = sharpened_region(read, (12, 9), (0, 5), (3, 9), 1.0, 1.05)
    torch.testing.assert_close(part, whole[..., :5, 3:], atol=1e-6, rtol=0)
    weights = torch.exp(-0.5 * (torch.arange(-1.0, 2.0) / 1.05) ** 2)
    kernel = torch.outer(weights, weights) / weights.sum() ** 2
    blurred = (kernel * picture[0, 0, 4:7, 2:5]).sum()
    torch.testing.assert_close(whole[0, 0, 5, 3], 2 * picture[0, 0, 5, 3] - blurred)
    picture = torch.full((1, 3, 12, 9), 0.4)
    torch.testing.assert_close(sharpened_region(read, (12, 9), (0, 12), (0, 9), 1.0, 1.05), picture)


def test_the_pull_of_fam(scheduler_config: dict[str, Any]) -> None:
    """K = t / T inside a box of c (1 - t / T) of the spectrum, and 1 outside of it."""
    schedule, level, latents = make_schedule(scheduler_config, 10), level_at(1), normal((1, 4, 17, 20), 1)
    for step in (0, 4, 9):
        moment = Moment(level, step, schedule, 7)
        assert level.reference is not None
        assert level.noise is not None
        anchor = renoise(level.reference, level.noise, moment.sigma)
        before, after = (torch.fft.fft2((anchor - z).double()) for z in (latents, FAM().blend(latents, moment)))
        rho = moment.timestep / 1000
        rows, columns = (torch.fft.fftfreq(n, 1 / n).abs() < n * 0.5 * (1 - rho) / 2 for n in (17, 20))
        kept = torch.where(torch.outer(rows, columns), rho, 1.0)
        torch.testing.assert_close(after, kept * before, atol=1e-3, rtol=1e-4)
    assert torch.equal(FAM(cutoff=0.0).blend(latents, moment), latents)


def test_a_box_of_the_whole_spectrum_passes_everything() -> None:
    x = normal((1, 4, 6, 9), 1).double()
    torch.testing.assert_close(fourier_filter(x, box_mask((6, 9), (4, 5), x.dtype, x.device)), x)


def test_attended_cells_are_means_of_cells_that_resemble_them() -> None:
    latents = normal((2, 4, 3, 5), 1).double()
    tokens = latents.flatten(2).mT
    wanted = torch.softmax(tokens @ tokens.mT / 2, -1) @ tokens
    torch.testing.assert_close(attended(latents).flatten(2).mT, wanted)
    constant = torch.full((1, 4, 3, 5), 0.3)
    torch.testing.assert_close(attended(constant), constant)


def test_attentive_guidance_is_for_early_steps_of_a_level_that_others_follow(scheduler_config: dict[str, Any]) -> None:
    schedule, latents = make_schedule(scheduler_config, 50), normal((1, 4, 8, 10), 1)

    def moved(step: int, level: Level) -> bool:
        return not torch.equal(APLDM().blend(latents, Moment(level, step, schedule, 7)), latents)

    followed = dataclasses.replace(level_at(0), grows=True)
    assert [step for step in range(50) if moved(step, followed)] == list(range(3, 19))
    assert not moved(5, level_at(0))
    assert not moved(5, level_at(1, (64, 80)))


@torch.no_grad()
def test_attentive_guidance_resumes(denoiser: Denoiser, scheduler_config: dict[str, Any]) -> None:
    level = dataclasses.replace(level_at(0), grows=True)
    method, schedule = APLDM(0.5, (0.0, 1.0)), make_schedule(scheduler_config, 3, "dpmpp_2m")
    guided = goes_on(denoiser, method, level, schedule)
    assert not torch.equal(guided[-1].latents, goes_on(denoiser, method, level_at(0), schedule, [])[-1].latents)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("diffusehigh", {"restart": 1.0}),
        ("diffusehigh", {"structure": 1.5}),
        ("diffusehigh", {"sharpen": -1.0}),
        ("diffusehigh", {"sharpen_sigma": 0.0}),
        ("diffusehigh", {"posterior": "mean"}),
        ("fam", {"cutoff": 1.5}),
        ("fam", {"posterior": "mean"}),
        ("ap_ldm", {"attention": 2.0}),
        ("ap_ldm", {"attention_steps": (0.5, 0.2)}),
        ("ap_ldm", {"levels": 0}),
        ("ap_ldm", {"restart": -0.1}),
        ("mrflow", {"sigma": 0.0}),
        ("mrflow", {"steps": 0}),
        ("mrflow", {"filter": "area"}),
    ],
)
def test_values_without_a_meaning_are_refused(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        METHODS[name](**values)
