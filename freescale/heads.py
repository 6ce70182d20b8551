"""The heads of a self-attention, computed once and attended in sets of tokens.

Projections act on single tokens, so queries, keys and values are shared by all windows, blocks and phases that a token
is in. Tokens are (B, N, C), heads (B, tokens, heads, head_dim).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

CACHE_BYTES, MEMORY_BYTES = 8 * 2**20, 2**30
"""What the gathered queries, keys, values and outputs of one call may take: on a CPU what its cache holds, on a GPU
what keeps it busy. At 8192 x 8192 the windows of SDXL's largest layer are 9 GiB together."""


class Heads(NamedTuple):
    """Queries, keys and values of all tokens, each (B, tokens, heads, head_dim)."""

    query: Tensor
    key: Tensor
    value: Tensor


def is_plain_self_attention(attn: Any, hidden_states: Tensor, context: Tensor | None, mask: Tensor | None) -> bool:
    """Whether this is self-attention over tokens (B, N, C), without a mask or a norm of its own."""
    has_norm = any(getattr(attn, norm, None) is not None for norm in ("group_norm", "spatial_norm"))
    return context is None and mask is None and hidden_states.ndim == 3 and not has_norm


def project(attn: Any, hidden_states: Tensor, keys: Tensor | None = None) -> Heads:
    """Return the queries of the tokens (B, N, C), and the keys and values of all, or of the tokens `keys` (B, K, C)."""
    keys = hidden_states if keys is None else keys
    given = ((attn.to_q, hidden_states), (attn.to_k, keys), (attn.to_v, keys))
    query, key, value = (layer(x).view(*x.shape[:2], attn.heads, -1) for layer, x in given)
    query = query if getattr(attn, "norm_q", None) is None else attn.norm_q(query)
    key = key if getattr(attn, "norm_k", None) is None else attn.norm_k(key)
    return Heads(query, key, value)


def output_of(attn: Any, x: Tensor) -> Tensor:
    """Return the output projection of x (..., C), dropout included (nothing, in evaluation)."""
    output: Tensor = attn.to_out[1](attn.to_out[0](x))
    return output


def sets_at_once(heads: Heads, tokens: int, window_rows: int | None) -> int:
    """Return how many windows or phases of so many tokens one call takes, for all rows of the batch."""
    batch, _, count, size = heads.query.shape
    if window_rows is not None:
        return max(1, window_rows // batch)
    budget = CACHE_BYTES if heads.query.device.type == "cpu" else MEMORY_BYTES
    return max(1, budget // (4 * batch * tokens * count * size * heads.query.element_size()))


def attend(heads: Heads, index: Tensor, is_inside: Tensor | None = None, keys: Tensor | None = None) -> Tensor:
    """Return the attention (B, sets, T, C) of each set of tokens, `index` (sets, T), to its `keys` (sets, K).

    Without `keys` a set attends to itself; tokens that are not inside, (sets, T), are then no keys, and what they get
    as queries has no meaning.
    """
    batch, device = heads.query.shape[0], heads.query.device
    index = index.to(device)
    query_rows = _rows_of(index, heads)
    key_rows = query_rows if keys is None else _rows_of(keys.to(device), heads)
    given = (query_rows, key_rows, key_rows)
    gathered = Heads(*(_taken(x, rows) for x, rows in zip(heads, given, strict=True)))
    mask = None if is_inside is None else is_inside.to(device).repeat(batch, 1)[:, None, None, :]
    return sdpa(gathered, mask).view(batch, *index.shape, -1)


def _rows_of(index: Tensor, heads: Heads) -> Tensor:
    """Return the tokens (B * sets, T) of all batch rows, numbered through, for those (sets, T) of one."""
    batch, tokens = heads.query.shape[:2]
    return (index + tokens * torch.arange(batch, device=index.device)[:, None, None]).flatten(0, 1)


def _taken(x: Tensor, rows: Tensor) -> Tensor:
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(*rows.shape, *x.shape[2:])


def sdpa(heads: Heads, mask: Tensor | None = None) -> Tensor:
    """Return scaled dot-product attention (B, T, C) of heads (B, T, heads, head_dim)."""
    query, key, value = (x.transpose(1, 2) for x in heads)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
