"""A study that asks people: one page that shows a comparison's methods blind, and the key that names them.

The questions are those of FreeScale's user study (arXiv 2412.09626, table 5). The page knows pictures by numbers only;
which method made which is in `key.json`, which stays with whoever runs the study.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from flows.compare.page import RECORD
from flows.pages.html import html
from flows.rendering.files import check_out_folder, write_whole
from freescale.forward_process import generator
from stages.errors import SpecError, cause
from storage import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

QUESTIONS = {
    "text": "Which picture shows best what the words say?",
    "quality": "Which picture is the best in quality: sharp, clean, full of true detail?",
    "structure": "Which picture has the best structure: whole objects, each as often as it should be?",
}
PAGE, KEY = "study.html", "key.json"
SIDE = 1536  # pixels of a picture's longer side in the page, at most
MAX_BYTES = 256 * 2**20  # of a page, that browsers still open well


@dataclass(frozen=True)
class Item:
    """One row of a comparison as it is shown: the methods in their order on the page."""

    id: str
    prompt: str
    methods: tuple[str, ...]
    pictures: tuple[str, ...]  # paths relative to the comparison


def make_study(comparison: Path, out: Path, seed: int, overwrite: bool = False) -> list[Path]:
    """Write the page and the key; return their paths. Raises `SpecError` where there is nothing to compare."""
    record = _record(comparison)
    items = _items(record, seed)
    key = {
        "study": fingerprint([record["comparison"], seed, [item.methods for item in items]])[:16],
        "comparison": record["comparison"],
        "seed": seed,
        "methods": record["methods"],
        "questions": QUESTIONS,
        "items": {item.id: list(item.methods) for item in items},
    }
    files = {KEY: (json.dumps(key, indent=1) + "\n").encode()}
    shown = [
        {"id": item.id, "prompt": item.prompt, "pictures": [_embedded(comparison / p) for p in item.pictures]}
        for item in items
    ]
    data = {"study": key["study"], "questions": QUESTIONS, "items": shown}
    files[PAGE] = html("study", "Which picture is better?", data).encode()
    if len(files[PAGE]) > MAX_BYTES:
        raise SpecError(
            f"comparison: the page would have {len(files[PAGE]) >> 20} MiB, {MAX_BYTES >> 20} are allowed; "
            "take fewer prompts or seeds"
        )
    check_out_folder("out", out)
    for name, data_ in files.items():
        if (out / name).exists() and not overwrite and (out / name).read_bytes() != data_:
            raise SpecError(f"out: {str(out / name)!r} is of another study; name another folder or say --overwrite")
    return [write_whole(data_, out / name) for name, data_ in reversed(files.items())]


def _record(comparison: Path) -> dict[str, Any]:
    path = comparison / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        missing = {"comparison", "methods", "rows"} - set(record)
    except FileNotFoundError:
        raise SpecError(f"comparison: {path} does not exist; freescale compare writes such a folder") from None
    except (OSError, ValueError, TypeError) as error:
        raise SpecError(f"comparison: {path} cannot be read: {cause(error)}") from None
    if missing:
        raise SpecError(f"comparison: {path} has no {', '.join(sorted(missing))}")
    if len(record["methods"]) < 2:
        raise SpecError(f"comparison: {path} is of {len(record['methods'])} method; a choice needs at least 2")
    return dict(record)


def _items(record: dict[str, Any], seed: int) -> list[Item]:
    """The rows that are whole, in an order drawn from the seed, each with its methods shuffled."""
    if any({"video", "clip"} & cell.keys() for row in record["rows"] for cell in row["cells"]):
        raise SpecError("comparison: it shows videos; a study asks about pictures")
    whole = [row for row in record["rows"] if all("picture" in cell for cell in row["cells"])]
    if len(whole) < len(record["rows"]):
        left = len(record["rows"]) - len(whole)
        raise SpecError(f"comparison: {left} of {len(record['rows'])} rows lack a picture; finish the comparison first")
    order = torch.randperm(len(whole), generator=generator(seed, "study", "rows")).tolist()
    items = []
    for number in order:
        cells = whole[number]["cells"]
        mixed = torch.randperm(len(cells), generator=generator(seed, "study", "methods", number)).tolist()
        shown = [cells[i] for i in mixed]
        id = fingerprint([seed, [cell["run"] for cell in cells]])[:8]
        items.append(
            Item(
                id,
                whole[number]["prompt"],
                tuple(cell["method"] for cell in shown),
                tuple(cell["picture"]["file"] for cell in shown),
            )
        )
    return items


def _embedded(path: Path) -> dict[str, Any]:
    """A picture as the viewer takes it, inside the page: pixels alone, since a PNG of ours names its method."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = BytesIO()
    picture.save(out, "WEBP", lossless=True)
    link = f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
    width, height = picture.size
    tile = {"levels": 1, "folder": None, "tile": max(width, height), "thumbnail": link}
    return {"width": width, "height": height, "file": link, **tile}
