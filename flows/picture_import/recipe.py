"""What a picture says of how it was made, in our words: fields of a spec, files by name and hash, and what is left."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages.errors import SpecError
from stages.models.samplers import nearest_sampler, sampler_named

if TYPE_CHECKING:
    from stages.models.linked_folders import FileKind

NUMBER = re.compile(r"[+-]?(\d{1,30}\.?\d{0,30}|\.\d{1,30})(e[+-]?\d{1,3})?", re.IGNORECASE)
WHOLE = re.compile(r"[+-]?\d{1,30}")
SEEDS = 2**63  # of a spec; ComfyUI draws below 2**64
GRAIN = 8  # pixels: sides are multiples of it


@dataclass(frozen=True)
class NamedFile:
    """A file that a picture names. `digits`: the beginning of a hash of it, where the picture has one."""

    kind: FileKind
    name: str
    digits: str = ""
    weight: float = 1.0
    text_weight: float | None = None  # None: as `weight`, which is the UNet's


@dataclass
class Recipe:
    """The parameters of one picture. Readers fill it; what they cannot carry over is in `left_out`, by its own name."""

    program: str
    fields: dict[str, Any] = field(default_factory=dict)  # of a `RenderSpec`
    model: dict[str, Any] = field(default_factory=dict)  # of its `ModelSpec`, but for files
    files: list[NamedFile] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_spec: bool = False  # its fields are those of a spec of ours, and stay as they are
    weights: dict[str, str] = field(default_factory=dict)  # of such a picture: a fingerprint of each part of its model

    def prompts(self, prompt: object, negative: object, syntax: str) -> None:
        """Take over both prompts, without control characters. An absent negative prompt is an empty one."""
        for name, text in (("prompt", prompt), ("negative_prompt", negative)):
            lines = str(text or "").replace("\r\n", "\n").replace("\r", "\n")
            self.fields[name] = "".join(c for c in lines if c in "\n\t" or _is_text(c)).strip()
        self.fields["prompt_syntax"] = syntax

    def number(self, name: str, value: object, said: str, *, whole: bool = False, of_model: bool = False) -> None:
        """Take over a number for a field, or leave it out under the name `said`; None is no value at all."""
        if value is None or value == "":
            return
        found = number(value)
        if found is None or (whole and not found.is_integer()):
            self.left(said, value)
            return
        text = str(value).strip()
        exact = (int(text) if WHOLE.fullmatch(text) else int(found)) if whole else found
        (self.model if of_model else self.fields)[name] = exact

    def seed(self, value: object, said: str) -> None:
        """Take over a seed; one beyond those of a spec is taken modulo 2**63."""
        self.number("seed", value, said, whole=True)
        found = self.fields.get("seed", 0)
        if found < 0:
            self.left(said, self.fields.pop("seed"))
        elif found >= SEEDS:
            self.fields["seed"] = found % SEEDS
            self.notes.append(f"the seed {found} is beyond those of a spec, so it became {found % SEEDS}")

    def size(self, width: object, height: object, said: str = "size") -> None:
        """Take over a size in pixels, rounded to multiples of 8."""
        sides = [number(side) for side in (width, height)]
        if not all(side is not None and 1 <= side < 10**6 for side in sides):
            self.left(said, f"{width}x{height}")
            return
        given = [int(side or 0) for side in sides]
        found = [max(round(side / GRAIN), 1) * GRAIN for side in given]
        if found != given:
            self.notes.append(f"the size {given[0]}x{given[1]} became {found[0]}x{found[1]}: sides are multiples of 8")
        self.fields["width"], self.fields["height"] = found

    def enlarged(self, width: int, height: int, by: str) -> None:
        """Take over a second size, that of a pass which enlarges the first: the last level of the cascade."""
        base = [self.fields.get("width"), self.fields.get("height")]
        self.size(width, height)
        last = [self.fields.get("width"), self.fields.get("height")]
        if None in base or None in last or base == last:
            return
        self.fields["cascade"] = [base, last]
        self.notes.append(
            f"{by} enlarged {base[0]}x{base[1]} to {last[0]}x{last[1]}; here the levels of the cascade do"
        )

    def sampler(self, text: str, said: str) -> None:
        """Take over a sampler with its schedule, by the names of other programs."""
        try:
            found = sampler_named(text)
        except SpecError:
            near = nearest_sampler(text)
            if near is None:
                self.left(said, text)
                return
            found = near
            self.notes.append(f"{said} {one_line(text)} is not here; the nearest is {found.solver}")
        self.fields |= {name: value for name, value in found._asdict().items() if value != "auto"}

    def left(self, name: str, value: object) -> None:
        """Note something that is not carried over."""
        self.left_out[one_line(name)] = one_line(value if isinstance(value, str) else _json(value))


def _is_text(character: str) -> bool:
    """Whether a prompt may hold it: no control character, and no half of one beyond U+FFFF."""
    return ord(character) >= 32 and not "\ud800" <= character <= "\udfff"


def number(value: object) -> float | None:
    """Return a finite number that is given as one or as text, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = str(value).strip()
    found = float(text) if NUMBER.fullmatch(text) else math.inf
    return found if math.isfinite(found) else None


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return type(value).__name__


def one_line(value: object, most: int = 160) -> str:
    """Return a text on one line, without what cannot be printed, cut at `most` characters."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in str(value)[: 4 * most]).split())
    return plain if len(plain) <= most else f"{plain[:most]}…"
