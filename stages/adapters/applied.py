"""The adapters of a spec, found and checked before any work, and what they do to a model's fingerprints.

A model with adapters is a model of its own: the fingerprint of its UNet and that of its text encoders each join the
contents of the tensors that change it, with the weights, in order. A name, a path or metadata join nothing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.adapters.metadata import trigger_words
from stages.adapters.read import contents, kind_of, read_adapter
from stages.adapters.spellings import ALONE, PAIRS, TEXTS, TRANSFORMERS, UNET
from stages.errors import SpecError
from stages.models.cache_file import CacheFile
from stages.models.hashes import Hashes
from stages.models.library import find

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from stages.adapters.read import AdapterFile
    from stages.adapters.spec import LoraSpec

Networks = dict[str, tuple[str, dict[str, Any]]]
"""The class and the configuration of each part of a model that adapters may change."""
VERSION = 2  # of what is checked
TAKE_ADAPTERS = ("UNet2DConditionModel", "UNetMotionModel", *TRANSFORMERS)


@dataclass(frozen=True)
class Adapter:
    """One adapter of a spec, found: the file, its fingerprints, and how much of it a model gets."""

    file: Path
    unet: str  # sha256 of the tensors for the UNet; empty: none
    text: str
    weight: float
    text_weight: float
    blocks: tuple[tuple[str, float], ...] = ()
    kind: str = ""
    unmatched: tuple[str, ...] = ()
    bundled: tuple[str, ...] = ()  # textual inversions in the file
    trigger_words: tuple[str, ...] = ()
    network: str | None = None  # of two, the one that all of the file is for

    def strength(self, part: str, block: str = ALONE) -> float:
        """What the change of a module is multiplied by. A block's own weight comes before that of its side."""
        blocks = dict(self.blocks)
        share = blocks.get(block, blocks.get(block.rstrip("0123456789"), 1.0))
        return (self.weight if part == UNET else self.text_weight) * share

    def changes(self, part: str) -> bool:
        """Whether it changes anything in a part: the `unet`, or the text encoders as `text` or one by its name."""
        if part == UNET:
            return bool(self.unet and self.weight)
        return part in ("text", *TEXTS) and bool(self.text and self.strength(part))


def applied(loras: Sequence[LoraSpec], home: Path, model: str, networks: Networks) -> tuple[Adapter, ...]:
    """Return the adapters that a spec asks for, in order, after every check that reads no tensor but for the hash.

    One with the weights 0 is checked and left out. `model` is the model's name, for errors. Raises `SpecError` for a
    file that is not there or does not fit.
    """
    if not loras:
        return ()
    unet_class = networks[UNET][0]
    if unet_class not in TAKE_ADAPTERS and "Transformer" in unet_class:
        families = ", ".join(dict.fromkeys(TRANSFORMERS.values()))
        raise SpecError(f"lora: the model {model!r} is a {unet_class}; models with a UNet, {families} take LoRAs")
    if unet_class not in TAKE_ADAPTERS:
        raise SpecError(
            f"lora: the model {model!r} has the video UNet {unet_class}, which no LoRA of a picture model fits; "
            "AnimateDiff models take those of Stable Diffusion"
        )
    known = CacheFile(home / "cache" / "adapters.json")
    found = [
        _adapter(lora, network, home, model, networks, known)
        for lora in loras
        for network in _networks(lora, unet_class, model)
    ]
    known.save()
    return tuple(adapter for adapter in found if adapter.changes(UNET) or adapter.changes("text"))


def adapted(fingerprints: Mapping[str, str], adapters: Sequence[Adapter]) -> dict[str, str]:
    """Return the fingerprints of a model's parts with adapters; those that nothing changes stay as they are."""
    of_unet = [
        [a.unet, a.weight, dict(a.blocks), *([a.network] if a.network else [])] for a in adapters if a.changes(UNET)
    ]
    of_text = [[a.text, a.strength("text")] for a in adapters if a.changes("text")]
    changes = {"unet": of_unet, "text": of_text}
    return {part: _joined(each, changes.get(part)) for part, each in fingerprints.items()}


def _joined(fingerprint: str, adapters: list[list[Any]] | None) -> str:
    if not adapters:
        return fingerprint
    return hashlib.sha256(f"{fingerprint};{json.dumps({'loras': adapters}, sort_keys=True)}".encode()).hexdigest()


def _networks(lora: LoraSpec, unet_class: str, model: str) -> tuple[str | None, ...]:
    """The networks that an adapter is merged into, of two; None where the names in its file say it."""
    if lora.network is not None and unet_class not in PAIRS:
        raise SpecError(f"lora: network: {lora.network!r} is for a model with two, and {model!r} has one; leave it out")
    return PAIRS[unet_class] if lora.network == "both" else (lora.network,)


def _adapter(
    lora: LoraSpec, network: str | None, home: Path, model: str, networks: Networks, known: CacheFile
) -> Adapter:
    file = read_adapter(find("lora", lora.file, home))
    pair = PAIRS.get(networks[UNET][0]) if network is None else None
    if pair is not None and not any(name.startswith(f"{pair[1]}.") for name in file.groups):
        raise SpecError(
            f"lora: {file} does not say which network of {model!r} it changes; set its `network`: {pair[0]} works at "
            f"high noise, {pair[1]} at low noise, both is each of them"
        )
    unmatched, blocks = _checked(file, lora, network, model, networks, known)
    sides = [side for side in ("IN", "OUT") if any(block.startswith(side) for block in blocks)]
    if wrong := [name for name in lora.blocks if name not in (*blocks, *sides)]:
        names = " and ".join([", ".join(sorted(blocks)), *sides])
        raise SpecError(f"lora: blocks: {wrong[0]!r} is not in the model {model!r}; it has {names}")
    halves, (weight, text_weight) = contents(file, Hashes(home)), lora.weights
    return Adapter(
        file.path,
        halves.unet,
        halves.text,
        weight,
        text_weight,
        tuple(sorted((name, share) for name, share in lora.blocks.items() if share != 1)),
        kind_of(file),
        unmatched,
        file.bundled,
        trigger_words(file.metadata),
        network,
    )


def _checked(
    file: AdapterFile, lora: LoraSpec, network: str | None, model: str, networks: Networks, known: CacheFile
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What of a file has no place in a model, and the names of the model's blocks; remembered by header and model."""
    libraries = [importlib.metadata.version(name) for name in ("diffusers", "transformers")]  # they name modules
    looked_at = [VERSION, libraries, networks, sorted(file.tensors.items()), network, lora.allow_unmatched]
    key = hashlib.sha256(json.dumps(looked_at, sort_keys=True).encode()).hexdigest()
    if key not in known.entries:
        from stages.adapters.matching import match
        from stages.adapters.spellings import targets
        from stages.models.networks import empty_network  # here, since it brings diffusers

        table = targets({part: empty_network(*each) for part, each in networks.items()}, network)
        found = match(file, table, model, allow_unmatched=lora.allow_unmatched)
        known.put(key, [list(found.unmatched), sorted({target.block for target in table.values()})])
    unmatched, blocks = known.entries[key]
    return tuple(unmatched), tuple(blocks)
