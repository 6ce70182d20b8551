"""What the server of `tests.processes` has built besides modules: a table that transformers makes once."""

from __future__ import annotations

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("clip")  # 0.4 s of every child otherwise
