"""What a folder of a transformer says of itself: its parts, its noise levels, and what it can be asked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stages.errors import SpecError
from stages.models.cache_file import CacheFile
from stages.models.checks import check_card
from stages.models.fields import check_fields, read_json
from stages.models.flow.base import BOUNDARY, SECOND
from stages.models.hashes import Hashes, with_decided
from stages.models.info import ModelInfo, nearest_frames
from stages.models.locate import INDEX
from stages.models.tokenizer_files import check_template, check_tokenizer, tokenizer_files
from stages.models.weights import Part, check_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from freescale import Solver
    from stages.models.card import MethodValues
    from stages.models.flow.base import Configs, FlowFamily, PartKind, VideoKind
    from stages.spec import ModelSpec

CARD = "freescale.json"
NETWORKS = ("unet", SECOND, "vae")  # the parts that are no text encoders
SCHEDULER = "scheduler/scheduler_config.json"


def flow_info(
    family: FlowFamily,
    spec: ModelSpec,
    root: Path,
    home: Path,
    values: Callable[[Mapping[str, Any], MethodValues], MethodValues],
    *,
    has_weights: bool,
) -> ModelInfo:
    """Return what a folder of the family says of itself; `values` joins what holds of methods here with its card's.

    Raises `SpecError` for a folder that cannot serve.
    """
    family = family_in(family, root)
    parts = {name: part_of(root / kind.folder, kind, has_weights) for name, kind in family.parts.items()}
    info = described(family, spec, root, parts, values)
    if has_weights:
        check_weights(root, family, parts, parts.values(), home)
    return replace(
        info,
        fingerprints=_fingerprints(root, family, parts, Hashes(home), info.configs["unet"]),
        folders={name: kind.folder for name, kind in family.parts.items() if kind.folder != name},
        weight_bytes=sum(path.stat().st_size for path in root.glob("*/*.safetensors")),
    )


def described(
    family: FlowFamily,
    spec: ModelSpec,
    root: Path,
    parts: Mapping[str, Part],
    values: Callable[[Mapping[str, Any], MethodValues], MethodValues],
) -> ModelInfo:
    """Return what the configurations of the parts and a folder around them say; nothing of weights and fingerprints."""
    check_fields(root / INDEX, family.index, index := read_json(root / INDEX), family.pipeline)
    card = read_json(root / CARD) if (root / CARD).is_file() else {}
    check_card(root / CARD, card, is_video=family.video is not None)
    configs = {name: part.config for name, part in parts.items()}
    _check_misfits(root, family, configs)
    cell = family.cell(configs)
    usual = (family.side, family.side) if family.native is None else family.native(configs)
    native = _native(root, card, usual, family.patch * cell)
    scheduler, solver = _scheduler(root / SCHEDULER, family)
    kinds: Configs = {name: {"_class_name": part.kind, **part.config} for name, part in parts.items()}
    unet_class = family.parts["unet"].name
    if family.joined is not None:
        unet_class, kinds = family.joined(kinds, index)
    is_distilled = bool(index.get("is_distilled"))
    steps, guidance = family.defaults({**configs["unet"], "is_distilled": is_distilled}, scheduler)
    info = ModelInfo(
        name=spec.name,
        folder=root,
        native=native,
        steps=card.get("steps", steps),
        guidance_scale=card.get("guidance_scale", guidance),
        negative_prompt=card.get("negative_prompt", ""),
        solver=solver,
        scheduler=scheduler,
        size_ids=False,
        latent_channels=family.latent_channels(configs),
        cell=cell,
        patch=family.patch,
        method_defaults=values(card, {}),
        family_methods=family.methods,
        pipeline=family.pipeline,
        unet_class=unet_class,
        configs=kinds,
        words=root,
        text_tokens=text_tokens(root, family),
        is_distilled=is_distilled,
    )
    return info if family.video is None else _as_video(info, family.video(configs), card)


def _as_video(info: ModelInfo, kind: VideoKind, card: Mapping[str, Any]) -> ModelInfo:
    """Return `info` with what the card or the family says of videos.

    The number of tokens that a shift grows from is that of a frame at the training size.
    """
    for name in ("dynamic_scale", "motion_fps", "pad_token_id", "motion_adapter"):
        if name in card:
            raise SpecError(f"model: {info.folder / CARD} gives {name}, which is for UNets; leave it out")
    frames = card.get("frames", kind.frames)
    if not isinstance(frames, int) or frames < 1 or (frames - 1) % kind.time_cell:
        raise SpecError(f"model: {info.folder / CARD} gives {frames} frames; {nearest_frames(frames, kind.time_cell)}")
    tokens = info.native[0] * info.native[1] // info.grain**2
    return replace(
        info,
        frames=frames,
        fps=float(card.get("fps", kind.fps)),
        time_cell=kind.time_cell,
        scheduler={**info.scheduler, "max_image_seq_len": tokens},
    )


def family_in(family: FlowFamily, root: Path) -> FlowFamily:
    """Return the family without the optional parts that the folder's index gives as null, or does not name."""
    return family.named_in(read_json(root / INDEX))


def _check_misfits(root: Path, family: FlowFamily, configs: Configs) -> None:
    """Raise `SpecError` for parts that do not belong together."""
    for name, given, wanted, of in family.misfits(configs):
        if given != wanted:
            raise SpecError(f"model: {root / 'transformer/config.json'} has {name} = {given}; {of} gives {wanted}")


def _scheduler(path: Path, family: FlowFamily) -> tuple[dict[str, Any], Solver]:
    """Return the configuration of the noise levels, and the solver."""
    from freescale.flow_levels import FLOW_CLASS

    config = read_json(path)
    if (name := str(config.get("_class_name"))) in family.schedulers:
        other = family.schedulers[name]
        check_fields(path, other.fields, config, name)
        return other.read(config), other.solver
    if name != FLOW_CLASS:
        known = " or ".join((FLOW_CLASS, *family.schedulers))
        raise SpecError(f"model: {path} is of the class {name}; {known} works with a {family.pipeline}")
    check_fields(path, family.scheduler, config, FLOW_CLASS)
    return {**config, **family.grid}, "euler"


def part_of(folder: Path, kind: PartKind, has_weights: bool) -> Part:
    """Return one network of the folder with its configuration, checked field by field."""
    config = read_json(folder / "config.json")
    if (named := config.get("_class_name", kind.name)) != kind.name:
        raise SpecError(f"model: {folder} is of the class {named}; {kind.name} works there")
    check_fields(folder / "config.json", kind.fields, config, kind.name)
    return Part(folder, kind.name, config, has_weights)


def check_weights(root: Path, family: FlowFamily, parts: Mapping[str, Part], own: Iterable[Part], home: Path) -> None:
    """Check the weights of the parts that are `own` by their headers, and that the tokenizers of all are there.

    Raises `SpecError`.
    """
    known = CacheFile(home / "cache" / "weights.json")
    for part in own:
        check_part(part, known)
    for words in family.words:
        if parts[words.part].kind.startswith("CLIP"):
            check_tokenizer(root / words.folder, parts[words.part].config)
        elif not any((root / words.folder / name).is_file() for name in words.any_of):
            raise SpecError(f"model: {root / words.folder} has no {' and no '.join(words.any_of)}; download it again")
        elif words.has_template:
            check_template(root / words.folder)
    known.save()


def _fingerprints(
    root: Path, family: FlowFamily, parts: Mapping[str, Part], hashes: Hashes, network: Mapping[str, Any]
) -> dict[str, str]:
    words = words_files(root, family)
    texts = [path for name, part in parts.items() if name not in NETWORKS for path in part.files]
    networks = [path for name in ("unet", SECOND) if name in parts for path in parts[name].files]
    found = {
        "text": with_decided(hashes.files(root, [*texts, *words]), {"tokens": text_tokens(root, family)}),
        "unet": hashes.files(root, [*networks, root / SCHEDULER]),
        "vae": hashes.files(root, parts["vae"].files),
    }
    if SECOND in parts:
        found["unet"] = with_decided(found["unet"], {BOUNDARY: network[BOUNDARY]})
    return with_statistics(found, parts)


def with_statistics(found: dict[str, str], parts: Mapping[str, Part]) -> dict[str, str]:
    """Return the fingerprints, the network's with the VAE's where the VAE's statistics say what its latents are."""
    if "batch_norm_eps" not in parts["vae"].config:
        return found
    return found | {"unet": with_decided(found["unet"], {"vae": found["vae"]})}


def words_files(root: Path, family: FlowFamily) -> list[Path]:
    """Return the files of the tokenizers that a folder holds."""
    return [path for each in family.words for path in tokenizer_files(root / each.folder)]


def text_tokens(root: Path, family: FlowFamily) -> int:
    """Return how many tokens of a prompt are read: the family's, or as many as the tokenizer says."""
    path = root / family.tokens.folder / "tokenizer_config.json"
    length = read_json(path).get("model_max_length", family.most_tokens) if path.is_file() else family.most_tokens
    return int(min(length, family.most_tokens))


def _native(root: Path, card: Mapping[str, Any], usual: tuple[int, int], grain: int) -> tuple[int, int]:
    """Return (height, width) in pixels: the card's `native`, else the family's."""
    given = card.get("native", list(usual))
    if not (isinstance(given, list) and len(given) == 2 and all(isinstance(n, int) and n >= 64 for n in given)):
        raise SpecError(f"model: {root} gives the native size {given}; two sides of 64 pixels or more work")
    if any(side % grain for side in given):
        raise SpecError(f"model: {root} gives the native size {given}; sides in multiples of {grain} work")
    return given[0], given[1]
