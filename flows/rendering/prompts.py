"""Remarks on prompts before renders start: what a model does not read of them, and syntax that it does not know."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stages.conditioning import EncodePrompt
from stages.models.tokens import not_read

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flows.rendering.job import Job
    from stages.models.folder import ModelInfo

SHOWN = 60  # characters of a prompt that a remark shows
SYNTAX = re.compile(
    r"""
      \([^()]*:\s*-?\d*\.?\d+\s*\)          # (word:1.2)
    | \({2,}[^()]+\){2,}                    # ((word))
    | <\w+:[^<>]*>                          # <lora:NAME:1>, <hypernet:NAME:1>
    | \bembedding:\S+                       # a textual inversion
    | \[[^\[\]]+\]                          # [word], [a|b], [a:b:0.5]
    | \{[^{}]*\|[^{}]*\}                    # {a|b}
    | \b__[\w/*-]+__                        # a wildcard file
    | (?:\w+|\))(?:\+{2,}|-{2,})(?=[\s,.)]|$)  # word++
    | \)[+-](?=[\s,.]|$)                    # (words)+
    | (?<!\S)--[a-z]+(?:\s+[\d:.]+)?        # --ar 16:9
    | \w+::(?:-?\d+(?:\.\d+)?|(?=\s|$))     # word::2
    | \b(?:BREAK|AND)\b                     # of some programs, between two prompts
    """,
    re.VERBOSE,
)
"""Marks that other programs understand in a prompt."""


def prompt_remarks(job: Job) -> Iterator[str]:
    """Yield a sentence for a prompt that is blank or cut, and for marks that are read as plain words.

    The same of a negative prompt, which may also have no effect.
    """
    spec, info = job.spec, job.plan.info
    if not spec.prompt.strip():
        yield "the prompt is blank, so the picture follows no words"
    yield from _of("prompt", spec.prompt, info)
    if spec.negative_prompt is None:
        return
    if any(isinstance(call.stage, EncodePrompt) and call.stage.negative_prompt is None for call in job.plan.calls):
        if spec.negative_prompt:
            yield "the negative prompt has no effect, since guidance is off; a guidance scale above 1 turns it on"
        return
    yield from _of("negative prompt", spec.negative_prompt, info)


def _of(what: str, text: str, info: ModelInfo) -> Iterator[str]:
    if found := marks(text):
        shown = ", ".join(repr(_cut(mark)) for mark in found[:3]) + (" and more" if len(found) > 3 else "")
        yield f"the {what} holds {shown}, which is no syntax here and is read as plain words"
    if (cut := not_read(info, text)) is not None:
        count, most, rest = cut
        yield f"the {what} has {count} tokens, and {info.name} reads {most}; it does not read {_cut(rest)!r}"


def marks(text: str) -> list[str]:
    """Return each mark of another program's prompt syntax in a text once, in order."""
    shouted = text.upper() == text  # in which AND is a word
    found = [match[0] for match in SYNTAX.finditer(text)]
    return list(dict.fromkeys(mark for mark in found if not (shouted and mark in ("AND", "BREAK"))))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
