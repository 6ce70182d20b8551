"""Chunks of tokens: lengths, the comma rule, embeddings in one piece, equal lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.prompts.chunks import Chunk, Piece, chunked, common_length, repeated

COMMA, LENGTH = 7, 75


class Letters:
    """A tokenizer with a token for each letter; that of a comma is 7."""

    comma: int | None = COMMA

    def ids(self, text: str) -> list[int]:
        return [COMMA if letter == "," else 100 + ord(letter) for letter in text if letter != " "]


def cut(
    *parts: list[Piece], syntax: str = "a1111", length: int = LENGTH, vectors: dict[str, int] | None = None
) -> tuple[Chunk, ...]:
    return chunked(parts, syntax, Letters(), vectors or {}, length)


def lengths(text: str, syntax: str = "a1111") -> list[int]:
    return [len(chunk) for chunk in cut([Piece(text, 1.0)], syntax=syntax)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0]),
        ("a", [1]),
        ("a" * 75, [75]),
        ("a" * 76, [75, 1]),
        ("a" * 151, [75, 75, 1]),
        ("a" * 74 + "," + "b" * 10, [75, 10]),  # the comma is the last token
        ("a" * 60 + "," + "b" * 20, [61, 20]),  # the words after it begin the next chunk
        ("a" * 55 + "," + "b" * 20, [56, 20]),  # 20 tokens before the end, the comma among them
        ("a" * 54 + "," + "b" * 21, [75, 1]),  # one more is too far
        ("a" * 60 + "," + "b" * 14 + ",c", [75, 2]),  # a comma comes next, which ends nothing
        ("a" * 60 + "," + "b" * 300, [61, 75, 75, 75, 75]),
    ],
)
def test_a_chunk_ends_at_a_comma_that_is_near(text: str, expected: list[int]) -> None:
    assert lengths(text) == expected


def test_other_syntaxes_know_no_comma() -> None:
    text = "a" * 60 + "," + "b" * 20
    assert lengths(text, "comfy") == [75, 6]
    assert lengths(text, "plain") == [75], "what a model does not read of a plain prompt is cut"


def test_few_words_of_one_weight_stay_together_in_comfy() -> None:
    words = [Piece("a" * 70, 1.0), Piece("b" * 7, 1.2), Piece("c" * 8, 1.0)]
    assert [len(chunk) for chunk in cut(words, syntax="comfy")] == [70, 15]
    words = [Piece("a" * 70, 1.0), Piece("b" * 8, 1.2)]
    assert [len(chunk) for chunk in cut(words, syntax="comfy")] == [75, 3]


def test_breaks() -> None:
    a, b = [Piece("a", 1.0)], [Piece("b", 1.0)]
    assert [len(chunk) for chunk in cut(a, b)] == [1, 1]
    assert [len(chunk) for chunk in cut([], a)] == [0, 1]
    assert [len(chunk) for chunk in cut(a, [])] == [1]
    assert [len(chunk) for chunk in cut([], [])] == [0]
    assert [len(chunk) for chunk in cut([Piece("a" * 75, 1.0)], b)] == [75, 1]


def test_an_embedding_is_not_split() -> None:
    chunks = cut([Piece("a" * 70, 1.0), Piece("", 1.3, "glow"), Piece("b", 1.0)], vectors={"glow": 6})
    assert [len(chunk) for chunk in chunks] == [70, 7]
    assert [(t.embedding, t.row, t.weight) for t in chunks[1][:6]] == [("glow", i, 1.3) for i in range(6)]


PIECES = st.lists(
    st.builds(Piece, st.text(st.sampled_from("ab,"), max_size=30), st.sampled_from([1.0, 1.3]), st.just(""))
    | st.builds(Piece, st.just(""), st.sampled_from([1.0, 0.5]), st.sampled_from(["x", "y"])),
    max_size=12,
)


@given(st.lists(PIECES, min_size=1, max_size=3), st.sampled_from(["a1111", "comfy"]), st.sampled_from([14, 75]))
def test_chunks_hold_all_tokens_in_order(parts: list[list[Piece]], syntax: str, length: int) -> None:
    vectors = {"x": 1, "y": 14}
    chunks = cut(*parts, syntax=syntax, length=length, vectors=vectors)
    assert chunks
    assert all(len(chunk) <= length for chunk in chunks)
    found = [(t.id, t.weight) if not t.embedding else (t.embedding, t.row, t.weight) for chunk in chunks for t in chunk]
    wanted = list[tuple[object, ...]]()
    for piece in (piece for part in parts for piece in part):
        if piece.embedding:
            wanted += [(piece.embedding, index, piece.weight) for index in range(vectors[piece.embedding])]
        else:
            wanted += [(each, piece.weight) for each in Letters().ids(piece.text)]
    assert found == wanted
    for chunk in chunks:
        for index, token in enumerate(chunk):
            assert not token.embedding or token.row <= index, "vectors of one embedding are in one chunk"


@given(st.integers(1, 4), st.integers(1, 4))
def test_attention_over_repeated_rows_is_attention_over_the_rows(first: int, second: int) -> None:
    generator = torch.Generator().manual_seed(first)
    rows, query = torch.randn(1, first * 5, 8, generator=generator), torch.randn(1, 3, 8, generator=generator)
    longer = repeated(rows, common_length(first * 5, second * 5))
    assert longer.shape[1] % (second * 5) == 0
    attend = torch.nn.functional.scaled_dot_product_attention
    assert torch.allclose(attend(query, rows, rows), attend(query, longer, longer), atol=1e-5)  # rounding of a sum
