"""What tests of the kernel share: toy UNets beside those of `conftest.py`, levels, whole loops, a perfect denoiser."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from freescale.cascade import Level
from freescale.compute import Compute
from freescale.forward_process import normal
from freescale.guidance import Conditioning
from freescale.methods import METHODS
from freescale.moment import Moment
from freescale.sampling import Step, denoise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from freescale.methods import Method
    from freescale.schedule import Schedule
    from freescale.views import Views


ON_UNETS = {name: kind for name, kind in METHODS.items() if "unet" in kind.backbones}


def points(*axes: Iterable[Any], kept: Callable[..., bool]) -> list[Any]:
    """Every combination for `pytest.mark.parametrize`; those that are not `kept` run with the thorough tests only."""
    cases = [(case, () if kept(*case) else pytest.mark.thorough) for case in product(*axes)]
    return [pytest.param(*case, marks=marks) for case, marks in cases]


BASE, TARGET = (64, 80), (136, 160)  # latents 8 x 10 and 17 x 20: odd sides on the way down


class ToyCodec:
    """A VAE that knows three of four channels: cells are squares of one colour."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3) / 2

    def encode(self, image: Tensor) -> Tensor:
        small = 2 * nn.functional.avg_pool2d(image, 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)


def level_at(index: int, size: tuple[int, int] = TARGET, frames: Sequence[int] = (), **changes: Any) -> Level:
    """A level with a made-up reference."""
    if index == 0:
        return Level(0, BASE, BASE)
    shape = (1, 4, *frames, size[0] // 8, size[1] // 8)
    options = {
        "reference": normal(shape, 3, "reference"),
        "noise": normal(shape, 3, "restart_noise", index),
        "anchor": normal((1, 4, *frames, BASE[0] // 8, BASE[1] // 8), 3, "anchor"),
    }
    if not frames:
        options |= {"codec": ToyCodec(), "picture": normal((1, 3, *size), 3, "picture") / 2}
    return Level(index, size, BASE, **options | changes)


def render(
    denoiser: Any, method: Method, level: Level, schedule: Schedule, cuts: Sequence[int] = (), seed: int = 7
) -> Tensor:
    """All steps of a level, the loop left and entered again at each of `cuts`."""
    start = 0 if level.is_base else method.restart_step(schedule)
    last = Step(start - 1, method.start((1, 4, *level.latent_hw), Moment(level, start, schedule, seed)))
    marks = [start, *cuts, len(schedule)]
    for first, stop in pairwise(marks):
        kept: dict[str, Any] = {"history": last.history, "extra": last.extra}
        for step in denoise(denoiser, last.latents, schedule, method, level, seed=seed, start=first, stop=stop, **kept):
            last = _copied(step)
    return last.latents


def run_from(denoiser: Any, method: Method, level: Level, schedule: Schedule, last: Step, seed: int = 7) -> list[Step]:
    """The steps of a level that come after the step `last`, in one go."""
    options: dict[str, Any] = {"seed": seed, "start": last.index + 1, "history": last.history, "extra": last.extra}
    steps = denoise(denoiser, last.latents.clone(), schedule, method, level, **options)
    return [_copied(step) for step in steps]


def _copied(step: Step) -> Step:
    """The step with tensors of its own, which nothing later can change."""
    extra = {name: tensor.clone() for name, tensor in step.extra.items()}
    return Step(step.index, step.latents.clone(), tuple(x.clone() for x in step.history), extra)


def goes_on(
    denoiser: Any, method: Method, level: Level, schedule: Schedule, cuts: Sequence[int] | None = None, frames: Any = ()
) -> list[Step]:
    """All steps of a level, once checked: left before each of `cuts` (default: each step) it ends with the same bits.

    What is entered again begins with what was kept there, so only the steps after a cut are computed twice.
    """
    first = 0 if level.is_base else method.restart_step(schedule)
    start = method.start((1, 4, *frames, *level.latent_hw), Moment(level, first, schedule, 7))
    whole = run_from(denoiser, method, level, schedule, Step(first - 1, start))
    assert [step.index for step in whole] == list(range(first, len(schedule)))
    for step in whole[:-1]:
        if cuts is None or step.index + 1 in cuts:
            again = run_from(denoiser, method, level, schedule, step)
            assert torch.equal(again[-1].latents, whole[-1].latents), f"cut before step {step.index + 1}"
    return whole


class UNet2DConditionModel(nn.Module):
    """A UNet by name, without layers."""


class Toward:
    """The perfect denoiser of one picture; its UNet is there to be patched and never runs."""

    compute = Compute()

    def __init__(self, truth: Tensor, unet: nn.Module | None = None) -> None:
        self.truth, self.network = truth, unet or UNet2DConditionModel()

    def for_views(self, views: Views, batch: int) -> Toward:
        return Toward(views.take(self.truth), self.network)

    def __call__(self, latents: Tensor, i: int, schedule: Schedule) -> Tensor:
        return (latents - self.truth) / schedule.sigmas[i]


@cache
def sd_unet(version: str) -> Any:
    """A UNet with the topology of Stable Diffusion 1.5 or 2.1 and random weights."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    own = {"1.5": {"attention_head_dim": 2}, "2.1": {"attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True}}
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        norm_num_groups=4,
        cross_attention_dim=32,
        **own[version],
    ).eval()


def sd_text() -> Conditioning:
    """Random text for `sd_unet`."""
    return Conditioning(normal((1, 5, 32), 1), normal((1, 5, 32), 2))


def new_flux(pooled: int, *, embedded: bool) -> Any:
    """A small `FluxTransformer2DModel` for latents of four channels and pooled rows of a width."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=pooled,
        guidance_embeds=embedded,
        axes_dims_rope=(4, 6, 6),
    )


def new_chroma() -> Any:
    """A small `ChromaTransformer2DModel` for latents of four channels."""
    from diffusers import ChromaTransformer2DModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of its own positions
        return ChromaTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=2,
        )


@cache
def flux_network(embedded: bool = False) -> Any:
    """A small FLUX with random weights; `embedded`: with guidance."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = new_flux(20, embedded=embedded)
    return network.eval().requires_grad_(False)


def new_zimage() -> Any:
    """A small `ZImageTransformer2DModel` for latents of four channels, with a table of 12 tokens a side."""
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 12, 12],
    )


@cache
def zimage_network() -> Any:
    """A small Z-Image with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(new_zimage())


def new_flux2(*, embedded: bool = False) -> Any:
    """A small `Flux2Transformer2DModel` for latents of four channels; `embedded`: with guidance inside."""
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=embedded,
    )


@cache
def flux2_network() -> Any:
    """A small FLUX.2 with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return new_flux2().eval().requires_grad_(False)


def new_flux2_vae() -> Any:
    """A small `AutoencoderKLFlux2` with statistics of every place in a patch."""
    from diffusers import AutoencoderKLFlux2

    widths = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    vae: Any = AutoencoderKLFlux2(**widths)
    vae.bn.running_mean.copy_(normal((16,), 1))
    vae.bn.running_var.copy_(normal((16,), 2).square() + 0.1)
    return vae.eval().requires_grad_(False)


def snapshot(unet: nn.Module) -> dict[str, dict[str, Any]]:
    """Every attribute of every module; dictionaries (hooks, children, parameters) by their content."""
    return {
        name: {key: dict(x) if isinstance(x, Mapping) else x for key, x in vars(module).items()}
        for name, module in unet.named_modules()
    }


def is_same(before: Any, after: Any) -> bool:
    """Whether two snapshots hold the same objects; plain tuples and numbers may be equal."""
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(is_same(before[key], after[key]) for key in before)
    return before is after or (isinstance(before, (tuple, int, str)) and bool(before == after))


VIDEO_KINDS = ("videocrafter2", "modelscope", "animatediff", "animatediff-sdxl")
VIDEO_SIZE, VIDEO_FRAMES = (64, 80), 4  # pixels and frames that the toy video models say they were trained at
_DOWN3, _UP3 = ("CrossAttnDownBlock{0}",) * 3 + ("DownBlock{0}",), ("UpBlock{0}",) + ("CrossAttnUpBlock{0}",) * 3


def lively(module: Any) -> Any:
    """The module with its zero tensors (temporal layers start as the identity) made small random ones."""
    stream = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0.0, 0.05, generator=stream)
    return module.eval().requires_grad_(False)


@cache
def video_unet(kind: str, layers: int = 2) -> Any:
    """A UNet for videos at toy width with random weights, all temporal layers alive; text 32 wide.

    `videocrafter2` has four levels and the fps branch, `modelscope` the same without it, `animatediff` the topology of
    Stable Diffusion 1.5 with motion modules for up to 8 frames, `animatediff-sdxl` that of SDXL (pooled text 16).
    `layers`: of a block; one takes half the time.
    """
    from diffusers import UNet3DConditionModel, UNetMotionModel

    from stages.models.videocrafter import VideoCrafterUNet

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"sample_size": (8, 10), "norm_num_groups": 4, "cross_attention_dim": 32}
    sizes |= {"layers_per_block": layers}
    if kind in ("videocrafter2", "modelscope"):
        unet3d: Any = VideoCrafterUNet if kind == "videocrafter2" else UNet3DConditionModel
        return lively(unet3d(block_out_channels=(8, 16, 32, 32), attention_head_dim=8, **sizes))
    sizes |= {"motion_num_attention_heads": 2, "motion_max_seq_length": 8}
    if kind == "animatediff":
        sd: dict[str, Any] = {"block_out_channels": (8, 16, 32, 32), "num_attention_heads": 2}
        blocks = {"down_block_types": tuple(b.format("Motion") for b in _DOWN3)}
        blocks |= {"up_block_types": tuple(b.format("Motion") for b in _UP3)}
        return lively(UNetMotionModel(**sizes, **sd, **blocks))
    return lively(
        UNetMotionModel(
            block_out_channels=(8, 16, 32),
            down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion"),
            up_block_types=("CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion", "UpBlockMotion"),
            num_attention_heads=2,
            use_motion_mid_block=False,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
            **sizes,
        )
    )


def video_text(kind: str) -> Conditioning:
    """Random text for `video_unet`, one row; with fps where the UNet has a branch for it, pooled rows for SDXL."""
    fps = torch.tensor([28.0]) if kind == "videocrafter2" else None
    added: list[dict[str, Tensor]] = [{}, {}]
    if kind == "animatediff-sdxl":
        ids = torch.tensor([[64.0, 80.0, 0.0, 0.0, 64.0, 80.0]])
        added = [{"text_embeds": normal((1, 16), n), "time_ids": ids} for n in (3, 4)]
    return Conditioning(normal((1, 5, 32), 1), normal((1, 5, 32), 2), *added, fps=fps)


def video_folder(root: Path, kind: str, layers: int = 2) -> Path:
    """Write a whole toy model of one of `VIDEO_KINDS` to `root / kind`: what a user would have on disk."""
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from stages.models.folder import EMBEDDED

    folder, names = root / kind, _CLASS_NAMES[kind]
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(4, 4, 4, 4), norm_num_groups=2, latent_channels=4, **blocks)
    sizes = {"vocab_size": 170, "max_position_embeddings": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    width = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 16}
    texts = {"text_encoder": CLIPTextModel(CLIPTextConfig(**sizes, **(width | {"hidden_size": 32})))}
    if kind == "animatediff-sdxl":
        texts = {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**sizes, **width)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **width)),
        }
    scheduler = DDIMScheduler(**_VIDEO_SCHEDULER)
    for part, module in {"unet": video_unet(kind, layers), "vae": vae, "scheduler": scheduler, **texts}.items():
        module.save_pretrained(folder / part)
    for name in texts:
        shutil.copytree(EMBEDDED / "tokenizer", folder / name.replace("text_encoder", "tokenizer"))
    index = {"unet": names[1], "vae": "AutoencoderKL", "scheduler": "DDIMScheduler"}
    index |= {name: type(module).__name__ for name, module in texts.items()}
    index |= {name.replace("text_encoder", "tokenizer"): "CLIPTokenizer" for name in texts}
    home = {
        "CLIPTextModel": "transformers",
        "CLIPTextModelWithProjection": "transformers",
        "CLIPTokenizer": "transformers",
    }
    listed = {part: [home.get(name, "diffusers"), name] for part, name in index.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": names[0], **listed}))
    (folder / "freescale.json").write_text(json.dumps({"frames": VIDEO_FRAMES, "steps": 4}))
    return folder


_CLASS_NAMES = {
    "videocrafter2": ("VideoCrafter2Pipeline", "VideoCrafterUNet"),
    "modelscope": ("TextToVideoSDPipeline", "UNet3DConditionModel"),
    "animatediff": ("AnimateDiffPipeline", "UNetMotionModel"),
    "animatediff-sdxl": ("AnimateDiffSDXLPipeline", "UNetMotionModel"),
}
_VIDEO_SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}

EMBEDDED_TOKENIZER = Path(__file__).parents[1] / "stages" / "shapes" / "model" / "tokenizer"


def random_weights(net: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of a network's own names and shapes, neither dying out nor growing from layer to layer."""
    stream = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            spread = 1.5 / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.05
            around = 1.0 if tensor.ndim == 1 and name.endswith(("weight", "running_var")) else 0.0  # of norms
            tensor.copy_(around + spread * torch.randn(tensor.shape, generator=stream))
    return dict(net.state_dict())


def new_sd3(*, medium: bool = False) -> Any:
    """A small `SD3Transformer2DModel` for latents of four channels, with positions for 10 tokens a side.

    `medium`: with norms of queries, and blocks that attend twice.
    """
    from diffusers import SD3Transformer2DModel

    own: dict[str, Any] = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)} if medium else {}
    return SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=20,
        pos_embed_max_size=10,
        **own,
    )


def new_qwen() -> Any:
    """A small `QwenImageTransformer2DModel` for latents of four channels."""
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    )


@cache
def qwen_network() -> Any:
    """A small Qwen-Image with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return new_qwen().eval().requires_grad_(False)


def new_qwen_vae() -> Any:
    """A small `AutoencoderKLQwenImage` with latents of four channels."""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2, 3],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    )


def new_wan(channels: int = 4) -> Any:
    """A small `WanTransformer3DModel`."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=channels,
        text_dim=24,
        freq_dim=16,
        ffn_dim=40,
        num_layers=2,
    )


def new_wan_vae() -> Any:
    """A small `AutoencoderKLWan` with latents of four channels."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2, 3],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    )


def new_dense_wan_vae() -> Any:
    """A small `AutoencoderKLWan` as Wan 2.2 5B has it, with latents of four channels and cells of 16 pixels."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=6,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    )
