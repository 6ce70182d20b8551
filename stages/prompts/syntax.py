"""The syntax of prompts: weights, breaks between chunks, and networks that a prompt names.

`a1111` is that of AUTOMATIC1111's web UI and of Forge, `comfy` that of ComfyUI; `plain` has none. Nothing here knows of
tokens or of models (`docs/how-to/write-prompts.md`).
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, NamedTuple

from stages.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

SYNTAXES = ("plain", "a1111", "comfy")
STRONGER, WEAKER = 1.1, 1 / 1.1  # (x) and [x]
MOST_WEIGHT = 100.0  # of a word, also below zero; rows stay finite in every dtype
SHOWN = 60  # characters of a prompt that a message shows
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
A1111 = re.compile(rf"\\[()\[\]\\]|[()\[\]]|:\s*({NUMBER})\s*\)|[^\\()\[\]:]+|[\\:]")
BREAK = re.compile(r"\s*\bBREAK\b\s*")
COMFY = re.compile(r"\\[()]|[()]|[^\\()]+|\\")
NETWORK = re.compile(r"<(\w+):([^<>]+)>")
BY_STEP = re.compile(r"\|(?!\|)|:\s*(?:\d+\.?\d*|\.\d+)\s*$")  # inside of brackets: [a|b], [a:b:0.5], [a:0.5]
INNERMOST = re.compile(r"\[([^\[\]]*)\]")


class Phrase(NamedTuple):
    """Words of a prompt that have one weight; 1.0 changes nothing."""

    text: str
    weight: float


class Network(NamedTuple):
    """A LoRA that a prompt names: of `<lora:NAME:0.8>`. No `text_weight`: as `weight`, which is the UNet's."""

    name: str
    weight: float
    text_weight: float | None


Parts = tuple[tuple[Phrase, ...], ...]
"""The phrases of a prompt, by the chunks that its breaks begin; a part may be empty."""


def parse(prompt: str, syntax: str) -> Parts:
    """Return the phrases of a prompt without networks (`split_networks`), neighbours of one weight as one.

    Raises `SpecError` for words that would change from step to step, and for a weight beyond 100.
    """
    if syntax == "a1111":
        _check_steps(prompt)
        parts = _a1111(prompt)
    else:
        parts = [_comfy(prompt) if syntax == "comfy" else [Phrase(prompt, 1.0)]]
    found = tuple(tuple(_merged(part)) for part in parts)
    for phrase in (phrase for part in found for phrase in part):
        if not abs(phrase.weight) <= MOST_WEIGHT:
            raise SpecError(f"prompt: {shown(phrase.text)!r} has the weight {phrase.weight:g}; -100 to 100 work")
    return found


def split_networks(prompt: str, syntax: str = "a1111") -> tuple[str, tuple[Network, ...]]:
    """Return the prompt without its networks, and the LoRAs in their order.

    A plain prompt names none. In `<lora:NAME:A:B>` the web UI has A for the text encoder and B for the UNet, nodes of
    ComfyUI have A for the UNet; one number is for both, `te=` and `unet=` name theirs. Raises `SpecError` for another
    kind of network, and for what is no weight.
    """
    if syntax == "plain":
        return prompt, ()
    found = tuple(_network(match, syntax) for match in NETWORK.finditer(prompt))
    return (NETWORK.sub("", prompt), found) if found else (prompt, ())


def _network(match: re.Match[str], syntax: str) -> Network:
    """Return the LoRA of one `<lora:…>`. Raises `SpecError`."""
    kind, written = match[1], shown(match[0])
    if kind != "lora":
        raise SpecError(f"prompt: {written!r} is a network of the kind {kind}; <lora:NAME:WEIGHT> works")
    name, *rest = (word.strip() for word in match[2].split(":"))
    named = dict(word.split("=", 1) for word in rest if "=" in word)
    numbers = [word for word in rest if "=" not in word]
    order = ("te", "unet") if syntax == "a1111" else ("unet", "te")
    given = dict(zip(order, numbers, strict=False)) | named
    if not name or len(numbers) > len(order) or not set(given) <= set(order):
        raise SpecError(f"prompt: {written!r} is not <lora:NAME:WEIGHT>, with a second weight at the most")
    weights = {part: _weight(text, written) for part, text in given.items()}
    if len(numbers) == 1:
        weights.setdefault(order[1], weights[order[0]])
    unet, text = weights.get("unet", 1.0), weights.get("te", 1.0)
    return Network(name, unet, None if text == unet else text)


def _weight(text: str, written: str) -> float:
    if not re.fullmatch(NUMBER, text) or abs(float(text)) > MOST_WEIGHT:
        raise SpecError(f"prompt: {written!r} has the weight {shown(text)!r}; a number from -100 to 100 works")
    return float(text)


def _a1111(prompt: str) -> list[list[Phrase]]:
    """Return the phrases between the breaks. Round and square brackets open and close independently of each other."""
    texts, weights, breaks = list[str](), list[float](), set[int]()
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        """Multiply all that stands since the bracket was opened."""
        for index in range(opened[bracket].pop(), len(weights)):
            weights[index] *= factor

    for match in A1111.finditer(prompt):
        token = match[0]
        if token in opened:
            opened[token].append(len(texts))
        elif token.endswith(")") and token[0] != "\\" and opened["("]:
            close("(", STRONGER if match[1] is None else float(match[1]))
        elif token == "]" and opened["["]:
            close("[", WEAKER)
        else:
            pieces = BREAK.split(token) if not opened["("] and not opened["["] else [token]
            for number, piece in enumerate(pieces):
                if number:
                    breaks.add(len(texts))
                texts.append(piece[1:] if len(piece) == 2 and piece[0] == "\\" else piece)
                weights.append(1.0)
    for bracket, factor in (("(", STRONGER), ("[", WEAKER)):
        while opened[bracket]:
            close(bracket, factor)
    marks = [0, *sorted(breaks), len(texts)]
    phrases = [Phrase(text, weight) for text, weight in zip(texts, weights, strict=True)]
    return [phrases[first:end] for first, end in itertools.pairwise(marks)]


def _check_steps(prompt: str) -> None:
    """Raise `SpecError` for brackets whose words depend on the step."""
    text = re.sub(r"\\.", "  ", prompt, flags=re.DOTALL)
    while found := list(INNERMOST.finditer(text)):
        for match in found:
            if BY_STEP.search(match[1]):
                written = shown(prompt[match.start() : match.end()])
                raise SpecError(
                    f"prompt: {written!r} changes the words from step to step, which no render does; write words that "
                    "hold throughout, or \\[ and \\] for brackets that are text"
                )
        text = INNERMOST.sub(lambda match: f" {match[1]} ", text)


def _comfy(prompt: str) -> list[Phrase]:
    """Return the phrases: (x) is 1.1 times the weight around it, (x:1.3) has 1.3 whatever is around it."""
    tokens = [match[0] for match in COMFY.finditer(prompt)]
    opened, closes = list[int](), dict[int, int]()
    for index, token in enumerate(tokens):
        if token == "(":
            opened.append(index)
        elif token == ")" and opened:
            closes[opened.pop()] = index
    ends, around, phrases = set(closes.values()), [1.0], list[Phrase]()
    for index, token in enumerate(tokens):
        if index in closes:
            last = tokens[closes[index] - 1]
            given = re.search(rf":\s*({NUMBER})\s*$", last) if last[0] not in "()\\" else None
            if given and closes[index] - 1 == index + 1 and given.start() == 0:
                given = None  # (:1.3) has no words
            if given:
                tokens[closes[index] - 1] = last[: given.start()]
            around.append(float(given[1]) if given else around[-1] * STRONGER)
        elif index in ends:
            around.pop()
        else:
            phrases.append(Phrase(token[1:] if len(token) == 2 and token[0] == "\\" else token, around[-1]))
    return phrases


def _merged(phrases: list[Phrase]) -> Iterator[Phrase]:
    """Yield the phrases with neighbours of one weight as one, without empty ones."""
    run = list[Phrase]()
    for phrase in (each for each in phrases if each.text):
        if run and run[0].weight != phrase.weight:
            yield Phrase("".join(each.text for each in run), run[0].weight)
            run = []
        run.append(phrase)
    if run:
        yield Phrase("".join(each.text for each in run), run[0].weight)


def shown(text: str) -> str:
    """Return the text, cut to what a message shows."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
