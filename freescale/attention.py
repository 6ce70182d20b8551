"""Which kernel computes scaled dot-product attention.

torch has several behind one function. The fused ones never write the matrix of scores; at 65,536 tokens that matrix
would take 8 GiB for each head in half precision, so on a GPU the plain one is not among the choices. Which fused one
is fastest depends on the device, and each has its rules:

| backend     | dtype         | head size                                | mask | capability         |
|-------------|---------------|------------------------------------------|------|--------------------|
| `cudnn`     | half          | multiples of 8 to 128; on Hopper to 256  | no   | 8.0                |
| `flash`     | half          | to 256 (torch pads to multiples of 8)    | no   | 8.0                |
| `efficient` | half, float32 | multiples of 8; of 4 in float32          | yes  | 5.0; bfloat16: 8.0 |

cuDNN is 1.7 to 2.3 times as fast as flash on Hopper, and slower or equal on Ampere, Ada and Blackwell (measured by
others, huggingface/transformers#48163). On a CPU torch has one fused kernel, which takes everything.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

Backend = Literal["cudnn", "flash", "efficient", "math"]
Capability = tuple[int, int]

_KERNELS: dict[Backend, str] = {
    "cudnn": "CUDNN_ATTENTION",
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "math": "MATH",
}  # as torch names them


@dataclass(frozen=True)
class Accelerator:
    """What the choice depends on: the kind, `cuda` or `hip` with a capability, `cpu` or `mps`, and cuDNN."""

    kind: str
    capability: Capability = (0, 0)
    has_cudnn: bool = False

    @classmethod
    def of(cls, device: torch.device) -> Accelerator:
        """Return the properties of a torch device."""
        if device.type != "cuda":
            return cls(device.type)
        if torch.version.hip is not None:
            return cls("hip", torch.cuda.get_device_capability(device))
        cudnn: Any = torch.backends.cudnn
        return cls("cuda", torch.cuda.get_device_capability(device), cudnn.version() is not None)


def backends(
    accelerator: Accelerator, dtype: torch.dtype, head_size: int | None = None, *, has_mask: bool = False
) -> tuple[Backend, ...]:
    """Return the backends that compute this attention, fastest first; for any `head_size` where it is None.

    `math`, which holds all scores, is used only where there is no fused kernel, and never for half and single
    precision on a GPU: where no fused kernel takes these, `ValueError` is raised.
    """
    if accelerator.kind == "cpu":
        return "flash", "math"
    if accelerator.kind not in ("cuda", "hip") or dtype == torch.float64:
        return ("math",)
    ranked: tuple[Backend, ...] = ("flash", "efficient", "cudnn")
    if accelerator.capability[0] == 9:
        ranked = ("cudnn", "flash", "efficient")
    able = tuple(name for name in ranked if _is_able(name, accelerator, dtype, head_size, has_mask))
    if not able:
        asked = f"{dtype}, head size {head_size}" + (", masked" if has_mask else "")
        capability = ".".join(map(str, accelerator.capability))
        raise ValueError(f"attention is {asked} at capability {capability}, allowed: what has a fused kernel there")
    return able


def _is_able(name: Backend, on: Accelerator, dtype: torch.dtype, head_size: int | None, has_mask: bool) -> bool:
    size = 8 if head_size is None else head_size
    if name == "efficient":
        is_aligned = size % (4 if dtype == torch.float32 else 8) == 0
        return is_aligned and on.capability >= ((8, 0) if dtype == torch.bfloat16 else (5, 0))
    if dtype not in (torch.float16, torch.bfloat16) or has_mask or on.capability < (8, 0):
        return False
    if name == "flash":
        return size <= 256
    return on.has_cudnn and size % 8 == 0 and size <= (256 if on.capability[0] == 9 else 128)


@contextmanager
def prefer_backends(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Make torch choose among the fused backends, fastest first, for the body of the `with`.

    On a device that is not a CUDA device nothing is changed. Torch skips a backend that cannot take a call, so one
    context serves layers of several head sizes.
    """
    if device.type != "cuda":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = [getattr(SDPBackend, _KERNELS[name]) for name in backends(Accelerator.of(device), dtype)]
    with sdpa_kernel(kernels, set_priority=True):
        yield


def attention_name(device: torch.device, dtype: torch.dtype) -> str:
    """Return the names of the backends, fastest first, as a manifest has them: `cudnn, flash, efficient`."""
    return ", ".join(backends(Accelerator.of(device), dtype))
