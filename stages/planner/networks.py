"""What a model's networks take at a size, found by running them without numbers, from the model's configuration.

Memory and multiply-adds come from a trace (`stages/planner/trace.py`): a denoising stage is run for a step on tensors
without numbers, at its true size, with its method's patches and the options asked for; the VAE once over a picture.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F

from freescale import SOLVERS, Level, Moment, Step
from freescale.cascade import CELL
from freescale.frequency import blur_matrix, low_pass_mask
from freescale.vae.codec import codec_of
from freescale.vae.plan import VaeMemoryError, plan_tiles, untiled_bytes
from freescale.walk import rises
from stages.errors import SpecError
from stages.models.folder import cell_of
from stages.planner.blanks import (
    TOKENS,
    BlankInfo,
    BlankModels,
    BlankPicture,
    blank_parents,
    latent_channels,
    text_rows,
)
from stages.planner.configurations import Configs, configurations, text_weights
from stages.planner.trace_cache import cached_trace
from stages.stage import Cost, cells_of, latent_shape, method_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from freescale import Schedule
    from freescale.vae.layers import Half
    from stages.denoise import DenoiseStage
    from stages.models.folder import ModelInfo
    from stages.planner.skeleton import Skeleton
    from stages.spec import RunOptions
    from stages.stage import Size

Way = Literal["decode", "encode"]
FLOAT32 = 4  # bytes
TEXT_WIDTH = 2048  # of a row; an encoder holds eight of them a token


@dataclass(frozen=True)
class TracedNetworks:
    """The networks of a model under these options: `Networks` of `stages/stage.py`.

    `dtype` names the UNet's or the text encoders'; the VAE's is float32. Traces are kept by what they depend on.
    """

    info: ModelInfo
    dtype: str
    options: RunOptions

    def latent_bytes(self, size: Size, frames: int = 1) -> int:
        """Bytes of the float32 latents of a picture of `size` pixels, or of a video."""
        shape = latent_shape(size, self.info.latent_channels, self.info.cell, self.info.latent_frames_of(frames))
        return math.prod(shape) * FLOAT32

    def text_bytes(self, chunks: int = 1) -> int:
        """Bytes of the float32 rows of one encoded prompt of so many chunks, SDXL's pooled one included."""
        config = self.info.configs["unet"]
        tokens, width, pooled = text_rows(config)
        return (chunks * tokens * width + pooled) * FLOAT32

    def encode_text(self, chunks: int = 1) -> Cost:
        """Encode both prompts, chunk by chunk: a multiply-add a parameter and token. All of their rows are held."""
        parameters, tokens = text_weights(self.info, "float32") // FLOAT32, self.info.text_tokens or TOKENS
        held = 2 * (chunks - 1) * tokens * TEXT_WIDTH * FLOAT32
        return Cost(2 * tokens * 8 * TEXT_WIDTH * FLOAT32 + held, 2.0 * 2 * chunks * tokens * parameters)

    def denoise(self, stage: DenoiseStage, frames: int) -> Cost:
        """Run all steps of a denoising stage, over `frames` of a video."""
        native = self.info.latent_frames
        video = None if native is None else (self.info.latent_frames_of(frames), native)
        configs = configurations(self.info, "unet")
        return _denoise_cost(_Asked(stage, self.options), configs, self.dtype, self.info.cell, video)

    def decode(self, size: Size, held: int = 0) -> Cost:
        """Decode a picture of `size` pixels; by tiles, with `held` bytes beside them.

        Raises `SpecError` where `vae_memory` is too small for tiles.
        """
        return self._tiled(_vae_cost(configurations(self.info, "vae"), "decode", size, size), "decoder", size, held)

    def encode(self, size: Size, source: Size, held: int = 0) -> Cost:
        """Enlarge a picture from `source` to `size` pixels and encode it; by tiles, with `held` bytes beside them.

        Raises `SpecError` where `vae_memory` is too small for tiles.
        """
        return self._tiled(_vae_cost(configurations(self.info, "vae"), "encode", size, source), "encoder", size, held)

    def decode_video(self, size: Size, frames: int) -> Cost:
        """Decode a video of `size` pixels by a causal VAE, a latent frame at a time."""
        return self._causal("decode", size, size, frames)

    def encode_video(self, size: Size, source: Size, frames: int) -> Cost:
        """Enlarge the frames of a video from `source` to `size` pixels and encode them by a causal VAE."""
        return self._causal("encode", size, source, frames)

    def _causal(self, way: Way, size: Size, source: Size, frames: int) -> Cost:
        """The cost of half a causal VAE over a video. Raises `SpecError` where `vae_memory` is too small for tiles."""
        from stages.planner.causal import causal_cost  # here, since other models need none of it

        cells, memory = (self.info.cell, self.info.time_cell), self.options.vae_memory or 0
        return causal_cost(configurations(self.info, "vae"), way, size, source, frames, cells, memory)

    def _tiled(self, whole: Cost, half: Half, size: Size, held: int) -> Cost:
        """The cost of half a VAE where it works by tiles, else `whole`."""
        memory, tile = self.options.vae_memory, self.options.vae_tile
        if not memory:
            return whole
        given = cells_of(size, self.info.cell) if half == "decoder" else size
        configs = configurations(self.info, "vae")
        activations, flops = cached_trace(
            partial(_by_tiles, whole, configs, half, given, tile, memory, held),
            *("tiles", asdict(whole), configs, half, given, tile, memory, held),
        )
        return Cost(int(activations), flops)


def _by_tiles(
    whole: Cost, configs: Configs, half: Half, given: Size, tile: int, memory: int, held: int
) -> tuple[float, float]:
    """Bytes and floating-point operations of half a VAE over a map of `given` cells or pixels, by tiles where needed.

    Multiply-adds: those of the whole, times passes. Of the passes over a part, each runs half of it on average.
    """
    from stages.planner.skeleton import skeleton_of  # diffusers, where nothing is known yet

    vae: Any = skeleton_of(configs, "float32").module
    if untiled_bytes(vae, half, given) <= memory:
        return whole.activations, whole.flops
    try:
        plan = plan_tiles(vae, half, given, tile, memory)
    except VaeMemoryError as error:
        raise SpecError(str(error)) from error
    return min(plan.bytes + held, whole.activations), whole.flops * plan.passes / len(plan.parts) / 2


def part_weights(info: ModelInfo, part: str, dtype: str) -> int:
    """Bytes of the parameters and buffers of the part `unet` or `vae` in `dtype`, with its motion modules."""
    configs = configurations(info, part)
    (found,) = cached_trace(partial(_counted, configs, dtype), "weights", configs, dtype)
    return int(found)


def block_weights(info: ModelInfo, dtype: str) -> int:
    """Bytes of a UNet or transformer of which one block is there at a time."""
    configs = configurations(info, "unet")
    (found,) = cached_trace(partial(_kept, configs, dtype), "weights by blocks", configs, dtype)
    return int(found)


def _counted(configs: Configs, dtype: str) -> tuple[float]:
    """Build a part without weights, and count its bytes."""
    from stages.planner.skeleton import skeleton_of

    return (skeleton_of(configs, dtype).weights,)


def _kept(configs: Configs, dtype: str) -> tuple[float]:
    from stages.planner.skeleton import skeleton_of

    return (skeleton_of(configs, dtype).kept,)


class _Asked:
    """A stage and its options as a key of the cache of traces: equal where the trace would be."""

    def __init__(self, stage: DenoiseStage, options: RunOptions) -> None:
        self.stage, self.options = stage, options
        params = {name: value for name, value in stage.params().items() if name != "seed"}
        longer = [stage.chunks] if stage.chunks > 1 else []
        self.key = json.dumps([params, asdict(options.compute), stage.name, *longer], sort_keys=True)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked) and self.key == other.key


@lru_cache(maxsize=256)
def _denoise_cost(asked: _Asked, configs: Configs, dtype: str, cell: int, frames: tuple[int, int] | None) -> Cost:
    """Trace the second step, or the only one; where a method's steps differ, the last one too.

    `frames`: of a video, and those that the model was trained for.
    """
    traced = partial(_traced_steps, asked.stage, asked.options, configs, dtype, cell, frames)
    activations, flops = cached_trace(traced, "denoise", asked.key, configs, dtype, cell, frames)
    return Cost(int(activations), flops)


def _traced_steps(
    stage: DenoiseStage,
    options: RunOptions,
    configs: Configs,
    dtype: str,
    cell: int,
    frames: tuple[int, int] | None,
) -> tuple[float, float]:
    """Bytes at the worst moment of a stage, and the floating-point operations of all of its steps.

    In the UNet without weights. Steps with guidance and without are traced separately; so are, with DeepCache, full
    steps and those between, and the steps of an inversion that go up and down.
    """
    from stages.planner.skeleton import FOLDED, skeleton_of

    unet = skeleton_of(configs, dtype, FOLDED[:1] if stage.deepcache else FOLDED)  # a step that is not full runs a part
    schedule = _schedule(stage)
    full = stage.full_steps(schedule) if stage.deepcache else None
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for i in range(stage.start, stage.stop):
        is_guided = schedule.is_within(i, stage.sampling.guidance_interval)
        kinds.setdefault((is_guided, full is None or i in full, rises(schedule, i)), []).append(i)
    activations, flops = 0, 0.0
    for steps in kinds.values():
        traced = {steps[min(1, len(steps) - 1)]}
        if not method_of(stage.method).steady:
            traced.add(steps[-1])
        costs = [trace_step(stage, unet, options, step, frames, cell) for step in sorted(traced)]
        activations = max(activations, *(cost.activations for cost in costs))
        flops += sum(cost.flops for cost in costs) / len(costs) * len(steps)
    return activations, flops


def _schedule(stage: DenoiseStage) -> Schedule:
    """The walk of a stage. No cost depends on noise levels: those of any scheduler will do."""
    return stage.sampling.schedule_on({}, stage.walk)


def run_step(
    stage: DenoiseStage,
    unet: Any,
    options: RunOptions,
    step: int,
    device: torch.device,
    video: tuple[int, int] | None = None,
    cell: int = CELL,
) -> None:
    """Run one step of a stage with a UNet on its device, from latents that are zero.

    `video` are the frames, and those that the model was trained for; a latent cell has `cell` pixels a side.
    """
    next(_before(stage, unet, options, step, device, video, cell))


def _before(
    stage: DenoiseStage,
    unet: Any,
    options: RunOptions,
    step: int,
    device: torch.device,
    video: tuple[int, int] | None,
    cell: int,
) -> Iterator[Step]:
    """Return the run of a stage that stands before a step; with DeepCache it has run from the last full one on."""
    frames, native = video or (None, None)
    channels = latent_channels(unet.config)
    latents = torch.zeros(latent_shape(stage.size, channels, cell, frames))
    schedule = _schedule(stage)
    full = stage.full_steps(schedule) if stage.deepcache else {step}
    first = max(i for i in full if i <= step)
    level = Level(stage.level, stage.size, stage.base_size, cell, sizes=stage.sizes, grows=stage.grows)
    names = method_of(stage.method).kept(Moment(level, first, schedule, stage.seed))
    history = (latents,) * SOLVERS[stage.sampling.solver].remembers
    resume = Step(first - 1, latents, history, dict.fromkeys(names, latents))
    models: Any = BlankModels(unet, BlankInfo(channels, cell, native), device)
    parents: dict[str, Any] = blank_parents(stage, unet.config, latents, cell)
    if "vae" in stage.parts:
        parents["image"] = {"image": BlankPicture(stage.base_size, device)}
        options = options.model_copy(update={"vae_memory": None})
    running = iter(stage.run(parents, models, options, resume))
    for _ in range(first, step):
        next(running)
    return running


def trace_step(
    stage: DenoiseStage,
    unet: Skeleton,
    options: RunOptions,
    step: int,
    video: tuple[int, int] | None = None,
    cell: int = CELL,
) -> Cost:
    """What one step of a stage costs, by running it without numbers: a first one, which makes what a process keeps."""
    for kept in (blur_matrix, low_pass_mask):
        kept.cache_clear()
    from stages.planner.skeleton import CallsFolded
    from stages.planner.trace import Trace

    network: Any = CallsFolded(unet) if method_of(stage.method).by_views and not stage.deepcache else unet.module
    with Trace() as trace, torch.no_grad():
        unet.trace = trace
        try:
            trace.hold((*unet.module.parameters(), *unet.module.buffers()))
            before = trace.live
            running = _before(stage, network, options, step, torch.device("meta"), video, cell)
            trace.flops = 0
            next(running)
        finally:
            unet.trace = None
    return Cost(trace.peak - before, float(trace.flops))


def run_vae(vae: Any, way: Way, size: tuple[int, int], source: tuple[int, int], device: torch.device) -> None:
    """Decode latents of a picture of `size`, or enlarge one of `source` to `size` and encode it, whole, in float32."""
    if way == "decode":
        latents = torch.zeros(
            latent_shape(size, int(vae.config["latent_channels"]), cell_of(vae.config)), device=device
        )
        image = vae.decode(codec_of(vae).to_vae(latents)).sample
        torch.isfinite(image).all()
        return
    image = torch.zeros(1, 3, *source, device=device)
    larger = image if source == size else F.interpolate(image, size=size, mode="bicubic")
    vae.encode(larger)


@lru_cache(maxsize=64)
def _vae_cost(configs: Configs, way: Way, size: tuple[int, int], source: tuple[int, int]) -> Cost:
    """Trace the VAE over a whole picture, in float32, with the enlargement before an encoding."""
    activations, flops = cached_trace(
        partial(_traced_vae, configs, way, size, source), "vae", configs, way, size, source
    )
    return Cost(int(activations), flops)


def _traced_vae(configs: Configs, way: Way, size: tuple[int, int], source: tuple[int, int]) -> tuple[float, float]:
    from stages.planner.skeleton import skeleton_of
    from stages.planner.trace import Trace

    vae = skeleton_of(configs, "float32")
    module: Any = vae.module
    with Trace() as trace, torch.no_grad():
        vae.trace = trace
        try:
            trace.hold((*module.parameters(), *module.buffers()))
            before = trace.live
            run_vae(module, way, size, source, torch.device("meta"))
        finally:
            vae.trace = None
    return trace.peak - before, float(trace.flops)
