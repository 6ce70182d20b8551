"""An evaluation laid out: prompts x methods x sizes x seeds and the reference, each picture with its readings.

Everything that can be refused is refused here, before the first render: unknown fields, missing or wrong weights,
unreadable pictures in a reference folder. `flows/evaluate/readings.py` renders, reads and scores what is laid out here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from flows.home import Home, user_path
from flows.rendering.job import Job, run_name
from freescale import base_size_for
from freescale.forward_process import generator
from stages.call import Call
from stages.errors import SpecError
from stages.media.picture import check_picture
from stages.metrics.extractors import ClipExtractor, WeightFile, find_weights, load_extractor
from stages.metrics.features import Judge, Reader
from stages.metrics.grid import FIRST_SCENE, MethodEntry
from stages.metrics.score import COMPARED, CROPPED
from stages.metrics.seams import Seams
from stages.metrics.spec import COMPARING_VIDEOS
from stages.metrics.texture import JudgeTexture
from stages.metrics.video_extractors import check_head, load_flow, load_video_network
from stages.metrics.video_readings import VideoReader
from stages.metrics.videos import kept_step, needed_pairs
from stages.models.load import describe
from stages.plan import make_plan
from stages.spec import exact_rate, make_spec
from storage import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from stages.metrics.spec import EvaluationSpec
    from stages.models.load import ModelInfo
    from stages.stage import Stage

Size = tuple[int, int]  # (height, width)
CAPTIONS = 64  # of scenes, where the spec gives no count
OTHER_SCENES = 500_000  # the truth's scenes begin so far behind the captions'
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")
REFERENCE = "reference"


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture to read: a render of a method, or one of the reference. `readings` are calls, by what they give."""

    id: str
    group: str  # a method's label, or `reference`
    size: Size
    prompt: str
    seed: int
    readings: Mapping[str, Call]
    job: Job | None = None  # None: nothing to render

    @property
    def name(self) -> str:
        """For people and logs."""
        return f"{self.group} {self.size[1]}x{self.size[0]} {self.id}"


@dataclass(frozen=True)
class Evaluation:
    """A checked evaluation. Nothing has been rendered or read yet."""

    name: str
    spec: EvaluationSpec
    pictures: tuple[Picture, ...]
    texts: Mapping[str, Tensor]  # CLIP embeddings (1, d) by prompt
    weights: tuple[WeightFile, ...]
    against: Mapping[Size, Size | None]  # the size of the reference for each size; None: one reference for all
    kind: str = "picture"  # or `video`
    fps: str | None = None  # of playback, where a number depends on it


def prepare_evaluation(spec: EvaluationSpec, home: Home) -> Evaluation:
    """Check a spec wholly and lay out its pictures. Raises `SpecError` before any work."""
    return _Layout(spec, home).evaluation()


@dataclass
class _Layout:
    spec: EvaluationSpec
    home: Home
    info: ModelInfo = field(init=False)
    reader: Reader | None = field(init=False, default=None)
    clip: Reader | None = field(init=False, default=None)
    videos: VideoReader | None = field(init=False, default=None)
    against: dict[Size, Size | None] = field(default_factory=dict)

    def evaluation(self) -> Evaluation:
        """The evaluation. Pictures are in the order of prompts, so that after a stop whole prompts are done."""
        spec = self.spec
        self.info = describe(spec.model, self.home.root)
        self.spec = spec = spec.settled(self.info.name, self.info.is_video).with_own_values(self.info)
        prompts = spec.prompt_list(CAPTIONS, self.info.is_video)
        total, kind = len(prompts) * len(spec.seeds), "video" if self.info.is_video else "picture"
        if total < 2:
            raise SpecError(f"count: {total} {kind} a method is too few; at least 2, from more prompts or seeds")
        if spec.parts(total) > total:
            raise SpecError(f"splits: {spec.splits} parts need as many pictures, and there are {total}")
        weights = self._video_networks() if self.info.is_video else self._networks()
        pictures = (*self._renders(prompts), *self._reference(prompts))
        self._check_crops(pictures)
        name = f"evaluation-{self._fingerprint(pictures)[:8]}"
        fps = self.videos.fps if self.videos is not None else None
        return Evaluation(name, spec, pictures, self._texts(prompts), weights, self.against, kind, fps)

    def _fingerprint(self, pictures: tuple[Picture, ...]) -> str:
        """The fingerprint of all that decides a number: what is read, in which group, how the readings are scored."""
        rules = {"metrics", "kid_subsets", "kid_subset_size", "splits", "draws", "seed"}
        read = [[p.group, {role: call.key for role, call in p.readings.items()}] for p in pictures]
        return fingerprint(self.spec.model_dump(mode="json", include=rules), read)

    def _networks(self) -> tuple[WeightFile, ...]:
        """Find and load the networks of pictures, so that a wrong file is refused now; decide how pictures are read."""
        spec, cpu = self.spec, torch.device("cpu")
        main = self._weights(spec.network)
        input_size = load_extractor(main, cpu).input_size
        if set(CROPPED) & set(spec.measured):
            count = 0 if spec.crops.grid else spec.crops.count
            self.reader = Reader(main, spec.crops.side or input_size, count, spec.seed)
        else:
            self.reader = Reader(main)
        if "detail" in spec.measured:
            self.reader = replace(self.reader, base_side=math.sqrt(self.info.native[0] * self.info.native[1]))
        if "clip_score" not in spec.measured:
            return (main,)
        self.clip = Reader(self._weights("clip"))
        load_extractor(self.clip.weights, cpu)
        return main, self.clip.weights

    def _video_networks(self) -> tuple[WeightFile, ...]:
        """Find and load the networks of videos, so that a wrong file is refused now; decide how videos are read."""
        spec, native, found = self.spec, self.info.native, dict[str, WeightFile]()
        frames, fps = spec.frames or self.info.frames or 1, spec.fps or exact_rate(self.info.fps)
        if set(COMPARING_VIDEOS) & set(spec.measured):
            found["network"] = self._weights(spec.network)
            network = load_video_network(found["network"], torch.device("cpu"), spec.resize_rule)
            try:
                network.frame_numbers(frames)
            except ValueError as error:
                raise SpecError(f"frames: {error}; ask for more") from None
        if "dynamic_degree" in spec.measured:
            found["flow"] = self._flow(frames, fps)
        if "aesthetic" in spec.measured:
            found |= {"clip": self._weights("clip"), "head": self._weights("aesthetic")}
            check_head(found["head"], found["clip"])
        area = native[0] * native[1]
        self.videos = VideoReader(spec.measured, area, **found, fps=fps, resize=spec.resize_rule)
        return self.videos.weights

    def _flow(self, frames: int, fps: str) -> WeightFile:
        """The network of the dynamic degree. Raises `SpecError` for videos that are too short for it."""
        kept = len(range(0, frames, kept_step(Fraction(fps))))
        if needed_pairs(kept) < 1:
            raise SpecError(
                f"frames: of {frames} at {fps} a second the dynamic degree looks at {kept}, too few to tell; at least "
                "3, of more frames or at a lower fps, work"
            )
        weights = self._weights("raft")
        load_flow(weights, torch.device("cpu"))
        return weights

    def _weights(self, name: str) -> WeightFile:
        given = {str(k): v for k, v in self.spec.weights.items()}.get(name)
        return find_weights(name, self.home.root, given.path if given else None, given.sha256 if given else None)

    def _texts(self, prompts: list[str]) -> dict[str, Tensor]:
        if self.clip is None:
            return {}
        network = load_extractor(self.clip.weights, torch.device("cpu"))
        assert isinstance(network, ClipExtractor)
        return {prompt: network.embed_text(prompt) for prompt in dict.fromkeys(prompts)}

    def _renders(self, prompts: list[str]) -> Iterator[Picture]:
        for index, prompt in enumerate(prompts):
            for seed in self.spec.seeds:
                for width, height in self.spec.sizes:
                    for entry in self.spec.methods:
                        drawn = _seed(seed, "picture", index)
                        yield self._render(entry, f"{index}-{seed}", prompt, drawn, (height, width))

    def _render(self, entry: MethodEntry, id: str, prompt: str, seed: int, size: Size) -> Picture:
        render = make_spec(self.spec.render_values(prompt, seed, size[::-1], entry))
        plan = make_plan(render, self.info)
        image, level = plan.exports[-1].parents["image"], len(plan.sizes) - 1
        stages = self._stages(entry.label, id, prompt, size)
        readings = {role: Call(stage, level, {"image": image}, "", size) for role, stage in stages.items()}
        return Picture(id, entry.label, size, prompt, seed, readings, Job(run_name(render, plan), plan.spec, plan))

    def _stages(self, group: str, id: str, prompt: str, size: Size) -> dict[str, Stage]:
        """The stages that read a render, by what they give; a reference is read only for what is compared."""
        if self.videos is not None:
            return self.videos.reference() if group == REFERENCE else self.videos.render(prompt)
        assert self.reader is not None
        stages: dict[str, Stage] = {"features": self.reader.render(id)}
        if group == REFERENCE:
            return stages
        native, measured = self.info.native, self.spec.measured
        if self.clip is not None:
            stages["clip"] = self.clip.render(id)
        if "objects" in measured:
            stages["verdict"] = Judge(prompt, native[0] * native[1])
        if "texture" in measured:
            stages["texture"] = JudgeTexture(prompt, native[0] * native[1])
        if "seams" in measured:
            height, width = base_size_for(size, native, cell=self.info.cell)
            stages["seams"] = Seams((height // 2, width // 2))
        return stages

    def _truth(self, scene: int, size: Size) -> Stage:
        """The stage that draws a true scene, or a true video, and reads it."""
        if self.videos is None:
            assert self.reader is not None
            return self.reader.scene(f"scene {scene}", scene, size)
        frames, rate = self.spec.frames or self.info.frames or 1, self.spec.motion_fps or self.info.motion_fps
        return self.videos.truth(scene, size, frames, rate)

    def _reference(self, prompts: list[str]) -> Iterator[Picture]:
        """The pictures of the reference, once for every size that needs its own."""
        if not set(COMPARED) & set(self.spec.measured):
            return
        reference, sizes = self.spec.reference, [(h, w) for w, h in self.spec.sizes]
        if reference.protocol == "real":
            self.against = dict.fromkeys(sizes)
            yield from self._folder(user_path(str(reference.folder)))
        elif reference.protocol == "truth":
            count = reference.count or len(prompts) * len(self.spec.seeds)
            self.against = {size: size for size in sizes}
            first = FIRST_SCENE + OTHER_SCENES
            for size in sizes:
                for scene in range(first, first + count):
                    readings = {"features": Call(self._truth(scene, size), 0, {}, "", size)}
                    yield Picture(f"scene {scene}", REFERENCE, size, "", scene, readings)
        else:
            base = MethodEntry.model_validate({"label": REFERENCE, "method": {"name": "direct"}})
            self.against = {size: base_size_for(size, self.info.native, cell=self.info.grain) for size in sizes}
            for size in dict.fromkeys(base_size_for(size, self.info.native, cell=self.info.grain) for size in sizes):
                for index, prompt in enumerate(prompts):
                    for seed in self.spec.seeds:
                        drawn = _seed(seed, "reference", index)
                        yield self._render(base, f"{index}-{seed}", prompt, drawn, size)

    def _folder(self, folder: Path) -> Iterator[Picture]:
        """Every picture of a folder. Each is decoded once. Raises `SpecError` for a damaged one."""
        assert self.reader is not None
        if not folder.is_dir():
            raise SpecError(f"reference.folder: {str(folder)!r} is not a folder")
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if len(paths) < 2:
            kinds = ", ".join(SUFFIXES)
            raise SpecError(f"reference.folder: {str(folder)!r} holds {len(paths)} pictures ({kinds}); at least 2")
        for path in paths:
            checked = check_picture("reference.folder", str(path))
            stage = self.reader.file(path.name, checked)
            assert checked.size is not None
            readings = {"features": Call(stage, 0, {}, "", checked.size)}
            yield Picture(path.name, REFERENCE, checked.size, "", 0, readings)

    def _check_crops(self, pictures: tuple[Picture, ...]) -> None:
        side = 0 if self.reader is None else self.reader.crop_side
        for picture in pictures:
            if min(picture.size) < side:
                raise SpecError(f"crops.side: {side} pixels do not fit in {picture.name}; take a smaller side")


def _seed(seed: int, purpose: str, index: int) -> int:
    """The seed of a picture: every method has the same one, every prompt another, and the reference its own."""
    return int(torch.randint(0, 2**62, (1,), generator=generator(seed, "evaluation", purpose, index)))
