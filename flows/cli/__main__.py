"""`python -m flows.cli`: the command line without the console script."""

from __future__ import annotations

from flows.cli.app import main

main()
