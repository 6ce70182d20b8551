"""The public names of the package are what they say, whichever of its modules was imported first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_module_takes_the_name_of_a_function() -> None:
    script = (
        "import importlib, pkgutil, types, storage\n"
        "for module in pkgutil.iter_modules(storage.__path__): importlib.import_module(f'storage.{module.name}')\n"
        "print([name for name in storage.__all__ if isinstance(getattr(storage, name), types.ModuleType)])"
    )
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
