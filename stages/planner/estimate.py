"""What a stage will hold, multiply and write, before it starts: from the model's configuration, without a weight.

A stage states its own cost in terms of the model's networks (`stages/planner/networks.py`). Disk is arithmetic. Seconds
are multiply-adds over a rate that the caller knows (`flows/rendering/throughput.py`).

What is counted on an accelerator: the weights of the parts that stay there during the stage, and what the stage makes.
Where the CPU is the device, every part that has been used stays. Not counted: the interpreter and its libraries, an
accelerator's context, workspaces inside a kernel, the allocator's rounding.
`docs/explanation/planner.md` has the errors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from freescale import METHODS
from stages.denoise import BaseDenoise, DenoiseStage
from stages.planner.configurations import computed, text_weights
from stages.planner.networks import FLOAT32, TracedNetworks, block_weights, part_weights
from stages.stage import method_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stages.call import Call
    from stages.models.folder import ModelInfo
    from stages.spec import RunOptions
    from stages.stage import Size

MANIFEST = 4096  # bytes of an artifact's manifest and of the metadata of its arrays


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


def estimate(call: Call, info: ModelInfo, options: RunOptions, device: str = "cuda") -> Estimate:
    """The estimate of a call under these options on a device of this kind (`cpu`, `cuda`, `mps`).

    Raises `SpecError` where `vae_memory` is too small for tiles.
    """
    networks = TracedNetworks(info, dtype_of(call), options)
    cost = call.stage.cost(networks, _source_size(call), call.frames)
    disk = MANIFEST + call.stage.disk_bytes(networks, call.size, call.frames)
    if not call.stage.part:  # no network of the model: the host's work
        return Estimate(0, cost.activations if device == "cpu" else 0, 0.0, disk)
    return Estimate(resident(call, info, options, device), cost.activations, cost.flops, disk)


def call_flops(calls: Sequence[Call], info: ModelInfo, options: RunOptions) -> float:
    """Floating-point operations of one call of the UNet at the training size, as level 0 makes it; 0 without a UNet.

    With guidance it is that of both halves, and with no acceleration. A render without a level 0 of its own has one all
    the same: at the size that its cascade begins at.
    """
    found = [(call, call.stage) for call in calls if isinstance(call.stage, DenoiseStage)]
    if not found:
        return 0.0
    call, stage = found[0]
    saves = stage.sampling.guidance_interval or stage.deepcache
    if stage.level or stage.size != stage.base_size or saves:
        stage = BaseDenoise(
            seed=0,
            level=0,
            size=stage.base_size,
            base_size=stage.base_size,
            sampling=replace(stage.sampling, guidance_interval=None),
            method=method_record(METHODS["direct"]()),
            start=0,
            stop=1,
            time_ids=stage.time_ids,
            chunks=stage.chunks,
            motion_fps=stage.motion_fps,
        )
    cost = TracedNetworks(info, dtype_of(call), options).denoise(stage, call.frames)
    return cost.flops / (stage.stop - stage.start)


def dtype_of(call: Call) -> str:
    """The name of the dtype that the UNet or the text encoders of a call run in; the VAE's is float32."""
    return call.model.rpartition(":")[2] if call.stage.part in ("text", "unet") else "float32"


def resident(call: Call, info: ModelInfo, options: RunOptions, device: str) -> int:
    """Bytes of the weights that are on the device during a call; `Models.make_room` is what makes it so.

    An accelerator keeps the UNet unless `offload` is on, one block of it with `by_blocks`, and the VAE only while it
    works. A CPU keeps both.
    """
    part = call.stage.part
    dtype = dtype_of(call) if part == "unet" else _unet_dtype(call)
    by_blocks = options.by_blocks and device != "cpu"
    unet = block_weights(info, dtype) if by_blocks else part_weights(info, "unet", dtype)
    vae = part_weights(info, "vae", "float32")
    if part == "text":
        return text_weights(info, computed(dtype_of(call)))
    if device == "cpu":
        return unet + (vae if call.level or part == "vae" else 0)
    if part == "unet":
        return unet + (vae if "vae" in call.stage.parts else 0)
    return vae if options.offload else vae + unet


def _unet_dtype(call: Call) -> str:
    """The dtype of the nearest denoising stage above a call."""
    for parent in call.parents.values():
        if parent.stage.part == "unet":
            return dtype_of(parent)
        if (found := _unet_dtype(parent)) != "float32":
            return found
    return "float32"


def _source_size(call: Call) -> Size:
    """The size of the picture that an `upscale` enlarges."""
    image = call.parents.get("image")
    return call.size if image is None else image.size


ROUGH_UNET, ROUGH_VAE, ROUGH_CAUSAL = 48, 12, 64
"""Full-size maps of the first width, more than any trace has (tests hold them to it); a causal VAE has a cache."""


def rough_bytes(call: Call, info: ModelInfo) -> int:
    """More than a call takes with no saving at all, from a few numbers of the configuration and the files' sizes."""
    height, width = call.size
    files = info.weight_bytes
    if call.stage.part == "text":
        return 2 * files
    config = info.configs["vae"]
    maps = ROUGH_VAE if info.time_cell == 1 else ROUGH_CAUSAL
    vae = maps * int(config.get("base_dim") or config["block_out_channels"][0]) * height * width * FLOAT32
    if call.stage.part == "vae":
        return 2 * files + vae
    first = _width(info.configs["unet"])
    pixels = max(height * width, 16 * info.native[0] * info.native[1])  # views at once, at the training size
    cells = pixels // info.cell**2
    unet = 2 * ROUGH_UNET * first * cells * call.frames * FLOAT32
    return 2 * files + (max(unet, vae) if "vae" in call.stage.parts else unet)


def _width(config: Mapping[str, Any]) -> int:
    """Channels of a UNet's first blocks, or of a transformer's tokens, which are four cells each."""
    if "block_out_channels" in config:
        return int(config["block_out_channels"][0])
    if "dim" in config:
        return int(config["dim"]) // 4
    return int(config["num_attention_heads"]) * int(config["attention_head_dim"]) // 4
