"""What reads videos: frames -> features, pairs of frames -> their flow, CLIP embeddings of frames -> a score.

shapes-motion   the package's own, for the embedded video model   64 features of eight frames
i3d             Kinetics-400, as published FVD                    400 logits of the first 16 frames
raft            optical flow                                      the displacement of every pixel
aesthetic       a linear head over CLIP ViT-L/14                  a score of each frame
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stages.errors import SpecError
from stages.metrics import i3d, motion_net, raft
from stages.metrics.extractors import SAYS, ClipExtractor, WeightFile, filled, load_extractor
from stages.metrics.videos import CLIP_SIDE, i3d_input

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


class VideoNetwork(Protocol):
    """A feature network of videos over its weights."""

    @property
    def fingerprint(self) -> str:
        """sha256 of the weights."""

    def frame_numbers(self, frames: int) -> list[int]:
        """Return which frames of a video of so many are read. Raises `ValueError` where they are too few."""

    def extract(self, frames: Iterable[Tensor]) -> Tensor:
        """Return features (1, d), float32, of those frames in order, each (3, H, W) in 0…255."""


@dataclass(frozen=True)
class MotionExtractor:
    """The network of `motion_net`, over eight frames at 64x64."""

    net: motion_net.MotionNet
    fingerprint: str
    device: torch.device
    name: str = "shapes-motion"

    def frame_numbers(self, frames: int) -> list[int]:
        """Return the numbers of eight frames, evenly spaced. Raises `ValueError` where there are too few."""
        return motion_net.frame_numbers(frames)

    @torch.no_grad()
    def extract(self, frames: Iterable[Tensor]) -> Tensor:
        """Return features (1, 64), float32, of `motion_net.FRAMES` frames, each (3, H, W) in 0…255."""
        seen = [motion_net.frame_input(frame.to(self.device) / 127.5 - 1) for frame in frames]
        return self.net.features(torch.stack(seen, dim=1)[None]).float().cpu()


@dataclass(frozen=True)
class I3DExtractor:
    """The network of `i3d`, over the first 16 frames at 224x224; `resize` is `bilinear` or `antialias`."""

    net: i3d.I3D
    fingerprint: str
    device: torch.device
    resize: str
    name: str = "i3d"

    def frame_numbers(self, frames: int) -> list[int]:
        """Return 0 to 15: other steps would show other motion. Raises `ValueError` for fewer than 16 frames."""
        if frames < i3d.FRAMES:
            raise ValueError(f"I3D reads {i3d.FRAMES} frames, and there are {frames}")
        return list(range(i3d.FRAMES))

    @torch.no_grad()
    def extract(self, frames: Iterable[Tensor]) -> Tensor:
        """Return logits (1, 400), float32, of 16 frames, each (3, H, W) in 0…255."""
        logits: Tensor = self.net(i3d_input(frames, self.resize)[None].to(self.device))
        return logits.float().cpu()


@dataclass(frozen=True)
class RaftFlow:
    """The network of `raft` as a flow."""

    net: raft.Raft
    device: torch.device

    @torch.no_grad()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the flow (2, H, W), float32, in pixels, between frames (3, H, W) in 0…255."""
        flow: Tensor = self.net(first.to(self.device).float(), second.to(self.device).float())
        return flow.cpu()


@cache
def load_video_network(weights: WeightFile, device: torch.device, resize: str) -> VideoNetwork:
    """Return a feature network of videos, kept for the next call. Raises `SpecError` for a file of another network."""
    if weights.name == "i3d":
        return I3DExtractor(filled(i3d.I3D(), weights, device), weights.sha256, device, resize)
    return MotionExtractor(filled(motion_net.MotionNet(), weights, device), weights.sha256, device)


@cache
def load_flow(weights: WeightFile, device: torch.device) -> RaftFlow:
    """Return the optical flow, kept for the next call. Raises `SpecError` for a file of another network."""
    return RaftFlow(filled(raft.Raft(), weights, device), device)


@cache
def load_aesthetic_head(weights: WeightFile) -> tuple[Tensor, Tensor]:
    """LAION's head, weight (1, d) and bias (1). Raises `SpecError` for a file that is none."""
    try:
        state = load_file(weights.path)
    except (SafetensorError, OSError) as error:
        raise SpecError(f"weights.aesthetic: {weights.path!r} is not {SAYS['aesthetic']}: {error}") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    weight, bias = state.get("weight"), state.get("bias")
    if weight is None or bias is None or weight.ndim != 2 or len(weight) != 1 or bias.shape != (1,):
        raise SpecError(f"weights.aesthetic: {weights.path!r} is not {SAYS['aesthetic']}; it holds {shapes}")
    return weight, bias


def check_head(head: WeightFile, clip: WeightFile) -> None:
    """Refuse a head and a CLIP that are not of each other. Raises `SpecError`."""
    network = load_extractor(clip, torch.device("cpu"))
    assert isinstance(network, ClipExtractor)
    if network.input_size != CLIP_SIDE:
        raise SpecError(
            f"weights.clip: {clip.path!r} reads {network.input_size} pixels a side; the aesthetic head is for CLIP "
            f"ViT-L/14, which reads {CLIP_SIDE}"
        )
    width = network.embed_pixels(torch.zeros(1, 3, CLIP_SIDE, CLIP_SIDE)).shape[-1]
    if load_aesthetic_head(head)[0].shape[-1] != width:
        found = tuple(load_aesthetic_head(head)[0].shape)
        raise SpecError(f"weights.aesthetic: its weight {found} is not for the {width} numbers of {clip.path!r}")
