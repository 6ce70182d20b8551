"""How a UNet is run: what takes less memory or time and changes rounding at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Compute:
    """The exact savings of one render, passed whole from its options to the denoiser and to methods."""

    split_guidance: bool = False  # two passes of B rows in place of one of 2 B: half the memory
    window_rows: int | None = None  # most rows in one windowed attention call; None: as many as memory takes well
    feed_forward_tokens: int | None = None  # most tokens in one feed-forward; None: all
    phase_convs: bool = False  # dilated convolutions as dense ones on interleaved phases: faster on some devices
