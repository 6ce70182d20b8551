"""What a stage will hold, multiply and write, before it starts: from the model's configuration, without a weight.

Memory and multiply-adds come from a trace (`stages/planner/trace.py`): the stage itself is run for a step on tensors
without numbers, at its true size, with its method's patches and the measures asked for. Disk is arithmetic. Seconds are
multiply-adds over a rate, which is the caller's business (`flows/rendering/throughput.py`).

What is counted on an accelerator: the weights of the parts that stay there during the stage, and what the stage makes.
Where the CPU is the device, every part that has been used stays. Not counted: the interpreter and its libraries, an
accelerator's context, workspaces inside a kernel, the allocator's rounding; `docs/planner.md` has the errors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch.nn import functional as F

from freescale import Step
from freescale.vae.passes import VaeMemoryError, plan_tiles, untiled_bytes
from stages.decode_video import DecodeVideo
from stages.denoise import DenoiseStage
from stages.errors import SpecError
from stages.planner.skeleton import CallsFolded, Skeleton, skeleton, text_weights
from stages.planner.trace import Trace
from stages.stage import latent_shape, method_of
from stages.upscale import EncodePicture, Upscale
from stages.upscale_video import UpscaleVideo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from freescale.vae.layers import Half
    from stages.call import Call
    from stages.models.load import ModelInfo
    from stages.spec import RunOptions
    from stages.stage import Stage

Way = Literal["decode", "encode"]
FLOAT32, FLOAT16 = 4, 2
TOKENS = 77  # of CLIP's context
PNG_RATIO = 0.66  # of the raw bytes, of the embedded model's pictures; a photograph takes up to 0.9
MANIFEST = 4096  # of an artifact: manifest and metadata of its arrays


@dataclass(frozen=True)
class Estimate:
    """Of one stage: bytes on the device, floating-point operations, bytes on disk."""

    weights: int = 0
    activations: int = 0
    flops: float = 0.0
    disk: int = 0

    @property
    def memory(self) -> int:
        """Bytes on the device at the worst moment."""
        return self.weights + self.activations


@dataclass(frozen=True)
class Cost:
    """What a trace found: bytes beyond the weights, floating-point operations."""

    activations: int
    flops: float


def estimate(call: Call, info: ModelInfo, options: RunOptions, device: str = "cuda") -> Estimate:
    """The estimate of a call under these options on a device of this kind (`cpu`, `cuda`, `mps`)."""
    dtype = dtype_of(call)
    cost = stage_cost(call.stage, info, dtype, options, _source_size(call), call.frames)
    disk = disk_bytes(call, info)
    if cost is None:
        return Estimate(0, host_bytes(call) if device == "cpu" else 0, 0.0, disk)
    frames = call.frames if call.stage.part == "vae" else 1  # one after another
    return Estimate(resident(call, info, options, device), cost.activations, cost.flops * frames, disk)


def dtype_of(call: Call) -> torch.dtype:
    """The dtype that the UNet or the text encoders of a call run in; the VAE's is float32."""
    name = call.model.rpartition(":")[2] if call.stage.part in ("text", "unet") else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def resident(call: Call, info: ModelInfo, options: RunOptions, device: str) -> int:
    """Bytes of the weights that are on the device during a call; `Models.make_room` is what makes it so.

    An accelerator keeps the UNet unless `offload` is on, and the VAE only while it works. A CPU keeps both.
    """
    part = call.stage.part
    dtype = dtype_of(call) if part == "unet" else _unet_dtype(call)
    unet = skeleton(info.folder, "unet", dtype, info.motion_adapter).weights
    vae = skeleton(info.folder, "vae", torch.float32).weights
    if part == "text":
        return text_weights(info.folder, dtype_of(call))
    if device == "cpu":
        return unet + (vae if call.level or part == "vae" else 0)
    if part == "unet":
        return unet
    return vae if options.offload else vae + unet


def _unet_dtype(call: Call) -> torch.dtype:
    """The dtype of the nearest denoising stage above a call."""
    for parent in call.parents.values():
        if parent.stage.part == "unet":
            return dtype_of(parent)
        if (found := _unet_dtype(parent)) != torch.float32:
            return found
    return torch.float32


def _source_size(call: Call) -> tuple[int, int]:
    """The size of the picture that an `upscale` enlarges."""
    image = call.parents.get("image")
    return call.size if image is None else image.size


def stage_cost(
    stage: Stage, info: ModelInfo, dtype: torch.dtype, options: RunOptions, source: tuple[int, int], frames: int = 1
) -> Cost | None:
    """What a stage costs at one size, with `frames` in a video; the VAE one of them. Kept by its arguments.

    None for a stage without a network.
    """
    folder = info.folder
    if isinstance(stage, DenoiseStage):
        video = None if info.frames is None else _Video(frames, info.frames, info.motion_adapter)
        return _denoise_cost(_Asked(stage, options), folder, dtype, video)
    if stage.name == "decode":
        held = _picture_bytes(source) if isinstance(stage, DecodeVideo) else 0
        return _tiled(_vae_cost(folder, "decode", source, source), folder, "decoder", source, options, held)
    if isinstance(stage, Upscale | UpscaleVideo | EncodePicture):
        whole = _vae_cost(folder, "encode", stage.size, source)
        held = 0 if isinstance(stage, Upscale) else _picture_bytes(stage.size)
        return _tiled(whole, folder, "encoder", stage.size, options, held)
    if stage.part == "text":
        parameters = text_weights(folder, torch.float32) // FLOAT32
        return Cost(2 * TOKENS * 8 * 2048 * FLOAT32, 2.0 * 2 * TOKENS * parameters)
    return None


class _Video(NamedTuple):
    """Frames, those the model was trained for, and where its motion modules are if they are no part of its UNet."""

    frames: int
    native: int
    adapter: Path | None


class _Asked:
    """A stage and options as one key of the memory of traces: equal where the trace would be."""

    def __init__(self, stage: DenoiseStage, options: RunOptions) -> None:
        self.stage, self.options = stage, options
        params = {name: value for name, value in stage.params().items() if name != "seed"}
        measures = (options.split_guidance, options.window_rows, options.feed_forward_tokens, options.phase_convs)
        self.key = json.dumps([params, measures, stage.name], sort_keys=True)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self.key == other.key


@lru_cache(maxsize=256)
def _denoise_cost(asked: _Asked, folder: Path, dtype: torch.dtype, video: _Video | None) -> Cost:
    """Trace the second step, or the only one; where a method's steps differ, the last one too."""
    stage, unet = asked.stage, skeleton(folder, "unet", dtype, video.adapter if video else None)
    frames = video[:2] if video else None
    steps = {min(stage.start + 1, stage.stop - 1)}
    if not method_of(stage.method).steady:
        steps.add(stage.stop - 1)
    costs = [trace_step(stage, unet, asked.options, step, frames) for step in sorted(steps)]
    flops = sum(cost.flops for cost in costs) / len(costs)
    return Cost(max(cost.activations for cost in costs), flops * (stage.stop - stage.start))


@dataclass(frozen=True)
class _Scheduled:
    """What a stage asks of a model beside its networks. No cost depends on noise levels: any schedule will do."""

    latent_channels: int
    frames: int | None = None
    scheduler: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Network:
    """Stands in for `Models`: a UNet, with or without weights."""

    unet: Any
    info: _Scheduled
    device: torch.device


def run_step(
    stage: DenoiseStage,
    unet: Any,
    options: RunOptions,
    step: int,
    device: torch.device,
    video: tuple[int, int] | None = None,
) -> None:
    """Run one step of a stage with a UNet on its device, from latents that are zero.

    `video` are the frames, and those that the model was trained for.
    """
    frames, native = video or (None, None)
    channels = int(unet.config["in_channels"])
    latents = torch.zeros(latent_shape(stage.size, channels, frames))
    resume = Step(step - 1, latents, (latents,) if stage.sampling.solver == "dpmpp_2m" else ())
    models: Any = _Network(unet, _Scheduled(channels, native), device)
    next(iter(stage.run(_parents(stage, unet.config, latents), models, options, resume)))


def trace_step(
    stage: DenoiseStage, unet: Skeleton, options: RunOptions, step: int, video: tuple[int, int] | None = None
) -> Cost:
    """What one step of a stage costs, by running it without numbers."""
    network: Any = CallsFolded(unet) if method_of(stage.method).by_views else unet.module
    with Trace() as trace, torch.no_grad():
        unet.trace = trace
        try:
            trace.hold((*unet.module.parameters(), *unet.module.buffers()))
            before = trace.live
            run_step(stage, network, options, step, torch.device("meta"), video)
        finally:
            unet.trace = None
    return Cost(trace.peak - before, float(trace.flops))


def _parents(stage: DenoiseStage, config: Any, latents: Tensor) -> dict[str, dict[str, Tensor]]:
    """Inputs of a stage, on the host as a store gives them, of the right shapes."""
    text = {"prompt_embeds": torch.zeros(1, TOKENS, int(config["cross_attention_dim"]))}
    if config.get("addition_embed_type") == "text_time":
        pooled = int(config["projection_class_embeddings_input_dim"]) - 6 * int(config["addition_time_embed_dim"])
        text["text_embeds"] = torch.zeros(1, pooled)
    if stage.sampling.guidance_scale > 1:
        text |= {f"negative_{name.removeprefix('prompt_')}": value for name, value in text.items()}
    parents = {"text": text, "latents": {"latents": latents}}
    if stage.level:
        base = [side // 8 for side in stage.base_size]
        parents["reference"] = {"latents": latents}
        parents["anchor"] = {"latents": torch.zeros(*latents.shape[:-2], *base)}
    masks = {role: {"picture": torch.zeros(*latents.shape[-2:], 1, dtype=torch.uint8)} for role, _ in stage.regions}
    return parents | masks


def run_vae(vae: Any, way: Way, size: tuple[int, int], source: tuple[int, int], device: torch.device) -> None:
    """Decode latents of a picture of `size`, or enlarge one of `source` to `size` and encode it, whole, in float32."""
    if way == "decode":
        latents = torch.zeros(1, vae.config.latent_channels, size[0] // 8, size[1] // 8, device=device)
        image = vae.decode(latents / vae.config.scaling_factor).sample
        torch.isfinite(image).all()
        return
    image = torch.zeros(1, 3, *source, device=device)
    larger = image if source == size else F.interpolate(image, size=size, mode="bicubic")
    vae.encode(larger)


@lru_cache(maxsize=64)
def _vae_cost(folder: Path, way: Way, size: tuple[int, int], source: tuple[int, int]) -> Cost:
    """Trace the VAE over a whole picture, in float32, with the enlargement before an encoding."""
    vae = skeleton(folder, "vae", torch.float32)
    module: Any = vae.module
    with Trace() as trace, torch.no_grad():
        vae.trace = trace
        try:
            trace.hold((*module.parameters(), *module.buffers()))
            before = trace.live
            run_vae(module, way, size, source, torch.device("meta"))
        finally:
            vae.trace = None
    return Cost(trace.peak - before, float(trace.flops))


def _picture_bytes(size: tuple[int, int]) -> int:
    """Of a frame or a source, which is held in one piece while its tiles are made."""
    return 3 * size[0] * size[1] * FLOAT32


def _tiled(whole: Cost, folder: Path, half: Half, size: tuple[int, int], options: RunOptions, held: int) -> Cost:
    """The cost of half a VAE where it works by tiles, `held` bytes beside them, else `whole`.

    Multiply-adds: those of the whole, times passes.

    Of the passes over a part, each runs half of it on average. Raises `SpecError` where `vae_memory` is too small.
    """
    vae: Any = skeleton(folder, "vae", torch.float32).module
    given = (size[0] // 8, size[1] // 8) if half == "decoder" else size
    if not options.vae_memory or untiled_bytes(vae, half, given) <= options.vae_memory:
        return whole
    try:
        plan = plan_tiles(vae, half, given, options.vae_tile, options.vae_memory)
    except VaeMemoryError as error:
        raise SpecError(str(error)) from error
    parts = len(plan.parts)
    return Cost(min(plan.bytes + held, whole.activations), whole.flops * plan.passes / parts / 2)


def disk_bytes(call: Call, info: ModelInfo) -> int:
    """Bytes of a call's arrays and files: float32 latents and text rows, float16 images, a compressed picture."""
    height, width = call.size
    latents = call.frames * info.latent_channels * (height // 8) * (width // 8) * FLOAT32
    if call.stage.name == "conditioning":
        config = read_config(info.folder, "unet")
        rows = 2 if getattr(call.stage, "negative_prompt", None) is not None else 1
        pooled = int(config.get("projection_class_embeddings_input_dim") or 0)
        pooled = max(0, pooled - 6 * int(config.get("addition_time_embed_dim") or 0))
        return MANIFEST + rows * (TOKENS * int(config["cross_attention_dim"]) + pooled) * FLOAT32
    if call.stage.name == "export":
        return MANIFEST + int(PNG_RATIO * 3 * height * width * call.frames)  # a video: at most
    sizes = {"decode": 3 * height * width * FLOAT16 * call.frames, "picture": 3 * height * width}
    return MANIFEST + sizes.get(call.stage.name, latents)


def host_bytes(call: Call) -> int:
    """Bytes of a stage without a network: three floats a pixel of a picture, a few latents else."""
    height, width = call.size
    if call.stage.name in ("export", "picture"):
        return 3 * height * width * (FLOAT32 * 2 + 1)
    return 4 * (height // 8) * (width // 8) * FLOAT32 * 4


ROUGH_UNET, ROUGH_VAE = 48, 12  # full-size maps of the first width, more than any trace has (a test holds them to it)


def rough_bytes(call: Call, info: ModelInfo) -> int:
    """More than a call takes with no measure at all, from a few numbers of the configuration and the files' sizes."""
    height, width = call.size
    files = sum(path.stat().st_size for path in info.folder.glob("*/*.safetensors"))
    if call.stage.part == "text":
        return 2 * files
    first = int(read_config(info.folder, call.stage.part)["block_out_channels"][0])
    if call.stage.part == "vae":
        return 2 * files + ROUGH_VAE * first * height * width * FLOAT32
    cells = max(height * width, 16 * info.native[0] * info.native[1]) // 64  # views at once, at the training size
    return 2 * files + 2 * ROUGH_UNET * first * cells * call.frames * FLOAT32


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """The configuration of a part, as its file has it."""
    config: dict[str, Any] = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
    return config
