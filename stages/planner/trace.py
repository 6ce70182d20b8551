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
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from freescale.portions import counted_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

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
        out = func(*args, **given)
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
