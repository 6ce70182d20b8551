"""Prompts -> rows of the text encoders of a transformer, by its stock pipeline's own code; a file for each family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from freescale.gradients import without_gradients
from freescale.imported import Imported
from stages.errors import StageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from stages.models.load import Models


ROWS: Imported[Callable[[Any, Models, str], dict[str, Tensor]]] = Imported(
    "stages.prompts.flow",
    {
        "FluxPipeline": "flux.flux_rows",
        "ChromaPipeline": "chroma.chroma_rows",
        "Flux2KleinPipeline": "flux2.flux2_rows",
        "Flux2Pipeline": "flux2.flux2_rows",
        "StableDiffusion3Pipeline": "sd3.sd3_rows",
        "QwenImagePipeline": "qwen.qwen_rows",
        "ZImagePipeline": "zimage.zimage_rows",
        "WanPipeline": "wan.wan_rows",
    },
)
"""What returns the named rows of a prompt from a pipeline with text encoders alone, by the class of pipeline."""


@without_gradients
def encode_for_flow(models: Models, prompt: str, negative_prompt: str | None) -> dict[str, Tensor]:
    """Return the rows of a prompt, `prompt_embeds` and what its family adds, with guidance those of the negative one.

    The negative prompt's are `negative_embeds`, and `negative_` before the other names. Numbers are float32, masks
    bool. Raises `StageError` for rows that are not finite.
    """
    rows_of, pipeline = ROWS[str(models.info.pipeline)], models.text_pipeline()
    found = dict(rows_of(pipeline, models, prompt))
    if negative_prompt is not None:
        rows = rows_of(pipeline, models, negative_prompt)
        found |= {f"negative_{name.removeprefix('prompt_')}": each for name, each in rows.items()}
    found = {name: (each.float() if each.is_floating_point() else each).cpu() for name, each in found.items()}
    if bad := [name for name, each in found.items() if not each.isfinite().all()]:
        raise StageError(f"{bad[0]}: the rows are not finite; float32 text encoders work (--dtype float32)")
    return found
