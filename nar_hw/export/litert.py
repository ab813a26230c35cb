"""LiteRT's files (.tflite): a network made of an ONNX file, with the schema that LiteRT's package holds.

An image is (H, W, C) there: values of rank 4 become (B, H, W, C) where an operation asks for it, everything else stays as in
the ONNX file. What has no exact form in LiteRT is refused by name, and every file is compared with ONNX Runtime.

Shape legend: B images, H height, W width, C channels.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from nar_hw.device.litert import LiteRtNetwork
from nar_hw.errors import ExportError, RuntimeUnavailableError
from nar_hw.export.litert_operators import OPERATORS
from nar_hw.export.onnx import check_runtime
from nar_hw.files import write_bytes

INSTALL = "litert is not installed: pip install 'nar-hw[litert]'"
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)

Array = npt.NDArray[Any]


def save_litert(source: Path, target: Path, images: tuple[int, int, int, int]) -> Path:
    """Write the ONNX file ``source`` as ``target`` (.tflite) for inputs of exactly the shape ``images`` (B, C, H, W).

    The file takes them as (B, H, W, C) and computes in fp32; it is compared with ONNX Runtime on random images.

    Raises:
        RuntimeUnavailableError: LiteRT is not installed.
        ExportError: an operation that cannot be converted, or LiteRT computes something else.
    """
    try:
        data = Conversion(source, images).packed()
    except ImportError as problem:
        raise RuntimeUnavailableError(INSTALL) from problem
    write_bytes(target, data)
    inputs = np.random.default_rng(0).standard_normal(images, dtype=np.float32)
    try:
        network = LiteRtNetwork([str(target)], inputs, 1)
        outputs = network.infer(inputs)
        network.close()
        check_runtime("LiteRT", source, inputs, outputs)
    except (ValueError, RuntimeError) as problem:
        target.unlink()
        if isinstance(problem, ExportError):
            raise
        raise ExportError(f"{source} cannot run in LiteRT: {(str(problem).splitlines() or [''])[0]}") from problem
    return target


def weights_of(file: Path) -> list[npt.NDArray[np.float32]]:
    """The float32 weights of a .tflite, in the order in which they lie there."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(file.read_bytes(), 0)
    graph = model.Subgraphs(0)
    arrays = []
    for number in range(graph.TensorsLength()):
        tensor = graph.Tensors(number)
        buffer = model.Buffers(tensor.Buffer())
        if tensor.Type() == schema.TensorType.FLOAT32 and not buffer.DataIsNone():
            arrays.append(buffer.DataAsNumpy().view(np.float32))
    return arrays[::-1]  # what is written last lies first


class Conversion:
    """A .tflite in the making; `nar_hw.export.litert_operators` has what becomes of each operation.

    A value is a tensor in one of two layouts: "last" (B, H, W, C) or as in the ONNX file.
    """

    def __init__(self, source: Path, images: tuple[int, int, int, int]) -> None:
        """Raises ExportError and ImportError."""
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.source = source
        self._graph = graph = _static(source, images)
        self.constants: dict[str, Array] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        _find_gelus(graph, self.constants)
        self.shapes = _shapes(graph) | {name: array.shape for name, array in self.constants.items()}
        self.readers = Counter(name for node in graph.node for name in node.input)
        self.readers.update(value.name for value in graph.output)
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [schema.BufferT()]
        self._operators: list[Any] = []
        self._codes: dict[tuple[int, int], int] = {}
        self._homes: dict[str, bool] = {}  # value -> whether its operation gives it as (B, H, W, C)
        self._places: dict[tuple[str, bool], int] = {}  # (value, last) -> tensor
        self._made_by: dict[int, Any] = {}
        self._inputs = [self._tensor("input", [images[0], images[2], images[3], images[1]])]
        self.put(graph.input[0].name, self._inputs[0], last=True)
        for node in graph.node:
            if node.op_type == "Constant" and node.output[0] in self.constants:
                continue
            if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
                raise self.refused(node, "which nar_hw does not convert to LiteRT")
            OPERATORS[node.op_type](self, node)
        self._outputs = [self.get(value.name) for value in graph.output]

    def refused(self, node: onnx.NodeProto, why: str) -> ExportError:
        """That a node cannot be converted."""
        return ExportError(f"{self.source} has {node.name or 'a node'} ({node.op_type}), {why}: use another runtime")

    # Values

    def last(self, name: str) -> bool:
        """Whether a value is there as (B, H, W, C)."""
        return self._homes.get(name, False)

    def shape(self, name: str, *, last: bool = False) -> list[int]:
        """Of a value."""
        shape = list(self.shapes[name])
        return [shape[axis] for axis in TO_LAST] if last else shape

    def get(self, name: str, *, last: bool = False) -> int:
        """The tensor of a value in a layout; it is turned where it has to be."""
        if (name, last) not in self._places:
            if name in self.constants:
                array = self.constants[name]
                self._places[name, last] = self.constant(array.transpose(TO_LAST) if last else array, name)
            else:
                order = TO_LAST if last else TO_FIRST
                source = self.get(name, last=not last)
                shape = self.shape(name, last=last)
                if shape[1:].count(1) >= 2:  # one pixel, or one channel of one row: nothing moves
                    options = self.schema.ReshapeOptionsT(shape)
                    found = self.operate("RESHAPE", [source, self.constant(np.array(shape, np.int32))], shape, options, name)
                else:
                    found = self.operate("TRANSPOSE", [source, self.constant(np.array(order, np.int32))], shape, None, name)
                self._places[name, last] = found
        return self._places[name, last]

    def put(self, name: str, tensor: int, *, last: bool) -> None:
        """Say which tensor a value is."""
        self._homes[name] = last
        self._places[name, last] = tensor

    def constant(self, array: Array, name: str = "") -> int:
        """A tensor that holds an array."""
        kind = {"f": np.float32, "i": np.int64 if array.dtype == np.int64 else np.int32}.get(array.dtype.kind)
        if kind is None or array.dtype == np.float16:
            raise ExportError(
                f"{self.source} has constants of type {array.dtype}, which LiteRT files of nar_hw do not: export fp32"
            )
        data = np.ascontiguousarray(array, kind)
        self._buffers.append(_aligned(self.schema)(data.view(np.uint8).reshape(-1) if data.size else np.empty(0, np.uint8)))
        types = {np.float32: "FLOAT32", np.int32: "INT32", np.int64: "INT64"}
        return self._tensor(name or "constant", list(array.shape), types[kind], len(self._buffers) - 1)

    def _tensor(self, name: str, shape: Sequence[int], kind: str = "FLOAT32", buffer: int = 0) -> int:
        number = getattr(self.schema.TensorType, kind)
        self._tensors.append(self.schema.TensorT(list(shape), number, buffer, name, hasRank=True))
        return len(self._tensors) - 1

    # Operations

    def operate(
        self, kind: str, inputs: Sequence[int], shape: Sequence[int], options: Any = None, name: str = "", version: int = 1
    ) -> int:
        """Add an operation of LiteRT that gives one float32 tensor of such a shape; returns that."""
        return self.operate_many(kind, inputs, [shape], options, [name], version)[0]

    def operate_many(
        self,
        kind: str,
        inputs: Sequence[int],
        shapes: Sequence[Sequence[int]],
        options: Any = None,
        names: Sequence[str] = (),
        version: int = 1,
    ) -> list[int]:
        """The same for several outputs."""
        code = getattr(self.schema.BuiltinOperator, kind)
        index = self._codes.setdefault((code, version), len(self._codes))
        outputs = [self._tensor(name or kind, shape) for name, shape in zip(names, shapes, strict=True)]
        operator = self.schema.OperatorT(index, list(inputs), outputs)
        if options is not None:
            operator.builtinOptions = options
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self._operators.append(operator)
        self._made_by |= dict.fromkeys(outputs, operator)
        return outputs

    def activate(self, name: str, kind: str) -> bool:
        """Let the operation that made a value apply an activation, if it can and nobody else reads the value: whether it does."""
        operator = self._made_by.get(self._places.get((name, self.last(name)), -1))
        if operator is None or self.readers[name] != 1:
            return False
        if getattr(operator.builtinOptions, "fusedActivationFunction", None) != self.schema.ActivationFunctionType.NONE:
            return False
        operator.builtinOptions.fusedActivationFunction = getattr(self.schema.ActivationFunctionType, kind)
        return True

    def packed(self) -> bytes:
        """The file."""
        import flatbuffers

        schema = self.schema
        graph = schema.SubGraphT(self._tensors, self._inputs, self._outputs, self._operators, "main")
        maps = [
            [schema.TensorMapT(name, tensor) for name, tensor in zip(names, tensors, strict=True)]
            for names, tensors in ((["input"], self._inputs), ([value.name for value in self._graph.output], self._outputs))
        ]
        codes = [schema.OperatorCodeT(min(code, 127), None, version, code) for code, version in self._codes]
        signature = schema.SignatureDefT(*maps, "serving_default", 0)
        model = schema.ModelT(3, codes, [graph], "nar_hw", self._buffers, signatureDefs=[signature])
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _aligned(schema: Any) -> Any:
    """Buffers at addresses that are multiples of 16, as the format asks for and the generated code forgets."""

    class Aligned(schema.BufferT):  # type: ignore[misc]
        def Pack(self, builder: Any) -> Any:  # noqa: N802
            size = len(self.data)
            builder.StartVector(1, size, 16)
            builder.head = builder.head - size
            builder.Bytes[builder.head : builder.head + size] = self.data.tobytes()
            data = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, data)
            return schema.BufferEnd(builder)

    return Aligned


def _static(source: Path, images: tuple[int, int, int, int]) -> onnx.GraphProto:
    """The graph for images of one shape. Raises ExportError for a file of another."""
    from onnx_ir import from_proto, to_proto
    from onnxscript import optimizer

    model = onnx.load(source)
    if len(model.graph.input) != 1:
        raise ExportError(f"a network must take one input, but {source} takes {len(model.graph.input)}")
    dims = model.graph.input[0].type.tensor_type.shape.dim
    if len(dims) != 4 or any(dim.dim_value not in (0, size) for dim, size in zip(dims, images, strict=True)):
        sizes = [dim.dim_value or dim.dim_param for dim in dims]
        raise ExportError(f"{source} takes images of shape {sizes}, but is to be converted for {list(images)}")
    dynamic = any(not dim.dim_value for dim in dims)
    for dim, size in zip(dims, images, strict=True):
        dim.dim_value = size
    for value in model.graph.output:  # the sizes of another batch would contradict
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    if dynamic and any(node.op_type == "Shape" for node in model.graph.node):
        graph = from_proto(model)
        optimizer.fold_constants(graph)
        model = to_proto(graph)
    return onnx.shape_inference.infer_shapes(model, data_prop=True).graph


def _find_gelus(graph: onnx.GraphProto, constants: Mapping[str, Array]) -> None:
    """Put one node in the place of x / sqrt(2), Erf, + 1, / 2, * x, which is how older opsets write a Gelu."""
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def scalar(name: str) -> float | None:
        array = constants.get(name)
        return None if array is None or array.size != 1 else float(array.item())

    def next_of(node: onnx.NodeProto, kind: str) -> tuple[onnx.NodeProto | None, str]:
        """The one reader, if it is of that kind, and its other operand."""
        found = readers.get(node.output[0], [])
        if len(found) != 1 or found[0].op_type != kind:
            return None, ""
        return found[0], next((name for name in found[0].input if name != node.output[0]), "")

    for erf in [node for node in graph.node if node.op_type == "Erf"]:
        part = makers.get(erf.input[0])
        add, one = next_of(erf, "Add")
        half, two = next_of(add, "Mul") if add is not None else (None, "")
        times, x = next_of(half, "Mul") if half is not None else (None, "")
        if part is None or add is None or half is None or times is None or part.op_type != "Div" or part.input[0] != x:
            continue
        root = scalar(part.input[1])
        if (
            root is None
            or abs(root - 2**0.5) > 1e-6
            or scalar(one) != 1
            or scalar(two) != 0.5
            or len(readers[part.output[0]]) > 1
        ):
            continue
        times.op_type, times.input[:] = "Gelu", [x]
        for node in (part, erf, add, half):
            graph.node.remove(node)


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.INT64):
            found[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return found
