"""What is known of a model before any of it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from stages.models.fields import TEXT_CLASSES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from freescale import Solver
    from stages.adapters.applied import Adapter
    from stages.models.card import MethodValues
    from stages.models.files.record import FileInfo, NetworkFile
    from stages.models.predicted import Prediction
    from stages.prompts.names import Embedding

CELL = 8  # pixels of a latent cell's side, where a VAE's configuration does not say


MOST_OF_QUICK = 8  # steps, of Z-Image-Turbo


@dataclass(frozen=True)
class ModelInfo:
    """What a model says of itself; the fields from `frames` on are for video."""

    name: str
    folder: Path  # or the file of a checkpoint
    native: tuple[int, int]  # (height, width) in pixels it was trained at
    steps: int
    guidance_scale: float
    negative_prompt: str
    solver: Solver
    scheduler: Mapping[str, Any]  # with `dynamic_scale`, where there is one: all that `make_schedule` needs
    size_ids: bool  # SDXL's micro-conditioning: sizes and crops as extra inputs
    latent_channels: int
    cell: int = CELL  # pixels of a latent cell's side: the factor of its VAE
    patch: int = 1  # latent cells of a side of what the network takes at once: a transformer's token
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    method_defaults: MethodValues = field(default_factory=dict)  # where the spec gives none (`stages.models.card`)
    family_methods: MethodValues = field(default_factory=dict)  # where a preset and its card give none either
    frames: int | None = None  # it was trained for; None: an image model
    time_cell: int = 1  # frames of a latent frame; where it is more than 1, the first one is one frame
    fps: float | None = None  # of playback, by default
    motion_fps: float | None = None  # default of the fps branch; None where there is none
    dynamic_scale: tuple[float, int] | None = None  # (b, steps): x0 shrinks from 1 to b over the first steps
    motion_adapter: Path | None = None  # the folder that makes a Stable Diffusion model a video model
    pad_token_id: int | None = None  # what prompts are filled up with; None: the tokenizer's own
    unet_class: str = "UNet2DConditionModel"
    pipeline: str | None = None  # the class of a transformer's; None: a model with a UNet
    folders: Mapping[str, str] = field(default_factory=dict)  # of its parts, where they are named otherwise
    text_tokens: int | None = None  # of a prompt that a transformer reads; None: what CLIP does
    is_distilled: bool = False  # to few steps without guidance, by its index
    empty_prompt_is_zeros: bool = True  # SDXL: an empty negative prompt is not encoded
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of each network, by part
    weight_bytes: int = 0  # of its files
    networks: Mapping[str, NetworkFile] = field(default_factory=dict)  # those in single files, by part
    words: Path | None = None  # the folder with its tokenizers; None: CLIP's, which comes with the package
    pad_ids: Mapping[str, int] = field(default_factory=dict)  # what prompts are filled up with, by text encoder
    file: FileInfo | None = None  # what a checkpoint is, where its family is known
    embeddings: tuple[Embedding, ...] = ()  # that prompts may name
    scheduler_remark: str | None = None  # where its scheduler's own solver is not among ours
    said: Mapping[str, str] = field(default_factory=dict)  # of its card: `prediction` and `ztsnr`
    prediction: Prediction | None = None  # what the UNet predicts, and how it is known (`stages.models.prediction`)
    adapters: tuple[Adapter, ...] = ()  # merged into the weights when they are loaded, in this order

    @property
    def texts(self) -> dict[str, Mapping[str, Any]]:
        """The configurations of its text encoders, by part."""
        return {part: self.configs[part] for part in TEXT_CLASSES if part in self.configs}

    @property
    def backbone(self) -> Literal["unet", "flow"]:
        """Whether it denoises with a UNet, or with a transformer that was trained by flow matching."""
        return "unet" if self.pipeline is None else "flow"

    @property
    def takes_guidance(self) -> bool:
        """Whether guidance was distilled into the network, which then takes its scale as an input."""
        return bool(self.configs.get("unet", {}).get("guidance_embeds"))

    @property
    def is_quick(self) -> bool:
        """Whether it is a transformer that was distilled to a few steps without guidance, by its defaults."""
        return self.pipeline is not None and self.steps <= MOST_OF_QUICK and self.guidance_scale <= 1.0

    @property
    def grain(self) -> int:
        """Pixels that every side is a multiple of."""
        return self.cell * self.patch

    @property
    def is_video(self) -> bool:
        """Whether the model makes videos, (B, C, F, h, w)."""
        return self.frames is not None

    @property
    def latent_frames(self) -> int | None:
        """Latent frames that it was trained for; None: an image model."""
        return None if self.frames is None else self.latent_frames_of(self.frames)

    def latent_frames_of(self, frames: int) -> int:
        """Return the latent frames of a video."""
        return (frames - 1) // self.time_cell + 1


def nearest_frames(frames: object, time_cell: int) -> str:
    """Return in words which numbers of frames work with a VAE whose latent frames but the first are `time_cell`."""
    whole = frames if isinstance(frames, int) else 1
    low = max((whole - 1) // time_cell * time_cell + 1, 1)
    return f"1 and every {time_cell} more work, the nearest {low} and {low + time_cell}"
