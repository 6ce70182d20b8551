"""Reversible changes to a diffusers UNet.

A `Patch` is a context manager made for one UNet. It takes the smallest handle that reaches the change: an
attention processor around the one already there, attributes of a convolution, a forward hook. After the
`with` body, also one that raised, the UNet is as before: the same processor objects, the same attributes, no
hook left.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

Processor: TypeAlias = "Callable[..., Tensor]"
ConvCall: TypeAlias = "Callable[[nn.Module, Tensor], Tensor]"
Patch: TypeAlias = "Callable[[nn.Module], AbstractContextManager[None]]"


@contextmanager
def patched(unet: nn.Module, patches: Iterable[Patch]) -> Iterator[nn.Module]:
    """Apply `patches` in order for the body of the `with`; undo them in reverse, also on error."""
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch(unet))
        yield unet


def together(*patches: Patch) -> Patch:
    """Return one patch that applies several in order."""

    @contextmanager
    def patch(unet: nn.Module) -> Iterator[None]:
        with patched(unet, patches):
            yield

    return patch


class Child(NamedTuple):
    """A child of a module, and what is to replace it: a module, or None for nothing."""

    parent: nn.Module
    name: str
    module: nn.Module
    substitute: nn.Module | None = None

    @property
    def is_present(self) -> bool:
        """Whether the parent still has this child."""
        return self.parent._modules.get(self.name) is self.module


@contextmanager
def replaced(children: Sequence[Child]) -> Iterator[None]:
    """Put the substitutes in place of the children for the body of the `with`.

    `setattr` of a module is too slow for every step; the dictionary `_modules` is where it writes.
    """
    try:
        for parent, name, _, substitute in children:
            parent._modules[name] = substitute
        yield
    finally:
        for parent, name, module, _ in children:
            parent._modules[name] = module


def spatial_self_attentions(unet: nn.Module) -> list[tuple[str, Any]]:
    """Return (name, module) of every self-attention over image tokens: `….attentions.….attn1`.

    The temporal transformers of video UNets (`temp_attentions`, `motion_modules`, `transformer_in`) are not
    among them: they attend over frames, whose number does not grow.
    """
    return [
        (name, module)
        for name, module in unet.named_modules()
        if name.endswith(".attn1") and ".attentions." in name and ".transformer_blocks." in name
    ]


def has_motion_modules(unet: nn.Module) -> bool:
    """Whether this is an image UNet with motion modules put in (AnimateDiff)."""
    blocks = [*getattr(unet, "down_blocks", ()), *getattr(unet, "up_blocks", ())]
    return any(hasattr(block, "motion_modules") for block in blocks)


def is_video_unet(unet: nn.Module) -> bool:
    """Whether a UNet has layers over frames: `transformer_in` and `temp_attentions`, or motion modules."""
    return hasattr(unet, "transformer_in") or has_motion_modules(unet)


def transformer_name(attention_name: str) -> str:
    """Return the name of the transformer that holds a self-attention: `….attentions.0`."""
    return attention_name.split(".transformer_blocks.")[0]


def replace_self_attention(wrap: Callable[[str, Processor], Processor]) -> Patch:
    """Put `wrap(name, processor)` in place of the processor of every spatial self-attention."""

    @contextmanager
    def patch(unet: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for name, attention in spatial_self_attentions(unet):
                stack.callback(attention.set_processor, attention.processor)
                attention.set_processor(wrap(name, attention.processor))
            yield

    return patch


def record_token_grids(grids: dict[str, tuple[int, int]]) -> Patch:
    """Write the (h, w) of its input to `grids[name]` whenever a spatial transformer starts.

    Its blocks see a flat list of tokens only, and the square root of their number is the side of a square at
    best.
    """

    def recorder(name: str) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden_states = args[0] if args else kwargs["hidden_states"]
            grids[name] = (hidden_states.shape[-2], hidden_states.shape[-1])

        return record

    @contextmanager
    def patch(unet: nn.Module) -> Iterator[None]:
        names = {transformer_name(name) for name, _ in spatial_self_attentions(unet)}
        with ExitStack() as stack:
            for name in sorted(names):
                module = unet.get_submodule(name)
                handle = module.register_forward_pre_hook(recorder(name), prepend=True, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    return patch


@contextmanager
def dilated(conv: Any, factor: tuple[int, int]) -> Iterator[None]:
    """Give one convolution the dilation `factor` (height, width) and a padding that keeps its output size.

    Under a PEFT adapter it is reached through it.
    """
    conv = getattr(conv, "base_layer", conv)
    dilation, padding = conv.dilation, conv.padding
    conv.dilation, conv.padding = factor, (padding[0] * factor[0], padding[1] * factor[1])
    try:
        yield
    finally:
        conv.dilation, conv.padding = dilation, padding


def dilate_convs(names: Sequence[str], factor: tuple[int, int]) -> Patch:
    """Dilate the named convolutions. An unknown name raises before anything is changed."""
    if min(factor) < 1:
        raise ValueError(f"dilation factor is {factor}, allowed: 1 or more on each axis")

    @contextmanager
    def patch(unet: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for conv in _named_convs(unet, names):
                stack.enter_context(dilated(conv, factor))
            yield

    return patch


def call_convs(calls: Mapping[str, ConvCall]) -> Patch:
    """Call each named convolution as `calls[name](conv, x)`. An unknown name raises before anything is changed.

    For what attributes and hooks cannot say: a module that does so stands in the convolution's place.
    """

    @contextmanager
    def patch(unet: nn.Module) -> Iterator[None]:
        from freescale.substitutes import CalledConv  # a class of torch's

        convs = _named_convs(unet, tuple(calls))
        with ExitStack() as stack:
            for (name, call), conv in zip(calls.items(), convs, strict=True):
                holder, _, own_name = name.rpartition(".")
                parent = unet.get_submodule(holder)
                stack.callback(setattr, parent, own_name, conv)
                setattr(parent, own_name, CalledConv(conv, call))
            yield

    return patch


def _named_convs(unet: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    modules = dict(unet.named_modules())
    if unknown := [name for name in names if name not in modules]:
        raise ValueError(f"layers to dilate are {unknown}, allowed: names of convolutions in this UNet")
    return [modules[name] for name in names]
