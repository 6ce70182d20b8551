"""The method kernel: higher-resolution diffusion without tuning (FreeScale, arXiv:2412.09626), in torch.

`denoise` walks the latents of one `Level` along a `Schedule`, asking a `Method` at each step what to change
about the UNet, the latents and the prediction. Nothing here reads a file, logs, or keeps state: randomness
follows from (seed, purpose), and every change to a UNet is a context manager that leaves no trace.
"""

from __future__ import annotations

from freescale.cascade import Level, base_size_for, cascade_sizes
from freescale.detail import region_map
from freescale.enlarge import enlarge_latents
from freescale.forward_process import generator, normal, renoise
from freescale.guidance import Conditioning, Denoiser
from freescale.long_videos import video_noise
from freescale.methods import METHODS, Method
from freescale.sampling import Moment, Schedule, Solver, Step, denoise, make_schedule
from freescale.unet_patches import Patch, patched

__all__ = [
    "METHODS",
    "Conditioning",
    "Denoiser",
    "Level",
    "Method",
    "Moment",
    "Patch",
    "Schedule",
    "Solver",
    "Step",
    "base_size_for",
    "cascade_sizes",
    "denoise",
    "enlarge_latents",
    "generator",
    "make_schedule",
    "normal",
    "patched",
    "region_map",
    "renoise",
    "video_noise",
]
