"""A probe of what a UNet predicts, for a checkpoint that does not say it: does pure noise come back?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from freescale import Denoiser, make_schedule, normal
from stages.conditioning import conditioning

if TYPE_CHECKING:
    from stages.models.load import Models

CELLS = 32  # sides of the latents of a probe


def correlation(models: Models) -> float:
    """Return how much of pure noise a UNet answers with, -1 to 1, at the last timestep and without words.

    One that predicts the noise answers with about all of it (0.999 of the embedded model), one that predicts v or the
    picture with about none. One call of the UNet on 32 x 32 latent cells.
    """
    info, config = models.info, models.unet.config
    text = {"prompt_embeds": torch.zeros(1, 77, int(config["cross_attention_dim"]))}
    if info.size_ids:
        width = int(config["projection_class_embeddings_input_dim"]) - 6 * int(config["addition_time_embed_dim"])
        text["text_embeds"] = torch.zeros(1, width)
    given = conditioning(text, info.native if info.size_ids else None, next(models.unet.parameters()), None)
    schedule = make_schedule({**info.scheduler, "timestep_spacing": "trailing"}, 1)
    noise = normal((1, info.latent_channels, CELLS, CELLS), 0, "probe").to(models.device)
    latents = noise * (1.0 + schedule.sigmas[0] ** 2) ** 0.5
    with torch.no_grad():
        (answer,) = Denoiser(models.unet, given).passes(latents, 0, schedule, "positive")
    return float(torch.nn.functional.cosine_similarity(answer.flatten(), noise.flatten(), dim=0))
