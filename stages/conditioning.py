"""Prompts -> the text rows that condition the denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from freescale import Conditioning
from stages.stage import Cost, Networks, Parents, Size, Stage, Tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from freescale import Step
    from stages.models.load import Models
    from stages.spec import RunOptions


@dataclass(frozen=True)
class EncodePrompt(Stage):
    """{"prompt_embeds": (1, tokens, width)} in float32; with guidance `negative_embeds`; of SDXL pooled rows."""

    name = "conditioning"
    part = "text"
    axes: ClassVar[Mapping[str, str]] = {
        "prompt_embeds": "BTD",
        "negative_embeds": "BTD",
        "text_embeds": "BD",
        "negative_text_embeds": "BD",
    }

    prompt: str
    negative_prompt: str | None  # None: no guidance

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Encode both prompts as the stock pipeline of this model does."""
        return models.encode_prompt(self.prompt, self.negative_prompt)

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """The text encoders over both prompts."""
        return networks.encode_text()

    def disk_bytes(self, networks: Networks, size: Size, frames: int) -> int:
        """Rows of one or two prompts."""
        return networks.text_bytes() * (1 if self.negative_prompt is None else 2)


def conditioning(
    text: Tensors, time_ids: tuple[int, int] | None, like: Tensor, motion_fps: float | None = None
) -> Conditioning:
    """Return the kernel's conditioning, on the device and in the dtype of `like`.

    `time_ids` is the (height, width) in pixels that a size-conditioned model gets as original and target size, with
    crop 0: SDXL's micro-conditioning (arXiv:2307.01952, §2.2). `motion_fps` is for a video model with an fps branch.
    """
    rows = {name: tensor.to(like) for name, tensor in text.items()}
    added: dict[str, Tensor] = {}
    negative_added: dict[str, Tensor] = {}
    if time_ids is not None:
        ids = torch.tensor([[*time_ids, 0, 0, *time_ids]]).to(like)
        added = {"text_embeds": rows["text_embeds"], "time_ids": ids}
        if "negative_text_embeds" in rows:
            negative_added = {"text_embeds": rows["negative_text_embeds"], "time_ids": ids}
    fps = None if motion_fps is None else torch.tensor([motion_fps]).to(like)
    return Conditioning(rows["prompt_embeds"], rows.get("negative_embeds"), added, negative_added, fps)
