"""RAFT: the published counts and names, look-up and upsampling by definition, the whole against a slow one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.metrics import correlation
from stages.metrics.correlation import Correlation
from stages.metrics.raft import Raft, upsampled
from tests.oracles import raft as oracle
from tests.toys import random_weights


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frames(height: int, width: int) -> Tensor:
    """A coarse picture and the same a few pixels on, in 0…255."""
    picture = noise(3, height // 4 + 4, width // 4 + 4, seed=5).repeat_interleave(4, 1).repeat_interleave(4, 2)
    levels = (picture * 60 + 128).clamp(0, 255).round()
    return torch.stack([levels[:, :height, :width], levels[:, 3 : height + 3, 5 : width + 5]])


@pytest.fixture(scope="module")
def net() -> Raft:
    """In float64, with random weights that make flows of some pixels."""
    made = Raft()
    made.load_state_dict(random_weights(made, 3))
    return made.double().eval()


def test_it_has_the_published_weights() -> None:
    """5 257 536 numbers, as torchvision counts its copy, in the 179 entries of the authors' files."""
    with torch.device("meta"):
        made = Raft()
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    assert sum(p.numel() for p in made.parameters()) == 5_257_536
    assert len(shapes) == 179
    for name, shape in {
        "fnet.conv1.weight": (64, 3, 7, 7),
        "fnet.layer2.0.downsample.0.weight": (96, 64, 1, 1),
        "fnet.conv2.bias": (256,),
        "cnet.norm1.running_var": (64,),
        "cnet.layer3.0.norm3.weight": (128,),
        "cnet.layer3.0.downsample.1.weight": (128,),
        "cnet.layer3.1.conv2.weight": (128, 128, 3, 3),
        "update_block.encoder.convc1.weight": (256, 324, 1, 1),
        "update_block.encoder.convf1.weight": (128, 2, 7, 7),
        "update_block.encoder.conv.weight": (126, 256, 3, 3),
        "update_block.gru.convz1.weight": (128, 384, 1, 5),
        "update_block.gru.convq2.weight": (128, 384, 5, 1),
        "update_block.flow_head.conv2.weight": (2, 256, 3, 3),
        "update_block.mask.0.weight": (256, 128, 3, 3),
        "update_block.mask.2.weight": (576, 256, 1, 1),
    }.items():
        assert shapes[name] == shape
    assert not [name for name in shapes if name.startswith("fnet") and "norm" in name]  # instance norm has no weights
    assert "cnet.layer1.0.norm3.weight" not in shapes


def test_correlations_are_looked_up_as_a_loop_does() -> None:
    """Odd maps, flows that lead outside and onto edges. What is left is float64's rounding of the coordinates."""
    first, second = noise(16, 9, 11, seed=1), noise(16, 9, 11, seed=2)
    flow = noise(2, 9, 11, seed=3) * 6
    flow[:, 0, 0], flow[:, 1, 1] = torch.tensor([0.0, 0.0]), torch.tensor([50.0, -3.0])
    found = Correlation(first, second)(flow)
    assert found.shape == (4 * 81, 9, 11)
    assert torch.allclose(found, oracle.looked_up(first, second, flow), atol=1e-10)


def test_offsets_are_x_first() -> None:
    """A frame of one-hot cells, and the same moved by 2 to the right and 1 up: there alone the answer is not zero."""
    first = torch.eye(8 * 8).reshape(64, 8, 8)
    second = first.roll((-1, 2), dims=(1, 2))
    found = Correlation(first, second)(torch.zeros(2, 8, 8))[:81, 4, 3]
    assert found.nonzero().flatten().tolist() == [9 * (2 + 4) + (-1 + 4)]
    assert float(found.max()) == pytest.approx(1 / 8)  # over the root of 64 channels


def test_large_frames_are_compared_in_parts_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, flow = noise(8, 10, 9, seed=1), noise(8, 10, 9, seed=2), noise(2, 10, 9, seed=3)
    whole = Correlation(first, second)
    assert whole.held is not None
    monkeypatch.setattr(correlation, "HELD", 90 * 90 - 1)
    monkeypatch.setattr(correlation, "PART", 90 * 7)
    parts = Correlation(first, second)
    assert parts.held is None
    assert [len(queries) for queries in parts.queries] == [7] * 12 + [6]
    assert torch.allclose(parts(flow), whole(flow), rtol=1e-12, atol=1e-13)


def test_upsampling_is_a_convex_combination() -> None:
    flow, mask = noise(2, 3, 4, seed=1), 3 * noise(576, 3, 4, seed=2)
    assert torch.allclose(upsampled(flow, mask), oracle.upsampled(flow, mask), atol=1e-12)
    even = upsampled(torch.ones(2, 5, 5), torch.zeros(576, 5, 5))
    assert torch.allclose(even[:, 8:-8, 8:-8], torch.tensor(8.0))  # a cell is eight pixels
    assert torch.allclose(even[:, :8, 8:-8], torch.tensor(8.0 * 6 / 9))  # beyond the edge nothing moves


@pytest.mark.thorough
def test_the_flow_is_that_of_a_slow_network(net: Raft) -> None:
    pair = frames(64, 72)
    with torch.no_grad():
        found = net(*pair, iterations=2)
        expected = oracle.flow_of(net.state_dict(), pair[0], pair[1], 2)
    assert found.shape == (2, 64, 72)
    assert expected.abs().mean() > 0.1
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_other_sizes_are_filled_up_on_both_sides_and_cut_back(net: Raft) -> None:
    """67x70: 2 rows above and 3 below, 1 column left and 1 right, copies of the edge."""
    pair = frames(67, 70)
    rows = [max(0, min(66, row - 2)) for row in range(72)]
    columns = [max(0, min(69, column - 1)) for column in range(72)]
    with torch.no_grad():
        found = net(*pair, iterations=1)
        padded = net(*pair[:, :, rows][..., columns], iterations=1)
    assert found.shape == (2, 67, 70)
    assert torch.equal(found, padded[:, 2:69, 1:71])


def test_20_iterations_and_a_smallest_size(net: Raft, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    handle = net.update_block.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        assert net(*frames(64, 64)).isfinite().all()
    handle.remove()
    assert len(calls) == 20
    with pytest.raises(ValueError, match="120x63 pixels are too small; 64 a side"):
        net(*frames(63, 120))
