"""The benchmarks compare equal things, and say what they measured."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import accelerations, checkpointing
from benchmarks.attention import Case, layer, variants
from benchmarks.harness import Measurement, count_flop, measure, peak_memory, ratio, report, side_by_side
from benchmarks.sdxl import ON_GPU, Scale, make_denoiser, make_level
from benchmarks.unet import METHODS, SAVINGS, call
from freescale.forward_process import normal
from stages.spec import make_spec

CPU = torch.device("cpu")
SMALL = Case(16, 2, {2: 8, 4: 8}, 1, torch.float64)
TINY = Scale((32, 32, 64), (1, 2, 2), (1, 1, 1), 16, 64, torch.float32)


@pytest.mark.parametrize("factor", [2, 4])
def test_the_release_order_computes_the_same(factor: int) -> None:
    """So the benchmark compares two ways to one result."""
    side = SMALL.sides[factor]
    x = normal((2, side * side, 16), 0).double()
    with torch.no_grad():
        made = {name: run() for name, run in variants(layer(SMALL, CPU), x, SMALL, factor).items()}
    for mode in ("full", "fast"):
        torch.testing.assert_close(made[mode], made[f"released {mode}"], atol=1e-10, rtol=0)
    assert (made["full"] - made["plain"]).abs().max() > 1e-3
    assert (made["fast"] - made["full"]).abs().max() > 1e-3


def test_fusion_takes_less_arithmetic_than_the_release() -> None:
    x = normal((1, 64, 16), 0).double()
    made = variants(layer(SMALL, CPU), x, SMALL, 2)
    flop = {name: count_flop(run) for name, run in made.items()}
    assert flop["plain"] < flop["full"] < flop["released full"]
    assert flop["fast"] < flop["released fast"]


def test_flop_of_attention_and_products() -> None:
    query = torch.randn(2, 3, 10, 4)
    attention = count_flop(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    assert attention == 2 * 2 * 2 * 3 * 10 * 10 * 4  # two products of 10 x 10 x 4, multiply and add, 2 x 3 of them
    assert count_flop(lambda: torch.randn(5, 6) @ torch.randn(6, 7)) == 2 * 5 * 6 * 7


def test_a_measurement_counts_its_runs() -> None:
    runs: list[int] = []
    row = measure("x", lambda: runs.append(1), CPU, runs=4, flop=1e12, warm_ups=2)
    assert (len(runs), row.runs) == (6, 4)
    assert row.rate == pytest.approx(1 / row.seconds)
    assert measure("x", lambda: None, CPU, runs=1).spread == 0.0


def test_what_is_compared_runs_in_turns_and_ratios_are_of_rounds() -> None:
    order: list[str] = []
    rows = side_by_side({name: lambda name=name: order.append(name) for name in "ab"}, CPU, rounds=2, flop={"a": 1.0})
    assert order == ["a", "b", "a", "b", "a", "b"]  # one warm-up each, then two rounds
    assert (rows["a"].flop, rows["b"].flop, rows["b"].runs) == (1.0, 0.0, 2)
    slow, fast = (Measurement(n, 1.0, 0.0, 0, times=t) for n, t in (("s", (2.0, 20.0, 9.0)), ("f", (1.0, 10.0, 1.0))))
    assert ratio(slow, fast) == 2.0


@pytest.mark.thorough
def test_the_vae_benchmark_runs_with_what_all_of_them_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device=cpu", "--runs=1", "--threads=1", "--size=128", "--widths=4,8,8,8", "--tile=64", "--memory=4"]
    monkeypatch.setattr("sys.argv", ["benchmarks/vae.py", *words])
    runpy.run_module("benchmarks.vae", run_name="__main__")
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert (row["size"], row["way"]) == (128, "tiled")
    assert row["passes"] > 1


def test_peak_memory_sees_what_came_and_went() -> None:
    with peak_memory(CPU) as peak:
        torch.ones(2**26)  # 256 MiB
    assert peak[0] > 128 * 2**20


def test_a_report_ends_with_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    report("title", [Measurement("row", 0.5, 0.1, 2**20, 1e12, 3)], CPU, 4.0, extra={"a": 1})
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["rows"][0]["tflops"] == 2.0
    assert (record["benchmark"], record["extra"], record["matmul_tflops"]) == ("title", {"a": 1}, 4.0)


@pytest.mark.thorough
def test_the_unet_of_the_benchmarks_is_sdxl(full_sdxl_unet: Any) -> None:
    from benchmarks.sdxl import make_unet

    shapes = {name: p.shape for name, p in full_sdxl_unet.named_parameters()}
    ours = make_unet(ON_GPU, torch.device("meta"))
    assert {name: p.shape for name, p in ours.named_parameters()} == shapes
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}


@pytest.mark.thorough
def test_every_row_of_the_unet_benchmark_runs() -> None:
    denoiser, level = make_denoiser(TINY, CPU), make_level(TINY, 1, 2, CPU)
    with torch.no_grad():
        made = {name: call(denoiser, method, level)() for name, method in METHODS.items()}
        assert all(torch.isfinite(x).all() for x in made.values())
        for change in SAVINGS.values():
            saved = call(replace(denoiser, **change), METHODS["FreeScale"], level)()
            torch.testing.assert_close(saved, made["FreeScale"], atol=1e-4, rtol=0)


def test_checkpoints_cost_two_percent_at_most() -> None:
    seconds = dict.fromkeys(checkpointing.FLOOR, 1.0)
    for write in (0.001, 0.1, 10.0):
        writes = dict.fromkeys(checkpointing.FLOOR, write)
        for every in checkpointing.EVERY:
            assert checkpointing.share_of(seconds, writes, every) <= 0.02
    cheap = dict.fromkeys(checkpointing.FLOOR, 0.1)
    assert checkpointing.share_of(seconds, cheap, 60.0) == pytest.approx(0.1 / 60, rel=0.01)


def test_the_rows_of_accelerations_can_be_rendered_and_compared() -> None:
    rows = [(table, row) for table in accelerations.tables() for row in table.rows]
    specs = [make_spec({"prompt": "a red disc on sand", **table.plain, **row.fields}) for table, row in rows]
    assert len({spec.model_dump_json() for spec in specs}) == len(specs)
    plain: list[dict[str, Any]] = [
        {"psnr": None, "right": True, "texture": True, "seconds": each} for each in (1.0, 2.0, 3.0)
    ]
    fast = [line | {"psnr": 40.0 + i, "right": i > 0, "seconds": line["seconds"] / 2} for i, line in enumerate(plain)]
    assert accelerations.summary("fast", fast, plain) == "| fast | 67 | 100 | 41 dB | 1.00 | 0.50 |"
    assert accelerations.summary("plain", plain, plain) == "| plain | 100 | 100 | - | 2.00 | 1.00 |"
