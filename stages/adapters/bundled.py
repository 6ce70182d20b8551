"""Textual inversions that come inside of an adapter's file, as files of their own that prompts may name.

OneTrainer writes them beside the tensors of a LoRA: `bundle_emb.NAME.string_to_param.*` for a model with one text
encoder, `bundle_emb.NAME.clip_l` and `.clip_g` for SDXL. Each is copied once to the cache of the home.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stages.adapters.read import BUNDLED, contents, read_adapter
from stages.errors import SpecError
from stages.models.hashes import Hashes
from stages.prompts.names import ENDING, Embedding, key_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stages.adapters.applied import Adapter
    from stages.adapters.read import AdapterFile

NAMES = {"string_to_param.*": "emb_params", "clip_l": "clip_l", "clip_g": "clip_g"}
"""What a tensor is called in a file of its own, by the end of its name in an adapter's."""


def with_bundled(embeddings: tuple[Embedding, ...], adapters: Sequence[Adapter], home: Path) -> tuple[Embedding, ...]:
    """Return the embeddings that prompts may name with those in the files of adapters.

    One that the spec gives under the same trigger comes first, and one of the home's folder last. Raises `SpecError`
    for an embedding of an unknown form.
    """
    given = {key_of(each.trigger) for each in embeddings if each.is_given}
    found = [each for adapter in adapters if adapter.bundled for each in _copied(adapter, home)]
    own = {key_of(each.trigger): each for each in found if key_of(each.trigger) not in given}
    return (*own.values(), *(each for each in embeddings if key_of(each.trigger) not in own))


def _copied(adapter: Adapter, home: Path) -> list[Embedding]:
    """The embeddings of one file, each copied to a file in the cache where it is not yet there."""
    file, found = read_adapter(adapter.file), list[Embedding]()
    folder = home / "cache" / "embeddings" / contents(file, Hashes(home)).data[:16]
    for name in adapter.bundled:
        path = folder / (re.sub(r"[^\w.-]", "_", name) + ENDING)
        _copy(file, name, path)
        found.append(Embedding(name, path, is_given=True))
    return found


def _copy(source: AdapterFile, name: str, path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    before = f"{BUNDLED}{name}."
    ends = {each.removeprefix(before): each for each in source.tensors if each.startswith(before)}
    if unknown := sorted(set(ends) - set(NAMES)):
        known = ", ".join(NAMES)
        raise SpecError(f"lora: {source} has the embedding {name!r} with {unknown[0]}; {known} are read")
    with safe_open(source.path, "pt") as file:
        tensors = {NAMES[end]: file.get_tensor(each) for end, each in ends.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)
