"""How much of a prompt a model reads: CLIP's tokens, counted without transformers, whose import takes seconds."""

from __future__ import annotations

import functools
import json
import unicodedata
from typing import TYPE_CHECKING

from stages.models.clip_tokenizer import LENGTH, bundled

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

    from stages.models.folder import ModelInfo

ENDS = 2  # tokens around every prompt
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP's vocabulary splits a text into before it merges letters (transformers, tokenization_clip.py)."""


def not_read(info: ModelInfo, text: str) -> tuple[int, int, str] | None:
    """Return the tokens of a prompt, how many of them the model reads, and the words that it does not read.

    None where it reads all. What has fewer bytes than the model reads tokens cannot be too long, and is not counted.
    """
    most = _most_tokens(info)
    if len(unicodedata.normalize("NFC", text).lower().encode()) <= most:
        return None
    tokens = _tokenizer(info.words and info.words / "tokenizer").encode(text, add_special_tokens=False)
    if len(tokens.ids) <= most:
        return None
    return len(tokens.ids), most, text[tokens.offsets[most][0] :]


def _most_tokens(info: ModelInfo) -> int:
    """Tokens of a prompt that every text encoder of a model reads; CLIP's 75 where its files do not say."""
    given = [info.configs.get("text_encoder", {}).get("max_position_embeddings", LENGTH)]
    settings = None if info.words is None else info.words / "tokenizer" / "tokenizer_config.json"
    if settings is not None and settings.is_file():
        given.append(json.loads(settings.read_text(encoding="utf-8")).get("model_max_length", LENGTH))
    return int(min([LENGTH, *given])) - ENDS


@functools.cache
def _tokenizer(folder: Path | None) -> Tokenizer:
    """The tokenizer of a folder: `vocab.json` with `merges.txt`, or `tokenizer.json`. None: CLIP's of the package."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    if folder is None:
        bpe = models.BPE(*bundled(), end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    elif not (folder / "vocab.json").is_file():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        files = str(folder / "vocab.json"), str(folder / "merges.txt")
        bpe = models.BPE.from_file(*files, end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    found = Tokenizer(bpe)
    found.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    found.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return found
