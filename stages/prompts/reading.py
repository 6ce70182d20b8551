"""What a render makes of its prompts, before anything is loaded: the syntax, the chunks and the embeddings in them."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.errors import SpecError
from stages.models.spec import EmbeddingSpec
from stages.models.tokens import words_in
from stages.prompts.chunks import Piece, chunk_length, chunked, common_length
from stages.prompts.inversions import Inversion, inversion
from stages.prompts.names import named_in, pieces
from stages.prompts.syntax import parse, split_networks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.models.folder import ModelInfo
    from stages.spec import RenderSpec

MOST_CHUNKS = 64  # of a prompt and its negative one, once they are equally long
PLAIN_HAS_NONE = "is for prompts with weights or embeddings; prompt_syntax: a1111 or comfy has them"
CUT_LAYERS = 23  # of OpenCLIP-H in Stable Diffusion 2.x: its last layer is left out, so that it ends at CLIP skip 2


@dataclass(frozen=True)
class Reading:
    """A prompt as a model reads it. `left` says which embeddings stay words, and why."""

    text: str  # without networks
    parts: tuple[tuple[Piece, ...], ...]
    chunks: int
    embeddings: Mapping[str, Inversion]  # by the name in a piece
    left: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the words alone say it all, and fit into one chunk."""
        return self.chunks == 1 and not self.embeddings and not self.is_weighted

    @property
    def is_blank(self) -> bool:
        """Whether nothing is left of it: no words and no embedding."""
        return not self.words and not self.embeddings

    @property
    def is_weighted(self) -> bool:
        """Whether a piece has another weight than 1."""
        return any(piece.weight != 1.0 for part in self.parts for piece in part)

    @property
    def words(self) -> str:
        """The words of all pieces."""
        return "".join(piece.text for part in self.parts for piece in part)


def read(prompt: str, syntax: str, info: ModelInfo) -> Reading:
    """Return how a prompt is read. Raises `SpecError` for syntax that is refused, and for an embedding that is."""
    text, networks = split_networks(prompt, syntax)
    text = text.strip() if networks else text
    phrases = parse(text, syntax)
    found, left = dict[str, Inversion](), list[str]()
    for name, files in named_in((each for part in phrases for each in part), syntax, info.embeddings).items():
        fitting = list[Inversion]()
        for each in files:
            try:
                fitting.append(inversion(each, info))
            except SpecError as error:
                if each.is_given or syntax == "comfy":
                    raise
                left.append(str(error))
        if len({each.sha256 for each in fitting}) > 1:
            raise SpecError(
                f"prompt: {name!r} is the name of {fitting[0].file} and of {fitting[1].file}; give the path of one of "
                "them as an embedding of the model"
            )
        if fitting:
            found[name] = fitting[0]
    parts = tuple(tuple(piece for phrase in part for piece in pieces(phrase, syntax, found)) for part in phrases)
    return Reading(text, parts, _count(parts, syntax, info, found), found, tuple(left))


def _count(
    parts: tuple[tuple[Piece, ...], ...], syntax: str, info: ModelInfo, embeddings: Mapping[str, Inversion]
) -> int:
    """Return the number of chunks. What has fewer bytes than a chunk has tokens fits, and is not counted."""
    length = chunk_length(info.texts)
    text = "".join(piece.text for part in parts for piece in part)
    is_short = len(unicodedata.normalize("NFC", text).lower().encode()) <= length
    if syntax == "plain" or (len(parts) == 1 and is_short and not embeddings):
        return 1
    vectors = {name: each.vectors for name, each in embeddings.items()}
    return len(chunked(parts, syntax, words_in(info.words and info.words / "tokenizer"), vectors, length))


def settled_prompts(spec: RenderSpec, info: ModelInfo) -> dict[str, Any]:
    """Return the fields of a spec with the syntax, and with the home's embeddings that its prompts name.

    So a render goes on as it began, whatever lies in the home by then. Raises `SpecError` for what goes with another
    syntax alone, and for a video model, which reads plain prompts.
    """
    syntax, usual, model = syntax_of(spec, info), default_syntax(info), spec.model
    asked: dict[str, Any] = {"emphasis": spec.emphasis, "model.embeddings": model.embeddings or None}
    if info.is_video:
        asked |= {"prompt_syntax": None if syntax == "plain" else syntax, "model.clip_skip": model.clip_skip}
    for name, value in asked.items():
        if value is not None and (info.is_video or syntax == "plain"):
            what = [each.file for each in model.embeddings] if name == "model.embeddings" else value
            why = f"{info.name} makes videos, from plain prompts; leave it out" if info.is_video else PLAIN_HAS_NONE
            raise SpecError(f"{name}: {what} {why}")
    prompts = (spec.prompt, info.negative_prompt if spec.negative_prompt is None else spec.negative_prompt)
    used = {each.file: each for text in prompts for each in read(text, syntax, info).embeddings.values()}
    listed = {each.file for each in info.embeddings if each.is_given}
    added = [
        EmbeddingSpec(file=str(file), trigger=each.trigger) for file, each in sorted(used.items()) if file not in listed
    ]
    return {
        "prompt_syntax": None if syntax == usual == "plain" else syntax,
        "model": model.model_copy(update={"embeddings": (*model.embeddings, *added)}) if added else model,
    }


def syntax_of(spec: RenderSpec, info: ModelInfo) -> str:
    """Return the syntax of a spec's prompts."""
    return spec.prompt_syntax or default_syntax(info)


def default_syntax(info: ModelInfo) -> str:
    """Return the syntax where a spec gives none: `a1111` with a UNet in a single file, else `plain`."""
    return "a1111" if info.pipeline is None and info.folder.is_file() else "plain"


def emphasis_of(spec: RenderSpec, syntax: str) -> str:
    """Return how weights act: the spec's way, else that of the program whose syntax it is."""
    return spec.emphasis or ("comfy" if syntax == "comfy" else "original")


def layers_skipped(clip_skip: int | None, info: ModelInfo) -> int | None:
    """Return which hidden state from the end the rows are, for a "CLIP skip" as pages of models give it; None: usual.

    1 is the last one. SDXL's encoders and those of Stable Diffusion 2.x are trained to end one layer earlier, so that 1
    and 2 are what they do anyway. Raises `SpecError` for more than a text encoder has.
    """
    if clip_skip is None:
        return None
    layers = [int(config.get("num_hidden_layers", 12)) for config in info.texts.values()]
    cut = 1 if layers == [CUT_LAYERS] else 0
    most = min(layers) + cut
    if clip_skip > most:
        raise SpecError(
            f"model.clip_skip: {clip_skip} is more than the text encoders of {info.name} allow; 1 to {most} work"
        )
    usual = 2 if len(layers) > 1 or cut else 1
    return None if clip_skip <= usual else clip_skip - cut


def equal_chunks(*chunks: int) -> int:
    """Return how many chunks a prompt and its negative one have once they are equally long.

    Raises `SpecError` for more than 64.
    """
    whole = common_length(*chunks)
    if whole > MOST_CHUNKS:
        said = " and the negative prompt ".join(str(count) for count in chunks)
        raise SpecError(
            f"prompt: it has {said} chunks of tokens, and both are repeated to {whole}; up to {MOST_CHUNKS} work, so "
            "shorten one to the length of the other"
        )
    return whole
