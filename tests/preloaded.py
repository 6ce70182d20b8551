"""What the server of `tests.processes` makes once before it forks: the parser of the command line."""

from flows.cli.app import parser

parser()
