"""What the server of `tests.processes` makes once before it forks: the parser, and a table that transformers makes."""

from __future__ import annotations

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from flows.cli.app import parser

parser()
get_checkpoint_conversion_mapping("clip")  # 0.4 s of every child otherwise
gc.collect()
gc.freeze()  # a child's collections then copy no page of what is loaded
