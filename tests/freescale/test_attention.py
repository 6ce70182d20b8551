"""Which attention kernel is chosen: rules that need no GPU to be checked."""

from __future__ import annotations

import pytest
import torch

from freescale.attention import Accelerator, attention_name, backends, prefer_backends

HOPPER = Accelerator("cuda", (9, 0), has_cudnn=True)
AMPERE = Accelerator("cuda", (8, 0), has_cudnn=True)
ADA = Accelerator("cuda", (8, 9), has_cudnn=True)
BLACKWELL = Accelerator("cuda", (10, 0), has_cudnn=True)
TURING = Accelerator("cuda", (7, 5), has_cudnn=True)
AMD = Accelerator("hip", (9, 4))
SDXL, SD = 64, (40, 80, 160)
half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@half
def test_hopper_takes_cudnn_first(dtype: torch.dtype) -> None:
    assert backends(HOPPER, dtype, SDXL) == ("cudnn", "flash", "efficient")
    assert [backends(HOPPER, dtype, size)[0] for size in SD] == ["cudnn"] * 3


@half
@pytest.mark.parametrize("device", [AMPERE, ADA, BLACKWELL, AMD], ids=str)
def test_others_take_flash_first(device: Accelerator, dtype: torch.dtype) -> None:
    assert backends(device, dtype, SDXL)[:2] == ("flash", "efficient")
    assert ("cudnn" in backends(device, dtype, SDXL)) == device.has_cudnn


@pytest.mark.parametrize("device", [HOPPER, AMPERE, ADA, BLACKWELL, TURING], ids=str)
def test_single_precision_and_masks_are_for_the_efficient_one(device: Accelerator) -> None:
    assert backends(device, torch.float32, SDXL) == ("efficient",)
    assert backends(device, torch.float16, SDXL, has_mask=True) == ("efficient",)


def test_head_sizes() -> None:
    bfloat16 = torch.bfloat16
    assert "cudnn" not in backends(AMPERE, bfloat16, 160)
    assert backends(HOPPER, bfloat16, 512) == ("efficient",)
    assert backends(HOPPER, bfloat16, 44) == ("flash",)
    assert backends(HOPPER, torch.float32, 44) == ("efficient",)
    with pytest.raises(ValueError, match=r"head size 42 at capability 9\.0"):
        backends(HOPPER, torch.float32, 42)


def test_an_old_card_has_the_efficient_one_or_none() -> None:
    assert backends(TURING, torch.float16, SDXL) == ("efficient",)
    with pytest.raises(ValueError, match=r"bfloat16.* at capability 7\.5"):
        backends(TURING, torch.bfloat16, SDXL)


@pytest.mark.parametrize("device", [HOPPER, AMPERE, ADA, BLACKWELL, TURING, AMD], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [8, 40, 64, 80, 160, 256, 512])
@pytest.mark.parametrize("has_mask", [False, True])
def test_never_the_quadratic_one_on_a_gpu(device: Accelerator, dtype: torch.dtype, size: int, has_mask: bool) -> None:
    chosen = backends(device, dtype, size, has_mask=has_mask)
    assert chosen
    assert "math" not in chosen


def test_elsewhere() -> None:
    assert backends(Accelerator("cpu"), torch.float32) == ("flash", "math")
    assert backends(Accelerator("mps"), torch.float16) == ("math",)
    assert backends(HOPPER, torch.float64) == ("math",)


def test_the_cpu_is_left_alone() -> None:
    before = torch._C._get_sdp_priority_order(), torch.backends.cuda.math_sdp_enabled()
    with prefer_backends(torch.device("cpu"), torch.float32):
        assert before == (torch._C._get_sdp_priority_order(), torch.backends.cuda.math_sdp_enabled())
    assert attention_name(torch.device("cpu"), torch.float32) == "flash, math"


def test_on_a_gpu_torch_is_told_and_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags are torch's own and exist without a GPU."""
    monkeypatch.setattr(Accelerator, "of", classmethod(lambda cls, device: HOPPER))
    before = torch._C._get_sdp_priority_order(), torch.backends.cuda.math_sdp_enabled()
    with prefer_backends(torch.device("cuda"), torch.bfloat16):
        assert not torch.backends.cuda.math_sdp_enabled()
        order = torch._C._get_sdp_priority_order()
        assert order[:3] == [int(getattr(torch.nn.attention.SDPBackend, name)) for name in FIRST]
    assert before == (torch._C._get_sdp_priority_order(), torch.backends.cuda.math_sdp_enabled())


FIRST = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@half
def test_agrees_with_the_definition(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 512, 64, device="cuda", dtype=dtype)
    with prefer_backends(query.device, dtype):
        fused = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    scores = query.double() @ key.double().mT / 8
    torch.testing.assert_close(fused.double(), scores.softmax(-1) @ value.double(), atol=2e-2, rtol=0)
