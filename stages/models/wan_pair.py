"""Wan 2.2's two transformers as one network: one works above a noise level, the other below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from stages.models.flow.base import BOUNDARY

if TYPE_CHECKING:
    from torch import Tensor


class WanTransformerPair(nn.Module):
    """`transformer` where the timestep is at least `boundary_ratio` of all, else `transformer_2`; both of one form."""

    _keep_in_fp32_modules: ClassVar[list[str]] = [
        "rope",
        "time_embedder",
        "scale_shift_table",
        "norm1",
        "norm2",
        "norm3",
    ]

    def __init__(self, transformer: Any, transformer_2: Any, boundary_ratio: float) -> None:
        super().__init__()
        self.transformer, self.transformer_2 = transformer, transformer_2
        self.config = {**transformer.config, BOUNDARY: boundary_ratio}

    @property
    def rope(self) -> Any:
        """The positions of the first network; the second one's are the same."""
        return self.transformer.rope

    def forward(self, hidden_states: Tensor, timestep: Tensor, **given: Any) -> Any:
        """Return the output of the network that works at the timestep, one for all rows."""
        is_high = bool(timestep[0] >= self.config[BOUNDARY] * 1000)
        network = self.transformer if is_high else self.transformer_2
        return network(hidden_states=hidden_states, timestep=timestep, **given)
