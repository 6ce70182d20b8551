"""What does the exact tiled VAE cost, and how much memory does a large picture take?

    python -m benchmarks.vae                  tiled and untiled at CPU sizes: time and peak memory, a process each
    python -m benchmarks.vae --size 8192      latents -> picture -> PNG in a process of its own: peak beyond the model

The VAE has the layout of SDXL's and random weights, in float32; `--widths` are its channels, narrow by default because
SDXL's (128,256,512,512) take hours on a CPU. Attention over the middle block grows with the fourth power of the edge:
at 8192 pixels it makes 1.1e12 scores, more than an hour on one core at any width; `--no-attention` leaves it out.
A table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from freescale import normal
from freescale.tiled_vae import decode_tiles, plan_tiles, untiled_bytes
from stages.export import to_levels
from stages.png import write_png

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

MIB = 2**20
SIZES = (256, 512, 768)
WIDTHS = "16,32,32,32"


def main() -> None:
    """Measure what the arguments ask for."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--size", type=int, help="edge of one large picture in pixels")
    asked.add_argument("--widths", default=WIDTHS, help="channels, from the picture's level to the latents'")
    asked.add_argument("--tile", type=int, default=512)
    asked.add_argument("--memory", type=int, default=3072, help="MiB for the tiled VAE")
    asked.add_argument("--no-attention", action="store_true")
    asked.add_argument("--way", choices=("tiled", "untiled"), help=argparse.SUPPRESS)
    options = asked.parse_args()
    if options.way is not None:
        print(json.dumps(measured(options)))
        return
    sizes = SIZES if options.size is None else (options.size,)
    ways = ("untiled", "tiled") if options.size is None else ("tiled",)
    if options.size is None:
        options.tile, options.memory = 128, 64
    rows = [_in_own_process(options, size, way) for size in sizes for way in ways]
    print(f"{'edge':>6} {'way':>8} {'passes':>6} {'seconds':>8} {'peak MiB':>9} {'predicted':>9} {'PNG s':>6}")
    for row in rows:
        print(
            f"{row['size']:>6} {row['way']:>8} {row['passes']:>6} {row['seconds']:>8.1f} {row['peak_mib']:>9.0f} "
            f"{row['predicted_mib']:>9.0f} {row['png_seconds']:>6.1f}"
        )
    print(json.dumps({"benchmark": "vae", "threads": torch.get_num_threads(), "rows": rows}))


def _in_own_process(options: argparse.Namespace, size: int, way: str) -> dict[str, Any]:
    more = ["--no-attention"] if options.no_attention else []
    numbers = {"size": size, "tile": options.tile, "memory": options.memory, "widths": options.widths, "way": way}
    words = [f"--{name}={value}" for name, value in numbers.items()]
    command = [sys.executable, "-m", "benchmarks.vae", *words, *more]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return row


@torch.no_grad()
def measured(options: argparse.Namespace) -> dict[str, Any]:
    """One decode to a PNG: seconds, and the peak resident memory beyond that of the loaded model."""
    vae, size = vae_of([int(w) for w in options.widths.split(",")], not options.no_attention), options.size
    cells, memory = (size // 8, size // 8), options.memory * MIB
    vae.decode(torch.zeros(1, 4, 8, 8))  # what libraries set up at their first use belongs to the model
    model, began = peak(), time.perf_counter()
    latents = normal((1, 4, *cells), 0, "latents")
    if options.way == "untiled":
        passes, predicted = 1, untiled_bytes(vae, "decoder", cells)
        tiles: Any = (((0, size), (0, size), vae.decode(latents).sample) for _ in range(1))
    else:
        plan = plan_tiles(vae, "decoder", cells, options.tile, memory)
        passes, predicted = plan.passes, plan.bytes
        tiles = decode_tiles(vae, latents, options.tile, memory)
    picture = torch.empty(size, size, 3, dtype=torch.uint8)
    for rows, columns, tile in tiles:
        picture[slice(*rows), slice(*columns)] = to_levels(tile)
    seconds = time.perf_counter() - began
    with TemporaryDirectory() as folder, (path := Path(folder) / "picture.png").open("wb") as out:
        write_png(out, (size, size), bands(picture.numpy()), "{}")
        png_bytes = path.stat().st_size
    return {
        "size": size,
        "way": options.way,
        "widths": options.widths,
        "attention": not options.no_attention,
        "tile": options.tile,
        "memory_mib": options.memory,
        "passes": passes,
        "seconds": round(seconds, 2),
        "png_seconds": round(time.perf_counter() - began - seconds, 2),
        "png_mib": round(png_bytes / MIB, 1),
        "peak_mib": round((peak() - model) / MIB, 1),
        "model_mib": round(model / MIB, 1),
        "predicted_mib": round(predicted / MIB, 1),
    }


def vae_of(widths: list[int], attention: bool) -> Any:
    """SDXL's layout at these widths, random weights."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=tuple(widths),
        layers_per_block=2,
        norm_num_groups=min(32, min(widths) // 2),
        latent_channels=4,
        mid_block_add_attention=attention,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
    )
    return vae.eval().requires_grad_(False)


def bands(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Rows of a picture, 256 at a time."""
    return (picture[top : top + 256] for top in range(0, picture.shape[0], 256))


def peak() -> int:
    """Peak resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
