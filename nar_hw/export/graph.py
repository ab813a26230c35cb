"""Surgery on exported graphs: norms folded into the layers before them, nodes named after their modules."""

import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nar_hw.errors import ExportError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

CHILD_WEIGHTS = "children.weights"
"""Name of the file beside children's ONNX files that holds their weights, where they are only measured."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter notes the modules around a node: "['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d_1']"."""


def fold_norms(graph: "ir.Graph") -> None:
    """Fold each BatchNorm into the convolution or linear layer whose output it alone reads; exact up to rounding.

    Also through an average pool whose windows average real pixels only, since the mean of an affine map is the affine map
    of the mean. (The exporter's optimizer would fold convolutions too, but it renames them after their norm.)
    """
    import onnx_ir as ir

    folded: dict[tuple[str, ...], tuple[ir.Value, ir.Value]] = {}
    for norm in [node for node in graph if node.op_type == "BatchNormalization"]:
        layer = _layer_before(norm)
        statistics = [constant(value) for value in norm.inputs[1:]]
        if layer is None or any(array is None for array in statistics):
            continue
        old = [value for value in layer.inputs[1:] if value is not None]
        # A layer that is called twice with the same norm keeps one copy of its weights.
        key = tuple(str(value.name) for value in (*old, *norm.inputs[1:]) if value is not None)
        epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
        arrays = _folded([constant(value) for value in old], statistics, epsilon)
        layer.resize_inputs(3)
        for position in (1, 2):
            layer.replace_input_with(position, None)
        for value in old:
            if not value.uses():
                graph.initializers.pop(str(value.name), None)
        if key not in folded:
            weight = str(old[0].name)
            bias = f"{weight.removesuffix('.weight')}.bias"
            folded[key] = (initializer(graph, weight, arrays[0]), initializer(graph, bias, arrays[1]))
        for position, value in enumerate(folded[key], start=1):
            layer.replace_input_with(position, value)
        assert norm.inputs[0] is not None
        bypass(norm, norm.inputs[0])


def _layer_before(norm: "ir.Node") -> "ir.Node | None":
    """The layer whose weights can take up ``norm``, if any."""
    value = norm.inputs[0]
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "Conv" or (node.op_type == "Gemm" and _plain_gemm(node)):
            foldable = all(constant(item) is not None for item in node.inputs[1:] if item is not None)
            return node if foldable else None
        if node.op_type != "AveragePool" or not _averages_pixels_only(node):
            return None
        value = node.inputs[0]
    return None


def _plain_gemm(node: "ir.Node") -> bool:
    """Whether a Gemm is x @ weight.T + bias."""
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    return bool(given.get("transB") == 1 and not given.get("transA") and given.get("alpha", 1) == given.get("beta", 1) == 1)


def _averages_pixels_only(node: "ir.Node") -> bool:
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    return not given.get("ceil_mode") and (not given.get("count_include_pad") or not any(given.get("pads", ())))


def constant(value: "ir.Value | None") -> NDArray[Any] | None:
    """The array of a value that is known without running the graph."""
    import onnx_ir as ir

    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _folded(layer: list[NDArray[Any] | None], norm: list[NDArray[Any] | None], epsilon: float) -> list[NDArray[Any]]:
    weight, bias = layer if len(layer) == 2 else (*layer, None)
    scale, shift, mean, variance = (np.asarray(array, np.float64) for array in norm)
    assert weight is not None
    factor = scale / np.sqrt(variance + epsilon)  # (channels,)
    new_weight = weight.astype(np.float64) * factor.reshape(-1, *[1] * (weight.ndim - 1))
    new_bias = ((0.0 if bias is None else bias.astype(np.float64)) - mean) * factor + shift
    return [new_weight.astype(weight.dtype), new_bias.astype(weight.dtype)]


def initializer(graph: "ir.Graph", name: str, array: NDArray[Any]) -> "ir.Value":
    """A new weight of ``graph``, called ``name`` or, where that is taken, ``name``_1, ..."""
    import onnx_ir as ir

    number, free = 0, name
    while free in graph.initializers:
        number += 1
        free = f"{name}_{number}"
    value = ir.val(free, const_value=ir.tensor(array, name=free))
    graph.register_initializer(value)
    return value


def bypass(node: "ir.Node", new: "ir.Value") -> None:
    """Let the readers of ``node``'s first output read ``new`` instead, and take the node out."""
    graph, old = node.graph, node.outputs[0]
    assert graph is not None
    for reader, position in tuple(old.uses()):
        reader.replace_input_with(position, new)
    for position, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[position] = new
            new.name, old.name = old.name, None
    graph.remove(node, safe=True)


def pad_last_windows(graph: "ir.Graph") -> None:
    """Give pools with ceil_mode explicit padding where their last window may start in the padding.

    torch leaves out such windows, ONNX counts them in the shape, and TensorRT computes them. Raises ExportError where height
    or width may vary: then no padding is right for all sizes.
    """
    import onnx_ir as ir

    for node in [node for node in graph if node.op_type in ("MaxPool", "AveragePool")]:
        given = {name: attribute.value for name, attribute in node.attributes.items()}
        window = list(given["kernel_shape"])
        rank = len(window)
        strides, dilations = (list(given.get(name) or [1] * rank) for name in ("strides", "dilations"))
        pads = list(given.get("pads") or [0] * 2 * rank)
        spans = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, window, strict=True)]
        certain = all(pad + stride <= span for pad, stride, span in zip(pads[rank:], strides, spans, strict=True))
        if not given.get("ceil_mode") or certain:
            continue
        source = node.inputs[0]
        assert source is not None
        sizes = list(source.shape or ())[2:]
        if len(sizes) != rank or not all(isinstance(size, int) for size in sizes):
            path = node_path(node.metadata_props) or node.op_type
            raise ExportError(f"{path} has ceil_mode and windows that depend on the image size: use floor, or one size")
        ends = []
        for size, first, last, stride, span in zip(sizes, pads[:rank], pads[rank:], strides, spans, strict=True):
            count = -(-(size + first + last - span) // stride) + 1
            count -= (count - 1) * stride >= size + first
            ends.append(max(0, (count - 1) * stride + span - size - first))
        if node.op_type == "AveragePool" and given.get("count_include_pad"):
            # Its own padding counts as zeros, what lies beyond does not
            amounts = initializer(graph, f"{source.name}.padding", np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64))
            padded = ir.node("Pad", [source, amounts])
            padded.metadata_props.update(node.metadata_props)
            padded.outputs[0].name = f"{source.name}.padded"
            graph.insert_before(node, padded)
            node.replace_input_with(0, padded.outputs[0])
            ends = [max(0, end - last) for end, last in zip(ends, pads[rank:], strict=True)]
            pads, node.attributes["count_include_pad"] = [0] * 2 * rank, ir.AttrInt64("count_include_pad", 0)
        node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)
        node.attributes["pads"] = ir.AttrInt64s("pads", [*pads[:rank], *ends])


def plain_equations(graph: "ir.Graph") -> None:
    """Write the equations of Einsum nodes with small letters and without spaces: TensorRT reads no others."""
    import onnx_ir as ir

    for node in [node for node in graph if node.op_type == "Einsum"]:
        equation = "".join(node.attributes["equation"].as_string().split())
        letters = dict.fromkeys(char for char in equation if char.isalpha())
        if len(letters) <= len(string.ascii_lowercase):
            small = str.maketrans(dict(zip(letters, string.ascii_lowercase, strict=False)))
            node.attributes["equation"] = ir.AttrString("equation", equation.translate(small))


def node_path(metadata: Mapping[str, str]) -> str:
    """Path of the module a node came from, as the exporter noted it; "" for the network's own operations."""
    names = re.findall(r"'([^']*)'", metadata.get(SCOPES, ""))
    # The last scope is the operation itself; repeated calls of one module may be marked @1, @2, ...
    path = re.sub(r"@\d+", "", names[-2]) if len(names) > 1 else ""
    return "" if path.startswith("_empty_nn_module_stack") else path


def scopes(path: str) -> dict[str, str]:
    """The inverse of `node_path`."""
    return {SCOPES: repr(["", path, ""])}


def clean(proto: "onnx.ModelProto", metadata: Mapping[str, Any] | None = None) -> None:
    """Name every node ``<module path>/<operation>``; drop doc strings, local paths, stack traces and inner shapes."""
    from onnx import helper

    graph = proto.graph
    kept = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    counts: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    for node in graph.node:
        path = node_path({entry.key: entry.value for entry in node.metadata_props})
        name = f"{path}/{node.op_type}" if path else node.op_type
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name] - 1}"
        renamed.update({value: f"{node.name}:{position}" for position, value in enumerate(node.output) if value not in kept})
    rename_values(graph, renamed)
    _strip(graph)
    for section in (proto, graph, *graph.input, *graph.output, *graph.initializer):
        section.ClearField("doc_string")
        section.ClearField("metadata_props")
    del graph.value_info[:]
    graph.name = "network"
    proto.producer_name = "nar_hw"
    proto.ClearField("producer_version")
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    helper.set_model_props(proto, texts)


def rename_values(graph: "onnx.GraphProto", names: Mapping[str, str]) -> None:
    """Give values that nodes read and write other names, in inner graphs too."""
    for node in graph.node:
        for values in (node.input, node.output):
            for position, value in enumerate(values):
                if value in names:
                    values[position] = names[value]
        for inner in _inner_graphs(node):
            rename_values(inner, names)


def _strip(graph: "onnx.GraphProto") -> None:
    for node in graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        for inner in _inner_graphs(node):
            _strip(inner)


def _inner_graphs(node: "onnx.NodeProto") -> Iterator["onnx.GraphProto"]:
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g
