"""How many rows of text a plan counts, where a transformer reads a prompt at its own length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from stages.models.describe import describe
from stages.models.tokens import lengths
from stages.plan import make_plan
from stages.planner.blanks import blank_parents
from stages.spec import ModelSpec, make_spec
from tests.qwen_folder import qwen_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.thorough
def test_a_prompt_of_more_than_512_tokens_is_counted_as_1024(tmp_path: Path) -> None:
    """The toy's tokenizer knows bytes alone; a short prompt is not even read."""
    model = ModelSpec(name=str(qwen_folder(tmp_path / "toy")))
    info = describe(model, tmp_path)
    assert info.text_tokens == 1024
    assert [lengths(info, ("x" * count, "")) for count in (5, 512, 513, 1024, 5000)] == [1, 1, 2, 2, 2]

    def rows(prompt: str) -> Any:
        import torch

        plan = make_plan(make_spec({"prompt": prompt, "width": 128, "height": 128, "model": model.model_dump()}), info)
        stage: Any = plan.calls[1].stage
        parents = blank_parents(stage, info.configs["unet"], torch.zeros(1, 4, 16, 16), 8)
        return parents["text"]["prompt_embeds"].shape[1], plan.calls[1].stage.params()

    short, long = rows("a red disc"), rows("red " * 200)
    assert (short[0], long[0]) == (512, 1024)
    assert short[1] == long[1], "no key says so"
