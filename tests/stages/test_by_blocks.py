"""A network block by block: the same bits, one block on the device at a time, and what the planner says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from freescale.backbones import Rows, backbone_of
from stages.models.by_blocks import ByBlocks, blocks_of
from stages.models.load import Models, describe
from stages.planner.estimate import resident
from stages.planner.skeleton import weight_bytes
from stages.spec import ModelSpec, RunOptions
from tests.toys import new_flux

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")


def flux() -> Any:
    return new_flux(16, embedded=False).eval().requires_grad_(False)


def run(network: nn.Module, device: torch.device = CPU) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        latents, embeds, pooled = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 24), torch.randn(1, 16)
    rows = Rows(embeds.to(device), {"pooled_projections": pooled.to(device)})
    with torch.no_grad():
        return backbone_of(network).run(latents.to(device), 500.0, rows)


def places(network: nn.Module) -> list[str]:
    return [next(block.parameters()).device.type for block in blocks_of(network)]


def test_the_numbers_are_those_of_the_whole_network() -> None:
    network = flux()
    expected = run(network)
    blocks = ByBlocks(network, CPU)
    assert torch.equal(run(network), expected)
    blocks.end()
    assert torch.equal(run(network), expected)


def test_one_block_is_on_the_device_at_a_time() -> None:
    network, seen = flux(), []
    names = [id(block) for block in blocks_of(network)]
    before = [tensor.data_ptr() for block in blocks_of(network) for tensor in block.parameters()]
    ByBlocks(network, ELSEWHERE)
    for block in blocks_of(network):
        block.register_forward_pre_hook(lambda block, _: seen.append((names.index(id(block)), places(network))))
    assert run(network, ELSEWHERE).device.type == "meta"
    assert [index for index, _ in seen] == list(range(len(names)))
    assert all(found.count("meta") == 1 and found[index] == "meta" for index, found in seen)
    assert set(places(network)) == {"cpu"}
    assert before == [tensor.data_ptr() for block in blocks_of(network) for tensor in block.parameters()]
    assert network.device.type == "meta"  # what is in no list stays there


def test_a_block_that_fails_goes_back_too() -> None:
    network = flux()
    ByBlocks(network, ELSEWHERE)

    def failing(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    next(blocks_of(network)).register_forward_pre_hook(failing)
    with pytest.raises(torch.OutOfMemoryError):
        run(network, ELSEWHERE)
    assert set(places(network)) == {"cpu"}


def test_a_model_is_brought_block_by_block_from_its_loading_on(tmp_path: Path) -> None:
    """On a device without numbers the whole network would be there after loading."""
    models = Models(describe(ModelSpec(name="shapes"), tmp_path), "float32", ELSEWHERE)
    models.make_room(("unet",), offload=False, by_blocks=True)
    assert set(places(models.unet)) == {"cpu"}
    assert models.unet.conv_in.weight.device.type == "meta"
    models.make_room(("unet",), offload=False)
    assert next(models.unet.down_blocks.parameters()).device.type == "meta"


def test_the_planner_counts_the_largest_block_and_what_is_in_none(tmp_path: Path) -> None:
    from stages.plan import make_plan
    from stages.spec import make_spec

    info = describe(ModelSpec(name="shapes"), tmp_path)
    plan = make_plan(make_spec({"prompt": "a red disc"}), info)
    call = next(call for call in plan.calls if call.stage.part == "unet")
    unet = Models(info, "float32", CPU).unet
    blocks = [weight_bytes(block) for block in blocks_of(unet)]
    whole, kept = (resident(call, info, RunOptions(by_blocks=by_blocks), "cuda") for by_blocks in (False, True))
    assert (whole, kept) == (weight_bytes(unet), weight_bytes(unet) - sum(blocks) + max(blocks))
    assert resident(call, info, RunOptions(by_blocks=True), "cpu") == whole, "the host is the device"
