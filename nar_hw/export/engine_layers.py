"""TensorRT's account of an engine's layers, joined to the nodes of the ONNX file.

The metadata of a layer hold the names of its nodes: "[ONNX Layer: layer1.conv1/Conv]\\x1f[ONNX Layer: layer1.relu/Relu]".
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Layer = Mapping[str, Any]
"""Name, Metadata, Inputs, Outputs and more."""

_WORK = (("Conv", "ConvTranspose", "Gemm", "MatMul"), ("MaxPool", "AveragePool", "GlobalAveragePool"))


def node_names(layers: Sequence[Layer]) -> dict[str, str]:
    """Layer -> the ONNX node that it stands for; layers of no node (changes of layout, mostly) keep their own name."""
    nodes = {layer["Name"]: _nodes(layer) for layer in layers}
    return {name: min(found, key=_rank) if found else name for name, found in nodes.items()}


def _nodes(layer: Layer) -> list[str]:
    return re.findall(r"\[ONNX Layer: ([^\]]+)\]", layer.get("Metadata", ""))


def _rank(node: str) -> int:
    """How far a node "<module path>/<operation>" is from being the one that does the work of its layer."""
    operation = _operation(node)
    return next((rank for rank, work in enumerate(_WORK) if operation in work), len(_WORK) + ("/" not in node))


def _operation(node: str) -> str:
    return node.rpartition("/")[2].partition("_")[0]


def producers(layers: Sequence[Layer]) -> dict[str, list[str]]:
    """Node -> the nodes that it reads from, by the names of `node_names`."""
    names = node_names(layers)
    made_by = {tensor["Name"]: names[layer["Name"]] for layer in layers for tensor in layer["Outputs"]}
    table: dict[str, list[str]] = {}
    for layer in layers:
        name = names[layer["Name"]]
        sources = (made_by[tensor["Name"]] for tensor in layer["Inputs"] if tensor["Name"] in made_by)
        table.setdefault(name, []).extend(source for source in sources if source != name)
    return table


def datatypes(layers: Sequence[Layer]) -> dict[str, int]:
    """How many convolutions and matrix products compute in each type ("Int8", "Half", ...), those whose layers tell.

    The layer of a node is the one with the most weights among those that name it: others quantize what it reads.
    """
    best: dict[str, tuple[int, str]] = {}
    for layer in layers:
        weights = [(math.prod(item["Dimensions"]), item["Datatype"]) for item in layer.get("Constants", ())]
        for node in _nodes(layer):
            if _operation(node) in _WORK[0] and "Linear" not in node.rpartition("/")[2] and weights:
                best[node] = max(best.get(node, (0, "")), max(weights))
    return dict(sorted(Counter(kind for _, kind in best.values()).items()))
