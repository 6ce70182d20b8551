"""Every benchmark that needs no download, one after another, each in a process of its own: `python -m benchmarks`.

Options are handed on (`--device`, `--runs`, `--threads`). On a GPU it takes about half an hour, most of it at 8192; on
two CPU cores about ten minutes. What they print is tables, and one JSON line each for whoever compares.
"""

from __future__ import annotations

import subprocess
import sys

NAMES = ("attention", "unet", "vae", "render", "checkpointing")


def main() -> int:
    """Return 0 when all of them ran."""
    codes = [subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]).returncode for name in NAMES]
    for name, code in zip(NAMES, codes, strict=True):
        if code:
            print(f"benchmarks.{name} ended with {code}", file=sys.stderr)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
