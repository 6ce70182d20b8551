"""A network whose blocks wait on the host, each on the device only while it works: the weights of one block at a time.

A copy of weights changes no bit, and the order of blocks does not matter, nor does one that is left out. diffusers'
group offloading would read the next block ahead; it takes the order of the first call for that of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    _Holder = dict[str, Any]


def blocks_of(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of the lists that a network consists of: blocks of a transformer, levels of a UNet.

    A network without such lists consists of networks that have them.
    """
    children = list(network.children())
    lists = [child for child in children if isinstance(child, nn.ModuleList)]
    for blocks in lists:
        yield from blocks
    for child in [] if lists else children:
        yield from blocks_of(child)


class ByBlocks:
    """The blocks of a network on the host, all else on `device`; a call brings each block there and back."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network, device
        self._handles: list[Any] = []
        inside = set[int]()
        for block in blocks_of(network):
            for module in block.modules():
                inside.add(id(module))
                for holder, name, tensor in _tensors(module):
                    holder[name] = _like(tensor, _waiting(tensor, device))
            held = _Held(block, device)
            self._handles += [
                block.register_forward_pre_hook(held.bring, prepend=True),
                block.register_forward_hook(held.back, always_call=True),
            ]
        for module in network.modules():
            if id(module) not in inside:
                for holder, name, tensor in _tensors(module):
                    holder[name] = _like(tensor, tensor.to(device))

    def end(self) -> None:
        """Bring the whole network to the device, for good."""
        for handle in self._handles:
            handle.remove()
        self.network.to(self.device)


class _Held:
    """The weights of one block on the host while copies of them are on the device."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self.block, self.device = block, device
        self._waiting: list[tuple[_Holder, str, Tensor]] = []

    def bring(self, *_: Any) -> None:
        """Put copies on the device in place of the weights."""
        self._waiting = [found for module in self.block.modules() for found in _tensors(module)]
        for holder, name, tensor in self._waiting:
            holder[name] = _like(tensor, tensor.to(self.device, non_blocking=True))

    def back(self, *_: Any) -> None:
        """Let go of the copies, also after an error."""
        for holder, name, tensor in self._waiting:
            holder[name] = tensor
        self._waiting = []


def _tensors(module: nn.Module) -> Iterator[tuple[_Holder, str, Tensor]]:
    """Yield the parameters and buffers of a module itself, each with the dictionary that it is in and its name."""
    for holder in (module._parameters, module._buffers):
        for name, tensor in holder.items():
            if tensor is not None:
                yield holder, name, tensor


def _like(tensor: Tensor, data: Tensor) -> Tensor:
    """Return data as a parameter where `tensor` is one."""
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data


def _waiting(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the host, in memory that an accelerator reads at full speed."""
    tensor = tensor.detach().to("cpu")
    return tensor.pin_memory() if device.type == "cuda" else tensor
