"""Videos, (B, C, F, h, w): the sampler of VideoCrafter2, its fps, and what every method promises, on four UNets."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from freescale.cascade import Level
from freescale.compute import Compute
from freescale.dilation import dilated_layers
from freescale.enlarge import enlarge_latents
from freescale.forward_process import normal, renoise
from freescale.freeu import touched_resnets
from freescale.guidance import Denoiser
from freescale.methods import METHODS, DemoFusion, Direct, FreeScale, Method, ScaleCrafter
from freescale.methods.scalecrafter.redilation import factors_under
from freescale.methods.scalecrafter.settings import setting_for
from freescale.moment import Moment
from freescale.scale_fusion import scale_fusion
from freescale.schedule import Schedule, make_schedule
from freescale.unet_patches import patched, spatial_self_attentions
from freescale.view_prediction import predict_views, window_views
from tests.oracles import scale_fusion as fusion_oracle
from tests.oracles import videos as oracle
from tests.toys import ON_UNETS, VIDEO_KINDS, goes_on, is_same, points, run_from, snapshot, video_text, video_unet

if TYPE_CHECKING:
    from freescale.views import Views

METHODS_FOR_VIDEOS = {name: kind for name, kind in ON_UNETS.items() if kind.video}
BASE, TARGET, FRAMES = (64, 80), (120, 160), 2
DYNAMIC = {"dynamic_scale": (0.7, 400)}


@pytest.fixture(scope="module")
def vc2_unet() -> Any:
    """VideoCrafter2 at full size, on the meta device: names and shapes only."""
    from stages.models.videocrafter import VideoCrafterUNet

    with torch.device("meta"):
        return VideoCrafterUNet()


def for_videos(name: str) -> Method:
    """The method as a video model has it: no FreeU."""
    method = METHODS[name]()
    has_freeu = "freeu" in {f.name for f in dataclasses.fields(method)}
    return dataclasses.replace(method, **{"freeu": None} if has_freeu else {})


def denoiser_of(kind: str, **options: Any) -> Denoiser:
    return Denoiser(video_unet(kind), video_text(kind), 4.0, **options)


def level_at(index: int, size: tuple[int, int] = TARGET, frames: int = FRAMES) -> Level:
    if index == 0:
        return Level(0, BASE, BASE)
    shape = (1, 4, frames, size[0] // 8, size[1] // 8)
    anchor = normal((1, 4, frames, 8, 10), 3, "anchor")
    return Level(index, size, BASE, reference=normal(shape, 3), noise=normal(shape, 4), anchor=anchor)


def render(denoiser: Any, method: Method, level: Level, schedule: Schedule) -> Tensor:
    """All steps of a level in one go."""
    return goes_on(denoiser, method, level, schedule, [], [FRAMES])[-1].latents


class TestDynamicScale:
    """VideoCrafter2's sampler, against values from its release and a slow one in its own coordinates."""

    def schedule(self, config: dict[str, Any], steps: int = 50, eta: float = 0.0) -> Schedule:
        return make_schedule(config | DYNAMIC, steps, "ddim", eta)

    def test_tables(self, scheduler_config: Any) -> None:
        bars, scales = oracle.tables()
        assert [scales[t] for t in (0, 1, 399, 999)] == pytest.approx([1.0, 0.9992481, 0.7, 0.7], abs=5e-8)
        known = {0: 0.9991500, 1: 0.9982960, 681: 0.0946368, 981: 0.0057755}
        assert [bars[t] for t in known] == pytest.approx(list(known.values()), abs=2e-7)
        schedule = self.schedule(scheduler_config)
        assert schedule.timesteps[:2] == (981.0, 961.0)
        assert schedule.timesteps[-1] == 1.0
        for t, sigma, scale in zip((*schedule.timesteps, 0), schedule.sigmas, schedule.scales, strict=True):
            bar = bars[int(t)]
            assert scale == pytest.approx(scales[int(t)], abs=1e-12)
            assert sigma == pytest.approx(math.sqrt((1 - bar) / bar) / scale, rel=1e-9)

    def test_gain_without_noise(self, scheduler_config: Any) -> None:
        """An all-ones start under eps = 0 ends at 18.78982."""
        schedule = self.schedule(scheduler_config)
        latents = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64) * schedule.init_sigma
        assert schedule.model_input(latents, 0).item() == pytest.approx(1.0, abs=1e-12)
        for i in range(50):
            latents, _ = schedule.advance(torch.zeros_like(latents), i, latents)
        assert latents.item() == pytest.approx(18.78982, abs=5e-6)

    @pytest.mark.parametrize("eta", [0.0, 1.0])
    @pytest.mark.parametrize("steps", [50, 25])
    def test_against_ddim(self, steps: int, eta: float, scheduler_config: Any) -> None:
        schedule = self.schedule(scheduler_config, steps, eta)
        start = normal((2, 4, 3, 4, 5), 1).double()
        noises = [normal(start.shape, 2, i).double() for i in range(steps)]

        def model(x: Tensor, t: int) -> Tensor:
            return torch.tanh(x.roll(1, -1) * 0.7 + 0.1 * t / 1000) * 0.9

        latents = start * schedule.init_sigma
        for i in range(steps):
            noise_pred = model(schedule.model_input(latents, i), int(schedule.timesteps[i]))
            latents, _ = schedule.advance(noise_pred, i, latents, (), noises[i])
        expected = oracle.ddim(start, model, steps, eta, noises)
        assert ((latents - expected).norm() / expected.norm()).item() < 1e-10
        plain = make_schedule(scheduler_config, steps, "ddim", eta)
        assert plain.scales == ()

    def test_restart_and_the_exact_noise(self, scheduler_config: Any) -> None:
        """At every step: noised as in training, and its noise leads back to x0."""
        schedule = self.schedule(scheduler_config)
        x0, noise = normal((1, 4, 2, 3, 3), 1).double(), normal((1, 4, 2, 3, 3), 2).double()
        for i, t in enumerate(schedule.timesteps):
            latents = renoise(x0, noise, schedule.sigmas[i])
            assert (schedule.model_input(latents, i) - oracle.noised(x0, noise, int(t))).abs().max() < 1e-9
            assert (latents - schedule.sigmas[i] * noise - x0).abs().max() < 1e-12

    @pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "euler_ancestral"])
    def test_every_solver_finds_a_known_picture(self, solver: Any, scheduler_config: Any) -> None:
        schedule = make_schedule(scheduler_config | DYNAMIC, 20, solver)
        x0 = normal((1, 4, 2, 3, 3), 1).double()
        latents, history = normal(x0.shape, 2).double() * schedule.init_sigma, ()
        for i in range(20):
            noise_pred = (latents - x0) / schedule.sigmas[i]
            fresh = normal(x0.shape, 3, i).double()
            latents, history = schedule.advance(noise_pred, i, latents, history, fresh)
        assert (latents - x0).abs().max() < 1e-9

    def test_what_it_does_not_know(self, scheduler_config: Any) -> None:
        with pytest.raises(ValueError, match="dynamic scale"):
            make_schedule(scheduler_config | DYNAMIC | {"prediction_type": "v_prediction"}, 10)


class TestFps:
    """The branch that VideoCrafter2's UNet has more than diffusers'."""

    def predict(self, fps: Any, batch: int = 1, **options: Any) -> Tensor:
        text = dataclasses.replace(video_text("videocrafter2"), fps=fps)
        denoiser = Denoiser(video_unet("videocrafter2"), text, 4.0, **options)
        latents = normal((1, 4, FRAMES, 8, 10), 1).repeat(batch, 1, 1, 1, 1)
        with torch.no_grad():
            return denoiser(latents, 2, make_schedule({}, 4))

    def test_is_live(self) -> None:
        plain, other = self.predict(torch.tensor([8.0])), self.predict(torch.tensor([9.0]))
        assert torch.equal(plain, self.predict(torch.tensor([8.0])))
        assert (plain - other).abs().max() > 1e-4

    def test_is_of_a_row(self) -> None:
        both = self.predict(torch.tensor([8.0, 24.0]), 2)
        for row, fps in zip(both, (8.0, 24.0), strict=True):
            assert (row - self.predict(torch.tensor([fps]))[0]).abs().max() < 1e-4

    def test_of_guidance_in_two_passes(self) -> None:
        fps = torch.tensor([28.0])
        assert (self.predict(fps) - self.predict(fps, compute=Compute(split_guidance=True))).abs().max() < 1e-4

    def test_is_asked_for(self) -> None:
        with pytest.raises(ValueError, match="timestep_cond is None"):
            self.predict(None)

    def test_follows_views(self) -> None:
        text = dataclasses.replace(video_text("videocrafter2"), fps=torch.tensor([8.0, 24.0]))
        views = text.for_views(torch.zeros(3, 2, dtype=torch.int64), 2)
        assert views.fps is not None
        assert views.fps.tolist() == [8.0, 24.0] * 3


@pytest.mark.thorough
def test_scale_fusion_frame_by_frame(scheduler_config: Any) -> None:
    """Every spatial self-attention of the UNet, in float64, against the slow definition, frame by frame."""
    import copy

    unet = copy.deepcopy(video_unet("videocrafter2")).double()
    level, schedule = level_at(1, (128, 160), 2), make_schedule(scheduler_config | DYNAMIC, 4)
    fusion = FreeScale().fusion_at(Moment(level, 2, schedule, 7))
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    grids: dict[str, tuple[int, int]] = {}

    def record(name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Tensor) -> None:
            seen[name] = args[0], output

        return hook

    def grid_of(name: str) -> Any:
        def hook(_: nn.Module, args: Any) -> None:
            grids[name] = tuple(args[0].shape[-2:])

        return hook

    spatial = dict(spatial_self_attentions(unet))
    for name, module in spatial.items():
        module.register_forward_hook(record(name))
        unet.get_submodule(name.split(".transformer_blocks")[0]).register_forward_pre_hook(grid_of(name))
    text = video_text("videocrafter2")
    latents = normal((1, 4, 2, 16, 20), 1).double()
    with torch.no_grad(), patched(unet, [scale_fusion(fusion)]):
        unet(latents, 600.0, text.prompt_embeds.double(), timestep_cond=torch.tensor([28.0]))
    assert len(seen) == len(spatial) == 16
    chosen = ["down_blocks.2.attentions.0", "mid_block.attentions.0", "up_blocks.2.attentions.2"]
    for name in (f"{transformer}.transformer_blocks.0.attn1" for transformer in chosen):
        tokens, output = seen[name]
        assert len(tokens) == 2  # frames
        windows = fusion.windows(name, grids[name])
        for frame in range(2):
            x = tokens[frame].view(*grids[name], -1)
            with torch.no_grad():
                expected = fusion_oracle.fuse(spatial[name], x, windows.window, list(windows.origins), kernel=3)
            assert (output[frame].view_as(expected) - expected).abs().max() < 1e-10, name


PAIRS = points(
    METHODS_FOR_VIDEOS,
    VIDEO_KINDS,
    kept=lambda name, kind: (name, kind) in (("freescale", "videocrafter2"), ("direct", "animatediff-sdxl")),
)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
class TestConformance:
    """What a method promises on images it promises on videos.

    By default two methods, each on one kind of model.
    """

    def test_scale_one_is_plain(self, name: str, kind: str, scheduler_config: Any) -> None:
        denoiser, schedule = denoiser_of(kind), make_schedule(scheduler_config, 2, "ddim")
        direct = render(denoiser, Direct(), level_at(0), schedule)
        assert torch.equal(render(denoiser, for_videos(name), level_at(0), schedule), direct)

    def test_prediction_at_scale_one(self, name: str, kind: str, scheduler_config: Any) -> None:
        denoiser, method = denoiser_of(kind), for_videos(name)
        moment = Moment(level_at(1, BASE), 2, make_schedule(scheduler_config, 4), 7)
        latents = normal((1, 4, FRAMES, 8, 10), 1)
        with torch.no_grad(), patched(denoiser.network, method.patches(moment)):
            noise_pred = method.predict(denoiser, latents, moment)
        with torch.no_grad():
            assert torch.equal(noise_pred, denoiser(latents, 2, moment.schedule))

    def test_above_level_zero(self, name: str, kind: str, scheduler_config: Any) -> None:
        """Cut and gone on with: the same bits; guidance in two passes: the same step; and no trace is left."""
        denoiser, method, level = denoiser_of(kind), for_videos(name), level_at(1)
        dynamic = DYNAMIC if kind == "videocrafter2" else {}
        schedule = make_schedule(scheduler_config | dynamic, 3, "ddim", 0.5)
        before = snapshot(denoiser.network)
        (*_, before_last, last) = goes_on(denoiser, method, level, schedule, [2], [FRAMES])
        assert last.latents.shape == (1, 4, FRAMES, 15, 20)
        assert last.latents.isfinite().all()
        assert is_same(before, snapshot(denoiser.network))
        if name != "direct":
            frugal = denoiser_of(kind, compute=Compute(split_guidance=True))
            (split,) = run_from(frugal, method, level, schedule, before_last)
            assert (split.latents - last.latents).abs().max() < 2e-3 * last.latents.abs().max()


@pytest.mark.parametrize("name", sorted(set(ON_UNETS) - set(METHODS_FOR_VIDEOS)))
def test_methods_for_images_only(name: str, scheduler_config: Any) -> None:
    with pytest.raises(ValueError, match="allowed for video"):
        render(denoiser_of("modelscope"), METHODS[name](), level_at(0), make_schedule(scheduler_config, 2))


class TestLayers:
    """Which layers of the real UNet are dilated, and which are not."""

    def test_restrained_dilation(self, vc2_unet: Any) -> None:
        default, wide = dilated_layers(vc2_unet), dilated_layers(vc2_unet, "down_mid_wide")
        assert (len(default), len(wide)) == (14, 18)
        assert set(wide) - set(default) == {f"down_blocks.1.resnets.{p}.conv{n}" for p in (0, 1) for n in (1, 2)}
        assert {name.split(".")[0] for name in wide} == {"down_blocks", "mid_block"}
        everything = dilated_layers(vc2_unet, "all_up")
        assert len(everything) == 14 + 4 * 6 + 3
        over_time = [name for name, module in vc2_unet.named_modules() if isinstance(module, nn.Conv3d)]
        assert len(over_time) == 88
        assert not set(over_time) & set(everything)

    @pytest.mark.thorough
    @pytest.mark.parametrize("kind", ["videocrafter2", "animatediff"])
    def test_sizes_stay(self, kind: str, scheduler_config: Any) -> None:
        """Dilated, every listed convolution gives the size it gave."""
        unet, sizes = video_unet(kind), [dict[str, Any](), dict[str, Any]()]
        names, level = dilated_layers(unet, "down_mid_wide"), level_at(1)
        method = FreeScale(freeu=None, fusion=False, dilated_layers="down_mid_wide", restart=0.0)
        schedule = make_schedule(scheduler_config, 2)
        for seen, tried in zip(sizes, (Direct(), method), strict=True):
            handles = [
                unet.get_submodule(n).register_forward_hook(lambda m, a, o, n=n, s=seen: s.update({n: o.shape}))
                for n in names
            ]
            render(denoiser_of(kind), tried, level, schedule)
            for handle in handles:
                handle.remove()
        assert sizes[0] == sizes[1]
        assert set(sizes[0]) == set(names)

    def test_scalecrafter(self, vc2_unet: Any, scheduler_config: Any) -> None:
        """640x1024 from 320x512: the list of Stable Diffusion 2.1 at 1024, 39 convolutions, 20 of 50 steps."""
        setting = setting_for(vc2_unet, Level(0, (640, 1024), (320, 512)))
        factors = factors_under(vc2_unet, setting.layers)
        assert (len(factors), set(factors.values())) == (39, {2.0})
        assert any(name.startswith("up_blocks") for name in factors)
        schedule = make_schedule(scheduler_config, 50)
        assert schedule.step_at(setting.dilate_stop) == 20
        assert (setting.progressive, setting.ndcfg_layers) == (False, ())
        assert ScaleCrafter().disperse_stop == 0.0

    def test_spatial_attention_alone(self, vc2_unet: Any) -> None:
        names = [name for name, _ in spatial_self_attentions(vc2_unet)]
        assert len(names) == 16
        assert not any(mark in name for name in names for mark in ("temp_", "transformer_in", "motion"))

    def test_freeu_if_asked(self) -> None:
        assert len(touched_resnets(video_unet("videocrafter2"))) > 0
        schedule, level = make_schedule({}, 2), level_at(0)
        plain = render(denoiser_of("videocrafter2"), Direct(), level, schedule)
        asked = render(denoiser_of("videocrafter2"), Direct(freeu=(1.1, 1.2, 0.6, 0.4)), level, schedule)
        assert (plain - asked).abs().max() > 1e-4


def test_the_windows_of_the_real_size(vc2_unet: Any) -> None:
    """640x1024 from 320x512: windows of the training grid, half a window apart; 4 x 3 in the middle block."""
    level = Level(1, (640, 1024), (320, 512))
    fusion = FreeScale(jitter=False).fusion_at(Moment(level, 15, make_schedule({}, 50), 0))
    known = {(80, 128): (9, (40, 64)), (40, 64): (9, (20, 32)), (20, 32): (9, (10, 16)), (10, 16): (12, (5, 8))}
    for grid, (count, window) in known.items():
        windows = fusion.windows("layer", grid)
        assert (len(windows.origins), windows.window) == (count, window)
    assert FreeScale().kernel_at(level) == 3
    assert FreeScale().restart_step(make_schedule({"steps_offset": 1}, 50)) == 15


class FrameWise:
    """A stand-in denoiser that treats every frame by itself, and says how many rows it was given at once."""

    compute = Compute()

    def __init__(self) -> None:
        self.network, self.rows = nn.Module(), list[int]()

    def for_views(self, views: Views, batch: int) -> FrameWise:
        return self

    def __call__(self, latents: Tensor, i: int, schedule: Schedule) -> Tensor:
        self.rows.append(len(latents))
        return torch.sin(latents + latents.mean((-1, -2), keepdim=True))


class TestDemoFusion:
    """Windows and dilated views hold all frames."""

    def test_views_of_videos(self, scheduler_config: Any) -> None:
        """A video's prediction is that of its frames, one by one, where the model treats them so."""
        method, level = DemoFusion(), level_at(1)
        moment = Moment(level, 1, make_schedule(scheduler_config, 4), 7)
        latents = normal((1, 4, FRAMES, 15, 20), 1).double()
        views = window_views(method.windows(moment), 8)
        denoiser = FrameWise()
        video = predict_views(denoiser, latents, views, moment)  # type: ignore[arg-type]
        for f in range(FRAMES):
            frame = predict_views(FrameWise(), latents[:, :, f], views, moment)  # type: ignore[arg-type]
            assert (video[:, :, f] - frame).abs().max() < 1e-12
        assert sum(denoiser.rows) == len(views)
        assert max(denoiser.rows) == 16 // FRAMES

    def test_blur_keeps_the_videos_moments(self, scheduler_config: Any) -> None:
        method, level = DemoFusion(), level_at(1)
        moment = Moment(level, 0, make_schedule(scheduler_config, 4), 7)
        latents = normal((1, 4, FRAMES, 15, 20), 1)
        smooth = method.smooth(latents, moment)
        assert not torch.equal(smooth, latents)
        assert smooth.mean().item() == pytest.approx(latents.mean().item(), abs=1e-5)
        assert smooth.std().item() == pytest.approx(latents.std().item(), abs=1e-5)
        still = latents[:, :, :1].expand(-1, -1, FRAMES, -1, -1).contiguous()
        blurred = method.smooth(still, moment)
        assert (blurred - blurred[:, :, :1]).abs().max() < 1e-6  # nothing is blurred over time


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest", None])
def test_enlarged_frame_by_frame(mode: Any) -> None:
    latents = normal((2, 4, 3, 5, 6), 1)
    larger = enlarge_latents(latents, (10, 13), mode)
    assert larger.shape == (2, 4, 3, 10, 13)
    for f in range(3):
        assert torch.equal(larger[:, :, f], enlarge_latents(latents[:, :, f], (10, 13), mode))
    if mode == "bilinear":
        trilinear = torch.nn.functional.interpolate(latents, (3, 10, 13), mode="trilinear")
        assert (larger - trilinear).abs().max() < 1e-6
