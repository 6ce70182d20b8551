"""Whole renders of toy video models in one process: files, resume, redo, long videos, memory, refusals."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import zipfile
from fractions import Fraction
from io import BytesIO
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from flows.cli.flags import redo_spec
from flows.cli.terminal import Terminal
from flows.home import Home
from flows.rendering.export import export_level
from flows.rendering.job import prepare
from flows.rendering.stored import exports_of
from stages.decode import DecodeVideo, checked
from stages.errors import SpecError, StageError
from stages.media.ffmpeg import read_comment, read_video
from stages.planner.budget import SAVINGS
from stages.runner import Interrupted
from stages.spec import RunOptions, make_spec
from stages.upscale import UpscaleVideo
from tests.homes import copy_before, session_in
from tests.stages.test_ffmpeg import listed
from tests.toys import VIDEO_FRAMES, video_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flows.rendering.session import Result
    from flows.rendering.stop import StopEvent
    from stages.observer import Outcome


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_folder(tmp_path_factory.mktemp("models"), "videocrafter2", layers=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def values(model: Path, **more: Any) -> dict[str, Any]:
    """A video at twice the toy's size; early restart and short dilation, so that every stage has steps to do."""
    method = {"name": "freescale", "restart": 0.3, "dilation": [0.0, 0.7]}
    base = {"prompt": "a blue square moving left", "seed": 5, "width": 160, "height": 128, "method": method}
    return base | {"model": {"name": str(model)}, "fps": "24000/1001"} | more


def render(home: Path, spec: dict[str, Any], out: Path | None = None) -> Result:
    session = session_in(home, checkpoint_every=0)
    return session.render(prepare(make_spec(spec), session.home), out)


@pytest.fixture(scope="module")
def first(home: Path, model: Path) -> Result:
    return render(home, values(model))


def video_array(home: Path, result: Result, level: int = 1) -> torch.Tensor:
    key = next(o.key for o in result.outcomes if o.call.stage.name == "decode" and o.call.level == level)
    return Home(home).store.read(key)["image"]


def test_the_file_has_the_frames_size_rate_and_spec(first: Result, home: Path) -> None:
    for path, size in zip(first.outputs, ((128, 160), (64, 80)), strict=True):
        assert listed(path) == (Fraction(24000, 1001), size, list(range(VIDEO_FRAMES)))
    told = json.loads(read_comment(first.outputs[0]))
    assert (told["spec"]["prompt"], told["spec"]["frames"]) == ("a blue square moving left", VIDEO_FRAMES)
    assert (told["spec"]["fps"], told["spec"]["motion_fps"], told["level"]) == ("24000/1001", 28.0, 1)


def test_the_digest_is_of_all_frames_in_8_bits(first: Result, home: Path) -> None:
    video = video_array(home, first)
    assert (video.shape, video.dtype) == ((1, 3, VIDEO_FRAMES, 128, 160), torch.float16)
    digest = hashlib.sha256()
    for index in range(VIDEO_FRAMES):
        frame = np.clip(np.round((video[0, :, index].numpy().astype(np.float32) + 1) * 127.5), 0, 255)
        digest.update(frame.astype(np.uint8).transpose(1, 2, 0).tobytes())
    assert digest.hexdigest() == first.pixels_sha256


def test_a_chunk_a_frame(first: Result, home: Path) -> None:
    store = Home(home).store
    key = next(o.key for o in first.outcomes if o.call.stage.name == "decode" and o.call.level == 1)
    record = store.find(key).arrays["image"]  # type: ignore[union-attr]
    assert (record.axes, record.chunks) == (tuple("BCFHW"), (1, 3, 1, 128, 160))
    lazy = store.open_frames(key)["image"]
    whole = store.read(key)["image"]
    assert all(torch.equal(frame, whole[:, :, index]) for index, frame in enumerate(lazy))
    with pytest.raises(IndexError):
        lazy[VIDEO_FRAMES]


def test_frames_are_decoded_one_at_a_time() -> None:
    """What is asked of the VAE is a frame; the next one only once the last was taken."""

    class Vae:
        config: ClassVar = {"scaling_factor": 0.5}
        asked = 0

        def decode(self, latents: torch.Tensor) -> Any:
            assert latents.shape == (1, 4, 2, 3)
            self.asked += 1
            image = torch.linspace(-1, 1, 3 * 16 * 24).view(1, 3, 16, 24) + latents.mean()
            return dataclasses.make_dataclass("Out", ["sample"])(image)

    models: Any = SimpleNamespace(
        vae=Vae(),
        info=SimpleNamespace(cell=8),
        device=torch.device("cpu"),
        helpers=None,
        tiles=lambda frame=0: None,
    )
    latents = torch.arange(5.0)[None, None, :, None, None].expand(1, 4, 5, 2, 3)

    def decoded(latents: torch.Tensor, kept: dict[int, torch.Tensor]) -> Iterator[torch.Tensor]:
        return DecodeVideo(5).run({"latents": {"latents": latents}}, models, RunOptions())["image"].pieces(kept)

    taken = decoded(latents, {})
    for index in range(5):
        assert models.vae.asked == index
        frame = next(taken)
        assert torch.isclose(frame.float().mean(), torch.tensor(2.0 * index), atol=1e-2)
    bad = latents.clone()
    bad[:, :, 3] = torch.nan
    with pytest.raises(StageError, match="frame 3 holds NaN"):
        list(decoded(bad, {}))
    assert len(list(decoded(bad, {3: torch.zeros(1, 3, 16, 24)}))) == 4


def test_a_video_that_shows_nothing_is_none_however_it_was_cut() -> None:
    plain, lively = torch.zeros(1, 3, 8, 8), torch.linspace(-1, 1, 192).view(1, 3, 8, 8)
    assert len(list(checked(iter([plain, lively, plain]), [0, 1, 2], {}))) == 3
    assert len(list(checked(iter([plain, plain]), [1, 2], {0: lively}))) == 2
    for kept in ({}, {0: plain}):
        with pytest.raises(StageError, match="every frame is uniform"):
            list(checked(iter([plain, plain]), [1, 2], kept))


def test_previews_lie_beside_it(first: Result) -> None:
    folder, stem = first.outputs[0].parent, first.outputs[0].stem
    for suffix in (".gif", ".webp"):
        with Image.open(folder / f"{stem}{suffix}") as preview:
            assert (preview.size, preview.n_frames) == ((160, 128), VIDEO_FRAMES)
    with Image.open(folder / f"{stem}-strip.png") as strip:
        assert strip.size == (VIDEO_FRAMES * 164 - 4, 128)


def test_same_video_anywhere_and_made_once(first: Result, home: Path, model: Path, tmp_path: Path) -> None:
    other = render(tmp_path, values(model), tmp_path / "clip.mp4")
    assert other.pixels_sha256 == first.pixels_sha256
    assert (tmp_path / "clip.mp4").read_bytes() == first.outputs[0].read_bytes()
    assert all(outcome.reused for outcome in render(home, values(model)).outcomes)


class Stopper(Terminal):
    """Asks for a stop after a step of a stage."""

    def __init__(self, stage: str, step: int) -> None:
        super().__init__(quiet=True)
        self.at = (stage, step)
        self.stop: StopEvent | None = None

    def stepped(self, call: Any, step: int) -> None:
        if (call.stage.name, call.level) == (self.at[0], 1) and step == self.at[1] and self.stop:
            self.stop.set()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("stage", "step"), [("highres_denoise", 2), pytest.param("decode", 2, marks=pytest.mark.thorough)]
)
def test_stopped_and_resumed_bit_for_bit(
    first: Result, home: Path, model: Path, tmp_path: Path, stage: str, step: int
) -> None:
    stopper = Stopper(stage, step)
    session = session_in(tmp_path, stopper, checkpoint_every=0)
    stopper.stop = session.stop
    job = prepare(make_spec(values(model)), session.home)
    copy_before(home, tmp_path, job.plan, f"{stage} 1")
    with pytest.raises(Interrupted):
        session.render(job)
    again = render(tmp_path, values(model))
    assert again.pixels_sha256 == first.pixels_sha256
    resumed = {o.call.stage.name: o.resumed_at_step for o in again.outcomes if not o.reused and o.call.level == 1}
    assert resumed[stage] == step


RGB = {"name": "freescale/rgb-upsampling", "restart": 0.3, "dilation": [0.0, 0.7]}
VAE_SAVINGS = tuple(saving.name for saving in SAVINGS if "vae" in saving.parts)


@pytest.fixture(scope="module")
def rgb(first: Result, home: Path, model: Path) -> Result:
    return render(home, values(model, method=RGB))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "label", "taken"),
    [
        pytest.param(DecodeVideo, "decode 0", 1, marks=pytest.mark.thorough),
        (DecodeVideo, "decode 1", 2),
        pytest.param(UpscaleVideo, "upscale 1", 2, marks=pytest.mark.thorough),
    ],
)
def test_out_of_memory_in_a_frame_takes_the_next_saving_and_goes_on(
    kind: Any,
    label: str,
    taken: int,
    rgb: Result,
    home: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy_before(home, tmp_path, prepare(make_spec(values(model, method=RGB)), Home(home)).plan, label)
    made, asked = kind.make_frame, []

    def scarce(self: Any, parents: Any, models: Any, options: RunOptions, index: int) -> torch.Tensor:
        asked.append(index)
        if index >= 2 and (options.vae_memory is not None) + options.offload < taken:
            raise torch.OutOfMemoryError("no memory left")
        return made(self, parents, models, options, index)

    monkeypatch.setattr(kind, "make_frame", scarce)
    result = render(tmp_path, values(model, method=RGB))
    assert result.pixels_sha256 == rgb.pixels_sha256
    manifests = {o.call.label: Home(tmp_path).store.find(o.key) for o in result.outcomes}
    assert manifests[label].savings == VAE_SAVINGS[:taken]  # type: ignore[union-attr]
    assert asked[: 3 + taken] == [0, 1, *[2] * (taken + 1)], "frames that were there were not made again"


@pytest.mark.thorough
def test_at_the_end_of_the_savings_the_frames_stay(
    first: Result, home: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_before(home, tmp_path, prepare(make_spec(values(model)), Home(home)).plan, "decode 1")
    made, asked = DecodeVideo.make_frame, []

    def scarce(self: Any, *given: Any) -> torch.Tensor:
        asked.append(given[-1])
        if given[-1] == 2:
            raise torch.OutOfMemoryError("no memory left")
        return made(self, *given)

    monkeypatch.setattr(DecodeVideo, "make_frame", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        render(tmp_path, values(model))
    assert asked == [0, 1, 2, 2, 2]
    monkeypatch.setattr(DecodeVideo, "make_frame", made)
    again = render(tmp_path, values(model))
    assert again.pixels_sha256 == first.pixels_sha256
    outcome = next(o for o in again.outcomes if o.call.label == "decode 1")
    assert outcome.resumed_at_step == 2
    assert Home(tmp_path).store.find(outcome.key).resumed_at == (2,)  # type: ignore[union-attr]


@pytest.mark.thorough
def test_redo_from_the_detail_pass(first: Result, home: Path, model: Path) -> None:
    session = session_in(home, checkpoint_every=0)
    spec = prepare(make_spec(values(model)), session.home).spec
    changes = {"seed": None, "guidance_scale": None, "mask": None}
    again = redo_spec(
        spec, "detail_pass", len(prepare(spec, session.home).plan.sizes) - 1, changes, ["--detail-scale", "0.5"]
    )
    result = session.render(prepare(again, session.home))
    made = [(o.call.stage.name, o.call.level) for o in result.outcomes if not o.reused]
    assert made == [("detail_pass", 1), ("decode", 1), ("export", 1)]
    assert result.pixels_sha256 != first.pixels_sha256


def made_of(outcomes: tuple[Outcome, ...]) -> set[str]:
    return {f"{o.call.stage.name} {o.call.level}" for o in outcomes if not o.reused}


def test_rgb_upsampling_is_the_ablation(first: Result, rgb: Result) -> None:
    assert "upscale 1" in made_of(rgb.outcomes)
    assert "decode 0" not in made_of(rgb.outcomes)
    assert rgb.pixels_sha256 != first.pixels_sha256


@pytest.mark.thorough
def test_more_frames_than_the_model_knows(first: Result, home: Path, model: Path) -> None:
    result = render(home, values(model, width=80, height=64, frames=VIDEO_FRAMES + 2, fps=8, steps=2))
    rate, size, times = listed(result.outputs[0])
    assert (rate, size, times) == (8, (64, 80), list(range(VIDEO_FRAMES + 2)))
    assert "base_denoise 0" in made_of(result.outcomes)


@pytest.mark.thorough
def test_motion_fps_decides_the_video_and_fps_only_the_file(first: Result, home: Path, model: Path) -> None:
    assert made_of(render(home, values(model, fps=30)).outcomes) == {"export 0", "export 1"}
    job = prepare(make_spec(values(model, motion_fps=8)), Home(home))
    keys = {f"{c.stage.name} {c.level}": c.key for c in job.plan.calls}
    before = {f"{o.call.stage.name} {o.call.level}": o.key for o in first.outcomes}
    assert keys["conditioning 0"] == before["conditioning 0"]
    assert keys["base_denoise 0"] != before["base_denoise 0"]


@pytest.mark.parametrize("format", ["hevc", "ffv1", "frames"])
def test_export_in_other_formats(first: Result, home: Path, model: Path, tmp_path: Path, format: str) -> None:
    exports = exports_of(Home(home).record(first.run))
    how = {"fps": "12", "crf": 10} if format == "hevc" else {}
    path = export_level(Home(home), first.run, exports, format, None, tmp_path, False, **how)
    video = video_array(home, first)
    pixels = [((video[0, :, i].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8) for i in range(VIDEO_FRAMES)]
    frames = [p.permute(1, 2, 0).contiguous().numpy().tobytes() for p in pixels]
    if format == "hevc":
        assert listed(path) == (12, (128, 160), list(range(VIDEO_FRAMES)))
    elif format == "ffv1":
        assert list(read_video(path, (128, 160))) == frames
    else:
        with zipfile.ZipFile(path) as archive:
            names = [f"frame-{index:05d}.png" for index in range(VIDEO_FRAMES)]
            assert archive.namelist() == [*names, "fps.txt"]
            assert [Image.open(BytesIO(archive.read(n))).tobytes() for n in names] == frames
            assert archive.read("fps.txt") == b"24000/1001\n"
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(SpecError, match="exists"):
        export_level(Home(home), first.run, exports, format, None, tmp_path, False, **how)


@pytest.mark.thorough
def test_a_damaged_frame_is_found_and_the_video_made_again(
    first: Result, home: Path, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    store, plan = Home(tmp_path).store, prepare(make_spec(values(model)), Home(tmp_path)).plan
    assert all(outcome.reused for outcome in render(tmp_path, values(model)).outcomes)
    keys = {call.stage.name: call.key for call in plan.calls if call.level == 1}
    chunk = next(p for p in store.folder(store.find(keys["decode"])).rglob("c/0/0/2/0/0"))  # type: ignore[arg-type]
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(bytes(data))
    store.move_to_trash(keys["export"], "to be made again")
    again = render(tmp_path, values(model))
    assert {f"{o.call.stage.name} {o.call.level}" for o in again.outcomes if not o.reused} == {"decode 1", "export 1"}
    assert again.pixels_sha256 == first.pixels_sha256


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"frames": 0}, "frames: 0"),
        ({"frames": 5000}, "frames: 5000 is too large; allowed: 1 to 1024"),
        ({"fps": "fast"}, "fps: 'fast' is not a number of frames a second"),
        ({"fps": 1000}, "from 1 to 240"),
        ({"motion_fps": 0}, "motion_fps"),
        ({"format": "png"}, "png is for pictures, and .* makes videos: mp4, hevc, ffv1, frames"),
        ({"format": "avi"}, "format: 'avi'"),
        ({"format": "ffv1", "crf": 3}, "crf is for mp4 and hevc, not for ffv1"),
        ({"crf": 60}, "crf: 60"),
        ({"pixel_format": "rgb24"}, "pixel_format: 'rgb24'"),
        ({"image": "a.png"}, "none can start from a picture"),
        ({"method": {"name": "hidiffusion"}}, "makes images only"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_any_work(
    more: dict[str, Any], said: str, home: Path, model: Path
) -> None:
    with pytest.raises(SpecError, match=said) as refused:
        prepare(make_spec(values(model, **more)), Home(home))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "more", [{"frames": 8}, {"fps": 10}, {"motion_fps": 8}, {"crf": 20}, {"pixel_format": "yuv444p"}, {"format": "mp4"}]
)
def test_an_image_model_makes_no_videos(more: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"{next(iter(more))}: .* is for videos, and shapes makes pictures"):
        prepare(make_spec({"prompt": "a red ring"} | more), Home(tmp_path))


def test_no_fps_branch_no_motion_fps(tmp_path: Path) -> None:
    folder = video_folder(tmp_path, "modelscope")
    with pytest.raises(SpecError, match=r"motion_fps: .* has no fps branch"):
        prepare(make_spec(values(folder, motion_fps=8)), Home(tmp_path))
