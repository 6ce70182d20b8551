"""What does the exact tiled VAE cost, and how much memory does a large picture take?

    python -m benchmarks.vae                  tiled and untiled: time and peak memory, a process each
    python -m benchmarks.vae --size 8192      latents -> picture -> PNG in a process of its own: peak beyond the model

The VAE has the layout of SDXL's and random weights, in float32; `--widths` are its channels, on a GPU SDXL's
(128,256,512,512), on a CPU narrow ones, since SDXL's take hours there. Attention over the middle block grows with the
fourth power of the edge: at 8192 pixels it makes 1.1e12 scores, more than an hour on one core at any width;
`--no-attention` leaves it out. A table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.harness import here, parser, peak_memory, settled, synchronise
from freescale import normal
from freescale.vae.passes import decode_tiles
from freescale.vae.plan import plan_tiles, untiled_bytes
from stages.export import to_levels
from stages.media.png import write_png

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

MIB = 2**20
ON_CPU = ((256, 512, 768), "16,32,32,32", 128, 64)  # edges, widths, tile, MiB
ON_GPU = ((1024, 2048), "128,256,512,512", 512, 3072)


def main() -> None:
    """Measure what the arguments ask for."""
    asked = parser(__doc__ or "")
    asked.add_argument("--size", type=int, help="edge of one large picture in pixels, decoded once")
    asked.add_argument("--widths", help="channels, from the picture's level to the latents'")
    asked.add_argument("--tile", type=int)
    asked.add_argument("--memory", type=int, help="MiB for the tiled VAE")
    asked.add_argument("--no-attention", action="store_true")
    asked.add_argument("--way", choices=("tiled", "untiled"), help=argparse.SUPPRESS)
    given = settled(asked)
    if given.way is not None:
        print(json.dumps(measured(given)))
        return
    edges, widths, tile, memory = ON_GPU if given.device.type == "cuda" else ON_CPU
    given.widths = given.widths or widths
    ways = ("untiled", "tiled")
    if given.size is None:
        given.tile, given.memory = given.tile or tile, given.memory or memory
    else:
        edges, ways, given.runs = (given.size,), ("tiled",), 1
        given.tile, given.memory = given.tile or 512, given.memory or 3700
    rows = [_in_own_process(given, edge, way) for edge in edges for way in ways]
    columns = ("edge", "way", "passes", "seconds", "peak MiB", "device MiB", "predicted", "PNG s")
    print(f"\nvae  ({', '.join(f'{k} {v}' for k, v in here(given.device).items() if v is not None)})")
    print(" ".join(f"{name:>10}" for name in columns))
    for row in rows:
        values = (row["size"], row["way"], row["passes"], f"{row['seconds']:.2f}", f"{row['peak_mib']:.0f}")
        values += (f"{row['device_mib']:.0f}", f"{row['predicted_mib']:.0f}", f"{row['png_seconds']:.1f}")
        print(" ".join(f"{value:>10}" for value in values))
    print(json.dumps({"benchmark": "vae", **here(given.device), "rows": rows}))


def _in_own_process(given: argparse.Namespace, size: int, way: str) -> dict[str, Any]:
    names = ("device", "runs", "threads", "tile", "memory", "widths")
    words = [f"--{name}={getattr(given, name)}" for name in names if getattr(given, name) is not None]
    words += [f"--size={size}", f"--way={way}", *(["--no-attention"] if given.no_attention else [])]
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.vae", *words], check=True, stdout=subprocess.PIPE, text=True
    )
    row: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return row


@torch.no_grad()
def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Decodes, the last to a PNG: median seconds, and the peak resident memory beyond that of the loaded model."""
    vae, size = vae_of([int(w) for w in given.widths.split(",")], not given.no_attention).to(given.device), given.size
    cells, memory, is_whole = (size // 8, size // 8), given.memory * MIB, given.way == "untiled"
    latents = normal((1, 4, *cells), 0, "latents").to(given.device)
    vae.decode(latents[..., :8, :8])  # what libraries set up at their first use belongs to the model
    model, picture = peak(), torch.empty(size, size, 3, dtype=torch.uint8)
    passes, predicted = 1, untiled_bytes(vae, "decoder", cells)
    if not is_whole:
        plan = plan_tiles(vae, "decoder", cells, given.tile, memory)
        passes, predicted = plan.passes, plan.bytes
    seconds = []
    with peak_memory(given.device) as device_peak:
        for _ in range(given.runs):
            began = time.perf_counter()
            tiles: Any = (((0, size), (0, size), vae.decode(latents).sample) for _ in range(1))
            for rows, columns, tile in tiles if is_whole else decode_tiles(vae, latents, given.tile, memory):
                picture[slice(*rows), slice(*columns)] = to_levels(tile.cpu())
            synchronise(given.device)
            seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    with TemporaryDirectory() as folder, (path := Path(folder) / "picture.png").open("wb") as out:
        write_png(out, (size, size), bands(picture.numpy()), "{}")
        png_bytes = path.stat().st_size
    return {
        "size": size,
        "way": given.way,
        "widths": given.widths,
        "attention": not given.no_attention,
        "tile": given.tile,
        "memory_mib": given.memory,
        "passes": passes,
        "seconds": round(statistics.median(seconds), 3),
        "png_seconds": round(time.perf_counter() - began, 2),
        "png_mib": round(png_bytes / MIB, 1),
        "peak_mib": round((peak() - model) / MIB, 1),
        "device_mib": round(device_peak[0] / MIB, 1) if given.device.type == "cuda" else 0.0,
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
