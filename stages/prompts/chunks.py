"""Tokens of a prompt in chunks of the length that a text encoder reads, each token with its weight.

In A1111's syntax a chunk that would be cut soon after a comma ends at the comma. In ComfyUI's, words of one weight stay
together where they are few. A plain prompt has one chunk, and what does not fit is not read. The vectors of an
embedding are never split.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

AFTER_COMMA = 20 / 75  # of a chunk: what may stand after a comma and begin the next chunk with it
TOGETHER = 7  # tokens of one weight that ComfyUI keeps in one chunk
PLACEHOLDER = 0  # the token of an embedding's vector, which takes the place of the token's own


class Words(Protocol):
    """A tokenizer, without the tokens around a prompt."""

    comma: int | None  # its token; None where the vocabulary has none

    def ids(self, text: str) -> list[int]:
        """The tokens of words."""


class Token(NamedTuple):
    """A token of a prompt, or a vector of an embedding: the `row`-th of the one of this name."""

    id: int
    weight: float
    embedding: str = ""
    row: int = 0


Chunk = tuple[Token, ...]
"""The tokens of a chunk, without those around them."""


class Piece(NamedTuple):
    """Words of one weight, or the name of an embedding that stands in the prompt."""

    text: str
    weight: float
    embedding: str = ""


def chunked(
    parts: Sequence[Sequence[Piece]],
    syntax: str,
    words: Words,
    vectors: Mapping[str, int],
    length: int,
) -> tuple[Chunk, ...]:
    """Return one chunk or more, of up to `length` tokens each.

    `vectors` are how many each embedding has, by name, which are at most `length`.
    """
    if syntax == "plain":
        tokens = [Token(each, piece.weight) for part in parts for piece in part for each in words.ids(piece.text)]
        return (tuple(tokens[:length]),)
    filling = _Filling(length, words.comma if syntax == "a1111" else None)
    for number, part in enumerate(parts):
        if number:
            filling.close()
        for piece in part:
            if piece.embedding:
                count = range(vectors[piece.embedding])
                filling.add_whole([Token(PLACEHOLDER, piece.weight, piece.embedding, row) for row in count])
                continue
            tokens = [Token(each, piece.weight) for each in words.ids(piece.text)]
            if syntax == "comfy" and len(tokens) <= TOGETHER:
                filling.add_whole(tokens)
            else:
                filling.add(tokens)
    if filling.open or not filling.closed:
        filling.close()
    return tuple(filling.closed)


class _Filling:
    """Chunks that are closed, and the one that is being filled."""

    def __init__(self, length: int, comma: int | None) -> None:
        self.length, self.comma = length, comma
        self.closed, self.open = list[Chunk](), list[Token]()
        self.at_comma: int | None = None  # where the last comma stands in the open chunk

    def close(self) -> None:
        """Begin the next chunk."""
        self.closed.append(tuple(self.open))
        self.open, self.at_comma = [], None

    def add(self, tokens: Iterable[Token]) -> None:
        """Add tokens one by one; a full chunk ends at its last comma where that is near, unless a comma comes next."""
        for token in tokens:
            is_comma = token.id == self.comma and not token.embedding
            if len(self.open) == self.length:
                self._end(at_comma=not is_comma)
            elif is_comma:
                self.at_comma = len(self.open)
            self.open.append(token)

    def add_whole(self, tokens: Sequence[Token]) -> None:
        """Add tokens that stay together, where they fit into a chunk at all."""
        if tokens and len(self.open) == self.length:
            self._end(at_comma=True)
        if len(self.open) + len(tokens) > self.length:
            self.close()
        self.open += tokens

    def _end(self, *, at_comma: bool) -> None:
        """Close the open chunk, which is full."""
        near = self.at_comma is not None and self.length - self.at_comma <= AFTER_COMMA * self.length
        rest = list[Token]()
        if at_comma and near and self.at_comma is not None:
            rest = self.open[self.at_comma + 1 :]
            del self.open[self.at_comma + 1 :]
        self.close()
        self.open = rest


def chunk_length(texts: Mapping[str, Mapping[str, Any]]) -> int:
    """Return how many tokens text encoders read, by their configurations, without the two around: 75 of CLIP's 77."""
    return min([int(config.get("max_position_embeddings", 77)) for config in texts.values()] or [77]) - 2


def is_weighted(chunks: Iterable[Chunk]) -> bool:
    """Return whether a token has another weight than 1."""
    return any(token.weight != 1.0 for token in itertools.chain.from_iterable(chunks))


def repeated(rows: Tensor, tokens: int) -> Tensor:
    """Return rows (B, T, D) as often as makes `tokens` rows, a multiple of T.

    Attention over every row n times is attention over the rows: exact, where padding is not.
    """
    return rows.repeat(1, tokens // rows.shape[1], 1)


def common_length(*lengths: int) -> int:
    """Return the number of rows that a prompt and its negative one are both repeated to."""
    return math.lcm(*lengths)
