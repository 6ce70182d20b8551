"""Enlarged pixels by regions, against torch over the whole picture."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from freescale.enlarge import PictureFilter, enlarged_region
from freescale.forward_process import normal

PICTURE = normal((1, 3, 23, 17), 1, "picture")
TARGET = (61, 70)


def whole(kind: PictureFilter, picture: torch.Tensor = PICTURE) -> torch.Tensor:
    return enlarged_region(lambda y, x: picture[..., slice(*y), slice(*x)], (23, 17), TARGET, (0, 61), (0, 70), kind)


@pytest.mark.parametrize("kind", get_args(PictureFilter))
def test_regions_are_those_of_the_whole(kind: PictureFilter) -> None:
    found = whole(kind)
    if kind != "lanczos":
        aligned = None if kind == "nearest" else False
        torch.testing.assert_close(found, F.interpolate(PICTURE, size=TARGET, mode=kind, align_corners=aligned))

    def read(rows: tuple[int, int], columns: tuple[int, int]) -> torch.Tensor:
        return PICTURE[..., slice(*rows), slice(*columns)]

    part = enlarged_region(read, (23, 17), TARGET, (11, 40), (60, 70), kind)
    torch.testing.assert_close(part, found[..., 11:40, 60:70])


@pytest.mark.parametrize("kind", get_args(PictureFilter))
def test_constants_pass(kind: PictureFilter) -> None:
    torch.testing.assert_close(whole(kind, torch.full_like(PICTURE, 0.3)), torch.full((1, 3, *TARGET), 0.3))


def test_lanczos_keeps_a_wave_that_bilinear_weakens() -> None:
    wave = torch.cos(torch.arange(17) * torch.pi / 2.5).expand(1, 3, 23, 17)
    assert whole("lanczos", wave).std() > 1.1 * whole("bilinear", wave).std()
