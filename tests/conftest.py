"""Toy models of the real classes, small enough for one core. diffusers is imported where a fixture needs
it."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel, UNet3DConditionModel

    from freescale.guidance import Conditioning

ROOT = Path(__file__).parents[1]
MEMORY = "/dev/shm"  # temporary folders are in memory where there is room: an fsync on a disk takes 5 ms
if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 * 2**30:  # tests take less than 1 GiB at a time
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", MEMORY)
torch.set_num_threads(1)
settings.register_profile(
    "house", max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")

# What some files share is slow to start and lives as long as the process of pytest that started it: the process that
# forks command lines and Dask workers (10 s of a core), a server of buckets and the processes of the store's tests (10
# s). A file that has one of these words uses it.
ON_ONE_WORKER = {
    "forks": ("tests.processes", "tests.doorstep.harness"),
    "buckets": ("Processes",),
}


@cache
def group_of(file: str) -> str:
    """What a test file shares with others, by its name in `ON_ONE_WORKER`; else the file."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return next((group for group, words in ON_ONE_WORKER.items() if any(word in text for word in words)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile` the files that share something of `ON_ONE_WORKER` go to one worker."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class TogetherScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(super()._split_scope(nodeid))

    return TogetherScheduling(config, log)


SCHEDULER_CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
}
SDXL_BLOCKS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
SD_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


@pytest.fixture(scope="session")
def scheduler_config() -> dict[str, Any]:
    """SDXL's noise schedule."""
    return dict(SCHEDULER_CONFIG)


@pytest.fixture(scope="session")
def sdxl_unet() -> UNet2DConditionModel:
    """A UNet with SDXL's topology and module names, and random weights; text 32 wide, pooled text 16."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32, 64),
        norm_num_groups=8,
        cross_attention_dim=32,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 2, 4),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        **SDXL_BLOCKS,
    ).eval()


@pytest.fixture(scope="session")
def full_sdxl_unet() -> UNet2DConditionModel:
    """SDXL's UNet at full size, on the meta device: names and shapes only."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            cross_attention_dim=2048,
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            **SDXL_BLOCKS,
        )


@pytest.fixture(scope="session")
def full_sd_unet() -> UNet2DConditionModel:
    """Stable Diffusion 1.5's UNet at full size, on the meta device."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, **SD_BLOCKS)


@pytest.fixture(scope="session")
def video_unet() -> UNet3DConditionModel:
    """A video UNet with the topology of VideoCrafter2 in diffusers, two levels deep."""
    from diffusers import UNet3DConditionModel

    torch.manual_seed(0)
    return UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=8,
        layers_per_block=1,
    ).eval()


@pytest.fixture(scope="session")
def conditioning() -> Conditioning:
    """Random text for `sdxl_unet`, one row."""
    from freescale.guidance import Conditioning

    generator = torch.Generator().manual_seed(1)

    def added() -> dict[str, torch.Tensor]:
        time_ids = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])
        return {"text_embeds": torch.randn(1, 16, generator=generator), "time_ids": time_ids}

    embeds = torch.randn(2, 1, 5, 32, generator=generator)
    return Conditioning(embeds[0], embeds[1], added(), added())


@pytest.fixture(scope="session")
def sdxl_pipeline(sdxl_unet: UNet2DConditionModel) -> StableDiffusionXLPipeline:
    """The stock pipeline around `sdxl_unet`, to be called with embeddings and for latents."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4, 4, 4, 4), norm_num_groups=2, latent_channels=4, **_VAE_BLOCKS)
    config = {name: value for name, value in SCHEDULER_CONFIG.items() if name != "set_alpha_to_one"}
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=sdxl_unet,
        scheduler=EulerDiscreteScheduler(**config),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


_VAE_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
