"""The tokenizer of the package: CLIP's vocabulary, and no word that a pad token takes away."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from stages.models.clip_tokenizer import bundled, clip_tokenizer

VOCABULARY = "7cccc44d334555d1ff3c0ac5f0246b428fab2918383e77ee745cf30d41010b78"  # sha256 of the tokens, one a line
END = 49407


@pytest.fixture(scope="module")
def tokenizers() -> dict[int, Any]:
    return {pad: clip_tokenizer(pad) for pad in (0, END)}


def test_it_has_the_tokens_of_clip() -> None:
    tokens, merges = bundled()
    assert list(tokens.values()) == list(range(49408))
    assert len(merges) == 48894
    assert hashlib.sha256("\n".join(tokens).encode()).hexdigest() == VOCABULARY
    known = {"!": 0, "!</w>": 256, "a</w>": 320, "cat</w>": 2368, "<|startoftext|>": 49406, "<|endoftext|>": END}
    assert {token: tokens[token] for token in known} == known


@pytest.mark.parametrize("pad", [0, END])
def test_an_exclamation_mark_is_a_word_whatever_fills_up(tokenizers: dict[int, Any], pad: int) -> None:
    found = tokenizers[pad]("wow! !!! a cat", padding="max_length", max_length=77, truncation=True).input_ids
    assert found == [49406, 2781, 256, 995, 320, 2368, END, *[pad] * 70]


def test_long_prompts_are_cut_at_77_tokens_with_both_ends(tokenizers: dict[int, Any]) -> None:
    found = tokenizers[0]("a " * 100, padding="max_length", max_length=77, truncation=True).input_ids
    assert found == [49406, *[320] * 75, END]
