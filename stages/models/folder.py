"""What a model folder says of itself, read without loading a weight or a library.

A model is a diffusers pipeline folder in safetensors. Images come from `StableDiffusionXLPipeline` and
`StableDiffusionPipeline`; videos from `VideoCrafter2Pipeline` (our own name: `docs/reference/models.md`),
`TextToVideoSDPipeline` (ModelScope, zeroscope), `AnimateDiffPipeline` and `AnimateDiffSDXLPipeline`. A card beside
them, `freescale.json`, may give defaults and what their configuration has no field for; what it says of methods is read
by `stages.models.card`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.errors import SpecError
from stages.models.checks import check_card, check_index, check_weights, read_folder
from stages.models.fields import read_json
from stages.models.files.model import Networks, configured_networks, family_networks, vae_network
from stages.models.flow import FLOW_FAMILIES
from stages.models.hashes import Hashes, with_decided
from stages.models.info import CELL, ModelInfo
from stages.models.locate import EMBEDDED, EMBEDDED_MODELS, INDEX, available, locate, models_folder
from stages.models.presets import FEW_STEPS
from stages.models.tokenizer_files import check_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from freescale import Solver
    from stages.models.card import MethodValues
    from stages.models.checks import Folder
    from stages.spec import ModelSpec

__all__ = ["EMBEDDED", "EMBEDDED_MODELS", "ModelInfo", "available", "cell_of", "describe", "locate", "models_folder"]

PARTS = ("text", "unet", "vae")  # of a model, each with a fingerprint of what decides the bytes of its stages
CARD = "freescale.json"
NEGATIVE = "blurry, ugly, duplicate, poorly drawn, deformed, mosaic"  # FreeScale's scripts, for SDXL and kin
VIDEO: MethodValues = {"*": {"freeu": None}, "freescale": {"upsample": "latent", "interpolation": "bilinear"}}
"""What the paper changes for video: no FreeU, levels enlarged in latent space (the mode is our choice)."""


@dataclass(frozen=True)
class VideoDefaults:
    """The defaults of one kind of video pipeline, where the card gives none."""

    guidance_scale: float
    fps: float  # of playback
    frames: int = 16
    dynamic_scale: tuple[float, int] | None = None
    pad_token_id: int | None = None


VIDEO_KINDS: Mapping[str, VideoDefaults] = {
    "VideoCrafter2Pipeline": VideoDefaults(12.0, 10.0, dynamic_scale=(0.7, 400), pad_token_id=0),
    "TextToVideoSDPipeline": VideoDefaults(9.0, 8.0),
    "AnimateDiffPipeline": VideoDefaults(7.5, 8.0),
    "AnimateDiffSDXLPipeline": VideoDefaults(5.0, 8.0),
}
VIDEO_UNETS = ("VideoCrafterUNet", "UNet3DConditionModel", "UNetMotionModel")
IMAGE_KINDS = ("StableDiffusionXLPipeline", "StableDiffusionPipeline")
MOTION_FPS = 28.0  # VideoCrafter2's release; with smaller numbers there is more motion


def describe(spec: ModelSpec, home: Path, *, has_weights: bool = True) -> ModelInfo:
    """Read a model's configuration and fingerprints, and check that all that a render loads is there and honoured.

    Without `has_weights` a folder of configurations, or the header of a file, will do, which can be planned with and
    not rendered. Raises `SpecError` for a model that cannot serve.
    """
    root = locate(spec, home)
    if root.is_file():
        if spec.config is not None:
            return _configured(spec, root, home, has_weights=has_weights)
        return _from_file(spec, root, home, has_weights=has_weights)
    for name in ("text_encoders", "config"):
        if (given := getattr(spec, name)) is not None:
            raise SpecError(f"model.{name}: {given!r} is for a model in a single file, and {root} is a folder")
    info = _from_folder(spec, root, home, has_weights=has_weights)
    if spec.vae is None:
        return info
    if info.configs["vae"].get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        from stages.models.flow.file import with_vae

        return with_vae(info, spec, home, has_weights=has_weights)
    vae = vae_network(spec, info.configs["vae"], home, has_weights=has_weights)
    return _with_networks(info, vae, {"vae": vae.hashes["vae"]})


def _from_file(spec: ModelSpec, path: Path, home: Path, *, has_weights: bool) -> ModelInfo:
    """Return what a checkpoint in a file is, by the table of families."""
    from stages.models.schedulers import read_scheduler

    file, networks = family_networks(spec, path, home, has_weights=has_weights)
    family = file.of_family
    pads = {part: text.pad_token_id for part, text in family.texts.items()}
    solver, unsaid, _ = read_scheduler(path, scheduler := {**family.scheduler, "prediction_type": "epsilon"})
    info = ModelInfo(
        name=spec.name,
        folder=path,
        native=file.native,
        steps=50,
        guidance_scale=7.5,
        negative_prompt=NEGATIVE,
        solver=solver,
        scheduler={**scheduler, **unsaid},
        size_ids=family.is_xl,
        latent_channels=int(networks.parts["vae"].config["latent_channels"]),
        cell=cell_of(networks.parts["vae"].config),
        pad_ids=pads,
        file=file,
    )
    return _with_networks(
        info,
        networks,
        {
            "text": with_decided(networks.text_hash(), {"tokenizer": "clip", "pad_ids": pads}),
            "unet": with_decided(networks.hashes["unet"], {"scheduler": info.scheduler}),
            "vae": networks.hashes["vae"],
        },
    )


def _configured(spec: ModelSpec, path: Path, home: Path, *, has_weights: bool) -> ModelInfo:
    """Return what a checkpoint in a file is, by the folder of configurations that the spec gives for it."""
    given = spec.model_copy(update={"name": spec.config, "vae": None, "text_encoders": None, "config": None})
    root = locate(given, home)
    if root.is_file():
        raise SpecError(f"model.config: {spec.config!r} is a file; a diffusers folder of configurations works")
    if (kind := str(read_json(root / INDEX).get("_class_name"))) in FLOW_FAMILIES:
        return _of_transformer(kind, spec, root, home, path, has_weights=has_weights)
    info = _from_folder(given, root, home, has_weights=False)
    if info.is_video:
        raise SpecError(f"model.config: {spec.config!r} is of a video model; those are rendered from folders alone")
    folder = read_folder(root, info.unet_class, pooled=info.size_ids)
    for name, part in folder.texts.items():
        check_tokenizer(root / name.replace("text_encoder", "tokenizer"), part.config)
    parts = {**folder.texts, "unet": folder.unet, "vae": folder.vae}
    networks = configured_networks(spec, path, home, parts, has_weights=has_weights)
    content = {"text": networks.text_hash(), **{part: networks.hashes[part] for part in ("unet", "vae")}}
    decided = {part: with_decided(content[part], {"config": info.fingerprints[part]}) for part in PARTS}
    return _with_networks(replace(info, name=spec.name, folder=path), networks, decided)


def _with_networks(info: ModelInfo, networks: Networks, fingerprints: Mapping[str, str]) -> ModelInfo:
    """Return `info` of a model that takes these networks from files."""
    return replace(
        info,
        networks=networks.parts,
        configs={**info.configs, **{part: each.config for part, each in networks.parts.items()}},
        weight_bytes=info.weight_bytes + networks.bytes,
        fingerprints={**info.fingerprints, **fingerprints},
    )


def _of_transformer(
    kind: str, spec: ModelSpec, root: Path, home: Path, file: Path | None = None, *, has_weights: bool
) -> ModelInfo:
    """Return what a transformer's folder says of itself, or a `file` with its weights and the folder of `root`."""
    values = partial(_method_values, root)
    if file is None:
        from stages.models.flow.folder import flow_info  # here, since a model with a UNet needs none of it

        return flow_info(FLOW_FAMILIES[kind], spec, root, home, values, has_weights=has_weights)
    from stages.models.flow.file import flow_file_info

    return flow_file_info(FLOW_FAMILIES[kind], spec, file, root, home, values, has_weights=has_weights)


def _from_folder(spec: ModelSpec, root: Path, home: Path, *, has_weights: bool) -> ModelInfo:
    """Return what a model folder says of itself. Raises `SpecError` for a folder that cannot serve."""
    from stages.models.schedulers import check_schedule, read_scheduler  # here, since the kernel brings torch

    kind = str((index := read_json(root / INDEX)).get("_class_name"))
    if kind in FLOW_FAMILIES:
        return _of_transformer(kind, spec, root, home, has_weights=has_weights)
    if kind not in (*IMAGE_KINDS, *VIDEO_KINDS):
        known = ", ".join((*IMAGE_KINDS, *VIDEO_KINDS, *FLOW_FAMILIES))
        raise SpecError(f"model: {root} is a {kind}; what can be rendered is {known}")
    check_index(root / INDEX, index)
    card = read_json(root / CARD) if (root / CARD).is_file() else {}
    is_video = kind in VIDEO_KINDS or "motion_adapter" in card
    unet = read_json(root / "unet" / "config.json")
    unet_class, size_ids = _unet_class(root, unet, is_video), unet.get("addition_embed_type") == "text_time"
    check_card(root / CARD, card, is_video=is_video)
    adapter = _adapter(root, card, unet_class) if is_video else None
    folder = read_folder(root, unet_class, pooled=size_ids, adapter=adapter, has_weights=has_weights)
    path = root / "scheduler" / "scheduler_config.json"
    solver, unsaid, remark = read_scheduler(path, scheduler := read_json(path))
    if has_weights:
        check_weights(folder, home)
    turbo = needs_few_steps(solver, scheduler)
    vae, hashes = folder.vae.config, Hashes(home)
    info = ModelInfo(
        name=spec.name,
        folder=root,
        native=_native(root, unet, card, cell_of(vae)),
        steps=card.get("steps", 4 if turbo else 50),
        guidance_scale=card.get("guidance_scale", 0.0 if turbo else 7.5),
        negative_prompt=card.get("negative_prompt", NEGATIVE),
        solver=solver,
        scheduler={**scheduler, **unsaid},
        size_ids=size_ids,
        latent_channels=int(vae.get("latent_channels", 4)),
        cell=cell_of(vae),
        fingerprints=_fingerprints(folder, hashes, index, unsaid),
        method_defaults=_method_values(root, card, FEW_STEPS if turbo else None),
        unet_class=unet_class,
        empty_prompt_is_zeros=index.get("force_zeros_for_empty_prompt", True),
        scheduler_remark=remark,
        said={name: card[name] for name in ("prediction", "ztsnr") if name in card},
        configs=folder.configs,
        weight_bytes=sum(path.stat().st_size for path in root.glob("*/*.safetensors")),
        words=root,
    )
    info = _as_video(info, kind, folder, card, hashes) if is_video else info
    check_schedule(path, info.scheduler)
    return info


def needs_few_steps(solver: Solver, scheduler: Mapping[str, Any]) -> bool:
    """Return whether a model was distilled to need few steps, by its scheduler: LCM's, TCD's or SDXL-Turbo's."""
    trailing = scheduler.get("timestep_spacing") == "trailing"
    return solver in ("lcm", "tcd") or (trailing and solver == "euler_ancestral")


def _fingerprints(
    folder: Folder, hashes: Hashes, index: Mapping[str, Any], unsaid: Mapping[str, Any]
) -> dict[str, str]:
    """Return the fingerprint of each part: its files, and what else decides its bytes where it is not usual."""
    found = {part: hashes.files(folder.root, folder.files(part)) for part in PARTS}
    if not index.get("force_zeros_for_empty_prompt", True):
        found["text"] = with_decided(found["text"], {"force_zeros_for_empty_prompt": False})
    return {**found, "unet": with_decided(found["unet"], unsaid)} if unsaid else found


def _method_values(folder: Path, card: Mapping[str, Any], usual: MethodValues | None = None) -> MethodValues:
    """Return what the card says of methods, over what is `usual`."""
    from stages.models.card import merged, method_values  # here, since the methods bring torch

    return merged(usual or {}, method_values(card.get("method", {}), folder / CARD))


def _unet_class(folder: Path, unet: Mapping[str, Any], is_video: bool) -> str:
    """Return the class its UNet's configuration names; an image UNet in a video model needs a motion adapter."""
    name = str(unet.get("_class_name", "UNet2DConditionModel"))
    allowed = ("UNet2DConditionModel", *VIDEO_UNETS) if is_video else ("UNet2DConditionModel",)
    if name not in allowed:
        raise SpecError(f"model: {folder} has a UNet of the class {name}; {', '.join(allowed)} would work in it")
    return name


def _adapter(root: Path, card: Mapping[str, Any], unet_class: str) -> Path | None:
    """Return the folder of the motion modules that an image UNet gets: the card's, else one in the model's folder."""
    given = card.get("motion_adapter", "motion_adapter" if unet_class == "UNet2DConditionModel" else None)
    return None if given is None else (root / str(given)).resolve()


def cell_of(vae: Mapping[str, Any]) -> int:
    """Pixels of a latent cell's side, by a VAE's configuration: it halves the sides after each block but the last.

    8 for the four blocks of the VAEs of Stable Diffusion, and where the configuration names none.
    """
    blocks = vae.get("block_out_channels")
    return int(2 ** (len(blocks) - 1)) if blocks else CELL


def _native(folder: Path, unet: Mapping[str, Any], card: Mapping[str, Any], cell: int) -> tuple[int, int]:
    """Return (height, width) in pixels: the card's `native`, else the UNet's `sample_size` in latent cells."""
    cells = unet.get("sample_size")
    sides = [side * cell for side in cells] if isinstance(cells, list) else [int(cells or 0) * cell] * 2
    given = card.get("native", sides)
    if not (isinstance(given, list) and len(given) == 2 and all(isinstance(n, int) and n >= 64 for n in given)):
        raise SpecError(f"model: {folder} gives the native size {given}; two sides of 64 pixels or more work")
    return given[0], given[1]


def _as_video(info: ModelInfo, kind: str, folder: Folder, card: Mapping[str, Any], hashes: Hashes) -> ModelInfo:
    """Return `info` of a video model: with the defaults of its kind, and with what the card says of videos."""
    defaults = (
        VIDEO_KINDS.get(kind) or VIDEO_KINDS["AnimateDiffSDXLPipeline" if info.size_ids else "AnimateDiffPipeline"]
    )
    adapter = folder.adapter
    longest = (adapter.config if adapter else folder.unet.config).get("motion_max_seq_length", 2**15)
    frames = card.get("frames", min(defaults.frames, longest))
    if not isinstance(frames, int) or not 1 <= frames <= longest:
        raise SpecError(f"model: {info.folder} gives {frames} frames; 1 to {longest} work with its motion modules")
    scale = _dynamic_scale(info.folder, card.get("dynamic_scale", defaults.dynamic_scale))
    decisive = {"kind": kind, "frames": frames, "dynamic_scale": scale}
    if adapter:
        decisive["motion_adapter"] = hashes.files(adapter.folder, adapter.files)
    pad = card.get("pad_token_id", defaults.pad_token_id)
    return replace(
        info,
        guidance_scale=card.get("guidance_scale", defaults.guidance_scale),
        negative_prompt=card.get("negative_prompt", ""),
        scheduler={**info.scheduler, "dynamic_scale": scale} if scale else info.scheduler,
        fingerprints={
            **info.fingerprints,
            "text": with_decided(info.fingerprints["text"], {"pad_token_id": pad}),
            "unet": with_decided(info.fingerprints["unet"], decisive),
        },
        method_defaults=_method_values(info.folder, card, VIDEO),
        frames=frames,
        fps=float(card.get("fps", defaults.fps)),
        motion_fps=float(card.get("motion_fps", MOTION_FPS)) if info.unet_class == "VideoCrafterUNet" else None,
        dynamic_scale=scale,
        motion_adapter=adapter.folder if adapter else None,
        pad_token_id=pad,
    )


def _dynamic_scale(folder: Path, given: Any) -> tuple[float, int] | None:
    if given is None:
        return None
    try:
        scale, steps = float(given[0]), int(given[1])
    except (TypeError, ValueError, IndexError):
        scale, steps = 0.0, 0
    if not (0.0 < scale <= 1.0 and steps >= 1):
        raise SpecError(f"model: {folder} gives the dynamic scale {given}; a number up to 1 and its steps work")
    return scale, steps
