"""I3D: the published counts, names and widths, TensorFlow's padding, and the whole network against a slow one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from stages.metrics.i3d import I3D, max_pool, same
from tests.oracles import i3d as oracle
from tests.toys import random_weights

# Going deeper with convolutions, arXiv 1409.4842, table 1: 1x1, 3x3 reduced, 3x3, 5x5 reduced, 5x5, behind the pool.
# The 5x5 became a second 3x3 when the network was inflated, with the same channels.
WIDTHS = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
OUT = (256, 480, 512, 512, 512, 528, 832, 832, 1024)  # the same table's output sizes


def test_it_has_the_published_weights() -> None:
    """12.7 million numbers in 287 tensors, 12.3 million without the classes: the paper's table says 12 M."""
    with torch.device("meta"):
        net = I3D()
    assert sum(p.numel() for p in net.parameters()) == 12_697_264
    assert sum(p.numel() for name, p in net.named_parameters() if not name.startswith("logits.")) == 12_287_264
    names = [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]
    units = ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"]
    units += [f"Mixed_{name}.{tower}" for name in WIDTHS for tower in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")]
    parts = ("conv3d.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    expected = [f"{unit}.{part}" for unit in units for part in parts] + ["logits.conv3d.weight", "logits.conv3d.bias"]
    assert sorted(names) == sorted(expected)
    assert len(names) == 287
    assert net.state_dict()["logits.conv3d.weight"].shape == (400, 1024, 1, 1, 1)


def test_towers_have_the_papers_widths() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in I3D().state_dict().items()}
    inputs = 192
    for (name, widths), out in zip(WIDTHS.items(), OUT, strict=True):
        found = {tower: shapes[f"Mixed_{name}.{tower}.conv3d.weight"] for tower in ("b0", "b1a", "b2a", "b3b")}
        assert {tower: shape[1:] for tower, shape in found.items()} == dict.fromkeys(found, (inputs, 1, 1, 1))
        assert [found[tower][0] for tower in found] == [widths[index] for index in (0, 1, 3, 5)]
        assert shapes[f"Mixed_{name}.b1b.conv3d.weight"] == (widths[2], widths[1], 3, 3, 3)
        assert shapes[f"Mixed_{name}.b2b.conv3d.weight"] == (widths[4], widths[3], 3, 3, 3)
        inputs = widths[0] + widths[2] + widths[4] + widths[5]
        assert inputs == out


def test_maps_shrink_as_in_the_paper() -> None:
    """Of 16 frames at 224x224, without numbers; the last map is what the published mean, 2x7x7, covers."""
    seen: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        net = I3D().eval()
        for name, module in net.named_children():
            module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: tuple(out.shape[1:])}))
        assert net(torch.zeros(1, 3, 16, 224, 224)).shape == (1, 400)
    assert seen["Conv3d_1a_7x7"] == (64, 8, 112, 112)
    assert seen["Conv3d_2c_3x3"] == (192, 8, 56, 56)
    assert seen["Mixed_3c"] == (480, 8, 28, 28)
    assert seen["Mixed_4f"] == (832, 4, 14, 14)
    assert seen["Mixed_5c"] == (1024, 2, 7, 7)


@pytest.mark.parametrize("size", [1, 2, 5, 7, 8, 16])
@pytest.mark.parametrize(("window", "stride"), [(1, 1), (3, 1), (3, 2), (2, 2), (7, 2)])
def test_padding_is_tensorflows(size: int, window: int, stride: int) -> None:
    """One axis at a time, value by value: what lies in each window, and how many there are."""
    values = torch.arange(1.0, size + 1)
    wanted = [[i + 1 for i in span if 0 <= i < size] for span in oracle.windows(size, window, stride)]
    for axis in range(3):
        shape, kernel, steps = [1, 1, 1, 1, 1], [1, 1, 1], [1, 1, 1]
        shape[2 + axis], kernel[axis], steps[axis] = size, window, stride
        x = values.reshape(shape)
        three, of_three = tuple(kernel), tuple(steps)
        weight = torch.ones(1, 1, *kernel)
        sums = F.conv3d(same(x, three, of_three), weight, stride=of_three).flatten()  # type: ignore[arg-type]
        assert sums.tolist() == [float(sum(inside)) for inside in wanted]
        found = max_pool(x, three, of_three).flatten()  # type: ignore[arg-type]
        assert found.tolist() == [float(max(inside)) for inside in wanted]


@pytest.mark.thorough
def test_logits_are_those_of_a_slow_network() -> None:
    """A small video of odd sizes, float64 on both sides: what is left is the order of sums."""
    state = {name: tensor.double() for name, tensor in random_weights(I3D(), 1).items()}
    net = I3D().double().eval()
    net.load_state_dict(state)
    videos = torch.rand(2, 3, 9, 30, 41, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        found = net(videos)
    assert found.shape == (2, 400)
    assert found.std() > 1e-3
    assert torch.allclose(found, oracle.logits(state, videos), rtol=1e-9, atol=1e-12)
