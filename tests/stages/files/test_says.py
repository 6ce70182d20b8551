"""What a checkpoint of Stable Diffusion 2 says of its prediction by two small tensors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from stages.models.files.says import header_of
from stages.models.predicted import V_TENSOR, detected

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "model.diffusion_model."


@pytest.mark.parametrize(
    ("deviation", "steps", "says", "why"),
    [
        (0.2, None, "v_prediction", "the deviation"),
        (0.01, None, "epsilon", "the deviation"),
        (0.01, 110000, "v_prediction", "global_step 110000"),
        (0.2, 875000, "epsilon", "global_step 875000"),
    ],
)
def test_two_tensors_tell_its_prediction(
    deviation: float, steps: int | None, says: str, why: str, tmp_path: Path
) -> None:
    tensors = {PREFIX + V_TENSOR: np.float16([deviation, -deviation] * 8)}
    counted = {} if steps is None else {"global_step": np.array(steps)}
    save_file(tensors | counted, tmp_path / "a.safetensors")
    file: Any = SimpleNamespace(
        family="Stable Diffusion 2.x",
        path=tmp_path / "a.safetensors",
        marks=(),
        metadata={},
        native=(768, 768),
        parts={"unet": SimpleNamespace(prefix=PREFIX)},
    )
    found = detected(header_of(file, has_weights=True))
    assert (found.type, why in found.why) == (says, True)
    assert not detected(header_of(file, has_weights=False)).is_sure, "no tensor is read"
