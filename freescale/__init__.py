"""The method kernel: higher-resolution diffusion without tuning (FreeScale, arXiv:2412.09626), in torch.

`denoise` takes the latents of one `Level` through the steps of a `Schedule`. At each step a `Method` says what to
change about the UNet, the latents and the prediction. Nothing here reads a file, logs, or keeps state: randomness
follows from (seed, purpose), and every change to a UNet is a context manager that undoes it.
"""

from __future__ import annotations

from freescale.cascade import Level, base_size_for, cascade_sizes
from freescale.compute import Compute
from freescale.detail import region_map
from freescale.enlarge import enlarge_latents
from freescale.forward_process import generator, normal, renoise
from freescale.guidance import Conditioning, Denoiser
from freescale.long_videos import video_noise
from freescale.methods import METHODS, Method
from freescale.moment import Moment
from freescale.sampling import Step, denoise
from freescale.schedule import Schedule, Steps, make_schedule, make_steps
from freescale.solvers import SOLVERS, Solver
from freescale.unet_patches import Patch, patched

__all__ = [
    "METHODS",
    "SOLVERS",
    "Compute",
    "Conditioning",
    "Denoiser",
    "Level",
    "Method",
    "Moment",
    "Patch",
    "Schedule",
    "Solver",
    "Step",
    "Steps",
    "base_size_for",
    "cascade_sizes",
    "denoise",
    "enlarge_latents",
    "generator",
    "make_schedule",
    "make_steps",
    "normal",
    "patched",
    "region_map",
    "renoise",
    "video_noise",
]
