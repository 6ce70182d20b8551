"""What a computation holds and multiplies, found by running it on tensors that have shapes and no numbers.

`Trace` watches every operation that torch dispatches: a storage counts from the operation that makes it until it is
freed, so the peak is that of the real run, without its numbers and without what a kernel takes inside itself for a
moment (convolution workspaces, the allocator's rounding). Scaled dot-product attention is taken for what every fused
kernel of it is: an output and one float32 a query and head; the matrix of scores is never there. Multiply-adds count
twice. The same class watches real tensors on a CPU, which is how its arithmetic is checked.
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from freescale.portions import counted_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

aten = torch.ops.aten


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts bytes alive on `device` and floating-point operations within its `with`.

    On the meta device `folds` runs one portion of each kind (`freescale/portions.py`) and counts it for the others.
    """

    def __init__(self, device: str = "meta", *, folds: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self._folding = ExitStack()
        self._folds = folds and device == "meta"
        self.live = self.peak = 0
        self.flops = 0
        self._sizes: dict[int, int] = {}  # of storages that are alive, by identity
        self._attention = _Attention(self)

    def __enter__(self) -> Trace:
        """Begin to watch."""
        super().__enter__()  # type: ignore[no-untyped-call]
        self._attention.__enter__()  # type: ignore[no-untyped-call]
        if self._folds:
            self._folding.enter_context(counted_by(self))
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop watching; tensors that are still alive may be freed unseen."""
        self._folding.close()
        self._attention.__exit__(*error)  # type: ignore[no-untyped-call]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in here; keeping the compiler out spares its import of seconds."""
        return False

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were there before, for as long as they live."""
        for tensor in tensors:
            self._see(tensor)

    def keep(self, count: int) -> None:
        """Count bytes that stay to the end."""
        self.live += count
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation, then look at what it made."""
        given = dict(kwargs or {})
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].dtype == torch.bool or 1.0  # checks of values are passed
        out = _run(func, args, given) if self.device == "meta" else func(*args, **given)
        if isinstance(out, torch.Tensor):
            if not func.is_view:
                self._see(out)
        elif out is not None:
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    self._see(leaf)
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += int(count(*args, **given, out_val=out))
        return out

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        identity = storage._cdata
        if identity in self._sizes:
            return
        self._sizes[identity] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, identity).atexit = False

    def _freed(self, identity: int) -> None:
        self.live -= self._sizes.pop(identity)


class _Like(NamedTuple):
    """What a fresh tensor on the meta device is: all that decides it, and what it decides."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype

    def made(self) -> Tensor:
        """Return such a tensor."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device="meta")


def _run(func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """Run an operation on the meta device: torch's own rules once for each form of its inputs, which take long.

    Only an operation that returns fresh tensors is remembered: no view, and nothing that it changes in place.
    """
    key = _key((args, given)) if _is_fresh(func) else None
    if key is None:
        return func(*args, **given)
    key = (func, key)
    if (likes := _MADE.get(key)) is None:
        rule = _RULES.get(func)
        out = rule(*args) if rule is not None and args[0].is_contiguous() else func(*args, **given)
        if (found := _likes(out)) is not None:
            _MADE[key] = found
        return out
    return likes.made() if isinstance(likes, _Like) else tuple(like.made() for like in likes)


def _normalized(image: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, means and deviations of a group norm."""
    _, _, batch, _, _, groups, _ = args
    return image.new_empty(image.shape), image.new_empty(batch, groups), image.new_empty(batch, groups)


def _resized(image: Tensor, size: Sequence[int], *_: Any) -> Tensor:
    """Return an enlarged picture."""
    return image.new_empty(*image.shape[:2], *size)


_RULES: dict[Any, Callable[..., Any]] = {
    aten.native_group_norm.default: _normalized,
    aten.upsample_bicubic2d.default: _resized,
}
"""What two operations make of a contiguous picture on the meta device. torch's own rules for it run their arithmetic:
4 and 100 ms a call."""


_MADE: dict[Any, _Like | tuple[_Like, ...]] = {}


@cache
def _is_fresh(func: Any) -> bool:
    """Whether an operation returns tensors alone, none of which is a view, and writes to none that it is given."""
    schema = func._schema
    returns = [str(each.type) for each in schema.returns]
    aliases = any(each.alias_info is not None for each in (*schema.arguments, *schema.returns))
    return bool(returns) and set(returns) == {"Tensor"} and not aliases


def _key(given: Any) -> Any:
    """Return all that decides the form of a result; None where a tensor is not on the meta device, or not plain."""
    if isinstance(given, torch.Tensor):
        plain = given.is_meta and not given.is_conj() and not given.is_neg()
        return (given.shape, given.stride(), given.dtype) if plain else None
    if isinstance(given, dict):
        given = tuple(given.items())
    if isinstance(given, list | tuple):
        parts = tuple(_key(each) for each in given)
        return None if None in parts else parts
    return (type(given), given)


def _likes(out: Any) -> _Like | tuple[_Like, ...] | None:
    """Return the forms of an operation's results; None where a tensor of its form would have other bytes."""
    if isinstance(out, torch.Tensor):
        like = _Like(out.shape, out.stride(), out.dtype)
        same = out.is_meta and out.untyped_storage().nbytes() == like.made().untyped_storage().nbytes()
        return like if same and out.storage_offset() == 0 else None
    if not isinstance(out, tuple):
        return None
    found = tuple(_likes(each) for each in out)
    is_own = len({each.untyped_storage()._cdata for each in out if isinstance(each, torch.Tensor)}) == len(out)
    return tuple(each for each in found if isinstance(each, _Like)) if is_own and None not in found else None


class _Attention(TorchFunctionMode):
    """Replaces attention on meta tensors, which torch would split into scores and their softmax."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **given)
        query, key = (args[i] if len(args) > i else given[name] for i, name in enumerate(("query", "key")))
        if not query.is_meta:
            return func(*args, **given)
        return self._fused(query, key)

    def _fused(self, query: Tensor, key: Tensor) -> Tensor:
        """The output (B, heads, T, D), laid out as every fused kernel lays it out: (B, T, heads, D)."""
        batch, heads, tokens, size = query.shape
        self.trace.flops += 4 * batch * heads * tokens * key.shape[2] * size
        logsumexp = query.new_empty(batch, heads, tokens, dtype=torch.float32)
        output = query.new_empty(batch, tokens, heads, size).transpose(1, 2)
        del logsumexp
        return output
