"""CLIP's tokenizer from its merges alone, which come with the package (NOTICE: MIT, OpenAI).

Every Stable Diffusion model has this vocabulary. Files of the original layout do not hold it.
"""

from __future__ import annotations

import lzma
from functools import cache
from pathlib import Path
from typing import Any

MERGES = Path(__file__).with_name("merges.txt.xz")
START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77  # tokens of a prompt with both ends


def vocabulary(lines: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return CLIP's tokens with their numbers, and its merges, from the lines of its file of merges.

    Tokens are the 256 bytes as printable characters, the same at the end of a word, the merges in order and two marks.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in merges)]
    return {token: number for number, token in enumerate([*tokens, START, END])}, merges


@cache
def bundled() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the 49,408 tokens and the 48,894 merges that come with the package."""
    return vocabulary(lzma.decompress(MERGES.read_bytes()).decode().splitlines())


def clip_tokenizer(pad_token_id: int) -> Any:
    """Return the tokenizer of 77 tokens that fills prompts up with `pad_token_id`, which stays a word like others.

    A pad *token* would not: as a special one it is cut out of every prompt. With the pad token "!" of SDXL's second
    tokenizer (id 0), the end of "wow!" is 0 there, and 256, which the model was trained on, here.
    """
    from transformers import CLIPTokenizer

    class Padded(CLIPTokenizer):  # type: ignore[misc]
        pad_token_id = property(lambda self: pad_token_id)

    tokens, merges = bundled()
    return Padded(vocab=tokens, merges=merges, model_max_length=LENGTH)
