"""How much memory does a step of VideoCrafter2 take, at its real size, without its weights and without a GPU?

    python -m benchmarks.video_memory

The UNet runs on the meta device, where tensors have shapes and no content, and every tensor alive is counted at every
operation. Attention is taken to be a fused kernel, which holds its output and no scores; workspaces of convolutions and
what an allocator loses to fragments come on top. A table, then one line of JSON.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from freescale import METHODS, Conditioning, Denoiser, Level, Moment, make_schedule, patched
from freescale.long_clips import temporal_patches
from stages.convert_videocrafter2 import SCHEDULER, Architecture
from stages.videocrafter import VideoCrafterUNet, empty_networks

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from freescale import Method

GIB = 2**30
BASE, FRAMES = (320, 512), 16
STEP = 20  # of 50: fused and dilated


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors made since it was entered and not yet dropped, those of `network` apart."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.peak = 0
        kept = (*network.parameters(), *network.buffers())
        self._apart = {tensor.untyped_storage()._cdata for tensor in kept}  # views of a weight are no new bytes
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                storage = tensor.untyped_storage()
                if storage._cdata not in self._apart:
                    self._held.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return output


class FusedAttention(TorchFunctionMode):
    """Scaled dot-product attention that makes its output and nothing else."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(args[0] if args else (kwargs or {})["query"])
        return func(*args, **(kwargs or {}))


def peak_of(network: nn.Module, work: Callable[[], Any]) -> int:
    """The most bytes that were alive at once inside `work`, which runs `network`; its weights apart."""
    with torch.no_grad(), Alive(network) as alive, FusedAttention():
        work()
    return alive.peak


def step_of(unet: Any, method: Method, size: tuple[int, int], frames: int, **options: Any) -> int:
    """Peak bytes of one step, the UNet's weights apart."""
    dtype = next(unet.parameters()).dtype
    level = Level(int(size != BASE), size, BASE, frames=FRAMES)
    latents = torch.empty(1, 4, frames, *level.latent_hw, device="meta")
    text = torch.empty(1, 77, 1024, device="meta", dtype=dtype)
    told = Conditioning(text, text, fps=torch.empty(1, device="meta"))
    denoiser = Denoiser(unet, told, 12.0, **options)
    schedule = make_schedule({**SCHEDULER, "dynamic_scale": (0.7, 400)}, 50, "ddim")
    moment = Moment(level, STEP, schedule, 0, denoiser.window_rows)

    def work() -> None:
        with patched(unet, [*temporal_patches(latents, level), *method.patches(moment)]):
            method.predict(denoiser, latents, moment)

    return peak_of(unet, work)


def main() -> None:
    """Print the table."""
    with torch.device("meta"):
        unet = VideoCrafterUNet().half().eval()
    standard = Architecture()
    vae = empty_networks(standard.unet, standard.vae, standard.text)["vae"].eval()
    weights = sum(p.numel() * p.element_size() for p in unet.parameters())
    rows: list[tuple[str, int]] = [("weights of the UNet, float16", weights)]
    freescale = METHODS["freescale"](freeu=None)  # type: ignore[call-arg]
    demofusion, target = METHODS["demofusion"](), (640, 1024)
    tried: list[tuple[str, Method, tuple[int, int], int, dict[str, Any]]] = [
        ("320x512, direct", METHODS["direct"](), BASE, 16, {}),
        ("640x1024, direct", METHODS["direct"](), target, 16, {}),
        ("640x1024, direct, split guidance", METHODS["direct"](), target, 16, {"split_guidance": True}),
        ("640x1024, FreeScale", freescale, target, 16, {}),
        ("640x1024, FreeScale, split guidance", freescale, target, 16, {"split_guidance": True}),
        (
            "640x1024, FreeScale, split, a window at a time",
            freescale,
            target,
            16,
            {"split_guidance": True, "window_rows": 1},
        ),
        ("640x1024, DemoFusion, split guidance", demofusion, target, 16, {"split_guidance": True}),
        ("640x1024, 32 frames, FreeScale, split", freescale, target, 32, {"split_guidance": True, "window_rows": 1}),
    ]
    rows += [(name, step_of(unet, method, size, frames, **options)) for name, method, size, frames, options in tried]
    latents = torch.empty(1, 4, 80, 128, device="meta")
    rows.append(("VAE, a frame of 640x1024 decoded, float32", peak_of(vae, lambda: vae.decode(latents))))
    for name, size in rows:
        print(f"{name:<52} {size / GIB:7.2f} GiB")
    print(json.dumps({"benchmark": "video_memory", "torch": torch.__version__, "bytes": dict(rows)}))


if __name__ == "__main__":
    main()
