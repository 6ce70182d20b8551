"""The metrics of the `shapes` model against the truth: scenes whose words are known, at every size."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from stages.shapes.metrics import (
    BASE_AREA,
    MIN_AREA,
    FoundObject,
    Verdict,
    Words,
    judge,
    objects,
    parse_caption,
    read_picture,
)
from stages.shapes.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, distance, draw, sample_scene, stream

FIRST = 2_000_000  # seeds from here on are never trained on
BASE = ((128, 128),)
LARGE = ((256, 256), (512, 512), (72, 232), (160, 104), (424, 1000), (256, 384))  # height, width in pixels
Damage = Callable[[Tensor, int], Tensor]


def true_picture(index: int, sizes: tuple[tuple[int, int], ...] = BASE) -> tuple[Scene, Tensor]:
    height, width = sizes[index % len(sizes)]
    scene = sample_scene(FIRST + index, aspect=width / height)
    return scene, draw(scene, height, width)


def noisy(picture: Tensor, seed: int) -> Tensor:
    return (picture + 0.05 * torch.randn(picture.shape, generator=stream(seed, "noise"))).clamp(-1, 1)


def soft(picture: Tensor, seed: int = 0) -> Tensor:
    """Lose detail below about three pixels, as a reconstruction by the VAE does."""
    return torch.from_numpy(ndimage.gaussian_filter(picture.numpy(), (0, 1.2, 1.2)))


def unharmed(picture: Tensor, seed: int) -> Tensor:
    return picture


def plain(shape_mask: np.ndarray, color: str = "red", background: str = "snow") -> Tensor:
    """A picture (3, H, W) with flat paint where `shape_mask` is set."""
    paint, ground = (torch.tensor(table) / 127.5 - 1 for table in (COLORS[color], BACKGROUNDS[background]))
    return torch.where(torch.from_numpy(shape_mask), paint[:, None, None], ground[:, None, None])


def empty(background: str, seed: int, size: int) -> Tensor:
    """A background without an object: the object is drawn far outside."""
    return draw(replace(sample_scene(seed), background=background, center=(9.0, 9.0)), size, size)


@pytest.mark.parametrize(
    ("sizes", "count", "damage", "least"),
    [
        pytest.param(BASE, 50, unharmed, 0.99, id="training size"),
        pytest.param(BASE, 300, unharmed, 0.99, id="training size, more", marks=pytest.mark.thorough),
        pytest.param(LARGE, 9, unharmed, 0.99, id="larger and odd sizes"),
        pytest.param(LARGE, 60, unharmed, 0.99, id="larger and odd sizes, more", marks=pytest.mark.thorough),
        pytest.param(BASE, 35, noisy, 0.97, id="noisy"),
        pytest.param(BASE, 35, soft, 0.97, id="soft"),
        pytest.param(LARGE, 6, lambda p, i: noisy(soft(p), i), 0.97, id="larger, soft and noisy"),
    ],
)
def test_true_pictures_are_read_right(
    sizes: tuple[tuple[int, int], ...], count: int, damage: Damage, least: float
) -> None:
    wrong = []
    for index in range(count):
        scene, picture = true_picture(index, sizes)
        verdict = judge(damage(picture, index), scene)
        if not verdict.right:
            wrong.append((scene, tuple(picture.shape), verdict))
    assert 1 - len(wrong) / count >= least, wrong


@pytest.mark.parametrize("side", [2, 4])
def test_a_tiled_picture_counts_its_tiles(side: int) -> None:
    for index in range(6):
        scene, picture = true_picture(index)
        tiled = picture.repeat(1, side, side)
        verdict = judge(tiled, scene)
        assert verdict == Verdict(side**2, color_ok=True, shape_ok=True, background_ok=True), scene
        assert not verdict.right


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_background_alone_has_no_object(background: str) -> None:
    for seed, size in itertools.product(range(FIRST, FIRST + 3), (128, 320)):
        picture = empty(background, seed, size)
        for version in (picture, noisy(picture, seed), soft(picture)):
            reading = read_picture(version)
            assert reading.objects == ()
            assert reading.background == background


def test_without_an_object_nothing_but_the_background_can_be_right() -> None:
    assert judge(empty("sand", 1, 128), Words("red", "disc", "sand")) == Verdict(0, False, False, True)


@pytest.mark.parametrize("field", ["color", "shape", "background"])
def test_each_wrong_word_is_noticed(field: str) -> None:
    others = {"color": COLORS, "shape": SHAPES, "background": BACKGROUNDS}[field]
    for index in range(6):
        scene, picture = true_picture(index)
        for other in others:
            verdict = judge(picture, replace(scene, **{field: other}))  # type: ignore[arg-type]
            assert verdict.right == (other == getattr(scene, field))
            assert getattr(verdict, f"{field}_ok") == verdict.right


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_told_apart_at_every_rotation_and_size(shape: str) -> None:
    for degrees, radius in itertools.product(range(0, 120, 11), (16, 40, 120)):
        axis = torch.arange(2.6 * radius) - 1.3 * radius
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        turn = torch.tensor(degrees).deg2rad()
        v, u = turn.cos() * y - turn.sin() * x, turn.sin() * y + turn.cos() * x
        mask = (distance(shape, v / radius, u / radius) <= 0).numpy()
        (found,) = objects(plain(mask))
        assert found.shape == shape, (degrees, radius, found)


def test_a_found_object_says_where_it_is() -> None:
    mask = np.zeros((120, 200), bool)
    mask[30:70, 100:140] = True
    (found,) = objects(plain(mask, "blue"))
    assert isinstance(found, FoundObject)
    assert (found.color, found.shape) == ("blue", "square")
    assert found.center == pytest.approx((49.5, 119.5), abs=0.1)
    # On a bright ground the blur takes up to a pixel off every edge.
    assert np.abs(np.array(found.box) - (30, 100, 70, 140)).max() <= 1
    assert 38**2 <= found.area_px <= 40**2


def test_objects_come_largest_first() -> None:
    mask = np.zeros((200, 200), bool)
    mask[10:40, 10:40] = mask[60:140, 60:140] = mask[150:190, 10:50] = True
    areas = [found.area_px for found in objects(plain(mask))]
    assert len(areas) == 3
    assert areas == sorted(areas, reverse=True)


def test_what_counts_depends_on_the_training_size_and_not_on_the_picture() -> None:
    side = round((2 * MIN_AREA * BASE_AREA) ** 0.5)  # twice the least area
    for size in (64, 512):
        mask = np.zeros((size, size), bool)
        mask[20 : 20 + side, 20 : 20 + side] = True
        assert len(objects(plain(mask))) == 1
        assert objects(plain(mask), base_area=4 * BASE_AREA) == []


def test_objects_run_together_are_one_object_of_no_known_shape() -> None:
    y, x = np.mgrid[:128, :128]
    mask = (np.hypot(y - 64, x - 44) < 26) | (np.hypot(y - 64, x - 84) < 26)
    (found,) = objects(plain(mask))
    assert found.shape == "unclear"


def test_captions_of_scenes_are_parsed_back() -> None:
    scene = sample_scene(FIRST)
    for color, shape, ground in itertools.product(COLORS, SHAPES, BACKGROUNDS):
        for texture in ("plain", "dotted"):
            one = replace(scene, color=color, shape=shape, background=ground, texture=texture)
            assert parse_caption(one.caption) == Words(color, shape, ground)
    assert parse_caption(" A  Red disc on snow. ") == Words("red", "disc", "snow")


@pytest.mark.parametrize("text", ["", "a red disc", "a pink disc on snow", "a red disc on snow or sand"])
def test_other_captions_are_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not 'a \[plain\|striped\|dotted\] COLOUR SHAPE on BACKGROUND'"):
        parse_caption(text)


def test_a_caption_serves_as_words() -> None:
    scene, picture = true_picture(3)
    assert judge(picture, scene.caption) == judge(picture, scene)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 3, 64, 64\)"):
        objects(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="not finite"):
        read_picture(torch.full((3, 64, 64), float("nan")))


def test_a_picture_all_of_paint_is_read_without_error() -> None:
    reading = read_picture(plain(np.ones((96, 96), bool)))
    assert [found.color for found in reading.objects] == ["red"]
