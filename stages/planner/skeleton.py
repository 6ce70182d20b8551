"""A model's parts without weights, folded: layers of one shape are run once and counted as often as they occur.

SDXL's UNet repeats itself: in a level two or three spatial transformers of one shape, in each of those up to ten
blocks of one shape. A trace (`stages/planner/trace.py`) runs the last of each list. The others return an empty tensor
of the right shape; the last one's multiply-adds count for all of them, and so does the memory it keeps (the stored keys
and values of the prompt). A test compares the folded network with the whole one.
"""

from __future__ import annotations

import json
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from stages.models.by_blocks import blocks_of
from stages.models.networks import empty_part
from stages.planner.configurations import Configs, configurations

if TYPE_CHECKING:
    from stages.models.folder import ModelInfo
    from stages.planner.trace import Trace

Returns = Literal["tensor", "tuple", "pair"]
JOINT = ("Flux", "ChromaTransformerBlock", "JointTransformerBlock", "QwenImageTransformerBlock")
"""How the classes of blocks over text and image begin."""
FOLDED = (  # lists with members of one shape
    *("transformer_blocks", "single_transformer_blocks", "attentions"),
    *("layers", "noise_refiner", "context_refiner", "blocks"),
)


class Skeleton:
    """One part of a model on the meta device. `trace` is the trace that its layers report to, while there is one."""

    def __init__(self, module: nn.Module, *, folded: bool = True, lists: tuple[str, ...] = FOLDED) -> None:
        self.module = module
        self.weights = weight_bytes(module)
        blocks = [weight_bytes(block) for block in blocks_of(module)]
        self.kept = self.weights - sum(blocks) + max(blocks, default=0)  # bytes, with one block at a time
        self.trace: Trace | None = None
        if folded:
            for name, child in list(module.named_modules()):
                if name.rpartition(".")[2] in lists and isinstance(child, nn.ModuleList):
                    self._fold(child)

    def _fold(self, layers: nn.ModuleList) -> None:
        """Fold each run of layers of one shape: its last one is run, and counted for the others."""
        runs = [list(run) for _, run in groupby(range(len(layers)), lambda index: _shapes(layers[index]))]
        for *others, last in runs:
            if not others:
                continue
            for index in others:
                layers[index] = _Folded(_returns(layers[last]))
            fold = _Fold(self, len(others))
            layers[last].register_forward_pre_hook(fold.before)
            layers[last].register_forward_hook(fold.after)


class CallsFolded:
    """A skeleton's network that runs the first of its calls of one shape and counts it for the others.

    For a step that calls the network many times under the same patches: a method that works view by view.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        self._seen: dict[Any, tuple[int, int, list[tuple[torch.Size, torch.dtype]], Any]] = {}

    @property  # type: ignore[misc]  # as a mock has it
    def __class__(self) -> Any:
        """The network's class, by which a denoiser finds how to call it."""
        return type(self.skeleton.module)

    def __getattr__(self, name: str) -> Any:
        """All else is the network's."""
        return getattr(self.skeleton.module, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output, of the right shapes."""
        trace = self.skeleton.trace
        assert trace is not None
        key = tuple(tuple(leaf.shape) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        if key in self._seen:
            flops, held, shapes, form = self._seen[key]
            trace.flops += flops
            trace.peak = max(trace.peak, trace.live + held)
            return tree_unflatten([torch.empty(s, dtype=d, device="meta") for s, d in shapes], form)
        flops, live, peak = trace.flops, trace.live, trace.peak
        trace.peak = live
        output = self.skeleton.module(*args, **kwargs)
        leaves, form = tree_flatten(output)
        shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        self._seen[key] = trace.flops - flops, trace.peak - live, shapes, form
        trace.peak = max(trace.peak, peak)
        return output


def _returns(layer: nn.Module) -> Returns:
    """Return what a layer gives back: a spatial transformer a tuple, a block of joint attention text and image."""
    if type(layer).__name__.startswith(JOINT):
        return "pair"
    return "tuple" if hasattr(layer, "transformer_blocks") else "tensor"


def _shapes(layer: nn.Module) -> tuple[Any, ...]:
    return tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())


class _Folded(nn.Module):
    """In place of a layer that another one of the same shape is counted for."""

    def __init__(self, returns: Returns) -> None:
        super().__init__()
        self.returns = returns

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        output = torch.empty_like(hidden_states)
        if encoder_hidden_states is not None and self.returns == "pair":
            return torch.empty_like(encoder_hidden_states), output
        return (output,) if self.returns == "tuple" else output


class _Fold:
    """Counts one layer for the `others` before it as well."""

    def __init__(self, skeleton: Skeleton, others: int) -> None:
        self.skeleton, self.others = skeleton, others
        self.flops = self.live = 0

    def before(self, *_: Any) -> None:
        if (trace := self.skeleton.trace) is not None:
            self.flops, self.live = trace.flops, trace.live

    def after(self, _: Any, __: Any, output: Any) -> None:
        if (trace := self.skeleton.trace) is None:
            return
        made = sum(each.nbytes for each in (output if isinstance(output, tuple) else (output,)))
        trace.flops += self.others * (trace.flops - self.flops)
        trace.keep(self.others * max(0, trace.live - self.live - made))


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def skeleton(info: ModelInfo, part: str, dtype: str) -> Skeleton:
    """The folded part `unet` or `vae` of a model, from its configuration alone; kept by configuration.

    `dtype` is the name of its numbers' type.
    """
    return skeleton_of(configurations(info, part), dtype)


@lru_cache(maxsize=8)
def skeleton_of(configs: Configs, dtype: str, lists: tuple[str, ...] = FOLDED) -> Skeleton:
    """The network of the configurations that `configurations` returns, with the layers of `lists` folded; kept."""
    module = empty_part(json.loads(configs[0]), getattr(torch, dtype), *map(json.loads, configs[1:]))
    return Skeleton(module, lists=lists)
