"""What the server of `tests.processes` makes once before it forks: the parser, a table that transformers makes, traces.

The traces are those of the pictures of `tests/doorstep`, each of which would take a second of its own. They are made
on tensors without numbers, so no thread of torch is there when the server forks.
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from flows.cli.app import parser
from stages.models.folder import describe
from stages.plan import make_plan
from stages.planner.estimate import estimate
from stages.spec import ModelSpec, RunOptions, make_spec

parser()
get_checkpoint_conversion_mapping("clip")  # 0.4 s of every child otherwise
with tempfile.TemporaryDirectory() as folder:
    info = describe(ModelSpec(), Path(folder))
for call in make_plan(make_spec({"prompt": "x", "width": 256, "height": 192, "steps": 2}), info).calls:
    estimate(call, info, RunOptions(), "cpu")
gc.collect()
gc.freeze()  # a child's collections then copy no page of what is loaded
