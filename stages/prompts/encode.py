"""Prompts -> rows of the text encoders. A plain prompt has the rows of the stock diffusers pipelines, to the bit.

Each chunk is encoded by itself, so that its rows are those of a shorter prompt. SDXL's second encoder also gives a
pooled row, which is the first chunk's and knows no weights.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from freescale.gradients import without_gradients
from stages.errors import StageError
from stages.models.tokens import CLIPWords
from stages.prompts.chunks import Chunk, Token, chunk_length, chunked, common_length, is_weighted, repeated
from stages.prompts.inversions import vectors
from stages.prompts.names import pieces
from stages.prompts.syntax import Phrase, parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from stages.models.load import Models

POOLED = "text_encoder_2"
PENULTIMATE = 2  # hidden state from the end that SDXL takes, without a norm


@dataclass(frozen=True)
class TextSettings:
    """How prompts are encoded. `skip`: which hidden state from the end; None: as the model was trained."""

    syntax: str = "plain"
    emphasis: str = "off"
    skip: int | None = None
    embeddings: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # name: (file, sha256 of its tensors)


@dataclass(frozen=True)
class _Encoder:
    """A text encoder at work. `vectors` (n, width) are those of the embeddings, by name."""

    network: Any
    tokenizer: Any
    pad: int
    length: int  # of a chunk with the two tokens around it
    skip: int | None
    is_normed: bool  # the final norm follows an inner layer, too
    vectors: Mapping[str, Tensor]

    def encode(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Return the rows (1, length, width) of a chunk, and its pooled row where the encoder has one."""
        tokenizer, device = self.tokenizer, next(self.network.parameters()).device
        ids = [tokenizer.bos_token_id, *(token.id for token in chunk), tokenizer.eos_token_id]
        filled = torch.tensor([ids + [self.pad] * (self.length - len(ids))], device=device)
        with _inserted(
            self.network, {1 + at: self._vector(token) for at, token in enumerate(chunk) if token.embedding}
        ):
            if self.skip is None:
                out = self.network(filled)
                return out.last_hidden_state, out[0]
            out = self.network(filled, output_hidden_states=True)
        rows = out.hidden_states[-self.skip]
        if self.is_normed:
            rows = getattr(self.network, "text_model", self.network).final_layer_norm(rows)
        return rows, out[0]

    def _vector(self, token: Token) -> Tensor:
        return self.vectors[token.embedding][token.row]

    def weighted(self, rows: Tensor, chunk: Chunk, emphasis: str) -> Tensor:
        """Return the rows of a chunk in float32, with its weights on them.

        `original` keeps the mean of all numbers, `comfy` weighs the difference to the rows of an empty prompt.
        """
        rows = rows.float()
        if emphasis == "off" or not is_weighted([chunk]):
            return rows
        filling = self.length - len(chunk) - 1
        weights = torch.tensor([1.0, *(token.weight for token in chunk), *[1.0] * filling], device=rows.device)[:, None]
        if emphasis == "comfy":
            empty = self.encode(())[0].float()
            return (rows - empty) * weights + empty
        weighted = rows * weights
        return weighted * (rows.mean() / weighted.mean()) if emphasis == "original" else weighted


@contextmanager
def _inserted(network: Any, given: Mapping[int, Tensor]) -> Iterator[None]:
    """Put vectors in place of the embeddings of tokens, by their place in the prompt, while the body runs.

    The tokens' numbers stay small, since the pooled row is taken at the largest one.
    """
    if not given:
        yield
        return

    def replace(module: Any, inputs: Any, output: Tensor) -> Tensor:
        """Return the embeddings (1, length, width) of all tokens."""
        output = output.clone()
        for at, vector in given.items():
            output[:, at] = vector.to(output)
        return output

    handle = network.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@without_gradients
def encode_prompts(
    models: Models, prompt: str, negative_prompt: str | None, settings: TextSettings | None = None
) -> dict[str, Tensor]:
    """Return prompt_embeds (1, tokens, width) and, where a negative is given, negative_embeds; for SDXL pooled rows.

    All in float32; prompt and negative prompt have equally many tokens. An empty negative prompt gives zeros where the
    model's configuration says so, as the stock pipeline does. Raises `StageError` for rows that are not finite.
    """
    settings = settings or TextSettings()
    texts = {"prompt": prompt} | ({} if negative_prompt is None else {"negative": negative_prompt})
    zeros = models.info.size_ids and models.info.empty_prompt_is_zeros and negative_prompt == ""
    rows: dict[str, list[Tensor]] = {name: [] for name in texts}
    pooled: dict[str, Tensor] = {}
    chunks: dict[str, tuple[Chunk, ...]] = {}
    given = {name: vectors(*each, models.info) for name, each in settings.embeddings.items()}
    for part in models.info.texts:
        encoder = _encoder(models, part, settings, {name: each[part] for name, each in given.items()})
        if settings.syntax == "plain" or not chunks:
            chunks = {name: _chunks(text, encoder, settings, given) for name, text in texts.items()}
        for name in texts:
            encoded = [encoder.encode(chunk) for chunk in chunks[name]]
            parts = [
                encoder.weighted(own, chunk, settings.emphasis)
                for (own, _), chunk in zip(encoded, chunks[name], strict=True)
            ]
            rows[name].append(torch.cat(parts, 1).cpu())
            if part == POOLED:
                pooled[name] = encoded[0][1].float().cpu()
        del encoder
    embeds = {name: torch.cat(own, -1) for name, own in rows.items()}
    if zeros:
        embeds["negative"] = torch.zeros_like(embeds["negative"])
        pooled |= {"negative": torch.zeros_like(pooled["negative"])}
    return _named(embeds, pooled)


def _encoder(models: Models, part: str, settings: TextSettings, given: Mapping[str, Tensor]) -> _Encoder:
    tokenizer = models.tokenizer(part)
    is_normed = not models.info.size_ids
    return _Encoder(
        models.text_encoder(part),
        tokenizer,
        tokenizer.pad_token_id if models.info.pad_token_id is None else models.info.pad_token_id,
        chunk_length(models.info.texts) + 2,
        settings.skip if is_normed else settings.skip or PENULTIMATE,
        is_normed,
        given,
    )


def _chunks(
    text: str, encoder: _Encoder, settings: TextSettings, given: Mapping[str, Mapping[str, Tensor]]
) -> tuple[Chunk, ...]:
    """Return the chunks of a prompt. A plain one is cut as the stock pipeline cuts it."""
    length = encoder.length - 2
    if settings.syntax == "plain":
        ids = encoder.tokenizer(text, add_special_tokens=False).input_ids
        return (tuple(Token(each, 1.0) for each in ids[:length]),)
    phrases: tuple[tuple[Phrase, ...], ...] = parse(text, settings.syntax)
    parts = [[piece for phrase in part for piece in pieces(phrase, settings.syntax, given)] for part in phrases]
    counts = {name: next(iter(each.values())).shape[0] for name, each in given.items()}
    return chunked(parts, settings.syntax, CLIPWords(encoder.tokenizer.backend_tokenizer), counts, length)


def _named(embeds: dict[str, Tensor], pooled: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all rows by the names that stages know, those of prompts equally long. Raises `StageError`."""
    tokens = common_length(*(each.shape[1] for each in embeds.values()))
    found = {f"{name}_embeds": repeated(each, tokens) for name, each in embeds.items()}
    found |= {"text_embeds" if name == "prompt" else "negative_text_embeds": each for name, each in pooled.items()}
    if bad := [name for name, each in found.items() if not each.isfinite().all()]:
        raise StageError(f"{bad[0]}: the rows are not finite; weights of words nearer to 1 work")
    return found
