"""The moving world of `shapes-motion`: videos at every size, read back into words; its model, its feature network."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from stages.metrics import motion_net
from stages.metrics.motion_net import MotionNet, frame_input, frame_numbers
from stages.models.folder import EMBEDDED_MODELS
from stages.shapes.metrics import largest_mask
from stages.shapes_motion.metrics import judge_video, parse_video_caption, read_video
from stages.shapes_motion.videos import FRAMES, MOTIONS, SHAPES, Video, draw_video, frame_scene, sample_video

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIRST = 2_000_000  # seeds from here on are never trained on
MODEL = EMBEDDED_MODELS["shapes-motion"]


def true_video(seed: int, height: int = 80, width: int = 128, frames: int = FRAMES) -> tuple[Video, list[Tensor]]:
    video = sample_video(FIRST + seed, aspect=width / height)
    return video, list(draw_video(video, frames, height, width).unbind(1))


def of_motion(motion: str, start: int = 0) -> tuple[Video, list[Tensor]]:
    return true_video(next(s for s in range(start, start + 200) if sample_video(FIRST + s).motion == motion))


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((80, 128), 10),
        ((160, 256), 3),
        ((96, 128), 5),
        *(pytest.param(size, 24, marks=pytest.mark.thorough) for size in ((160, 256), (96, 128))),
    ],
)
def test_true_videos_are_read_right(size: tuple[int, int], count: int) -> None:
    verdicts = [judge_video(frames, video) for video, frames in (true_video(seed, *size) for seed in range(count))]
    assert all(v.right for v in verdicts)
    assert max(v.flicker for v in verdicts) < 0.1, "the ground of a true video stands still"


def test_every_motion_is_drawn_and_told_apart() -> None:
    read = {motion: read_video(of_motion(motion)[1]).motion for motion in MOTIONS}
    assert read == {motion: motion for motion in MOTIONS}


@pytest.mark.parametrize(
    ("motion", "backwards"),
    [("moving left", "moving right"), ("moving right", "moving left"), ("moving up", "moving down")],
)
def test_a_video_played_backwards_is_another_motion(motion: str, backwards: str) -> None:
    assert read_video(list(reversed(of_motion(motion)[1]))).motion == backwards


def test_a_still_video_and_a_wrong_frame_are_not_right() -> None:
    video, frames = of_motion("moving left")
    assert read_video([frames[0]] * 8).motion == "still"
    other = replace(video, scene=replace(video.scene, color="red" if video.scene.color != "red" else "green"))
    wrong = [*frames[:-1], draw_video(other, 8, 80, 128)[:, -1]]
    verdict = judge_video(wrong, video)
    assert not verdict.right
    assert verdict.color_ok == 7 / 8


def test_flicker_is_what_changes_behind_the_object() -> None:
    video, frames = of_motion("spinning")
    lit = [frame + (index % 2) * 10 / 127.5 for index, frame in enumerate(frames)]
    assert judge_video(lit, video).flicker == pytest.approx(10, rel=0.1)


def test_the_first_frame_does_not_depend_on_how_many_there_are() -> None:
    video = sample_video(FIRST)
    assert torch.equal(draw_video(video, 2, 40, 64)[:, 0], draw_video(video, 16, 40, 64)[:, 0])
    slow = replace(video, motion_fps=16)
    fast = replace(video, motion_fps=8)
    assert frame_scene(slow, 8) == frame_scene(fast, 4), "twice the rate, half as far"


def test_captions() -> None:
    assert parse_video_caption("a blue square moving left over sand")[1] == "moving left"
    for seed in range(30):
        video = sample_video(seed)
        assert parse_video_caption(video.caption)[0].shape == video.scene.shape
    with pytest.raises(ValueError, match=r"is not 'a COLOUR SHAPE MOTION over BACKGROUND'"):
        parse_video_caption("a blue square over sand")


def test_largest_mask_is_the_object() -> None:
    _, frames = of_motion("growing")
    first, last = largest_mask(frames[0]).sum(), largest_mask(frames[-1]).sum()
    assert 0 < first < last
    assert not largest_mask(torch.zeros(3, 32, 32)).any()


def test_the_feature_network_knows_its_world() -> None:
    net = MotionNet().eval()
    net.load_state_dict({name: weight.float() for name, weight in load_file(motion_net.WEIGHTS).items()})
    right = 0
    for seed in range(24):
        video, frames = true_video(seed)
        x = torch.stack([frame_input(frames[i]) for i in frame_numbers(len(frames))], dim=1)
        with torch.no_grad():
            right += MOTIONS[int(net(x[None])["motion"].argmax())] == video.motion
    assert right >= 21
    assert motion_net.WEIGHTS.stat().st_size < 2**20


def test_frames_are_taken_evenly() -> None:
    assert frame_numbers(8) == list(range(8))
    assert frame_numbers(16)[0] == 0
    assert frame_numbers(16)[-1] == 15
    assert frame_numbers(2) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_the_model_is_small_and_whole() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert not [path for path in files if path.suffix not in (".json", ".safetensors", ".txt")]
    card = json.loads((MODEL / "freescale.json").read_text())
    assert card["native"] == [80, 128]
    assert card["frames"] == FRAMES


def test_captions_of_different_motions_are_far_apart_in_text_states() -> None:
    """Left and right were a fifth of a colour apart once, and the UNet did not learn them."""
    from transformers import CLIPTextModel, CLIPTokenizer

    from benchmarks.shapes_motion.train import tokens

    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    text = CLIPTextModel.from_pretrained(MODEL / "text_encoder").float().eval()
    captions = [f"a blue square {motion} over sand" for motion in MOTIONS]
    with torch.no_grad():
        states = text(tokens(tokenizer, captions)).last_hidden_state.flatten(1)
    apart = torch.cdist(states, states) / states.norm(dim=1)
    assert apart[~torch.eye(len(MOTIONS), dtype=torch.bool)].min() > 0.5


@pytest.mark.thorough
def test_every_shape_survives_the_latents_at_the_training_size() -> None:
    vae = AutoencoderKL.from_pretrained(MODEL / "vae").float().eval()
    read: dict[str, list[bool]] = {shape: [] for shape in SHAPES}
    for seed in range(18):
        video, frames = true_video(seed)
        with torch.no_grad():
            latents = vae.encode(torch.stack(frames[::7])).latent_dist.mean
            again = judge_video(vae.decode(latents).sample, video)
        read[video.scene.shape].append(again.shape_ok == 1.0)
    assert all(len(right) >= 3 and sum(right) / len(right) >= 0.5 for right in read.values()), read


def test_a_scene_has_a_video_of_every_motion() -> None:
    videos = [sample_video(FIRST, motion=motion) for motion in MOTIONS]
    assert [video.motion for video in videos] == list(MOTIONS)
    assert len({(video.scene.color, video.scene.background, video.motion_fps) for video in videos}) == 1
    own = sample_video(FIRST)
    assert own == sample_video(FIRST, motion=own.motion)


@pytest.mark.parametrize("told", ["early", "last"])
def test_training_tells_motions_apart_by_their_captions_alone(told: Literal["early", "last"]) -> None:
    from benchmarks.shapes_motion import train

    shape = torch.Size((500, 4, 8, 10, 16))
    drawn = train.draw_batch(6, 9, shape, 20, told)
    videos = [train.training_video(row) for row in drawn.rows.tolist()]
    assert [video.motion for video in videos[:5]] == list(MOTIONS)
    assert len({video.scene.seed for video in videos[:5]}) == 1
    assert all(torch.equal(noise, drawn.noise[0]) for noise in drawn.noise[:5])
    assert drawn.spoken[:5].all()
    assert len(set(drawn.t[:5].tolist())) == 1
    assert (drawn.t[0] == 999) == (told == "last")
    assert drawn.t[0] >= 850
    assert drawn.rows[0] < 20 or told == "early"
    assert drawn.t[5] < 500 < drawn.t[-1], "the others are spread over the schedule"
    assert not torch.equal(drawn.noise[5], drawn.noise[0])
    early = train.draw_batch(6, 9, shape, 20, None).t.tolist()
    assert [t * 9 // 1000 for t in early] == list(range(9))


@pytest.mark.thorough
def test_training_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.shapes_motion import train
    from stages.models.videocrafter import VideoCrafterUNet

    def small_unet() -> VideoCrafterUNet:
        widths: dict[str, Any] = {
            "block_out_channels": (16, 16, 16, 16),
            "cross_attention_dim": 96,
            "attention_head_dim": 16,
        }
        widths |= {"layers_per_block": 1, "norm_num_groups": 16}
        return train.without_dropout(VideoCrafterUNet(sample_size=(10, 16), **widths))

    def killed(state: Any, total: int, rate: float, log: Path, every: int = 100) -> Iterator[tuple[int, list[float]]]:
        yield next(train_steps(state, total, rate, log, every))
        state.step = 1
        state.save()

    train_steps = train.steps
    small = {
        "VIDEOS": 5,
        "FRAMES": 2,
        "AVERAGED": 5,
        "PLACES": 1,
        "TEXT_STEPS": 2,
        "TEXT_BATCH": 4,
        "LATE": 1,
        "new_unet": small_unet,
    }
    for name, value in small.items():
        monkeypatch.setattr(train, name, value)
    whole, parted, stretch = tmp_path / "whole", tmp_path / "parted", train.Stretch(steps=3, batch=6)
    whole.mkdir()
    train.train_text(whole)
    train.make_latents(whole)
    shutil.copytree(whole, parted)
    train.train_unet(whole, stretch)
    monkeypatch.setattr(train, "steps", killed)
    train.train_unet(parted, stretch)
    assert (whole / "unet.safetensors").read_bytes() != (parted / "unet.safetensors").read_bytes()
    monkeypatch.setattr(train, "steps", train_steps)
    train.train_unet(parted, stretch)
    assert (whole / "unet.safetensors").read_bytes() == (parted / "unet.safetensors").read_bytes()
    train.pack(whole, tmp_path / "packed")
    (parted / "unet.safetensors").unlink()
    (parted / "text.safetensors").unlink()
    train.train_unet(parted, train.Stretch(steps=0, batch=6, folder=tmp_path / "packed"))
    began, packed = (
        load_file(parted / "unet.safetensors"),
        load_file(tmp_path / "packed/text_encoder/model.safetensors"),
    )
    assert all(torch.equal(began[f"now.text.{name}"], tensor.float()) for name, tensor in packed.items())
