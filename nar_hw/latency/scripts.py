"""measure.py of a kit: what nar_hw itself runs on a device, in one file."""

import ast
import inspect
from importlib import import_module

from nar_hw._version import __version__
from nar_hw.device import hollow, machine, measure, visits
from nar_hw.runtimes import Runtime


def script(runtime: type[Runtime]) -> str:
    """measure.py: nar_hw's own files for devices as one, which imports nothing but NumPy and the runtime."""
    modules = [visits, hollow, machine, import_module(f"nar_hw.device.{runtime.kit}"), measure]
    parts = [_without_imports(inspect.getsource(module)) for module in modules]
    head = f'"""Measures this kit: `python measure.py`. Written by nar_hw {__version__}; needs numpy and {runtime.name}."""'
    tail = 'if __name__ == "__main__":\n    sys.exit(main(NETWORK, Path(__file__).resolve().parent))'
    return "\n\n\n".join([f"{head}\n\nfrom __future__ import annotations", *parts, tail]) + "\n"


def _without_imports(source: str) -> str:
    """A file without what it imports from its neighbours, and without what must come first in a file."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("nar_hw", "__future__"):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return "\n".join(lines).strip()
