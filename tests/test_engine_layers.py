"""TensorRT's account of an engine's layers, in its own words, joined to the nodes of the ONNX file."""

from typing import Any

import pytest

from nar_hw.export.engine_layers import datatypes, node_names, producers


def layer(name: str, nodes: list[str], inputs: list[str] = [], outputs: list[str] = []) -> dict[str, Any]:  # noqa: B006
    tensors = {"Inputs": [{"Name": item} for item in inputs], "Outputs": [{"Name": item} for item in outputs]}
    return {"Name": name, "Metadata": "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes), **tensors}


@pytest.mark.parametrize(
    ("nodes", "name"),
    [
        (["layer1.conv1/Conv", "layer1.relu/Relu"], "layer1.conv1/Conv"),
        (["layer1.relu/Relu", "layer2.conv1/Conv_1", "layer2.pool/MaxPool"], "layer2.conv1/Conv_1"),
        (["layer1.relu/Relu", "layer1.pool/AveragePool"], "layer1.pool/AveragePool"),
        (["conv1.weight_QuantizeLinear", "conv1/Conv:0_QuantizeLinear", "conv2/Conv", "layer1/Add"], "conv2/Conv"),
        (["input_QuantizeLinear", "layer1/Add"], "layer1/Add"),
        (["input_QuantizeLinear"], "input_QuantizeLinear"),
        (["fc/Gemm", "Softmax"], "fc/Gemm"),
        ([], "own name"),
    ],
)
def test_a_fused_layer_has_the_name_of_the_node_that_does_the_work(nodes: list[str], name: str) -> None:
    assert node_names([layer("own name", nodes)]) == {"own name": name}


def test_layers_of_one_node_are_one_in_the_graph() -> None:
    layers = [
        layer("in", [], ["input"], ["a"]),
        layer("myl_1", ["x/Conv"], ["a"], ["b"]),
        layer("myl_2", ["x/Conv", "x/Relu"], ["b"], ["c"]),
        layer("out", [], ["c", "w"], ["d"]),
    ]
    assert producers(layers) == {"in": [], "x/Conv": ["in"], "out": ["x/Conv"]}


def test_the_parts_of_the_network_are_told_with_their_types() -> None:
    tensors = {"Inputs": [], "Outputs": []}
    weights = [{"Name": "w", "Dimensions": [8, 4], "Datatype": "Int8"}, {"Name": "s", "Dimensions": [8], "Datatype": "Float"}]
    layers = [
        {"Name": "a", **tensors, "Constants": weights, "Metadata": "[ONNX Layer: x/Conv][ONNX Layer: x.weight_DequantizeLinear]"},
        {"Name": "b", **tensors, "Constants": weights[1:], "Metadata": "[ONNX Layer: x/Conv][ONNX Layer: x/Relu]"},
        {"Name": "c", **tensors, "Constants": weights[1:], "Metadata": "[ONNX Layer: y/MatMul_1]"},
        {"Name": "d", **tensors, "Constants": [], "Metadata": "[ONNX Layer: z/MatMul]"},
    ]
    assert datatypes(layers) == {"Float": 1, "Int8": 1}
