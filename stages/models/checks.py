"""What must hold of a model's folder before anything is loaded: configurations, weights, tokenizers, and their fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.errors import SpecError
from stages.models.cache_file import CacheFile
from stages.models.fields import CARDS, INDEX, TABLES, TEXT_CLASSES, check_fields, read_json
from stages.models.tokenizer_files import check_tokenizer, tokenizer_files
from stages.models.weights import Part, check_part

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Folder:
    """The parts of a model's folder that are loaded, with their configurations; `adapter` has motion modules."""

    root: Path
    unet: Part
    vae: Part
    texts: Mapping[str, Part]
    adapter: Part | None = None

    @property
    def configs(self) -> dict[str, Mapping[str, Any]]:
        """The configuration of each network, by part; of motion modules, by `motion_adapter`."""
        parts = {**self.texts, "unet": self.unet, "vae": self.vae}
        parts |= {} if self.adapter is None else {"motion_adapter": self.adapter}
        return {name: {"_class_name": part.kind, **part.config} for name, part in parts.items()}

    def files(self, part: str) -> tuple[Path, ...]:
        """Return the files that decide the bytes of the stages of a part, `text`, `unet` or `vae`."""
        if part == "unet":
            return (*self.unet.files, self.root / "scheduler" / "scheduler_config.json")
        if part == "vae":
            return self.vae.files
        words = (path for name in self.texts for path in tokenizer_files(_tokenizer(self.root, name)))
        return (*(path for each in self.texts.values() for path in each.files), *words)


def read_folder(
    root: Path, unet_class: str, *, pooled: bool, adapter: Path | None = None, has_weights: bool = True
) -> Folder:
    """Return the parts of a model's folder, each configuration checked field by field.

    `pooled`: it has SDXL's second text encoder. Without `has_weights` text encoders may be missing. Raises
    `SpecError` for a field or a value that is not honoured.
    """
    names = list(TEXT_CLASSES)[: 2 if pooled else 1]
    if not has_weights:
        names = [name for name in names if (root / name).is_dir()]
    kinds = {"unet": unet_class, "vae": "AutoencoderKL", **{name: TEXT_CLASSES[name] for name in names}}
    motion = None if adapter is None else _part(adapter, "MotionAdapter", has_weights)
    parts = {name: _part(root / name, kind, has_weights) for name, kind in kinds.items()}
    found = Folder(root, parts["unet"], parts["vae"], {name: parts[name] for name in names}, motion)
    _check_widths(found)
    return found


def check_card(path: Path, card: Mapping[str, Any], *, is_video: bool) -> None:
    """Check the fields of a card. Raises `SpecError`."""
    check_fields(
        path, CARDS[is_video], card, "the card of a video model" if is_video else "the card of a picture model"
    )


def check_index(path: Path, index: Mapping[str, Any]) -> None:
    """Check the fields of `model_index.json`. Raises `SpecError`."""
    check_fields(path, INDEX, index, str(index.get("_class_name")))


def check_weights(folder: Folder, home: Path) -> None:
    """Check the weights of every part by their headers, and the tokenizers. Raises `SpecError`."""
    known = CacheFile(home / "cache" / "weights.json")
    for part in (*folder.texts.values(), folder.unet, folder.vae, *([folder.adapter] if folder.adapter else ())):
        check_part(part, known)
    for name, part in folder.texts.items():
        check_tokenizer(_tokenizer(folder.root, name), part.config)
    known.save()


def _tokenizer(root: Path, encoder: str) -> Path:
    return root / encoder.replace("text_encoder", "tokenizer")


def _part(folder: Path, kind: str, has_weights: bool) -> Part:
    config = read_json(folder / "config.json")
    named = config.get("_class_name", kind)
    if named != kind:
        raise SpecError(f"model: {folder} is of the class {named}; {kind} works there")
    check_fields(folder / "config.json", TABLES[kind], config, kind)
    return Part(folder, kind, config, has_weights)


def _check_widths(folder: Folder) -> None:
    """Check what the parts hand to each other: latents, rows of text and SDXL's pooled row."""
    unet, latents = folder.unet.config, folder.vae.config.get("latent_channels", 4)
    for name in ("in_channels", "out_channels"):
        _same(folder, name, unet.get(name, 4), latents, "the latent channels of its VAE")
    texts = [part.config.get("hidden_size", 512) for part in folder.texts.values()]
    if texts:
        _same(
            folder, "cross_attention_dim", unet.get("cross_attention_dim"), sum(texts), "the width of its text encoders"
        )
    pooled = folder.texts.get("text_encoder_2")
    if pooled is not None:
        ids, width = unet.get("addition_time_embed_dim") or 0, pooled.config.get("projection_dim", 512)
        given = unet.get("projection_class_embeddings_input_dim")
        _same(
            folder, "projection_class_embeddings_input_dim", given, 6 * ids + width, "six size ids and the pooled row"
        )


def _same(folder: Folder, name: str, given: Any, wanted: int, what: str) -> None:
    if given not in (wanted, None):
        raise SpecError(f"model: {folder.unet.folder / 'config.json'} has {name} = {given}; {what} gives {wanted}")
