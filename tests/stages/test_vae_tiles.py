"""Decoding, enlarging and exporting by tiles and bands, against the same done whole."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from flows.home import Home
from flows.rendering.export import export_level
from flows.rendering.job import prepare
from flows.rendering.stored import exports_of
from freescale.enlarge import enlarged_region
from freescale.forward_process import normal
from stages import decode, export, upscale
from stages.decode import DecodeVideo
from stages.errors import SpecError, StageError
from stages.media.png import SRGB, write_png
from stages.models.load import Models
from stages.spec import RunOptions, make_spec
from stages.upscale import UpscaleVideo
from tests.homes import copy_before, session_in

if TYPE_CHECKING:
    from pathlib import Path

    from flows.rendering.session import Result

SMALL: dict[str, Any] = {"prompt": "a green ring on sand", "seed": 5, "width": 192, "height": 136, "steps": 2}
TILED = {"vae_memory": 5 << 20, "vae_tile": 64}


def render(home: Path, values: dict[str, Any], **options: Any) -> Result:
    session = session_in(home, **options)
    return session.render(prepare(make_spec(values), session.home))


def arrays(home: Path, result: Result, stage: str) -> list[torch.Tensor]:
    store = Home(home).store
    keys = [o.key for o in result.outcomes if o.call.stage.name == stage]
    return [tensor for key in keys for tensor in store.read(key).values()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def whole(home: Path) -> Result:
    return render(home, SMALL)


@pytest.mark.thorough
def test_a_render_by_tiles_is_the_whole_one_to_rounding(
    whole: Result, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = counted(monkeypatch)
    tiled = render(tmp_path, SMALL, **TILED)
    assert used == ["decode_tiles", "encode_tiles", "decode_tiles"]
    for stage, within in (("decode", 4e-3), ("upscale", 1e-3)):  # float16 pictures; latents of one
        pairs = zip(arrays(home, whole, stage), arrays(tmp_path, tiled, stage), strict=True)
        for one, other in pairs:
            torch.testing.assert_close(other, one, atol=within, rtol=0)
    assert [o.key for o in whole.outcomes] == [o.key for o in tiled.outcomes]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The embedded model, loaded on the CPU."""
    job = prepare(make_spec(SMALL), Home(tmp_path_factory.mktemp("home")))
    return Models(job.plan.info, job.spec.model.dtype, torch.device("cpu"))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the calls that work by tiles, as they come."""
    used: list[str] = []
    for module, name in ((decode, "decode_tiles"), (upscale, "encode_tiles")):
        inner = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, f=inner: used.append(n) or f(*a))
    return used


@pytest.mark.parametrize("posterior", ["mode", "sample"])
def test_a_source_picture_by_tiles_is_encoded_as_whole(
    posterior: str, shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = counted(monkeypatch)
    pixels = (normal((150, 210, 3), 6) * 60 + 128).clamp(0, 255).to(torch.uint8)
    parents: Any = {"picture": {"picture": pixels}}
    stage = upscale.EncodePicture(5, (136, 192), posterior)
    whole, tiled = (stage.run(parents, shapes, RunOptions(**more)) for more in ({}, TILED))
    assert used == ["encode_tiles"]
    torch.testing.assert_close(tiled["latents"], whole["latents"], atol=1e-5, rtol=0)


@pytest.mark.thorough
def test_frames_by_tiles_are_decoded_and_enlarged_as_whole(shapes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    used = counted(monkeypatch)
    latents = normal((1, 4, 2, 12, 17), 7)
    frames = [
        decode.decoded_whole(latents[:, :, index] * 0.2, shapes, RunOptions(**more))
        for more in ({}, TILED)
        for index in range(2)
    ]
    assert used == ["decode_tiles"] * 2
    torch.testing.assert_close(frames[2:], frames[:2], atol=1e-5, rtol=0)
    made = DecodeVideo(2).run({"latents": {"latents": latents}}, shapes, RunOptions(**TILED))["image"]
    assert [tuple(frame.shape) for frame in made.pieces({})] == [(1, 3, 96, 136)] * 2
    stage = UpscaleVideo(5, 1, (112, 152), "sample", 2)
    parents: Any = {"image": {"image": frames[:2]}}
    whole, tiled = (list(stage.run(parents, shapes, RunOptions(**more))) for more in ({}, TILED))
    assert used == ["decode_tiles"] * 4 + ["encode_tiles"] * 2
    torch.testing.assert_close(tiled[-1].latents, whole[-1].latents, atol=1e-5, rtol=0)
    (last,) = stage.run(parents, shapes, RunOptions(), whole[0])
    assert torch.equal(last.latents, whole[-1].latents)


def test_bands_join_to_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "BAND", 64)
    picture = normal((1, 3, 152, 136), 1)
    found = list(_bands(picture, monkeypatch))
    assert [band.shape[2] for band in found] == [64, 64, 24]
    assert torch.equal(torch.cat(found, dim=2), picture.half())
    for value, says in ((0.25, "uniform"), (torch.nan, "NaN")):
        with pytest.raises(StageError, match=says):
            list(_bands(torch.full_like(picture, value), monkeypatch))


def _bands(picture: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `decode` makes of a picture that comes in tiles of 32 pixels."""
    height, width = picture.shape[-2:]
    corners = [(top, left) for top in range(0, height, 32) for left in range(0, width, 32)]
    spans = [((top, min(top + 32, height)), (left, min(left + 32, width))) for top, left in corners]
    made = [(rows, columns, picture[..., slice(*rows), slice(*columns)]) for rows, columns in spans]
    monkeypatch.setattr(decode, "decode_tiles", lambda *_: iter(made))
    models: Any = SimpleNamespace(
        vae=SimpleNamespace(config={"scaling_factor": 1.0}),
        info=SimpleNamespace(cell=8),
        helpers=None,
        tiles=lambda frame=0: None,
    )
    return decode.decoded_bands(torch.zeros(1, 4, height // 8, width // 8), models, RunOptions(vae_memory=1))


@pytest.mark.parametrize("target", [(46, 34), (33, 51), (23, 17), (20, 90)])
def test_bicubic_by_regions_is_the_whole_enlargement(target: tuple[int, int]) -> None:
    picture = normal((1, 3, 23, 17), 2)
    whole = F.interpolate(picture, size=target, mode="bicubic", align_corners=False)
    found = torch.full_like(whole, torch.nan)

    def read(rows: tuple[int, int], columns: tuple[int, int]) -> torch.Tensor:
        return picture[..., slice(*rows), slice(*columns)]

    for top in range(0, target[0], 7):
        for left in range(0, target[1], 10):
            rows, columns = (top, min(top + 7, target[0])), (left, min(left + 10, target[1]))
            found[..., slice(*rows), slice(*columns)] = enlarged_region(read, (23, 17), target, rows, columns)
    torch.testing.assert_close(found, whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_png_from_bands_opens_to_the_same_pixels_and_text(rows: int) -> None:
    ramp = np.add.outer(np.arange(50) * 3, np.arange(37) * 5)[..., None] + np.array([0, 90, 200])
    noise = (normal((50, 37, 3), 4).numpy() * 50).astype(np.int64)
    for pixels in (ramp.astype(np.uint8), (ramp + noise).astype(np.uint8)):
        out = io.BytesIO()
        bands = [pixels[top : top + rows] for top in range(0, 50, rows)]
        write_png(out, (50, 37), bands, '{"prompt": "grün"}')
        with Image.open(out) as picture:
            assert picture.mode == "RGB"
            assert picture.info["icc_profile"] == SRGB
            assert picture.text["freescale"] == '{"prompt": "grün"}'  # type: ignore[attr-defined]
            assert np.array_equal(np.asarray(picture), pixels)
    with pytest.raises(ValueError, match="49 rows of a picture 50 high"):
        write_png(io.BytesIO(), (50, 37), [pixels[:49]], "")


def test_a_large_export_is_the_small_one(
    whole: Result, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_before(home, tmp_path / "two", prepare(make_spec(SMALL), Home(home)).plan, "export 1")
    monkeypatch.setattr(export, "WHOLE", 1)
    monkeypatch.setattr(export, "BAND", 10)
    other = render(tmp_path / "two", SMALL)
    assert [o.call.label for o in other.outcomes if not o.reused] == ["export 1"]
    assert other.pixels_sha256 == whole.pixels_sha256
    with Image.open(whole.outputs[0]) as one, Image.open(other.outputs[0]) as two:
        assert one.tobytes() == two.tobytes()
        assert one.text == two.text  # type: ignore[attr-defined]
    assert whole.outputs[0].read_bytes() != other.outputs[0].read_bytes()
    job = prepare(make_spec(SMALL), Home(tmp_path / "two"))
    exports = exports_of(Home(tmp_path / "two").record(job.run))
    again = export_level(Home(tmp_path / "two"), job.run, exports, "png", None, tmp_path, False)
    assert again.read_bytes() == other.outputs[0].read_bytes()
    picture = Home(tmp_path / "two").store.open_pictures(job.plan.exports[-1].parents["image"].key)["image"]
    assert torch.equal(picture.region((3, 9), (100, 130)), picture.whole()[..., 3:9, 100:130])


def test_a_format_that_is_made_whole_has_a_largest_size(tmp_path: Path) -> None:
    values = SMALL | {"width": 16384, "height": 8192, "format": "tiff"}
    with pytest.raises(SpecError, match="tiff is made for up to 8192x8192 pixels, not 16384x8192"):
        prepare(make_spec(values), Home(tmp_path))


def test_a_vae_memory_that_nothing_fits_is_refused(tmp_path: Path) -> None:
    from stages.planner.estimate import estimate

    plan = prepare(make_spec(SMALL | {"width": 2048, "height": 2048}), Home(tmp_path)).plan
    call = plan.exports[-1].parents["image"]
    with pytest.raises(SpecError, match=r"vae_memory of 1 MiB does not suffice .* MiB would"):
        estimate(call, plan.info, RunOptions(vae_memory=1 << 20))
    with pytest.raises(SpecError, match=r"vae_memory of 1 MiB does not suffice"):
        render(tmp_path, SMALL, vae_memory=1 << 20)
    assert not (tmp_path / "store").exists()
    whole = estimate(call, plan.info, RunOptions()).activations
    assert estimate(call, plan.info, RunOptions(vae_memory=whole // 2)).activations <= whole // 2
