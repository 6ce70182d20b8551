"""What a stage will cost before it starts: bytes on disk, bytes in memory, and a unit of work to scale seconds by.

Disk is arithmetic. Memory is a bound from the shapes: weights plus the widest activations of a UNet or VAE whose
layout is SDXL's. Seconds come from what earlier stages took on the same device, a unit of work being a latent cell
times a step, with attention's square on top.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stages.plan import Call

FLOAT32, FLOAT16 = 4, 2


def work_of(params: Mapping[str, Any]) -> float:
    """Units of work of a stage, from its parameters alone."""
    height, width = params.get("size") or (512, 512)
    cells = height * width / 64
    steps = max(int(params.get("stop", 1)) - int(params.get("start", 0)), 1)
    return steps * cells * (1 + cells / 16384)


def disk_bytes(call: Call) -> int:
    """Bytes of a call's arrays: float32 latents, float16 images, about two bytes a pixel of a PNG."""
    height, width = call.size
    cells = height * width // 64
    sizes = {
        "decode": 3 * height * width * FLOAT16,
        "export": 2 * height * width,
        "picture": 3 * height * width,
        "conditioning": 4 * 77 * 2048 * FLOAT32,
    }
    return sizes.get(call.stage.name, 4 * cells * FLOAT32)


def memory_bytes(call: Call) -> int:
    """Bytes of the widest activations; the weights come on top."""
    height, width = call.size
    if call.stage.part == "vae":
        return height * width * 128 * 3 * FLOAT32  # three maps of the decoder's full-size level
    if call.stage.part == "unet":
        return 2 * height * width // 64 * 960 * 3 * FLOAT32  # guidance rows, the widest skip concatenation
    return 3 * height * width * FLOAT32
