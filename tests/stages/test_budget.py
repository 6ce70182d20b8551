"""Memory: amounts, the savings picked for a budget, refusal, one saving after another, parts off the device."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from benchmarks.sdxl_folder import write_sdxl
from flows.batch.jobs_file import read_jobs
from flows.cli.run_batch import check_memory
from flows.home import Home
from flows.rendering.job import prepare, to_do
from freescale import guidance
from stages import runner
from stages.decode import Decode
from stages.errors import SpecError
from stages.models.load import Models, describe
from stages.plan import make_plan
from stages.planner.amounts import enough_bytes, parse_bytes, show_bytes
from stages.planner.budget import PARTS, SAVINGS, check, fit, next_saving, return_freed
from stages.planner.estimate import estimate, resident, rough_bytes
from stages.spec import ModelSpec, RunOptions, make_spec
from tests.homes import session_in
from tests.toys import ON_UNETS

if TYPE_CHECKING:
    from flows.rendering.session import Result
    from stages.plan import Plan

GIB = 2**30
SMALL: dict[str, Any] = {"prompt": "a green ring on sand", "seed": 5, "width": 192, "height": 128, "steps": 4}
SMALL["method"] = {"name": "freescale", "restart": 0.3, "dilation": [0.0, 0.3]}  # one stage a level to trace
CPU = torch.device("cpu")
THOROUGH = pytest.mark.thorough


def render(home: Path, **options: Any) -> Result:
    session = session_in(home, **options)
    return session.render(prepare(make_spec(SMALL), session.home))


def savings_of(home: Path, result: Result) -> dict[str, tuple[str, ...]]:
    store = Home(home).store
    return {outcome.call.label: store.find(outcome.key).savings for outcome in result.outcomes}  # type: ignore[union-attr]


def levels(result: Result) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(result.outputs[0])).astype("int16")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return render(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sdxl(tmp_path_factory.mktemp("sdxl"))


def sdxl_plan(folder: Path, side: int, **fields: Any) -> Plan:
    spec = make_spec(
        {"prompt": "x", "width": side, "height": side, "model": {"name": str(folder), "dtype": "bfloat16"}} | fields
    )
    return make_plan(spec, describe(spec.model, folder / "home", has_weights=False))


@pytest.mark.parametrize(
    ("text", "count"),
    [("16GiB", 16 * GIB), ("1.5 gib", 3 * GIB // 2), ("800MB", 800_000_000), ("2g", 2 * 10**9), ("4096", 4096)],
)
def test_amounts_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count == RunOptions(memory=text).memory  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0GiB", "1e9", "16 gallons", "nan", "∞", "\u0661GiB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="not a number of bytes"):
        RunOptions(memory=text)  # type: ignore[arg-type]


def test_an_amount_that_is_named_as_enough_is_enough() -> None:
    for count in (1, 2**20 - 1, 2**20 + 1, 413 * 2**20 + 7, GIB, GIB + 1, 13 * GIB + 12345):
        assert parse_bytes(enough_bytes(count)) >= count
    assert (show_bytes(412 * 2**20), show_bytes(13.44 * GIB)) == ("412 MiB", "13.4 GiB")


def test_the_mildest_savings_that_fit_are_picked(tmp_path: Path) -> None:
    plan = make_plan(make_spec(SMALL), describe(ModelSpec(name="shapes"), tmp_path))
    call, info = next(c for c in plan.calls if c.label == "detail_pass 1"), plan.info
    whole = estimate(call, info, RunOptions(), "cuda")
    assert fit(call, info, RunOptions(), whole.memory, "cuda").savings == ()
    less = fit(call, info, RunOptions(), whole.memory - 1, "cuda")
    assert less.savings == ("split guidance",)
    assert less.fits
    assert less.options == RunOptions(split_guidance=True)
    assert less.estimate.memory < whole.memory
    assert less.estimate.flops == pytest.approx(whole.flops, rel=1e-3), "a saving multiplies no more"
    least = fit(call, info, RunOptions(), 1, "cuda")
    assert not least.fits
    assert least.savings == tuple(r.name for r in SAVINGS if "unet" in r.parts and r.is_planned)
    assert fit(call, info, RunOptions(), least.estimate.memory, "cuda").fits, "the amount named would do"


@pytest.mark.thorough
def test_parts_at_rest_do_not_count(sdxl: Path) -> None:
    """SDXL: UNet 4.78 GiB in half precision, VAE 0.31, text encoders 1.52."""
    info = describe(ModelSpec(name=str(sdxl)), sdxl / "home", has_weights=False)
    calls = {c.label: c for c in sdxl_plan(sdxl, 2048).calls}

    def weights(label: str, device: str, **options: Any) -> float:
        return round(resident(calls[label], info, RunOptions(**options), device) / GIB, 2)

    assert weights("conditioning 0", "cuda") == 1.52
    assert weights("base_denoise 0", "cuda") == weights("detail_pass 1", "cuda") == 4.78
    assert weights("decode 1", "cuda") == 5.09
    assert weights("decode 1", "cuda", offload=True) == 0.31
    assert weights("detail_pass 1", "cpu") == 5.09


@pytest.mark.slow
def test_sdxl_at_8192_decodes_by_tiles_where_the_whole_would_not_fit(sdxl: Path) -> None:
    plan = sdxl_plan(sdxl, 8192)
    decode = next(call for call in plan.calls if call.label == "decode 3")
    found = fit(decode, plan.info, RunOptions(), 24 << 30, "cuda")
    assert found.fits
    assert found.savings == ("the VAE by exact tiles within 6 GiB",)
    assert found.estimate.memory < 24 << 30


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "level", "side"), [("direct", 0, 8192), pytest.param("freescale", 3, 8192, marks=pytest.mark.thorough)]
)
def test_sdxl_in_one_gibibyte_is_refused(method: str, level: int, side: int, sdxl: Path) -> None:
    plan = sdxl_plan(sdxl, side, method={"name": method})
    with pytest.raises(SpecError, match=rf"memory: 1.0 GiB is too little for \w+ {level} at {side}x{side}"):
        check(plan.calls, plan.info, RunOptions(memory=GIB), torch.device("cuda"))


def test_a_budget_that_nothing_fits_is_refused_with_the_least_that_would_do(tmp_path: Path) -> None:
    plan = make_plan(make_spec(SMALL), describe(ModelSpec(name="shapes"), tmp_path))
    with pytest.raises(SpecError) as refused:
        check(plan.calls, plan.info, RunOptions(memory=2**20), CPU)
    said = str(refused.value)
    assert said.startswith("memory: 1 MiB is too little for ")
    least = said.rpartition(" ")[2]
    check(plan.calls, plan.info, RunOptions(memory=least), CPU)  # type: ignore[arg-type]
    with pytest.raises(SpecError):
        check(plan.calls, plan.info, RunOptions(memory=parse_bytes(least) - 2 * 2**20), CPU)


def test_a_refused_render_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="the smallest that would do is"):
        render(tmp_path, memory="10MiB")
    assert Home(tmp_path).runs.list() == ()


def test_a_night_is_refused_for_the_job_that_does_not_fit(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("a red disc\n")
    home = Home(tmp_path / "home")
    listed = read_jobs(jobs, home, {"size": "128x128"})
    check_memory(listed, home, RunOptions())
    with pytest.raises(SpecError, match=rf"^{listed.jobs[0].name}: memory: "):
        check_memory(listed, home, RunOptions(memory=2**20))


@pytest.mark.thorough
def test_what_is_done_needs_no_memory(plain: Result) -> None:
    home = Home(plain.outputs[0].parents[2])
    assert to_do(prepare(make_spec(SMALL), home).plan, home) == []
    assert all(outcome.reused for outcome in render(home.root, memory=1).outcomes)


@pytest.mark.thorough
def test_a_budget_changes_rounding_at_most_and_is_in_the_manifest(plain: Result, tmp_path: Path) -> None:
    plan = prepare(make_spec(SMALL), Home(tmp_path)).plan
    needs = {c: estimate(c, plan.info, RunOptions(), "cpu").memory for c in plan.calls if c.stage.part == "unet"}
    unet = max(needs, key=lambda c: needs[c])
    others = [estimate(c, plan.info, RunOptions(), "cpu").memory for c in plan.calls if c.stage.part == "vae"]
    split = estimate(unet, plan.info, RunOptions(split_guidance=True), "cpu").memory
    result = render(tmp_path, memory=max(*others, split))
    assert np.abs(levels(result) - levels(plain)).max() <= 1
    taken = savings_of(tmp_path, result)[unet.label]
    assert taken == fit(unet, plan.info, RunOptions(), max(*others, split), "cpu").savings


QUICK = ("freescale", "demofusion")


@pytest.mark.parametrize("method", [*QUICK, *(pytest.param(m, marks=THOROUGH) for m in ON_UNETS if m not in QUICK)])
def test_the_rough_bound_is_one(method: str, tmp_path: Path) -> None:
    """Where it says that memory is plentiful nothing is traced, so it must be above every trace."""
    spec = make_spec(SMALL | {"steps": 2, "method": {"name": method}})
    plan = make_plan(spec, describe(spec.model, tmp_path))
    for call in {c.stage.name: c for c in plan.calls if c.stage.part in PARTS}.values():
        assert estimate(call, plan.info, RunOptions(), "cpu").memory < rough_bytes(call, plan.info), call.label


@pytest.mark.thorough
@pytest.mark.parametrize("side", [2048, pytest.param(4096, marks=pytest.mark.thorough)])
def test_the_rough_bound_is_one_for_sdxl(side: int, sdxl: Path) -> None:
    plan = sdxl_plan(sdxl, side)
    for call in {c.stage.name: c for c in plan.calls if c.stage.part in ("unet", "vae")}.values():
        assert estimate(call, plan.info, RunOptions(), "cuda").activations < rough_bytes(call, plan.info), call.label


def test_a_saving_that_asks_for_no_less_is_left_out() -> None:
    given = RunOptions(split_guidance=True, feed_forward_tokens=1000, window_rows=4, by_blocks=True)
    saving = next_saving(("unet",), (), given)
    assert saving is not None
    assert saving.name == "attention windows one at a time"
    assert next_saving(("unet",), (saving.name,), given) is None
    assert next_saving(("vae",), (), RunOptions(offload=True, vae_memory=2**30)) is None
    assert next_saving(("vae",), (), RunOptions(offload=True, vae_memory=0)) is None
    assert next_saving((), (), RunOptions()) is None


@pytest.mark.thorough
@pytest.mark.parametrize("failures", [4, *(pytest.param(n, marks=THOROUGH) for n in (1, 2, 3))])
def test_out_of_memory_takes_the_next_saving_and_the_pixels_stay(
    failures: int, plain: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised in the third UNet call and the next ones, so that steps are done before: the stage goes on from them."""
    run, calls = guidance.Denoiser.passes, []

    def scarce(self: Any, *given: Any) -> tuple[torch.Tensor, ...]:
        calls.append(self)
        if 3 <= len(calls) < 3 + failures:
            raise torch.OutOfMemoryError("no memory left")
        return run(self, *given)

    monkeypatch.setattr(guidance.Denoiser, "passes", scarce)
    result = render(tmp_path)
    assert np.abs(levels(result) - levels(plain)).max() <= 1
    wanted = tuple(saving.name for saving in SAVINGS if "unet" in saving.parts)[:failures]
    assert savings_of(tmp_path, result)["base_denoise 0"] == wanted
    steps, whole_steps = 4 * 2, 2  # split guidance makes two calls a step; two steps went before
    assert len([c for c in calls if c.compute.split_guidance]) >= failures - 1
    assert len(calls) - failures < whole_steps * 4 + steps * 8, "no step was done twice"


@pytest.mark.thorough
def test_at_the_end_of_the_savings_the_stage_fails_and_what_is_done_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Decode.run

    def scarce(*given: Any) -> Any:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(Decode, "run", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        render(tmp_path)
    home = Home(tmp_path)
    done = [c.label for c in prepare(make_spec(SMALL), home).plan.calls if home.store.find(c.key) is not None]
    assert done == ["conditioning 0", "base_denoise 0"]
    monkeypatch.setattr(Decode, "run", decode)
    render(tmp_path)


@pytest.mark.thorough
def test_a_decoding_out_of_memory_sends_the_unet_away(
    plain: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, failed, asked = Decode.run, [], []
    make_room = Models.make_room

    def scarce(self: Any, parents: Any, models: Any, options: RunOptions, resume: Any = None) -> Any:
        if not options.offload:
            failed.append(self)
            raise torch.OutOfMemoryError("no memory left")
        return decode(self, parents, models, options, resume)

    def asking(self: Models, parts: tuple[str, ...], offload: bool, by_blocks: bool) -> None:
        asked.append((parts, offload))
        make_room(self, parts, offload, by_blocks)

    monkeypatch.setattr(Decode, "run", scarce)
    monkeypatch.setattr(Models, "make_room", asking)
    result = render(tmp_path)
    assert result.pixels_sha256 == plain.pixels_sha256
    taken = ("the VAE by exact tiles within 6 GiB", "the UNet off the device")
    assert savings_of(tmp_path, result)["decode 0"] == taken
    assert asked[2:5] == [(("vae",), False), (("vae",), False), (("vae",), True)]
    assert len(failed) == 4


class Part:
    """Stands for a network: remembers where it was sent."""

    def __init__(self) -> None:
        self.place = "card"

    def to(self, device: Any) -> None:
        self.place = "host" if str(device) == "cpu" else "card"


@pytest.mark.parametrize(
    ("part", "offload", "unet", "vae"),
    [
        ("unet", False, "card", "host"),
        ("unet", True, "card", "host"),
        ("vae", False, "card", "card"),
        ("vae", True, "host", "card"),
        ("text", False, "card", "host"),
        ("text", True, "host", "host"),
        ("", True, "card", "card"),
    ],
)
def test_what_does_not_work_leaves_the_card(tmp_path: Path, part: str, offload: bool, unet: str, vae: str) -> None:
    models = Models(describe(ModelSpec(name="shapes"), tmp_path), "float32", torch.device("cuda"))
    models.make_room(part, offload)
    assert not {"unet", "vae"} & set(vars(models)), "nothing is loaded for it"
    vars(models).update(unet=Part(), vae=Part())
    models.make_room(part, offload)
    places = [vars(models)[name].place for name in ("unet", "vae")]
    assert places == [unet, vae]


def test_on_a_cpu_nothing_moves(tmp_path: Path) -> None:
    models = Models(describe(ModelSpec(name="shapes"), tmp_path), "float32", CPU)
    vars(models).update(unet=Part(), vae=Part())
    models.make_room("vae", True)
    assert vars(models)["unet"].place == "card"


def test_the_savings_are_the_runners() -> None:
    assert runner.next_saving is next_saving


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library keeps freed memory in its own way")
def test_what_was_freed_goes_back_to_the_system() -> None:
    def in_memory() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    return_freed()  # what other tests freed, so that the blocks below need new pages
    before = in_memory()
    blocks = [bytearray(2048) for _ in range(100_000)]
    last = blocks.pop()  # holds the heap's end in its place
    blocks.clear()
    held = in_memory()
    return_freed()
    assert held - before > 100e6 > in_memory() - before
    assert last


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library keeps freed memory in its own way")
@pytest.mark.thorough
def test_a_worker_of_dask_keeps_freed_memory_as_any_process_does() -> None:
    """Pages that 50 tensors of 4 MiB, made one after another, are faulted in on; 1,024 make up one of them."""
    script = """
import resource, torch
from stages.planner.budget import keep_freed
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.zeros(2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
as_started = faults()
keep_freed()
faults()
print(as_started, faults())
"""
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536"}
    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    as_started, kept = map(int, said.stdout.split())
    assert as_started > 10_000 > 1_000 > kept
