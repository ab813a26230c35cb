"""The command line: parse, call, print."""

from nar_hw.cli import bundles, data, networks, profile, proxy, refine, runs, sweep, tables  # noqa: F401  (they register their commands)
from nar_hw.cli.app import main

__all__ = ["main"]
