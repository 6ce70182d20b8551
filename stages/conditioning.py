"""Prompts -> the text rows that condition the denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from freescale import Conditioning
from stages.errors import SpecError
from stages.prompts.encode import TextSettings, encode_prompts
from stages.prompts.reading import emphasis_of, equal_chunks, layers_skipped, read, syntax_of
from stages.stage import Cost, Networks, Parents, Size, Stage, Tensors, not_in_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from freescale import Step
    from stages.models.folder import ModelInfo
    from stages.models.load import Models
    from stages.spec import RenderSpec, RunOptions


FURTHER = {"text_embeds": "pooled_projections"}  # what a transformer calls a row


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
        "text_mask": "BT",
        "negative_text_mask": "BT",
    }

    prompt: str
    negative_prompt: str | None  # None: no guidance

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Encode both prompts as the stock pipeline of this model does."""
        if models.info.pipeline is None:
            return encode_prompts(models, self.prompt, self.negative_prompt)
        from stages.prompts.flow import encode_for_flow  # here, since a plan needs none of it

        return encode_for_flow(models, self.prompt, self.negative_prompt)

    @property
    def chunks(self) -> int:
        """How often a text encoder's context the rows of a prompt are."""
        return 1

    def cost(self, networks: Networks, source: Size, frames: int) -> Cost:
        """The text encoders over both prompts."""
        return networks.encode_text(self.chunks)

    def disk_bytes(self, networks: Networks, size: Size, frames: int) -> int:
        """Rows of one or two prompts."""
        return networks.text_bytes(self.chunks) * (1 if self.negative_prompt is None else 2)


@dataclass(frozen=True)
class EncodeChunks(EncodePrompt):
    """The rows of prompts with weights, embeddings, more chunks than one, or of another layer of the text encoders.

    Prompts stand here without networks. `skip` is the hidden state from the end, None as the model was trained.
    """

    variant = 1

    syntax: str
    emphasis: str
    skip: int | None = None
    embeddings: tuple[tuple[str, str], ...] = ()  # (name in the prompt, sha256 of its tensors)
    files: tuple[str, ...] = not_in_key(())  # of the embeddings
    chunks: int = not_in_key(1)  # once both prompts are equally long

    def run(self, parents: Parents, models: Models, options: RunOptions, resume: Step | None = None) -> Tensors:
        """Encode both prompts chunk by chunk."""
        files = {name: (file, sha256) for (name, sha256), file in zip(self.embeddings, self.files, strict=True)}
        settings = TextSettings(self.syntax, self.emphasis, self.skip, files)
        return encode_prompts(models, self.prompt, self.negative_prompt, settings)


def text_stage(spec: RenderSpec, info: ModelInfo, negative_prompt: str | None) -> EncodePrompt:
    """Return what encodes the prompts of a settled spec; without a `negative_prompt` there is no guidance.

    What the stock pipeline encodes alike has its stage, whatever the syntax. Raises `SpecError` for what is refused.
    """
    if info.is_distilled and negative_prompt is not None:
        raise SpecError(f"guidance_scale: {info.name} was distilled to work without guidance; 1 or less works")
    syntax, skip = syntax_of(spec, info), layers_skipped(spec.model.clip_skip, info)
    texts = [spec.prompt] if negative_prompt is None else [spec.prompt, negative_prompt]
    readings = [read(text, syntax, info) for text in texts]
    if skip is None and (syntax == "plain" or all(reading.is_plain for reading in readings)):
        words = [each.text if syntax == "plain" else each.words for each in readings]
        return EncodePrompt(words[0], words[1] if len(words) > 1 else None)
    found = {name: each for reading in readings for name, each in reading.embeddings.items()}
    is_weighted = any(reading.is_weighted for reading in readings)
    return EncodeChunks(
        prompt=readings[0].text,
        negative_prompt=None if len(readings) < 2 else "" if readings[1].is_blank else readings[1].text,
        syntax=syntax,
        emphasis=emphasis_of(spec, syntax) if is_weighted else "off",
        skip=skip,
        embeddings=tuple((name, each.sha256) for name, each in sorted(found.items())),
        files=tuple(str(each.file) for _, each in sorted(found.items())),
        chunks=equal_chunks(*(reading.chunks for reading in readings)),
    )


def conditioning(
    text: Tensors,
    time_ids: tuple[int, int] | None,
    like: Tensor,
    motion_fps: float | None = None,
    guidance: float | None = None,
) -> Conditioning:
    """Return the kernel's conditioning, on the device and in the dtype of `like`.

    `time_ids` is the (height, width) in pixels that a size-conditioned model gets as original and target size, with
    crop 0: SDXL's micro-conditioning (arXiv:2307.01952, §2.2). `motion_fps` is for a video model with an fps branch,
    `guidance` for a network that guidance was distilled into. Without `time_ids` all further rows are added under the
    names of the family, a pooled row as `pooled_projections`; masks stay bool.
    """
    rows = {name: tensor.to(like if tensor.is_floating_point() else like.device) for name, tensor in text.items()}
    added: dict[str, Tensor] = {}
    negative_added: dict[str, Tensor] = {}
    if time_ids is not None:
        ids = torch.tensor([[*time_ids, 0, 0, *time_ids]]).to(like)
        added = {"text_embeds": rows["text_embeds"], "time_ids": ids}
        if "negative_text_embeds" in rows:
            negative_added = {"text_embeds": rows["negative_text_embeds"], "time_ids": ids}
    else:
        for name in rows.keys() - {"prompt_embeds", "negative_embeds"}:
            side = negative_added if name.startswith("negative_") else added
            side[FURTHER.get(name.removeprefix("negative_"), name.removeprefix("negative_"))] = rows[name]
    fps = None if motion_fps is None else torch.tensor([motion_fps]).to(like)
    return Conditioning(rows["prompt_embeds"], rows.get("negative_embeds"), added, negative_added, fps, guidance)
