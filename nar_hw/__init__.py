"""Hardware-aware refinement of trained CNNs.

Keep a network's skips, widths and head; search the operator of each spatial convolution for a latency target.

>>> import random
>>> from nar_hw import SearchSpace
>>> from nar_hw.models import build_model
>>> space = SearchSpace.from_model(build_model("resnet18", input_shape=(3, 32, 32), num_classes=10), input_shape=(3, 32, 32))
>>> len(space.slots), space.names(space.incumbent)[:2]
(16, ('conv3x3', 'conv3x3'))
>>> child = space.build(space.sample(random.Random(0)))
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from nar_hw._version import __version__ as __version__

__all__ = ["LatencyTable", "SearchSpace", "export_bundle", "profile", "search"]

# Else ONNX Runtime 1.29 and later queues events on models and machine for its maker (findings/onnxruntime_telemetry_on_linux.sh).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from nar_hw.bundles.bundle import export_bundle
    from nar_hw.latency.profiler import profile
    from nar_hw.latency.table import LatencyTable
    from nar_hw.search.loop import search
    from nar_hw.space.space import SearchSpace

# Imported when first asked for, so that `import nar_hw` needs no torch. `search` is also a package: see its docstring.
_HOMES = {
    "LatencyTable": "nar_hw.latency.table",
    "SearchSpace": "nar_hw.space.space",
    "export_bundle": "nar_hw.bundles.bundle",
    "profile": "nar_hw.latency.profiler",
}
_PACKAGES = ("data", "export", "latency", "models", "report", "runtimes", "search", "tasks")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"nar_hw.{name}")
    raise AttributeError(f"module 'nar_hw' has no attribute {name!r}")
