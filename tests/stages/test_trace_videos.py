"""What the planner says of videos: against real tensors, folded against whole, and what a budget makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from benchmarks.video_memory import largest
from benchmarks.videocrafter_folder import write_videocrafter2
from flows.home import Home
from flows.rendering.job import prepare
from flows.rendering.throughput import Throughput
from stages.denoise import DenoiseStage
from stages.errors import SpecError
from stages.models.fields import read_json
from stages.models.folder import EMBEDDED_MODELS
from stages.models.load import EMBEDDED, describe
from stages.models.networks import empty_part
from stages.models.videocrafter import VideoCrafterUNet
from stages.plan import make_plan
from stages.planner.amounts import show_bytes
from stages.planner.budget import check, fit
from stages.planner.estimate import estimate, rough_bytes
from stages.planner.networks import run_step, trace_step
from stages.planner.skeleton import CallsFolded, Skeleton, skeleton
from stages.planner.trace import Trace
from stages.spec import ModelSpec, RunOptions, make_spec
from tests.homes import session_in

if TYPE_CHECKING:
    from pathlib import Path

    from stages.call import Call
    from stages.plan import Plan

UNET = {  # of two levels, with every kind of layer that `shapes-motion` has
    "block_out_channels": [48, 96],
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    "layers_per_block": 1,
}
UNET_2D = {
    "block_out_channels": [48, 96],
    "attention_head_dim": [3, 6],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
SMALL: dict[str, Any] = {
    "prompt": "a green disc moving up over snow",
    "width": 192,
    "height": 120,
    "frames": 4,
    "steps": 4,
}
META, CPU = torch.device("meta"), torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model like `shapes-motion` with a smaller UNet of made-up weights."""
    whole, folder = EMBEDDED_MODELS["shapes-motion"], tmp_path_factory.mktemp("model") / "small-motion"
    folder.mkdir()
    for part in whole.iterdir():
        if part.name != "unet":
            (folder / part.name).symlink_to(part)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        VideoCrafterUNet.from_config(read_json(whole / "unet" / "config.json") | UNET).save_pretrained(folder / "unet")
    return str(folder)


def plan_of(home: Path, model: str, method: str = "freescale", **fields: Any) -> Plan:
    spec = make_spec(SMALL | {"model": {"name": model}, "method": {"name": method}} | fields)
    return make_plan(spec, describe(spec.model, home))


def denoising(plan: Plan) -> Call:
    """The last stage of the UNet."""
    return [call for call in plan.calls if isinstance(call.stage, DenoiseStage)][-1]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "frames"),
    [("freescale", 10), *(pytest.param(m, 4, marks=pytest.mark.thorough) for m in ("direct", "freescale"))],
)
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["small", "whole"])
def test_a_videos_step_without_numbers_as_with_them(
    whole: bool, method: str, frames: int, model: str, tmp_path: Path
) -> None:
    """The peak of the same step on real tensors; ten frames are more than the model was trained for."""
    plan = plan_of(tmp_path, "shapes-motion" if whole else model, method, frames=frames)
    stage, video = denoising(plan).stage, (frames, plan.info.frames or 0)
    assert isinstance(stage, DenoiseStage)
    unet = empty_part(read_json(plan.info.folder / "unet" / "config.json"), torch.float32).to_empty(device="cpu")
    for tensor in (*unet.parameters(), *unet.buffers()):
        tensor.fill_(0.01)
    with Trace("cpu") as trace, torch.no_grad():
        trace.hold((*unet.parameters(), *unet.buffers()))
        before = trace.live
        run_step(stage, unet, RunOptions(), stage.start, CPU, video)
    planned = skeleton(plan.info, "unet", "float32")
    predicted = trace_step(stage, planned, RunOptions(), stage.start, video).activations
    assert predicted == pytest.approx(trace.peak - before, rel=0.06)
    assert planned.weights == sum(p.nbytes for p in (*unet.parameters(), *unet.buffers()))


@pytest.mark.thorough
def test_the_fold_counts_what_it_leaves_out_of_a_video(model: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, model)
    stage, config = denoising(plan).stage, read_json(plan.info.folder / "unet" / "config.json")
    assert isinstance(stage, DenoiseStage)
    whole, folded = (
        trace_step(stage, Skeleton(empty_part(config, torch.float32), folded=f), RunOptions(), stage.start, (4, 8))
        for f in (False, True)
    )
    assert folded.flops == whole.flops
    assert folded.activations == pytest.approx(whole.activations, rel=0.03)


@pytest.mark.thorough
def test_calls_view_by_view_are_run_once_and_counted_all(tmp_path: Path) -> None:
    spec = make_spec({"prompt": "x", "width": 320, "height": 256, "steps": 4, "method": {"name": "demofusion"}})
    stage = denoising(make_plan(spec, describe(spec.model, tmp_path))).stage
    assert isinstance(stage, DenoiseStage)
    found = []
    for is_folded in (True, False):
        unet = Skeleton(empty_part(read_json(EMBEDDED / "unet" / "config.json") | UNET_2D, torch.float32))
        module: Any = unet.module
        runs: list[int] = []
        module.conv_in.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        network: Any = CallsFolded(unet) if is_folded else module
        with Trace(folds=is_folded) as trace, torch.no_grad():
            unet.trace = trace
            trace.hold(module.parameters())
            before = trace.live
            run_step(stage, network, RunOptions(window_rows=4), 1, META)
        found.append((trace.flops, trace.peak - before, len(runs)))
    assert found[0][:2] == found[1][:2]
    assert (found[0][2], found[1][2]) == (3, 7), "once for each shape"


@pytest.mark.thorough
def test_a_video_that_cannot_fit_is_refused_with_what_would_do(model: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, model)
    call = denoising(plan)
    plain = estimate(call, plan.info, RunOptions(), "cuda")
    assert plain.memory < rough_bytes(call, plan.info)
    less = fit(call, plan.info, RunOptions(), plain.memory - 1, "cuda")
    assert (less.savings, less.fits) == (("split guidance",), True)
    least = fit(call, plan.info, RunOptions(), 1, "cuda").estimate.memory
    assert fit(call, plan.info, RunOptions(), least, "cuda").fits
    calls = [call, *(c for c in plan.calls if c.stage.part != "unet")]
    with pytest.raises(SpecError, match=r"memory: 1 MiB is too little for .* at 192x120") as refused:
        check(calls, plan.info, RunOptions(memory=1 << 20), CPU)
    named = str(refused.value).rpartition(" ")[2]
    check(calls, plan.info, RunOptions(memory=named), CPU)  # type: ignore[arg-type]


@pytest.mark.thorough
def test_a_video_renders_under_a_budget_and_its_seconds_are_learnt(model: str, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, model, "direct", width=128, height=80, steps=2)
    call = denoising(plan)
    needs = [estimate(c, plan.info, RunOptions(split_guidance=True), "cpu").memory for c in plan.calls]
    home = Home(tmp_path)
    session_in(tmp_path, memory=max(needs)).render(prepare(plan.spec, home))
    made = home.store.find(call.key)
    assert made is not None
    assert made.savings == ("split guidance",)
    pace = Throughput(home, plan.info, "cpu", [made])
    found = pace.seconds(call, estimate(call, plan.info, RunOptions(), "cpu"))
    assert found is not None
    assert (found.basis, found.seconds) == ("measured", pytest.approx(made.seconds, rel=1e-6))


@pytest.mark.parametrize("is_split", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_videocrafter2_at_640x1024(is_split: bool, tmp_path: Path) -> None:
    """1,413.5 million parameters; a step's activations were counted by another trace before: 6.5 GiB, 3.2 split."""
    folder = write_videocrafter2(tmp_path)
    info = describe(ModelSpec(name=str(folder)), tmp_path, has_weights=False)
    assert (info.native, info.frames, info.dynamic_scale) == ((320, 512), 16, (0.7, 400))
    found = largest(info, "direct", 16, RunOptions(split_guidance=is_split))
    assert show_bytes(found.weights) == "2.6 GiB"
    assert found.activations / 2**30 == pytest.approx(3.2 if is_split else 6.5, abs=0.1)
