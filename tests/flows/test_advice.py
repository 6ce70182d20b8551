"""What is said before a render: too few steps for dilation or DemoFusion, and a dtype that the CPU only emulates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from flows.home import Home
from flows.rendering.advice import remarks
from flows.rendering.job import prepare
from stages import plan
from stages.models.upscaler import UpscalerFile
from stages.spec import make_spec

if TYPE_CHECKING:
    from pathlib import Path

    from flows.rendering.job import Job


def job(home: Path, **values: Any) -> Job:
    return prepare(make_spec({"prompt": "a red disc", "width": 192, "height": 128} | values), Home(home))


def test_what_an_upscaler_takes_is_not_in_the_estimates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = UpscalerFile("/net.safetensors", "0" * 64)
    monkeypatch.setattr(plan, "find_upscaler", lambda given, root: file)
    made = job(tmp_path, width=256, height=256, method={"name": "enlarge", "upscaler": "net.safetensors"})
    assert remarks([("", made)], torch.device("cpu")) == [
        "the estimates of time and memory leave out the network of net.safetensors"
    ]


@pytest.mark.parametrize(
    ("values", "dilated"),
    [
        ({"steps": 8}, False),
        ({"steps": 12}, True),
        ({"steps": 8, "method": {"name": "freescale", "restart": 0.5}}, True),
        ({"steps": 8, "method": {"name": "freescale", "dilate": False}}, True),
        ({"steps": 8, "method": {"name": "direct"}}, True),
        ({"steps": 8, "width": 64, "height": 64}, True),
    ],
    ids=["8 steps", "12 steps", "earlier restart", "asked for none", "another method", "one level"],
)
def test_a_dilation_without_a_step_is_told(tmp_path: Path, values: dict[str, Any], dilated: bool) -> None:
    made = job(tmp_path, **values)
    if not dilated:
        assert "highres_denoise" not in {call.stage.name for call in made.plan.calls}
    said = remarks([("", made)], torch.device("cpu"))
    assert [sentence.partition(";")[0] for sentence in said] == ([] if dilated else ["no step is dilated"])


@pytest.mark.parametrize(
    ("values", "told"),
    [({"steps": 19}, True), ({"steps": 20}, False), ({"steps": 19, "width": 64, "height": 64}, False)],
    ids=["few", "enough", "one level"],
)
def test_few_steps_of_demofusion_are_told(tmp_path: Path, values: dict[str, Any], told: bool) -> None:
    said = remarks([("", job(tmp_path, method={"name": "demofusion"}, **values))], torch.device("cpu"))
    assert [sentence.partition(";")[0] for sentence in said] == ["with 19 steps DemoFusion leaves grain"] * told


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, []),
        ({"deepcache": 5}, ["deepcache 5 runs the whole UNet at 4 of 20 steps, which changes the picture"]),
        ({"deepcache": 5, "deepcache_levels": "all"}, ["deepcache 5 runs the whole UNet at 6 of 22 steps"]),
        ({"todo": "auto"}, ["todo auto thins keys and values at 192x128, which changes the picture"]),
        ({"todo": "auto", "width": 64, "height": 64}, ["todo auto thins nothing here"]),
    ],
    ids=["none", "deepcache", "all levels", "todo", "todo without effect"],
)
def test_an_acceleration_is_told_with_its_error(tmp_path: Path, values: dict[str, Any], told: list[str]) -> None:
    said = remarks([("", job(tmp_path, steps=20, **values))], torch.device("cpu"))
    assert len(said) == len(told)
    for sentence, begins in zip(said, told, strict=True):
        assert sentence.startswith(begins)
        assert "PSNR" in sentence or "nothing" in sentence


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("able", [True, False])
def test_an_emulated_dtype_is_told_once(
    tmp_path: Path, dtype: str, able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}[dtype]
    monkeypatch.setattr(torch.ops.mkldnn, name, lambda: able)
    made = job(tmp_path, model={"name": "shapes", "dtype": dtype}, steps=8)
    said = remarks([("one", made), ("other", made)], torch.device("cpu"))
    emulated = [] if able else [f"this CPU only emulates {dtype}, many times slower than float32"]
    assert said[: len(emulated)] == emulated
    assert [sentence.partition(":")[0] for sentence in said[len(emulated) :]] == ["one", "other"]
    assert remarks([("one", made)], torch.device("cuda")) == said[len(emulated) : len(emulated) + 1]
