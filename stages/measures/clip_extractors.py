"""What reads clips: frames -> features of their motion, and LAION's head that scores CLIP embeddings of frames.

shapes-motion   the package's own, for the embedded video model   64 features of eight frames
aesthetic       a linear head over CLIP ViT-L/14                  a score of each frame
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from stages.measures import motion_net
from stages.measures.clips import CLIP_SIDE
from stages.measures.extractors import SAYS, ClipExtractor, WeightFile, filled, load_extractor
from stages.spec import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


@dataclass(frozen=True)
class MotionExtractor:
    """The network of `motion_net`, over eight frames at 64x64."""

    net: motion_net.MotionNet
    fingerprint: str
    device: torch.device
    name: str = "shapes-motion"

    @torch.no_grad()
    def extract(self, frames: Iterable[Tensor]) -> Tensor:
        """Features (1, 64), float32, of `motion_net.FRAMES` frames, each (3, H, W) in 0…255."""
        seen = [motion_net.frame_input(frame.to(self.device) / 127.5 - 1) for frame in frames]
        return self.net.features(torch.stack(seen, dim=1)[None]).float().cpu()


@cache
def load_motion_extractor(weights: WeightFile, device: torch.device) -> MotionExtractor:
    """The feature network of clips, kept for the next call."""
    return MotionExtractor(filled(motion_net.MotionNet(), weights, device), weights.sha256, device)


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
