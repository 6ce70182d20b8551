"""Load a pretrained model, part by part, when a stage first asks for it; the door to diffusers and transformers.

What a model's folder says without loading anything is `model_folder`'s, and can be had here too.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from stages.adapters.merge import merge
from stages.errors import SpecError, StageError
from stages.models.by_blocks import ByBlocks
from stages.models.clip_tokenizer import clip_tokenizer
from stages.models.describe import describe
from stages.models.eight_bits import STORED, computed, stored_in_8_bits
from stages.models.fields import TEXT_CLASSES, read_json
from stages.models.files.open import load_folder, load_network
from stages.models.flow import FLOW_FAMILIES
from stages.models.folder import EMBEDDED, ModelInfo, available, locate, models_folder
from stages.models.networks import align, for_pictures, network_class, quiet_diffusers, with_motion
from stages.models.weights import stem_of, variant_of, weight_files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from diffusers import AutoencoderKL, UNet2DConditionModel

    from freescale.vae.passes import Run
    from stages.spec import RunOptions

__all__ = [
    "CLIP_INPUT",
    "EMBEDDED",
    "ClipNetworks",
    "Helpers",
    "ModelInfo",
    "Models",
    "available",
    "describe",
    "load_clip",
    "locate",
    "models_folder",
]

log = logging.getLogger(__name__)
CLIP_INPUT = "model.safetensors"  # of a CLIP folder


class Helpers(Protocol):
    """Other processes that compute parts of a stage's result, to the same bits as this process would."""

    def tiles(self, frame: int = 0) -> Run:
        """Return what computes the VAE's tiles over the stage's picture, or over a frame of its video."""

    def frames(self, indices: Iterable[int], options: RunOptions) -> Iterator[Tensor]:
        """Return the stage's `make_frame` of each index, in order."""


class Models:
    """The loaded parts of one model on one device, each loaded at its first use and kept."""

    def __init__(self, info: ModelInfo, dtype: str, device: torch.device) -> None:
        self.info, self.device = info, device
        self.stored: torch.dtype = getattr(torch, dtype)  # of the UNet's weights
        self.dtype = computed(self.stored)
        self.unet_samples = 0  # that went through the UNet since it was loaded
        self.helpers: Helpers | None = None  # who computes tiles and frames; None: this process
        self._is_by_blocks = False  # the UNet, from `make_room` on
        self._blocks: ByBlocks | None = None

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser in the spec's dtype, without gradients; of a video model, one of the classes for videos."""
        unet: UNet2DConditionModel = self._load(network_class(self.info.unet_class), "unet", self.dtype)
        if self.info.motion_adapter is not None:
            unet = self._with_motion(unet, self.info.motion_adapter)
        if self.stored == STORED:
            unet = stored_in_8_bits(unet)
        if self._is_by_blocks:
            self._blocks = ByBlocks(unet, self.device)
        else:
            unet = unet.to(self.device)
        unet.register_forward_pre_hook(self._count, with_kwargs=True)
        return unet

    def _with_motion(self, unet: Any, folder: Path) -> Any:
        from diffusers import MotionAdapter

        variant = variant_of(folder, stem_of("MotionAdapter"))
        adapter = MotionAdapter.from_pretrained(
            folder, dtype=self.dtype, use_safetensors=True, local_files_only=True, variant=variant
        )
        return with_motion(unet, adapter).eval().requires_grad_(False)

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The VAE; in float32, since SDXL's overflows in half precision (`force_upcast`).

        On a CPU the weights of one for pictures are laid out channels last, as its convolutions like them
        (`docs/lab/speed.md`).
        """
        vae: AutoencoderKL = self._load(
            network_class(str(self.info.configs["vae"]["_class_name"])), "vae", torch.float32
        )
        is_flat = self.device.type == "cpu" and self.info.time_cell == 1
        return vae.to(memory_format=torch.channels_last) if is_flat else vae

    def tiles(self, frame: int = 0) -> Run | None:
        """Return what computes the VAE's tiles over the call's picture, or a frame of its video; None: this process."""
        return None if self.helpers is None else self.helpers.tiles(frame)

    def make_room(self, parts: Collection[str], offload: bool, by_blocks: bool = False) -> None:
        """Bring the `parts` of the next stage to the device, and the VAE off it unless it is among them.

        With `offload` the UNet leaves as well while the VAE or the text encoders work; with `by_blocks` its blocks stay
        on the host and are brought when they work. Nothing is loaded for this, and text encoders are gone once a prompt
        is encoded. Where the host is the device, there is nothing to move.
        """
        if self.device.type == "cpu" or not parts:
            return
        self._set_by_blocks(by_blocks)
        for name in ("unet", "vae"):
            loaded: nn.Module | None = self.__dict__.get(name)
            leaves = name not in parts and (offload or name == "vae")
            if loaded is not None and not (name == "unet" and self._blocks):
                loaded.to("cpu" if leaves else self.device)

    def _set_by_blocks(self, wanted: bool) -> None:
        self._is_by_blocks, unet = wanted, self.__dict__.get("unet")
        if wanted and unet is not None and self._blocks is None:
            self._blocks = ByBlocks(unet, self.device)
        elif not wanted and self._blocks is not None:
            self._blocks.end()
            self._blocks = None

    def _count(self, unet: Any, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        self.unet_samples += len(inputs[0] if inputs else named["hidden_states"])

    def _load(self, kind: Any, part: str, dtype: torch.dtype) -> Any:
        log.info("loading %s of %s", part, self.info.name)
        quiet_diffusers()
        module = for_pictures(self._adapted(part, self._read(kind, part, dtype))).eval().requires_grad_(False)
        if self.info.pipeline is not None and self.device.type == "cpu":
            align(module)
        return module if part == "unet" else module.to(self.device)

    def _read(self, kind: Any, part: str, dtype: torch.dtype) -> Any:
        """Return a part on the host, from a single file or from the model's folder."""
        if part in self.info.networks:
            return load_network(self.info.networks[part], dtype)
        folder = self.info.folder / self.info.folders.get(part, part)
        if part == "unet" and getattr(kind, "_keep_in_fp32_modules", None):
            return self._read_kept(kind, dtype)
        module, found = kind.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            variant=variant_of(folder, stem_of(kind.__name__)),
        )
        if missing := [name for name, _ in module.named_parameters() if name in found["missing_keys"]]:
            raise StageError(f"{part} of {self.info.name} was loaded without {missing[0]}: its file has changed")
        return module

    def _read_kept(self, kind: Any, dtype: torch.dtype) -> Any:
        """Return a network of a class that keeps parts in float32, or that is made of two such networks."""
        from stages.models.flow.base import BOUNDARY, SECOND  # here, since UNets need none of it

        family, config = FLOW_FAMILIES[str(self.info.pipeline)], dict(self.info.configs["unet"])
        boundary = config.pop(BOUNDARY, None)
        parts = [family.parts[name] for name in ("unet", SECOND)[: 1 if boundary is None else 2]]
        found = [
            load_folder(each.name, config, weight_files(self.info.folder / each.folder, stem_of(each.name)), dtype)
            for each in parts
        ]
        return found[0] if boundary is None else kind(*found, boundary)

    def _adapted(self, part: str, module: Any) -> Any:
        """Return a part that was just loaded with the model's adapters merged into it, on the CPU."""
        if self.info.adapters:
            merge(part, module, self.info.adapters)
        return module

    def text_encoder(self, part: str) -> Any:
        """Return a text encoder, `text_encoder` or another one of the model's, in the spec's dtype; it is not kept."""
        import transformers

        name = TEXT_CLASSES[part] if self.info.pipeline is None else self.info.configs[part]["_class_name"]
        return self._load(getattr(transformers, name), part, self.dtype)

    def text_pipeline(self) -> Any:
        """Return the stock pipeline of a transformer with its text encoders and tokenizers alone; it is not kept."""
        import diffusers
        from transformers import AutoTokenizer

        family = FLOW_FAMILIES[str(self.info.pipeline)]
        parts: dict[str, Any] = {"scheduler": None}
        for part, kind in family.parts.items():
            is_text = part in self.info.configs and part not in ("unet", "vae")
            parts[kind.folder] = self.text_encoder(part) if is_text else None
        for words in family.words:
            if words.part not in self.info.configs:
                parts[words.folder] = None
            elif family.parts[words.part].name.startswith("CLIP"):
                parts[words.folder] = self.tokenizer(words.part)
            else:
                folder = (self.info.words or self.info.folder) / words.folder
                parts[words.folder] = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return getattr(diffusers, family.pipeline)(**parts)

    def tokenizer(self, part: str) -> Any:
        """Return the CLIP tokenizer of a text encoder, with the token that it fills prompts up with."""
        from transformers import CLIPTokenizer

        if self.info.words is None:
            return clip_tokenizer(self.info.pad_ids[part])
        folder = self.info.words / part.replace("text_encoder", "tokenizer")
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


class ClipNetworks:
    """A transformers `CLIPModel` with its tokenizer, for metrics: embeddings of pictures and of words."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        quiet_diffusers()
        self.device = device
        self.model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        self.model = self.model.to(device).eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.image_size: int = self.model.config.vision_config.image_size

    def embed_images(self, images: Tensor) -> Tensor:
        """Return (B, d) for normalised `images` (B, 3, side, side)."""
        out: Tensor = self.model.get_image_features(pixel_values=images.to(self.device)).pooler_output
        return out

    def embed_text(self, prompt: str) -> Tensor:
        """Return (1, d) for a prompt, cut at the model's context."""
        context = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompt, truncation=True, max_length=context, return_tensors="pt").to(self.device)
        out: Tensor = self.model.get_text_features(**tokens).pooler_output
        return out


def load_clip(folder: Path, device: torch.device) -> ClipNetworks:
    """Return CLIP from a local folder. Raises `SpecError` for a folder that is none."""
    if read_json(folder / "config.json").get("model_type") != "clip":
        raise SpecError(f"weights.clip: {str(folder)!r} does not hold a CLIPModel (config.json, model_type)")
    return ClipNetworks(folder, device)
