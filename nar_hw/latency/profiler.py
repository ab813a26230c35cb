"""From a search space and a runtime to a latency table."""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nar_hw.errors import RuntimeUnavailableError, unknown_name
from nar_hw.latency import in_context
from nar_hw.latency.children import ChildLoader, Measured, Steps, child_loader, children_at_once, measure
from nar_hw.latency.designs import latin
from nar_hw.latency.device import fingerprint
from nar_hw.latency.schema import TableSlot
from nar_hw.latency.table import LatencyTable
from nar_hw.latency.validate import validate as validated
from nar_hw.operators import OpSpec
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.space import Arch, SearchSpace

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["METHODS", "ChildLoader", "child_loader", "profile"]

METHODS = ("in-context",)
