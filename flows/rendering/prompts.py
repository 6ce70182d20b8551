"""Remarks on prompts before renders start: what a model does not read of them, what stays words, what has no effect."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stages.conditioning import EncodePrompt
from stages.models.tokens import not_read
from stages.prompts.reading import layers_skipped, read, syntax_of
from stages.prompts.syntax import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flows.rendering.job import Job
    from stages.models.folder import ModelInfo

WEIGHTS = r"""
      \([^()]*:\s*-?\d*\.?\d+\s*\)          # (word:1.2)
    | \({2,}[^()]+\){2,}                    # ((word))
"""
BRACKETS = r"\[[^\[\]]+\]  # [word], [a|b], [a:b:0.5]"
EMBEDDING = r"\bembedding:\S+  # a textual inversion"
NETWORK = r"<\w+:[^<>]*>  # <lora:NAME:1>, <hypernet:NAME:1>"
BREAK = r"\bBREAK\b  # between two chunks"
OTHERS = r"""
      \{[^{}]*\|[^{}]*\}                    # {a|b}
    | \b__[\w/*-]+__                        # a wildcard file
    | (?:\w+|\))(?:\+{2,}|-{2,})(?=[\s,.)]|$)  # word++
    | \)[+-](?=[\s,.]|$)                    # (words)+
    | (?<!\S)--[a-z]+(?:\s+[\d:.]+)?        # --ar 16:9
    | \w+::(?:-?\d+(?:\.\d+)?|(?=\s|$))     # word::2
    | \bAND\b                               # of some programs, between two prompts
"""
UNKNOWN = {  # marks that other programs understand in a prompt, and that are words in one of this syntax
    "plain": (WEIGHTS, NETWORK, EMBEDDING, BRACKETS, OTHERS, BREAK),
    "a1111": (EMBEDDING, OTHERS),
    "comfy": (BRACKETS, OTHERS, BREAK),
}
SYNTAX = {
    syntax: re.compile("|".join(f"(?:{pattern}\n)" for pattern in patterns), re.VERBOSE)
    for syntax, patterns in UNKNOWN.items()
}
IN_BRACKETS = re.compile(r"(?<!\\)[(\[][^()\[\]]*\bBREAK\b[^()\[\]]*")


def prompt_remarks(job: Job) -> Iterator[str]:
    """Yield a sentence for a prompt that is blank or cut, for marks that are read as words, and for embeddings.

    So of a negative prompt, which may also have no effect.
    """
    spec, info = job.spec, job.plan.info
    syntax = syntax_of(spec, info)
    reading = read(spec.prompt, syntax, info)
    if not reading.words.strip() and not reading.embeddings:
        yield "the prompt is blank, so the picture follows no words"
    prompts = {"prompt": spec.prompt}
    texts = [call.stage for call in job.plan.calls if isinstance(call.stage, EncodePrompt)]
    unguided = any(stage.negative_prompt is None for stage in texts)
    if spec.negative_prompt is not None and not unguided:
        prompts["negative prompt"] = spec.negative_prompt
    for what, text in prompts.items():
        yield from _of(what, text, syntax, info)
    if spec.negative_prompt and unguided:
        yield "the negative prompt has no effect, since guidance is off; a guidance scale above 1 turns it on"
    if spec.model.clip_skip is not None and layers_skipped(spec.model.clip_skip, info) is None:
        yield f"CLIP skip {spec.model.clip_skip} is what {info.name} is trained for, so it changes nothing"
    if spec.emphasis is not None and not any(read(text, syntax, info).is_weighted for text in prompts.values()):
        yield f"emphasis {spec.emphasis} has no effect, since no words have a weight"
    yield from _unused(job, prompts)


def _of(what: str, text: str, syntax: str, info: ModelInfo) -> Iterator[str]:
    if found := marks(text, syntax):
        listed = ", ".join(repr(shown(mark)) for mark in found[:3]) + (" and more" if len(found) > 3 else "")
        known = set(found) - (set(marks(text, "a1111")) & set(marks(text, "comfy")))
        hint = (
            "; --prompt-syntax a1111 or comfy reads such" if syntax == "plain" and known and not info.is_video else ""
        )
        yield f"the {what} holds {listed}, which is no syntax here and is read as plain words{hint}"
    if syntax == "plain":
        if (cut := not_read(info, text)) is not None:
            count, most, rest = cut
            hint = "" if info.is_video else "; --prompt-syntax a1111 reads all of it"
            yield f"the {what} has {count} tokens, and {info.name} reads {most}; it does not read {shown(rest)!r}{hint}"
        return
    reading = read(text, syntax, info)
    for name, each in reading.embeddings.items():
        yield f"the {what} uses the embedding {name!r}, {each.file}"
    for why in reading.left:
        yield f"the {what} has the name of an embedding that stays words: {why.removeprefix('model.embeddings: ')}"
    if syntax == "a1111" and IN_BRACKETS.search(text):
        yield f"the {what} has BREAK inside of brackets, where it is a word"
    if reading.chunks > 1 and not reading.parts[0]:
        yield f"the {what} begins with BREAK, so its first chunk has no words"


def _unused(job: Job, prompts: dict[str, str]) -> Iterator[str]:
    """Yield a sentence for each embedding of the spec that no prompt names."""
    spec, info = job.spec, job.plan.info
    syntax = syntax_of(spec, info)
    texts = [*prompts.values(), *([info.negative_prompt] if spec.negative_prompt is None else [])]
    used = {each.file for text in texts for each in read(text, syntax, info).embeddings.values()}
    for each in info.embeddings:
        if each.is_given and each.file not in used:
            name = f"embedding:{each.trigger}" if syntax == "comfy" else each.trigger
            yield f"the embedding {each.file.name} has no effect, since no prompt has {name!r}"


def marks(text: str, syntax: str = "plain") -> list[str]:
    """Return each mark that is no syntax in a text once, in order."""
    shouted = text.upper() == text  # in which AND is a word
    found = [match[0] for match in SYNTAX[syntax].finditer(text)]
    return list(dict.fromkeys(mark for mark in found if not (shouted and mark in ("AND", "BREAK"))))
