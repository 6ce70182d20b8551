"""DeepCache (arXiv:2312.00858): the deep features of a UNet change slowly, and serve for some steps.

At a *full* step the whole UNet runs, and what its inner part hands to the outer layers of the up-blocks is kept. At the
steps between, those outer layers alone run, with what was kept. The cut is at a skip connection, the *branch*: 0 is the
one of `conv_in`, 1 and 2 those of the first block's layers, 3 that of its downsampler, and so on inwards. With branch b
the layers up to skip b run on the way down, and those from the layer that takes skip b on the way up.

Full are every N-th step of a stage, from its first one on, and the steps at which the UNet is another one than before.
Which are is known beforehand, and nothing is kept beyond a stage: a loop that is entered at a full step gives the same
bits as one that was never left.

What a layer keeps is taken before FreeU rescales it, and skips are computed at every step, so FreeU acts as without.
The children of blocks are swapped for shorter lists of themselves; the UNet's own forward runs what is there.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from freescale.unet_patches import Child, replaced

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from torch import Tensor, nn

    from freescale.unet_patches import Patch

Side = Literal["negative", "positive"]
"""Of guidance: the rows of a call of the UNet."""


def full_steps(start: int, stop: int, interval: int, calls: int = 1, also: Iterable[int] = ()) -> frozenset[int]:
    """Return the full steps of a stage from `start` to `stop` - 1, and `stop`: a loop may be left before each of them.

    `interval` is in steps of the solver, which calls the UNet `calls` times in each; `also` are solver steps at which
    the UNet changes. Raises `ValueError` for an interval below 1.
    """
    if interval < 1:
        raise ValueError(f"deepcache is {interval}, allowed: 1 step or more")
    changed = {step + call for step in also for call in range(calls)}
    regular = {i for i in range(start, stop) if (i - start) // calls % interval == 0}
    return frozenset({*regular, *(i for i in changed if start <= i < stop), stop})


def branches(layers: Sequence[int]) -> int:
    """Return how many skip connections a UNet has with so many layers in each down-block."""
    return 1 + sum(layers) + len(layers) - 1


class DeepCache:
    """The features of one level's last full step, and the patches that keep and use them."""

    def __init__(self, full: Collection[int], branch: int = 0) -> None:
        self.full, self.branch = frozenset(full), branch
        self._features: dict[Side, Tensor] = {}  # (B, C, h, w) each, in the UNet's dtype

    def patch(self, i: int, sides: tuple[Side, ...]) -> Patch:
        """Return the patch for a call of the UNet at step `i` with the rows of `sides`, in order.

        At a step that is not full, using it raises `KeyError` for a side that the last full step did not have.
        """
        return self._keep(sides) if i in self.full else self._reuse(sides)

    def _keep(self, sides: tuple[Side, ...]) -> Patch:
        @contextmanager
        def patch(unet: nn.Module) -> Iterator[None]:
            """Keep what the call hands to the layer of the cut; what was kept is let go before."""
            for side in sides:
                self._features.pop(side, None)
            cut = cut_at(unet, self.branch)

            def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
                parts = args[0][:, : cut.width].clone().chunk(len(sides))
                self._features.update(zip(sides, parts, strict=True))

            with ExitStack() as stack:
                stack.callback(cut.layer.register_forward_pre_hook(keep, prepend=True).remove)
                yield

        return patch

    def _reuse(self, sides: tuple[Side, ...]) -> Patch:
        @contextmanager
        def patch(unet: nn.Module) -> Iterator[None]:
            """Leave the outer layers alone in the UNet, and give them what was kept."""
            cut = cut_at(unet, self.branch)
            features = torch.cat([self._features[side] for side in sides])

            def give(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                return args, {**kwargs, "hidden_states": features}

            with replaced(cut.children), ExitStack() as stack:
                stack.callback(cut.block.register_forward_pre_hook(give, with_kwargs=True).remove)
                yield

        return patch


class Cut(NamedTuple):
    """Where the outer layers begin on the way up, and what takes the inner ones out of the UNet."""

    block: Any  # the first up-block that has outer layers
    layer: Any  # the resnet in it that takes the skip
    width: int  # channels of its input that are no skip's
    children: list[Child]


def cut_at(unet: Any, branch: int) -> Cut:
    """Return the cut at a branch. Raises `ValueError` for a branch that the UNet does not have."""
    count = branches([len(block.resnets) for block in unet.down_blocks])
    if not 0 <= branch < count:
        raise ValueError(f"deepcache_branch is {branch}, allowed: 0 to {count - 1}")
    down, children = list[Any](), list[Child]()
    left, skip = branch, unet.conv_in.out_channels
    for block in unet.down_blocks:
        if left > 0:
            down.append(block)
            layers = len(block.resnets)
            skip = block.resnets[min(left, layers) - 1].out_channels
            if left <= layers:
                children += _shortened(block, slice(0, left))
                children += (
                    [Child(block, "downsamplers", block.downsamplers)] if "downsamplers" in block._modules else []
                )
            left -= layers + 1
    up, left = list[Any](), branch + 1
    while left > 0:
        block = unet.up_blocks[-1 - len(up)]
        up.insert(0, block)
        first = max(len(block.resnets) - left, 0)
        left -= len(block.resnets)
    children += _shortened(up[0], slice(first, None))
    swapped = {"down_blocks": torch.nn.ModuleList(down), "mid_block": None, "up_blocks": torch.nn.ModuleList(up)}
    children += [Child(unet, name, unet._modules[name], new) for name, new in swapped.items() if name in unet._modules]
    layer = up[0].resnets[first]
    return Cut(up[0], layer, layer.in_channels - skip, children)


def _shortened(block: Any, kept: slice) -> list[Child]:
    """Return the lists of a block's layers with a part of them."""
    lists = [name for name in ("resnets", "attentions") if name in block._modules]
    return [Child(block, name, getattr(block, name), getattr(block, name)[kept]) for name in lists]
