"""Wan folders: what they say of themselves, whole renders against the stock pipeline, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from flows.cli.terminal import Terminal
from freescale import normal
from freescale.backbones import Rows, backbone_of, dtype_of
from freescale.scale_fusion import Fusion
from freescale.unet_patches import patched
from freescale.video_attention import VideoFusion
from stages.errors import SpecError
from stages.models.load import Models, describe
from stages.models.networks import empty_network
from stages.models.wan_pair import WanTransformerPair
from stages.plan import make_plan
from stages.planner.configurations import text_weights
from stages.planner.networks import block_weights, part_weights
from stages.planner.skeleton import weight_bytes
from stages.runner import Interrupted
from stages.spec import ModelSpec
from tests.flow_folders import PROMPT, changed, check_folded, spec_of
from tests.homes import session_in
from tests.stages.test_qwen_folder import check_seconds
from tests.toys import is_same, new_wan, points, snapshot
from tests.wan_folder import FRAMES, TOKENS, wan_folder

if TYPE_CHECKING:
    from pathlib import Path

    from flows.rendering.stop import StopEvent

SIZE = (80, 64)  # width, height
CASCADE = (SIZE, (160, 128))
METHODS = "direct, freescale, cinescale, cinescale_2026"  # for videos of transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wan_folder(tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the scheduler that published folders name."""
    return wan_folder(tmp_path_factory.mktemp("published") / "model", unipc=True)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published folders of Wan 2.2 5B are."""
    return wan_folder(tmp_path_factory.mktemp("dense") / "model", unipc=True, dense=True)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published folders of Wan 2.2 are."""
    return wan_folder(tmp_path_factory.mktemp("experts") / "model", unipc=True, experts=True)


def info_of(folder: Path, tmp_path: Path) -> Any:
    return describe(ModelSpec(name=str(folder)), tmp_path)


class Stopper(Terminal):
    """Asks for a stop after so many steps of a render, of whatever stages they are."""

    def __init__(self, steps: int) -> None:
        super().__init__(quiet=True)
        self.left = steps
        self.stop: StopEvent | None = None

    def stepped(self, call: Any, step: int) -> None:
        self.left -= 1
        if self.left == 0 and self.stop is not None:
            self.stop.set()


def rendered(spec: Any, home: Path, stopper: Stopper | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """What a render leaves, by the stage; of the last level where there are several."""
    from flows.home import Home
    from flows.rendering.job import prepare

    job = prepare(spec, Home(home))
    session = session_in(home, stopper, checkpoint_every=0)
    if stopper is not None:
        stopper.stop = session.stop
    session.render(job)
    return {call.stage.name: Home(home).store.read(call.key) for call in job.plan.calls}


def test_a_folder_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    info = info_of(folder, tmp_path)
    assert (info.backbone, info.native, info.steps, info.grain, info.cell) == ("flow", (64, 80), 4, 16, 8)
    assert (info.frames, info.latent_frames, info.fps, info.time_cell) == (FRAMES, 2, 16.0, 4)
    assert (info.text_tokens, info.guidance_scale, info.solver) == (TOKENS, 5.0, "euler")
    encoder = Models(info, "float32", torch.device("cpu")).text_encoder("umt5")
    assert text_weights(info, "float32") == sum(each.nbytes for each in encoder.parameters())


@pytest.mark.parametrize(
    ("kind", "guidance"),
    points(("published", "experts", "dense", "folder"), (3.0, 0.0), kept=lambda *case: case == ("published", 3.0)),
)
def test_a_video_is_that_of_the_stock_pipeline(
    kind: str,
    guidance: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """The text, the schedule, all steps, guidance, and the VAE frame by frame; an odd grid of tokens."""
    from diffusers import WanPipeline, WanTransformer3DModel

    folder, negative = request.getfixturevalue(kind), "green box"
    fields = {"method": {"name": "direct"}, "guidance_scale": guidance, "negative_prompt": negative}
    size, cell = ((96, 64), 16) if kind == "dense" else (SIZE, 8)
    spec = spec_of(folder, size, **fields)
    found = rendered(spec, tmp_path / "home")
    check_seconds(spec, tmp_path)
    monkeypatch.setattr(WanTransformer3DModel, "_keep_in_fp32_modules", None)  # which asks for accelerate
    pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    common: dict[str, Any] = {"height": size[1], "width": size[0], "num_frames": FRAMES, "num_inference_steps": 4}
    common |= {"guidance_scale": guidance, "negative_prompt": negative, "max_sequence_length": TOKENS}
    common |= {"latents": normal((1, 4, 2, size[1] // cell, size[0] // cell), 3, "init_noise", 0)}
    expected = pipeline(PROMPT, output_type="latent", **common).frames
    torch.testing.assert_close(found["base_denoise"]["latents"], expected, atol=1e-5, rtol=1e-5)
    frames = pipeline(PROMPT, output_type="pt", **common).frames[0]
    video = found["decode"]["image"][0].transpose(0, 1).float()
    assert video.shape == (FRAMES, 3, size[1], size[0])
    torch.testing.assert_close((video / 2 + 0.5).clamp(0, 1), frames, atol=2e-3, rtol=0)


@pytest.mark.thorough
@pytest.mark.parametrize("upsample", ["latent", "rgb"])
def test_a_cascade_goes_on_where_it_was_stopped(folder: Path, upsample: str, tmp_path: Path) -> None:
    """Stopped after one step, then after two more, and so on, in the end it has the bits of one that was not."""
    method = {"name": "freescale", "upsample": upsample, "restart": 0.5, "positions": "yarn"}
    spec = spec_of(folder, (160, 128), cascade=CASCADE, method=method)
    whole = rendered(spec, tmp_path / "whole")
    for step in range(1, 12):
        try:
            again = rendered(spec, tmp_path / "cut", Stopper(step))
            break
        except Interrupted:
            continue
    for name, tensors in whole.items():
        for key, tensor in tensors.items():
            assert torch.equal(again[name][key], tensor), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_parts_stay_in_float32_as_in_the_stock_pipeline(folder: Path, dtype: str, tmp_path: Path) -> None:
    network: Any = Models(info_of(folder, tmp_path), dtype, torch.device("cpu")).unet
    assert dtype_of(network) == torch.bfloat16
    assert network.blocks[0].ffn.net[2].weight.dtype == torch.bfloat16
    kept = network.condition_embedder.time_embedder.linear_1, network.blocks[0].norm2
    assert {each.weight.dtype for each in kept} == {network.scale_shift_table.dtype} == {torch.float32}
    assert network.rope.freqs_cos.dtype == torch.float32
    rows = Rows(normal((1, 5, 24), 1).bfloat16())
    found = backbone_of(network).run(normal((1, 4, 1, 8, 8), 0), 999.0, rows)
    assert found.isfinite().all()
    assert weight_bytes(network) == part_weights(info_of(folder, tmp_path), "unet", dtype)


@pytest.mark.thorough
def test_freescale_at_the_training_size_is_plain_sampling(folder: Path, tmp_path: Path) -> None:
    names = ("direct", "freescale")
    both = [rendered(spec_of(folder, SIZE, method={"name": name}), tmp_path / "home") for name in names]
    assert torch.equal(both[0]["base_denoise"]["latents"], both[1]["base_denoise"]["latents"])


def test_wan_2_2_is_two_transformers_as_one_network(experts: Path, folder: Path, tmp_path: Path) -> None:
    info = info_of(experts, tmp_path)
    assert (info.unet_class, info.configs["unet"]["boundary_ratio"]) == ("WanTransformerPair", 0.8)
    assert "unet_2" not in info.configs
    one, two = (part_weights(info_of(each, tmp_path), "unet", "float32") for each in (folder, experts))
    assert two == 2 * one
    kept = [block_weights(info_of(each, tmp_path), "float32") for each in (folder, experts)]
    assert two - kept[1] == 3 * (one - kept[0]), "of two blocks, or of four, one is left"
    again = changed(experts, tmp_path / "other", "model_index.json", boundary_ratio=0.9)
    assert info_of(again, tmp_path).fingerprints["unet"] != info.fingerprints["unet"]
    for file, changes, message in (
        (
            "model_index.json",
            {"boundary_ratio": None},
            "boundary_ratio = None with two of transformer and transformer_2",
        ),
        ("transformer_2/config.json", {"ffn_dim": 48}, "ffn_dim = 40; its transformer_2 gives 48"),
    ):
        with pytest.raises(SpecError, match=message):
            info_of(changed(experts, tmp_path / file.replace("/", "-"), file, **changes), tmp_path)


def test_positions_and_windows_reach_both_transformers() -> None:
    network: Any = WanTransformerPair(new_wan(), new_wan(), 0.8)
    backbone = backbone_of(network)
    fusion = Fusion(scale=(2.0, 2.0), taps=(1.0,), channel_blur=False)
    before = snapshot(network)
    with patched(network, [backbone.fused(fusion, (16, 20)), backbone.positioned("pi", (16, 20), (8, 10))]):
        for each in (network.transformer, network.transformer_2):
            assert [type(block.attn1.processor) for block in each.blocks] == [VideoFusion] * 2
            assert len(each.rope._forward_hooks) == 1
    assert is_same(before, snapshot(network))


def test_a_folded_trace_counts_every_block(folder: Path, tmp_path: Path) -> None:
    check_folded(spec_of(folder, (160, 128), cascade=CASCADE), info_of(folder, tmp_path))


@pytest.mark.thorough
@pytest.mark.parametrize(("heads", "layers", "width", "billions"), [(12, 30, 8960, 1.42), (40, 40, 13824, 14.29)])
def test_the_published_configurations_have_the_published_sizes(
    heads: int, layers: int, width: int, billions: float
) -> None:
    config = {"num_attention_heads": heads, "num_layers": layers, "ffn_dim": width}
    network = empty_network("WanTransformer3DModel", config)
    assert round(sum(each.numel() for each in network.parameters()) / 1e9, 2) == billions


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("transformer/config.json", {"text_dim": 32}, "text_dim = 32; its UMT5 gives 24"),
        ("transformer/config.json", {"in_channels": 36}, "in_channels = 36; its VAE gives 4"),
        ("transformer/config.json", {"image_dim": 1280}, "image_dim = 1280; for WanTransformer3DModel it must be null"),
        ("vae/config.json", {"patch_size": 4}, "patch_size = 4; for AutoencoderKLWan it must be null, 2"),
        ("text_encoder/config.json", {"model_type": "t5"}, 'model_type = "t5"; for UMT5EncoderModel it must be'),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "DDIMScheduler; FlowMatch.* or UniPC"),
        ("model_index.json", {"boundary_ratio": 0.9}, "boundary_ratio = 0.9 with one of transformer and transformer_2"),
        ("model_index.json", {"_class_name": "WanImageToVideoPipeline"}, "WanImageToVideoPipeline; what can be .*Wan"),
        ("model_index.json", {"_class_name": "WanVACEPipeline"}, "is a WanVACEPipeline; what can be rendered is"),
        ("model_index.json", {"_class_name": "WanAnimatePipeline"}, "is a WanAnimatePipeline; what can be rendered"),
        ("freescale.json", {"frames": 6}, "gives 6 frames; 1 and every 4 more work, the nearest 5 and 9"),
        ("freescale.json", {"motion_fps": 8}, "gives motion_fps, which is for UNets"),
    ],
    ids=str,
)
def test_what_is_not_text_to_video_is_refused(
    folder: Path, file: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        info_of(changed(folder, tmp_path / "model", file, **changes), tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frames": 80}, "frames: with .*, 1 and every 4 more work, the nearest 77 and 81; 80 is between them"),
        ({"width": 72}, "width: 72 is not a multiple of 16; the nearest that work are 64 and 80"),
        ({"method": {"name": "hiflow"}}, f"method: 'hiflow' makes images only; {METHODS} make videos with .*"),
        ({"method": {"name": "demofusion"}}, f"method: 'demofusion' is for UNets, and .*; {METHODS} work with it"),
        ({"image": "a.png"}, "image: .* makes videos, and none can start from a picture"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused(folder: Path, fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    size = (int(fields.get("width", SIZE[0])), SIZE[1])
    with pytest.raises(SpecError, match=message):
        make_plan(spec_of(folder, size, **{n: v for n, v in fields.items() if n != "width"}), info_of(folder, tmp_path))
