"""Large pictures as pyramids of tiles: a page shows 8192x8192 pixels at once and loads only the tiles in view."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image

from flows.rendering.files import write_whole

if TYPE_CHECKING:
    from pathlib import Path

TILE = 1024  # pixels a side


@dataclass(frozen=True)
class Pyramid:
    """A picture's pixel size and where its tiles lie.

    Level 0 is the picture itself; each further level is half as wide and high, rounded up, until one tile holds it.
    A tile of level k at column x and row y is `{folder}/{k}-{x}-{y}.png`; a picture of one tile is its own.
    """

    width: int
    height: int
    levels: int
    file: str  # the whole picture, relative to the page
    folder: str | None  # of the tiles, relative to the page; None: the picture is the only tile

    @property
    def thumbnail(self) -> str:
        """The smallest level, one file."""
        return self.file if self.folder is None else f"{self.folder}/{self.levels - 1}-0-0.png"

    def as_json(self) -> dict[str, Any]:
        """The fields that the script of a page reads."""
        return {
            "width": self.width,
            "height": self.height,
            "levels": self.levels,
            "file": self.file,
            "folder": self.folder,
            "tile": TILE,
            "thumbnail": self.thumbnail,
        }


def write_pyramid(data: bytes, page: Path, name: str, suffix: str = ".png") -> Pyramid:
    """Write a picture file and its tiles under `page`/pictures, where they are missing; return where they are."""
    file = f"pictures/{name}{suffix}"
    write_whole(data, page / file)
    with Image.open(BytesIO(data)) as opened:
        width, height = opened.size
        if max(width, height) <= TILE:
            return Pyramid(width, height, 1, file, None)
        folder, levels = f"pictures/{name}", 1
        picture = opened.convert("RGB")
    while True:
        for y in range(0, picture.height, TILE):
            for x in range(0, picture.width, TILE):
                box = (x, y, min(x + TILE, picture.width), min(y + TILE, picture.height))
                tile = page / folder / f"{levels - 1}-{x // TILE}-{y // TILE}.png"
                if not tile.is_file():  # named by the run, which names the pixels
                    write_whole(_png(picture.crop(box)), tile)
        if max(picture.size) <= TILE:
            return Pyramid(width, height, levels, file, folder)
        picture = picture.reduce(2)
        levels += 1


def _png(picture: Image.Image) -> bytes:
    out = BytesIO()
    picture.save(out, "PNG", compress_level=3)
    return out.getvalue()
