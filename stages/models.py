"""Find and load a pretrained model; the only module that loads diffusers.

A model is a `StableDiffusionXLPipeline` or `StableDiffusionPipeline` folder in safetensors. `locate` says where a
name leads without loading anything; `Models` loads each part when a stage first asks for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.spec import ModelSpec, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from diffusers import AutoencoderKL, UNet2DConditionModel

    from freescale import Solver

log = logging.getLogger(__name__)
EMBEDDED = Path(__file__).parent / "shapes" / "model"
PARTS: Mapping[str, tuple[str, ...]] = {  # which folders decide the bytes of which stages
    "text": ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    "unet": ("unet", "scheduler"),
    "vae": ("vae",),
}
CLIP_INPUT = "model.safetensors"  # of a CLIP folder
NEGATIVE = "blurry, ugly, duplicate, poorly drawn, deformed, mosaic"  # FreeScale's scripts, for SDXL and kin
TURBO: Mapping[str, Any] = {
    "restart": 0.5,
    "dilation": (0.0, 1.0),
    "rad": (0.0, 0.0),
    "pool": (0.0, 0.5),
}  # of four steps: two a level, dilated throughout; HiDiffusion as released for SDXL-Turbo


@dataclass(frozen=True)
class ModelInfo:
    """What a model folder says of itself, read without loading weights."""

    name: str
    folder: Path
    native: tuple[int, int]  # (height, width) in pixels it was trained at
    steps: int
    guidance_scale: float
    negative_prompt: str
    solver: Solver
    scheduler: Mapping[str, Any]
    size_ids: bool  # SDXL's micro-conditioning: sizes and crops as extra inputs
    latent_channels: int
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    method_defaults: Mapping[str, Any] = field(default_factory=dict)  # where the spec names none


def models_folder(home: Path) -> Path:
    """Where named models are looked for."""
    return home / "models"


def locate(spec: ModelSpec, home: Path) -> Path:
    """The folder a model name or path leads to. Raises `SpecError` that says where it looked."""
    if spec.name == "shapes":
        return EMBEDDED
    looked = [Path(spec.name).expanduser()]
    if not looked[0].is_absolute() and ".." not in looked[0].parts:
        looked += [models_folder(home) / spec.name, *_cached_snapshots(spec)]
    for place in looked:
        if (place / "model_index.json").is_file():
            return place.resolve()
    places = ", ".join(str(p) for p in looked)
    raise SpecError(
        f"model: {spec.name!r} is not on disk (looked at {places}); give the path of a local diffusers folder "
        f"with model_index.json, put or link it at {models_folder(home)}/NAME, or use 'shapes'"
    )


def _cached_snapshots(spec: ModelSpec) -> list[Path]:
    """Where the hub's own cache would hold this repository; nothing is fetched."""
    root = Path(os.path.expanduser("~/.cache/huggingface/hub")) / f"models--{spec.name.replace('/', '--')}"
    if spec.revision:
        return [root / "snapshots" / spec.revision]
    main = root / "refs" / "main"
    return [root / "snapshots" / main.read_text().strip()] if main.is_file() else [root / "snapshots"]


def available(home: Path) -> Iterator[tuple[str, Path]]:
    """Every model that can be named: the embedded one, then those under the models folder."""
    yield "shapes", EMBEDDED
    root = models_folder(home)
    for index in sorted(root.glob("*/model_index.json")) if root.is_dir() else []:
        yield index.parent.name, index.parent


def describe(spec: ModelSpec, home: Path) -> ModelInfo:
    """Read a model's configuration and fingerprints. Raises `SpecError` for a folder that cannot serve."""
    folder = locate(spec, home)
    kind = _json(folder / "model_index.json").get("_class_name")
    if kind not in ("StableDiffusionXLPipeline", "StableDiffusionPipeline"):
        raise SpecError(
            f"model: {folder} is a {kind}; StableDiffusionXLPipeline and StableDiffusionPipeline can be rendered"
        )
    unet, vae = _json(folder / "unet" / "config.json"), _json(folder / "vae" / "config.json")
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    turbo = scheduler.get("timestep_spacing") == "trailing" and "Ancestral" in scheduler.get("_class_name", "")
    side = int(unet["sample_size"]) * 8
    card = _json(folder / "freescale.json") if (folder / "freescale.json").is_file() else {}
    return ModelInfo(
        name=spec.name,
        folder=folder,
        native=(side, side),
        steps=card.get("steps", 4 if turbo else 50),
        guidance_scale=card.get("guidance_scale", 0.0 if turbo else 7.5),
        negative_prompt=card.get("negative_prompt", NEGATIVE),
        solver=_solver(scheduler),
        scheduler=scheduler,
        size_ids=unet.get("addition_embed_type") == "text_time",
        latent_channels=int(vae["latent_channels"]),
        fingerprints=_fingerprints(folder, home),
        method_defaults=TURBO if turbo else card.get("method", {}),
    )


def _solver(scheduler: Mapping[str, Any]) -> Solver:
    kind = str(scheduler.get("_class_name", ""))
    if "Ancestral" in kind:
        return "euler_ancestral"
    if "DDIM" in kind or "PNDM" in kind:
        return "ddim"
    return "dpmpp_2m" if "DPMSolverMultistep" in kind else "euler"


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"model: {path} cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise SpecError(f"model: {path} does not hold an object")
    return loaded


def _fingerprints(folder: Path, home: Path) -> dict[str, str]:
    """sha256 of every configuration and weight file of each part; big files are hashed once and remembered."""
    remembered_at = home / "cache" / "hashes.json"
    try:
        remembered: dict[str, str] = json.loads(remembered_at.read_text())
    except (OSError, ValueError):
        remembered = {}
    before, prints = len(remembered), {}
    for part, folders in PARTS.items():
        total = hashlib.sha256()
        for path in sorted(p for name in folders for p in (folder / name).glob("*") if p.is_file()):
            if path.suffix in (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx"):
                continue  # never read
            stat = path.stat()
            mark = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
            if mark not in remembered:
                with path.open("rb") as file:
                    remembered[mark] = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(folder)}={remembered[mark]};".encode())
        prints[part] = total.hexdigest()
    if len(remembered) != before:
        _remember(remembered_at, remembered)
    return prints


def _remember(path: Path, hashes: dict[str, str]) -> None:
    """Best effort: a lost cache of hashes costs seconds, so a read-only home is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(hashes))
        partial.replace(path)
    except OSError as error:
        log.debug("hashes not remembered: %s", error)


def pick_device(wanted: str) -> torch.device:
    """`auto` -> the first accelerator at hand. Raises `SpecError` for one that is not there."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise SpecError(f"device: {wanted!r} is not one of auto, cpu, mps, cuda, cuda:N") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise SpecError(f"device: {wanted!r} is not there; torch sees {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SpecError("device: 'mps' is not there")
    return device


class Models:
    """The loaded parts of one model on one device, each loaded at its first use and kept."""

    def __init__(self, info: ModelInfo, dtype: str, device: torch.device) -> None:
        self.info, self.device = info, device
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.unet_samples = 0  # that went through the UNet since it was loaded

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser in the spec's dtype, without gradients."""
        from diffusers import UNet2DConditionModel

        unet: UNet2DConditionModel = self._load(UNet2DConditionModel, "unet", self.dtype)
        unet.register_forward_pre_hook(self._count)
        return unet

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The VAE; in float32, since SDXL's overflows in half precision (`force_upcast`)."""
        from diffusers import AutoencoderKL

        return self._load(AutoencoderKL, "vae", torch.float32)

    def make_room(self, part: str, offload: bool) -> None:
        """Before a stage of `part`: bring that part to the device, and the VAE off it unless it is the one at work.

        With `offload` the UNet leaves as well while the VAE or the text encoders work. Nothing is loaded for this, and
        text encoders are gone once a prompt is encoded. Where the host is the device, there is nothing to move.
        """
        if self.device.type == "cpu" or not part:
            return
        for name in ("unet", "vae"):
            loaded: nn.Module | None = self.__dict__.get(name)
            leaves = name != part and (offload or name == "vae")
            if loaded is not None:
                loaded.to("cpu" if leaves else self.device)

    def _count(self, unet: Any, inputs: tuple[Tensor, ...]) -> None:
        self.unet_samples += inputs[0].shape[0]

    def _load(self, kind: Any, part: str, dtype: torch.dtype) -> Any:
        log.info("loading %s of %s", part, self.info.name)
        quiet_diffusers()
        module = kind.from_pretrained(
            self.info.folder, subfolder=part, dtype=dtype, use_safetensors=True, local_files_only=True
        )
        return module.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str | None) -> dict[str, Tensor]:
        """prompt_embeds (1, tokens, width) and, where a negative is given, negative_embeds; for SDXL the pooled rows.

        An empty negative prompt gives zeros where the model's configuration says so, as the stock pipeline does.
        """
        quiet_diffusers()
        if self.info.size_ids:
            return self._encode_xl(prompt, negative_prompt)
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(
            self.info.folder, unet=None, vae=None, **self._text_options()
        )
        rows = pipeline.to(self.device).encode_prompt(
            prompt, self.device, 1, negative_prompt is not None, negative_prompt=negative_prompt
        )
        return _named(("prompt_embeds", "negative_embeds"), rows, negative_prompt is not None)

    def _encode_xl(self, prompt: str, negative_prompt: str | None) -> dict[str, Tensor]:
        from diffusers import StableDiffusionXLPipeline

        pipeline = StableDiffusionXLPipeline.from_pretrained(
            self.info.folder, unet=None, vae=None, **self._text_options()
        )
        rows = pipeline.to(self.device).encode_prompt(
            prompt,
            device=self.device,
            do_classifier_free_guidance=negative_prompt is not None,
            negative_prompt=negative_prompt or None,
        )
        names = ("prompt_embeds", "negative_embeds", "text_embeds", "negative_text_embeds")
        return _named(names, rows, negative_prompt is not None)

    def _text_options(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "use_safetensors": True, "local_files_only": True}


def empty_part(config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """A UNet or VAE by its configuration, on the meta device: shapes and no weights."""
    import diffusers

    with torch.device("meta"):
        module = getattr(diffusers, config["_class_name"]).from_config(dict(config))
    empty: nn.Module = nn.Module.to(module, dtype).eval().requires_grad_(False)  # diffusers' own warns
    return empty


def _named(names: tuple[str, ...], rows: tuple[Tensor | None, ...], guided: bool) -> dict[str, Tensor]:
    kept = {n: r for n, r in zip(names, rows, strict=True) if r is not None and (guided or "negative" not in n)}
    return {n: r.float().cpu() for n, r in kept.items()}


class ClipNetworks:
    """A transformers `CLIPModel` with its tokenizer, for measures: embeddings of pictures and of words."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        quiet_diffusers()
        self.device = device
        self.model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        self.model = self.model.to(device).eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.image_size: int = self.model.config.vision_config.image_size

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, d) for normalised `images` (B, 3, side, side)."""
        out: Tensor = self.model.get_image_features(pixel_values=images.to(self.device)).pooler_output
        return out

    def embed_text(self, prompt: str) -> Tensor:
        """(1, d) for a prompt, cut at the model's context."""
        context = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompt, truncation=True, max_length=context, return_tensors="pt").to(self.device)
        out: Tensor = self.model.get_text_features(**tokens).pooler_output
        return out


def load_clip(folder: Path, device: torch.device) -> ClipNetworks:
    """CLIP from a local folder. Raises `SpecError` for a folder that is none."""
    if _json(folder / "config.json").get("model_type") != "clip":
        raise SpecError(f"weights.clip: {str(folder)!r} does not hold a CLIPModel (config.json, model_type)")
    return ClipNetworks(folder, device)


def quiet_diffusers() -> None:
    """Progress bars and notices of the libraries would tear up ours."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for quiet in (diffusers_logging, transformers_logging):
        quiet.set_verbosity_error()
        quiet.disable_progress_bar()
