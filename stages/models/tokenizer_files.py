"""A model's CLIP tokenizers, checked before they are loaded: transformers makes an empty one of a missing folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.errors import SpecError
from stages.models.fields import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

WHOLE = "tokenizer.json"
SPLIT = ("vocab.json", "merges.txt")
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
READ = (WHOLE, *SPLIT, SETTINGS, "special_tokens_map.json", "added_tokens.json", "spiece.model", TEMPLATE)
CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast", None)


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a tokenizer's folder that are loaded."""
    return tuple(folder / name for name in READ if (folder / name).is_file())


def check_tokenizer(folder: Path, text: Mapping[str, Any]) -> None:
    """Check a tokenizer against the configuration `text` of its text encoder.

    Raises `SpecError` for a missing file, for another number of tokens, and for another length of a prompt.
    """
    if not (folder / WHOLE).is_file() and (missing := [name for name in SPLIT if not (folder / name).is_file()]):
        raise SpecError(
            f"model: {folder} has no {missing[0]}, and no {WHOLE}; "
            "copy the tokenizer of the model that it was made from"
        )
    settings, length = read_json(folder / SETTINGS), text.get("max_position_embeddings", 77)
    if settings.get("tokenizer_class") not in CLASSES:
        raise SpecError(f"model: {folder} is a {settings['tokenizer_class']}; {CLASSES[0]} works")
    if settings.get("model_max_length") != length:
        raise SpecError(
            f"model: {folder / SETTINGS} has model_max_length = {settings.get('model_max_length')}; its text encoder "
            f"reads {length} tokens"
        )
    count, wanted = len(_tokens(folder)), text.get("vocab_size", 49408)
    if count != wanted:
        raise SpecError(f"model: {folder} has {count} tokens, and its text encoder {wanted}; they must be of one model")


def check_template(folder: Path) -> None:
    """Raise `SpecError` for a tokenizer without the chat template that prompts are put into."""
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if "chat_template" not in settings and not (folder / TEMPLATE).is_file():
        raise SpecError(f"model: {folder} has no {TEMPLATE} and no chat_template in {SETTINGS}; download it again")


def _tokens(folder: Path) -> set[int]:
    """Return the numbers of all tokens."""
    try:
        if (folder / WHOLE).is_file():
            whole = read_json(folder / WHOLE)
            return {*whole["model"]["vocab"].values(), *(each["id"] for each in whole.get("added_tokens", ()))}
        added = folder / "added_tokens.json"
        return {*read_json(folder / SPLIT[0]).values(), *(read_json(added).values() if added.is_file() else ())}
    except (KeyError, TypeError, AttributeError):
        raise SpecError(f"model: {folder} holds no vocabulary of tokens and their numbers") from None
