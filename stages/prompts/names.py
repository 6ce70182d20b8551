"""The names of embeddings in a prompt: bare words in A1111's syntax, `embedding:NAME` in ComfyUI's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from stages.errors import SpecError, nearest
from stages.prompts.chunks import Piece

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from stages.prompts.syntax import Phrase

ENDING = ".safetensors"
ASKED = re.compile(r"(?<!\S)embedding:([^\s,]+)")


class Embedding(NamedTuple):
    """An embedding that prompts may name by its trigger; `is_given`: the spec lists it, so that it must fit."""

    trigger: str
    file: Path
    is_given: bool


def named_in(phrases: Iterable[Phrase], syntax: str, embeddings: Sequence[Embedding]) -> dict[str, list[Embedding]]:
    """Return the embeddings that phrases name, by the names that `pieces` looks for; several files may have one name.

    Raises `SpecError` for a name of ComfyUI's syntax that no file has.
    """
    found = dict[str, list[Embedding]]()
    for phrase in phrases:
        if syntax == "comfy":
            found |= {key_of(match[1]): _asked(match[1], embeddings) for match in ASKED.finditer(phrase.text)}
        elif syntax == "a1111":
            lower = phrase.text.casefold()
            for each in embeddings:
                key = key_of(each.trigger)
                if key in lower and _bare([key]).search(phrase.text) and each not in found.setdefault(key, []):
                    found[key].append(each)
    return {name: [each for each in hits if each.is_given] or hits for name, hits in found.items()}


def _asked(name: str, embeddings: Iterable[Embedding]) -> list[Embedding]:
    """Return the embeddings of a name, which may have folders before it. Raises `SpecError` where there is none."""
    folders, _, last = key_of(name).rpartition("/")
    everyone = list(embeddings)
    named = [each for each in everyone if key_of(each.trigger) == last]
    hits = [
        each for each in named if not folders or f"/{each.file.parent.as_posix().casefold()}".endswith(f"/{folders}")
    ]
    if not hits:
        near = nearest(name, [each.trigger for each in everyone])
        hint = f"the nearest is {near!r}" if near else "put its file into the folder embeddings/ of the home"
        raise SpecError(f"prompt: there is no embedding {name!r}; {hint}")
    return hits


def pieces(phrase: Phrase, syntax: str, names: Iterable[str]) -> Iterator[Piece]:
    """Yield the words of a phrase and the embeddings among them, by `names`: longer ones first, in any case."""
    known, end = set(names), 0
    pattern = ASKED if syntax == "comfy" else _bare(known)
    for match in pattern.finditer(phrase.text) if known else ():
        if (name := key_of(match[1])) in known:
            yield from _words(phrase.text[end : match.start()], phrase.weight)
            yield Piece("", phrase.weight, name)
            end = match.end()
    yield from _words(phrase.text[end:], phrase.weight)


def _words(text: str, weight: float) -> Iterator[Piece]:
    if text:
        yield Piece(text, weight)


def _bare(names: Iterable[str]) -> re.Pattern[str]:
    """Return the pattern of names that stand in a text as words."""
    longest = sorted(names, key=len, reverse=True)
    return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest))})(?!\w)", re.IGNORECASE)


def key_of(name: str) -> str:
    """Return a name as it is compared: in any case, with or without the ending of a file."""
    return name.casefold().removesuffix(ENDING)
