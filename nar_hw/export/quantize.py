"""An exported fp32 network in another precision: fp16, bf16, or int8 in the QDQ form.

CPUs multiply unsigned activations by signed weights, and a ReLU before an unsigned number from 0 on costs nothing: with signed
activations ONNX Runtime computes convolutions before a ReLU in fp32. TensorRT takes signed numbers with zero points 0 alone.
"""

import contextlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from nar_hw.errors import ExportError, unknown_name
from nar_hw.export.calibration import Calibration
from nar_hw.export.graph import rename_values
from nar_hw.export.onnx import Images, batches, open_session, write_model
from nar_hw.files import Scratch, write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx

PRODUCER = "nar_hw"
"""As which `to_int8` signs its files."""

_NORMS = (  # int8 scales would distort them, and no runtime computes them in int8
    "BatchNormalization",
    "LayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
)
_BF16_OPSET = 22  # the first in which convolutions and pools take bfloat16


def precision_of(model: "onnx.ModelProto") -> str:
    """The precision in which a network computes: "int8" when any of its operations is quantized, "fp8" when to 8-bit floats."""
    import onnx

    if any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in model.graph.node):
        kinds = {tensor.data_type for tensor in model.graph.initializer}
        kinds |= {given.i for node in model.graph.node for given in node.attribute if given.name == "output_dtype"}
        return "fp8" if kinds & {onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2} else "int8"
    names = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    return next((names[tensor.data_type] for tensor in model.graph.initializer if tensor.data_type in names), "fp32")


def to_fp16(source: Path, target: Path) -> None:
    """Write ``source`` with half-precision weights and operations to ``target``; its input and output stay float32."""
    import onnx
    import onnx_ir as ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    proto = onnx.load(source, load_external_data=False)
    _halve_weights(proto.graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights below the smallest fp16 number; what it costs is measured afterwards
        proto = convert_float_to_float16(proto, keep_io_types=True)
    del proto.graph.value_info[:]
    # It writes one cast for each operation that stays in fp32, and the same again where several read one value.
    once = {tuple(node.output): node for node in proto.graph.node}
    del proto.graph.node[:]
    proto.graph.node.extend(once.values())
    model = ir.from_proto(proto)
    model.graph.sort()  # it puts casts behind the nodes that read them, which the standard forbids
    write_model(ir.to_proto(model), target)


def _halve_weights(graph: "onnx.GraphProto") -> None:
    """Convert the weights of convolutions and matrix products, which ONNX Runtime's converter would take ten passes for."""
    from onnx import TensorProto, numpy_helper

    weights = {name for node in graph.node if node.op_type in _PRODUCTS for name in node.input[1:]}
    weights -= {name for node in graph.node if node.op_type not in _PRODUCTS for name in node.input}
    largest = np.finfo(np.float16).max
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name in weights:
            halved = numpy_helper.to_array(tensor).clip(-largest, largest).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(halved, tensor.name))


def to_bf16(source: Path, target: Path) -> None:
    """Write ``source`` with bfloat16 weights and operations to ``target``; its input and output stay float32.

    Raises ExportError when the result is not valid ONNX: an operation that bfloat16 does not have.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper, version_converter

    proto = version_converter.convert_version(onnx.load(source, load_external_data=False), _BF16_OPSET)
    graph = proto.graph
    _expand_hard_activations(graph)
    kept = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:]}  # sizes and scales
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, tensor.dims, array.ravel()))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.BFLOAT16
    source_name, results = graph.input[0].name, [value.name for value in graph.output]
    rename_values(graph, {name: f"{name}:bf16" for name in (source_name, *results)})
    graph.node.insert(0, helper.make_node("Cast", [source_name], [f"{source_name}:bf16"], "Cast_input", to=TensorProto.BFLOAT16))
    for number, name in enumerate(results):
        last = f"Cast_output{number or ''}"
        graph.node.append(helper.make_node("Cast", [f"{name}:bf16"], [name], last, to=TensorProto.FLOAT))
    del graph.value_info[:]
    write_model(proto, target)


def _expand_hard_activations(graph: "onnx.GraphProto") -> None:
    """Write HardSigmoid and HardSwish as sums, limits and products, which are all that TensorRT has of them in bfloat16."""
    from onnx import helper, numpy_helper

    known: set[str] = set()

    def constant(value: float) -> str:
        name = f"constant_{value:g}"
        if name not in known:
            known.add(name)
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type not in ("HardSigmoid", "HardSwish"):
            graph.node.append(node)
            continue
        (source,), (result,) = node.input, node.output
        given = {attribute.name: attribute.f for attribute in node.attribute}
        alpha, beta = (1 / 6, 0.5) if node.op_type == "HardSwish" else (given.get("alpha", 0.2), given.get("beta", 0.5))
        steps = [("Mul", constant(alpha)), ("Add", constant(beta)), ("Clip", constant(0), constant(1))]
        steps += [("Mul", source)] if node.op_type == "HardSwish" else []
        value = source
        for number, (operation, *others) in enumerate(steps):
            last = number == len(steps) - 1
            target, name = (result, node.name) if last else (f"{result}/{number}", f"{node.name}_{operation}")
            graph.node.append(helper.make_node(operation, [value, *others], [target], name))
            value = target


def check_calibration(images: Images | None, method: str) -> None:
    """Raises ExportError when there are no images and UnknownNameError when the method does not exist."""
    if method not in get_args(Calibration):
        raise unknown_name("calibration", method, get_args(Calibration))
    if images is None or len(images) == 0:
        raise ExportError("int8 needs images to find the ranges of activations, but got none: pass some of the training images")


def to_int8(source: Path, target: Path, images: Images, *, method: Calibration = "minmax") -> None:
    """Write ``source`` with int8 convolutions and linear layers to ``target``.

    Weights are quantized per channel and symmetrically (signed), activations to unsigned numbers, biases not at all. What only a
    ReLU (or Clip) reads is not rounded before it: ONNX Runtime would requantize there, in two kernels of their own.

    Args:
        source: the fp32 file.
        target: the int8 file.
        images: (N, C, H, W) of the training images, normalised, from which the ranges of activations are taken.
        method: "minmax", "entropy" (smallest information loss) or "percentile" (99.999 % of all values).

    Raises:
        ExportError: there are no images.
        UnknownNameError: another method.
    """
    import onnx
    from onnx import helper
    from onnxruntime import quantization
    from onnxruntime.quantization import registry

    check_calibration(images, method)
    content = source.read_bytes()
    proto = onnx.load_model_from_string(content)
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    _infer_shapes(proto)
    helper.set_model_props(proto, {"onnx.infer": "onnxruntime.quant"})  # so it does not do that again
    kinds = sorted({*registry.QLinearOpsRegistry, *registry.QDQRegistry})
    with contextlib.redirect_stdout(io.StringIO()):  # the quantizer prints
        ranges = _ranges(proto, content, kinds, images, method)
        quantizer = quantization.QDQQuantizer(
            proto,
            True,  # per channel
            False,  # the whole range of int8
            quantization.QuantType.QInt8,
            quantization.QuantType.QUInt8,
            ranges,
            [],
            [node.name for node in proto.graph.node if node.op_type in _NORMS],
            kinds,
            {
                "WeightSymmetric": True,
                "QuantizeBias": False,  # these two as TensorRT demands
                "AddQDQPairToWeight": True,
                "QDQKeepRemovableActivations": True,  # else `to_symmetric` would lose the ReLUs
                "TensorQuantOverrides": _weight_scales(proto.graph),
            },
        )
        quantizer.quantize_model()
    quantizer.model.topological_sort()
    proto = quantizer.model.model
    _drop_pairs(proto.graph, lambda readers: set(readers) in ({"Relu"}, {"Clip"}))
    helper.set_model_props(proto, properties)
    proto.producer_name = PRODUCER
    proto.ClearField("producer_version")
    del proto.graph.value_info[:]
    write_model(proto, target)


def to_symmetric(source: Path, target: Path) -> None:
    """Write a file of `to_int8` as TensorRT wants it.

    Activations are signed, with zero points 0, over ranges that hold the old ones, and quantized only where a convolution or
    matrix product reads them: elsewhere each rounding costs accuracy, and a kernel of its own or an operation in one.
    (So does nvidia-modelopt's quantizer; benchmarks/results/tensorrt_int8.json compares.)
    """
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(source, load_external_data=False)
    _drop_pairs(proto.graph, lambda readers: not set(readers) & set(_PRODUCTS))
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    scales = {node.input[1]: node.input[2] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    for scale, zero in scales.items():
        point = numpy_helper.to_array(tensors[zero])
        if point.dtype != np.uint8:
            continue
        farthest = np.maximum(point, 255 - point).astype(np.float32)
        widened = numpy_helper.to_array(tensors[scale]) * farthest / np.float32(127)
        tensors[scale].CopyFrom(numpy_helper.from_array(widened, scale))
        tensors[zero].CopyFrom(numpy_helper.from_array(np.zeros_like(point, np.int8), zero))
    write_bytes(target, proto.SerializeToString(deterministic=True))


_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _drop_pairs(graph: "onnx.GraphProto", needless: "Callable[[Sequence[str]], bool]") -> None:
    """Take out each QuantizeLinear and DequantizeLinear of an activation for whose readers' operations ``needless`` holds."""
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    weights = {tensor.name for tensor in graph.initializer}
    results = [value.name for value in graph.output]
    same: dict[str, str] = {}  # what a pair gives -> what it reads
    idle: list[str] = []  # outputs of the nodes that go
    for node in graph.node:
        quantizer = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantizer is not None and quantizer.input[0] not in weights and needless(readers.get(node.output[0], [])):
            same[node.output[0]] = same.get(quantizer.input[0], quantizer.input[0])
            idle += [node.output[0], quantizer.output[0]]
    kept = [node for node in graph.node if node.output[0] not in idle]
    del graph.node[:]
    graph.node.extend(kept)
    for result in results:
        if result in same:
            same = {name: result if old == same[result] else old for name, old in same.items()} | {same[result]: result}
    rename_values(graph, same)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _infer_shapes(proto: "onnx.ModelProto") -> None:
    """Note the shapes of all values. The weights stay where they are: only their shapes take part."""
    import onnx
    from onnx import helper

    graph = proto.graph
    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    for field in ("node", "input", "output"):
        getattr(light.graph, field).extend(getattr(graph, field))
    for tensor in graph.initializer:
        if len(tensor.raw_data) > 1024:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:  # it may hold the sizes of a Reshape
            light.graph.initializer.append(tensor)
    inferred = onnx.shape_inference.infer_shapes(light).graph
    for field in ("value_info", "output"):
        graph.ClearField(field)
        getattr(graph, field).extend(getattr(inferred, field))


def _weight_scales(graph: "onnx.GraphProto") -> dict[str, list[dict[str, Any]]]:
    """The scales that ONNX Runtime's quantizer gives the weights of convolutions, which it finds one channel at a time."""
    from onnx import numpy_helper

    weights = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    weights -= {name for node in graph.node if node.op_type != "Conv" for name in node.input}
    found = {}
    for tensor in graph.initializer:
        if tensor.name in weights:
            array = numpy_helper.to_array(tensor)
            scales = np.abs(array).reshape(len(array), -1).max(axis=1).astype(np.float64) / 127
            scales[scales < np.finfo(np.float32).tiny] = 1
            found[tensor.name] = [{"axis": 0, "scale": scale, "zero_point": 0} for scale in scales]
    return found


def _ranges(proto: "onnx.ModelProto", content: bytes, kinds: list[str], images: Images, method: Calibration) -> Any:
    """The ranges of activations of a network whose shapes are inferred; ``content``: its file."""
    from onnxruntime.quantization import CalibrationMethod

    if method == "minmax":
        return _extremes(proto, content, kinds, images)
    kind = {"entropy": CalibrationMethod.Entropy, "percentile": CalibrationMethod.Percentile}[method]
    return _calibrated(proto, kinds, images, kind)


def _extremes(proto: "onnx.ModelProto", content: bytes, kinds: list[str], images: Images) -> Any:
    """The least and the greatest values over all images; what ONNX Runtime's calibrator finds, without its files."""
    import onnx
    from onnx import TensorProto, helper
    from onnxruntime import quantization

    graph, added = proto.graph, onnx.ModelProto()
    numbers = {value.name for value in (*graph.input, *graph.value_info, *graph.output) if _is_float(value)}
    touched = {name for node in graph.node if node.op_type in kinds for name in (*node.input, *node.output)}
    activations = sorted((numbers & touched) - {tensor.name for tensor in graph.initializer})
    asked = []
    for name in activations:
        for operation in ("ReduceMin", "ReduceMax"):
            asked.append(f"{name}/{operation}")
            added.graph.node.append(helper.make_node(operation, [name], asked[-1:], asked[-1], keepdims=0))
            added.graph.output.append(helper.make_tensor_value_info(asked[-1], TensorProto.FLOAT, []))
    session = open_session(content + added.SerializeToString(), threads=0)  # one message after the other is both in one
    values = np.array([session.run(asked, given) for given in batches(session, images)])  # (batches, 2 x activations)
    extremes = zip(activations, np.nanmin(values[:, ::2], axis=0), np.nanmax(values[:, 1::2], axis=0), strict=True)
    return quantization.calibrate.TensorsData(
        quantization.CalibrationMethod.MinMax, {name: (least, greatest) for name, least, greatest in extremes}
    )


def _is_float(value: "onnx.ValueInfoProto") -> bool:
    return int(value.type.tensor_type.elem_type) == 1  # TensorProto.FLOAT


def _calibrated(proto: "onnx.ModelProto", kinds: list[str], images: Images, kind: Any) -> Any:
    """The ranges that one of ONNX Runtime's calibrators finds, but in a session like any other.

    Its own neither optimizes the graph nor lets go of the cores between two operators, and takes three times as long.
    """
    import onnx
    from onnxruntime import quantization

    with Scratch() as folder:
        plain, augmented = Path(folder) / "fp32.onnx", Path(folder) / "augmented.onnx"
        onnx.save(proto, plain)
        calibrator = quantization.create_calibrator(plain, kinds, str(augmented), kind)
        calibrator.infer_session = open_session(augmented, threads=0)
        calibrator.collect_data(_reader(images, proto.graph.input[0]))
        return calibrator.compute_data()


def _reader(images: Images, source: Any) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    size = source.type.tensor_type.shape.dim[0].dim_value or 16  # a fixed batch size, else 0
    batches = (images[start : start + size] for start in range(0, len(images) - size + 1 if len(images) > size else 1, size))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Images] | None:
            batch = next(batches, None)
            return None if batch is None else {source.name: batch}

    return Reader()
