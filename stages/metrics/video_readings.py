"""Stages that read a video one frame at a time: its features, what it shows, how it moves, flickers and looks.

As with `stages/metrics/features.py`, each reading is in the store under what decides it. A video is read as the 8-bit
RGB that is exported, whatever it came from: a render, or a true video drawn at the target size. Memory holds one frame
at output size, two for the flow, and what the networks see of the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from stages.export import to_pixels
from stages.metrics.extractors import ClipExtractor, WeightFile, load_extractor
from stages.metrics.video_extractors import load_aesthetic_head, load_flow, load_video_network
from stages.metrics.videos import aesthetic_pixels, aesthetic_score, dynamics, flicker
from stages.shapes.scenes import draw
from stages.shapes_motion.metrics import judge_video
from stages.shapes_motion.videos import frame_scene, sample_video
from stages.stage import Parents, Stage, Tensors, not_in_key, video_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from freescale import Step
    from stages.models.load import Models
    from stages.spec import RunOptions

# What `objects` says of a video: objects a frame, the share of frames with one, the share of colour, shape and ground
# kept over the frames, whether the motion is kept, whether all is right, the flicker of the ground in levels of 255.
VIDEO_WORDS = ("objects", "one_object", "attributes", "motion", "right", "ground_flicker")


def levels(frame: Tensor) -> Tensor:
    """Return a stored frame (1, 3, H, W) about [-1, 1] as it is exported: (3, H, W) uint8."""
    return torch.from_numpy(np.array(to_pixels(frame))).permute(2, 0, 1)


@dataclass(frozen=True)
class VideoFeatures(Stage):
    """{"features": (1, d)} of the frames that the network reads."""

    axes: ClassVar[Mapping[str, str]] = {"features": "ND"}

    extractor: str
    weights: str  # sha256
    resize: str
    path: str = not_in_key("")  # of the weights

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Read the frames in order, each shrunk before the next is looked at."""
        network = load_video_network(WeightFile(self.extractor, self.path, self.weights), models.device, self.resize)
        chosen = network.frame_numbers(self.count(parents))
        return {"features": network.extract(levels(self.frame(parents, index)) for index in chosen)}

    def count(self, parents: Parents) -> int:
        """Return the number of frames of the video."""
        raise NotImplementedError

    def frame(self, parents: Parents, index: int) -> Tensor:
        """Return one frame, (1, 3, H, W) about [-1, 1]."""
        raise NotImplementedError


@dataclass(frozen=True)
class RenderVideoFeatures(VideoFeatures):
    """{"features": (1, d)} of a render's decoded video."""

    name = "render_clip_features"
    streamed = frozenset({"image"})

    def count(self, parents: Parents) -> int:
        """Return the number of frames of the parent `image`."""
        return len(video_of(parents, "image"))

    def frame(self, parents: Parents, index: int) -> Tensor:
        """Return one frame of the parent `image`, (1, 3, H, W) about [-1, 1]."""
        return video_of(parents, "image")[index]


@dataclass(frozen=True)
class TrueVideoFeatures(VideoFeatures):
    """{"features": (1, d)} of a true video of `shapes-motion` at `size` (height, width).

    It is sampled at the density that the model was asked for.
    """

    name = "true_clip_features"

    scene: int = 0
    size: tuple[int, int] = (0, 0)
    frames: int = 0
    motion_fps: float | None = None  # None: the video's own

    def count(self, parents: Parents) -> int:
        """Return the number of frames that the renders have."""
        return self.frames

    def frame(self, parents: Parents, index: int) -> Tensor:
        """Return one frame, drawn now, (1, 3, H, W) in [-1, 1]."""
        height, width = self.size
        video = sample_video(self.scene, width / height)
        if self.motion_fps is not None:
            video = replace(video, motion_fps=self.motion_fps)
        return draw(frame_scene(video, index), height, width)[None]


@dataclass(frozen=True)
class JudgeVideo(Stage):
    """{"video_verdict": (6) float64}: the `VIDEO_WORDS`, by the caption."""

    name = "judge_clip"
    axes: ClassVar[Mapping[str, str]] = {"clip_verdict": "N"}
    streamed = frozenset({"image"})

    caption: str
    base_area: int  # pixels of a training frame

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Hold the parent `image` against the caption."""
        frames = (levels(frame) / 127.5 - 1 for frame in video_of(parents, "image"))
        found = judge_video(frames, self.caption, base_area=self.base_area)
        kept = (found.color_ok + found.shape_ok + found.background_ok) / 3
        values = (found.objects, found.one_object, kept, found.motion_ok, found.right, found.flicker)
        return {"clip_verdict": torch.tensor([float(value) for value in values], dtype=torch.float64)}


@dataclass(frozen=True)
class Flicker(Stage):
    """{"flicker": (1) float64}: the mean difference of consecutive frames, in levels of 255."""

    name = "flicker"
    axes: ClassVar[Mapping[str, str]] = {"flicker": "N"}
    streamed = frozenset({"image"})

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Read the parent `image` once."""
        found = flicker(levels(frame) for frame in video_of(parents, "image"))
        return {"flicker": torch.tensor([found], dtype=torch.float64)}


@dataclass(frozen=True)
class DynamicDegree(Stage):
    """{"dynamic_degree": (1) float64, 1 or 0, "pair_scores": (p) float64, pixels}: VBench's rule over RAFT's flow."""

    name = "dynamic_degree"
    axes: ClassVar[Mapping[str, str]] = {"dynamic_degree": "N", "pair_scores": "N"}
    streamed = frozenset({"image"})

    weights: str  # sha256
    fps: str  # of playback, an exact fraction
    path: str = not_in_key("")

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Read the parent `image` once, two frames at a time."""
        flow = load_flow(WeightFile("raft", self.path, self.weights), models.device)
        found = dynamics((levels(frame) for frame in video_of(parents, "image")), Fraction(self.fps), flow)
        values = {"dynamic_degree": [float(found.is_dynamic)], "pair_scores": found.scores}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


@dataclass(frozen=True)
class Aesthetic(Stage):
    """{"aesthetic": (1) float64}: LAION's linear head over CLIP, the mean of the frames, 0 to 1."""

    name = "aesthetic"
    axes: ClassVar[Mapping[str, str]] = {"aesthetic": "N"}
    streamed = frozenset({"image"})

    clip: str  # sha256
    head: str  # sha256
    clip_path: str = not_in_key("")
    head_path: str = not_in_key("")

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Embed every frame of the parent `image`."""
        network = load_extractor(WeightFile("clip", self.clip_path, self.clip), models.device)
        assert isinstance(network, ClipExtractor)
        head = load_aesthetic_head(WeightFile("aesthetic", self.head_path, self.head))
        seen = (aesthetic_pixels(levels(frame)) for frame in video_of(parents, "image"))
        rows = torch.cat([network.embed_pixels(pixels[None]) for pixels in seen])
        return {"aesthetic": torch.tensor([aesthetic_score(rows, *head)], dtype=torch.float64)}


@dataclass(frozen=True)
class VideoReader:
    """How every video of an evaluation is read."""

    metrics: tuple[str, ...]
    base_area: int
    network: WeightFile | None = None  # of the features
    clip: WeightFile | None = None  # CLIP, of the aesthetic score
    head: WeightFile | None = None
    flow: WeightFile | None = None  # of the dynamic degree
    fps: str = ""  # of playback, for it
    resize: str = ""  # of frames, for the feature network

    @property
    def weights(self) -> tuple[WeightFile, ...]:
        """Those that are used, the feature network first."""
        return tuple(file for file in (self.network, self.clip, self.head, self.flow) if file is not None)

    def _features(self, network: WeightFile) -> tuple[str, str, str, str]:
        return network.name, network.sha256, self.resize, network.path

    def reference(self) -> dict[str, Stage]:
        """Return the stages that read a render which others are compared with."""
        return {"features": RenderVideoFeatures(*self._features(self.network))} if self.network else {}

    def render(self, prompt: str) -> dict[str, Stage]:
        """Return the stages that read a method's render, by what they give."""
        found = self.reference()
        if "objects" in self.metrics:
            found["clip_verdict"] = JudgeVideo(prompt, self.base_area)
        if "flicker" in self.metrics:
            found["flicker"] = Flicker()
        if self.flow is not None:
            found["dynamic_degree"] = DynamicDegree(self.flow.sha256, self.fps, self.flow.path)
        if self.clip is not None and self.head is not None:
            found["aesthetic"] = Aesthetic(self.clip.sha256, self.head.sha256, self.clip.path, self.head.path)
        return found

    def truth(self, scene: int, size: tuple[int, int], frames: int, motion_fps: float | None) -> TrueVideoFeatures:
        """Return the stage that draws a true video and reads it."""
        if self.network is None:
            raise ValueError("nothing is compared with the truth")
        return TrueVideoFeatures(*self._features(self.network), scene, size, frames, motion_fps)
