"""Traces in a process of their own: the numbers of the plain import, or the plain import itself."""

from __future__ import annotations

import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from benchmarks.sdxl_folder import write_sdxl
from stages.errors import SpecError
from stages.models.folder import EMBEDDED, describe
from stages.plan import make_plan
from stages.planner import apart, trace_cache
from stages.planner.estimate import estimate
from stages.planner.method_check import check_methods
from stages.planner.networks import _counted, _denoise_cost, _vae_cost
from stages.planner.trace import _RULES, aten
from stages.spec import ModelSpec, RunOptions, make_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLES = Path(__file__).parents[2] / "examples"
MODULES = "sorted(__import__('sys').modules)"
NEEDED = {"dual_transformer_2d", "transformer_2d", "transformer_temporal"}  # of diffusers.models.transformers
PICTURE = {"prompt": "x", "width": 136, "height": 200, "steps": 4}
SPECS: dict[str, dict[str, Any]] = {
    "shapes": PICTURE,
    "regions": yaml.safe_load((EXAMPLES / "regions.yaml").read_text(encoding="utf-8")),
    "hidiffusion": PICTURE | {"method": {"name": "hidiffusion"}},
    "video": PICTURE | {"width": 128, "height": 128, "frames": 4, "model": {"name": "shapes-motion"}},
    "sdxl": PICTURE | {"width": 1032, "height": 1024, "model": {"name": "SDXL", "dtype": "bfloat16"}},
}


@pytest.fixture
def child() -> Iterator[apart._Child]:
    """A process that traces."""
    made = apart._Child()
    yield made
    made.close()


def works(names: tuple[str, ...], home: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Callable[[], Any], Any]]:
    """All that plans of these specs trace, with what the plain import finds."""
    found: list[tuple[Callable[[], Any], Any]] = []

    def plainly(work: Callable[[], Any]) -> Any:
        found.append((work, work()))
        return found[-1][1]

    monkeypatch.setattr(trace_cache, "apart", plainly)
    for kept in (_denoise_cost, _vae_cost):
        kept.cache_clear()
    sdxl = str(write_sdxl(home / "sdxl"))
    for given in (SPECS[name] for name in names):
        model = given.get("model", {"name": "shapes"})
        model = ModelSpec(**(model | {"name": sdxl if model["name"] == "SDXL" else model["name"]}))
        spec = make_spec(given | {"model": {"name": "shapes"}}).model_copy(update={"model": model})
        info = describe(model, home, has_weights=False)
        plan = make_plan(spec, info, EXAMPLES)
        check_methods(plan)
        for call in plan.calls:
            estimate(call, info, RunOptions(vae_memory=2 << 30), "cpu")
    if "video" not in names:
        return found
    # AnimateDiff's network
    unet = json.loads((EMBEDDED / "unet" / "config.json").read_text(encoding="utf-8"))
    adapter = {"_class_name": "MotionAdapter", "motion_num_attention_heads": 2, "motion_norm_num_groups": 8}
    adapter |= {"block_out_channels": unet["block_out_channels"], "motion_layers_per_block": unet["layers_per_block"]}
    plainly(partial(_counted, (json.dumps(unet), json.dumps(adapter)), "float32"))
    return found


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("names", "functions"),
    [
        pytest.param(("shapes", "hidiffusion"), {"_answer"}, id="pictures"),
        pytest.param(("regions", "sdxl", "video"), set(), id="others", marks=pytest.mark.thorough),
    ],
)
def test_as_the_plain_import_finds_them(
    names: tuple[str, ...], functions: set[str], child: apart._Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process for all, started anew, that imports a part of what the plain import does."""
    asked = works(names, tmp_path, monkeypatch)
    functions = functions | {"_traced_steps", "_traced_vae", "_by_tiles", "_counted"}
    assert {work.func.__name__ for work, _ in asked} == functions  # type: ignore[attr-defined]
    for work, plain in asked:
        assert child._answer(work) == plain, work
    modules = child._answer(partial(eval, MODULES))
    inside = {name.split(".")[3] for name in modules if name.startswith("diffusers.models.transformers.")}
    assert inside <= NEEDED
    heavy = {"scipy", "sympy.core", "transformers.models", "torch._dynamo.utils", "diffusers.pipelines", "prefect"}
    assert heavy & set(modules) == set()
    assert len(modules) <= 1800


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_fails_there_is_traced_here(
    child: apart._Child, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal is an answer; an error is none, nor is a process that ends."""
    monkeypatch.setattr(apart, "_may_fork", lambda: True)
    monkeypatch.delitem(sys.modules, "diffusers", raising=False)
    caplog.set_level(logging.DEBUG, "stages.planner.apart")
    here = os.getpid()
    assert child.run(os.getpid) != here
    with pytest.raises(SpecError, match="too small"):
        child.run(partial(_refuse, here))
    assert not caplog.records
    with pytest.raises(ZeroDivisionError):
        child.run(partial(eval, "1 / 0"))
    assert child.run(os.getpid) == here
    assert "ZeroDivisionError" in caplog.text
    other = apart._Child()
    assert other.run(partial(_ended_unless, here)) == here
    other.close()


def _refuse(here: int) -> None:
    assert os.getpid() != here
    raise SpecError("too small")


def _ended_unless(here: int) -> int:
    return here if os.getpid() == here else os._exit(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 8])
def test_the_rules_of_a_trace_are_those_of_torch(dtype: torch.dtype, groups: int) -> None:
    image, weight = torch.empty(2, 16, 12, 20, dtype=dtype, device="meta"), torch.empty(16, dtype=dtype, device="meta")
    norm, resize = _RULES
    assert (norm, resize) == (aten.native_group_norm.default, aten.upsample_bicubic2d.default)
    for func, args in (
        (norm, (image, weight, weight, 2, 16, 240, groups, 1e-5)),
        (norm, (image[:, :, 0], None, None, 2, 16, 20, groups, 1e-5)),
        (resize, (image, [30, 45], False, None, None)),
    ):
        ours, theirs = (made if isinstance(made, tuple) else (made,) for made in (_RULES[func](*args), func(*args)))
        assert [(t.shape, t.stride(), t.dtype) for t in ours] == [(t.shape, t.stride(), t.dtype) for t in theirs]
