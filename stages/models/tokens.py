"""How much of a prompt a model reads: CLIP's tokens, counted without transformers, whose import takes seconds."""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING

from stages.models.clip_tokenizer import bundled
from stages.models.flow import FLOW_FAMILIES
from stages.models.tokenizer_files import SPLIT, WHOLE
from stages.prompts.chunks import chunk_length

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tokenizers import Encoding, Tokenizer

    from stages.models.flow.base import FlowFamily
    from stages.models.folder import ModelInfo

PLANNED = 512  # tokens that a plan counts of a transformer's prompt
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP's vocabulary splits a text into before it merges letters (transformers, tokenization_clip.py)."""
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What Qwen2's does (transformers, tokenization_qwen2.py)."""


def not_read(info: ModelInfo, text: str) -> tuple[int, int, str] | None:
    """Return the tokens of a prompt, how many of them the model reads, and the words that it does not read.

    None where it reads all. What has fewer bytes than the model reads tokens cannot be too long, and is not counted.
    """
    family = None if info.pipeline is None else FLOW_FAMILIES[info.pipeline].having(info.configs)
    most = chunk_length(info.texts) if family is None else (info.text_tokens or family.most_tokens) - family.ends
    tokens = None if bytes_of(text) <= most else _encoded(info, family, text)
    if tokens is None or len(tokens.ids) <= most:
        return None
    return len(tokens.ids), most, text[tokens.offsets[most][0] :]


def lengths(info: ModelInfo, texts: Iterable[str]) -> int:
    """Return how many times `PLANNED` tokens the longest of some prompts has, at least 1.

    It is 1 for a model that reads no more than these, or that fills up what it reads.
    """
    if info.pipeline is None or (info.text_tokens or 0) <= PLANNED:
        return 1
    family, most = FLOW_FAMILIES[info.pipeline].having(info.configs), int(info.text_tokens or 0)
    long = (_encoded(info, family, text) for text in texts if bytes_of(text) + family.ends > PLANNED)
    rows = [min(len(tokens.ids) + family.ends, most) for tokens in long if tokens is not None]
    return -(-max(rows, default=1) // PLANNED)


def bytes_of(text: str) -> int:
    """Return the bytes of a text, than which it never has more tokens."""
    return len(unicodedata.normalize("NFC", text).lower().encode())


def _encoded(info: ModelInfo, family: FlowFamily | None, text: str) -> Encoding | None:
    """Return the tokens of a text; None where only transformers can read the tokenizer."""
    folder = None if info.words is None else info.words / ("tokenizer" if family is None else family.tokens.folder)
    read = _tokenizer
    if folder is not None and family is not None and not family.parts[family.tokens.part].name.startswith("CLIP"):
        if not any((folder / name).is_file() for name in (WHOLE, SPLIT[0])):
            return None  # `spiece.model` alone
        read = _other_tokenizer
    return read(folder).encode(text, add_special_tokens=False)


class CLIPWords:
    """A tokenizer's words alone: what looks like one of its own marks is text, `!` where it fills prompts up, too."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.comma = tokenizer.token_to_id(",</w>")

    def ids(self, text: str) -> list[int]:
        """Return the tokens of words, without those around a prompt."""
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        finally:
            self.tokenizer.encode_special_tokens = False


def words_in(folder: Path | None) -> CLIPWords:
    """Return the words of the tokenizer in a folder; None: of CLIP's, which comes with the package."""
    return CLIPWords(_tokenizer(folder))


@functools.cache
def _other_tokenizer(folder: Path | None) -> Tokenizer:
    """The tokenizer of a folder that is not CLIP's: `tokenizer.json`, or Qwen2's `vocab.json` with `merges.txt`."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    assert folder is not None
    if (folder / WHOLE).is_file():
        return Tokenizer.from_file(str(folder / WHOLE))
    found = Tokenizer(models.BPE.from_file(*(str(folder / name) for name in SPLIT)))
    found.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    return found


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
