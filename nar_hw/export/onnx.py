"""One network as one ONNX file: folded, checked, free of local paths, the same bytes every time.

Every node is called ``<module path>/<operation>`` ("layer1.0.conv1/Conv"): the per-layer times of ONNX Runtime, TensorRT and
OpenVINO are joined to the slots of a search space through these names.

Shape legend: B images, C channels, H height, W width.
"""

import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nar_hw.device.visits import joined
from nar_hw.errors import ExportError
from nar_hw.export.graph import clean, fold_norms, node_path, pad_last_windows, plain_equations
from nar_hw.export.leaves import emit
from nar_hw.files import write_bytes
from nar_hw.garbage import collector_paused
from nar_hw.space.network import flat, inference_copy, named_outputs, require_memory, run
from nar_hw.userfile import described, user_code

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from onnxruntime import InferenceSession

OPSET = 18
"""Read by TensorRT 10 and 11, ONNX Runtime and OpenVINO alike; networks with later operators get the lowest that has them."""

Images = NDArray[np.float32]
Batch = int | tuple[int, int]

_MAX_BYTES = 2**31 - 1


def export_onnx(
    model: nn.Module,
    path: Path | str,
    *,
    input_shape: tuple[int, int, int],
    batch: Batch = (1, 64),
    metadata: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
    larger: bool = False,
) -> None:
    """Write ``model`` in evaluation mode to ``path``; the model itself is left as it is.

    The input is called "input" (B, C, H, W), the outputs as `named_outputs` does. BatchNorms are folded into the layer before
    them.

    Args:
        model: any network that maps (B, C, H, W) to a tensor, or to several in tuples and dicts.
        path: the file; it appears only when it is complete and has passed the full ONNX check.
        input_shape: (C, H, W) of one image.
        batch: (fewest, most) images, or one number for a fixed batch.
        metadata: what the file says of itself; values other than strings are stored as JSON.
        outputs: other names for the tensors that the network gives.
        larger: images may be higher and wider than ``input_shape``.

    Raises:
        ExportError: the network cannot be exported, or is larger than one ONNX file can be.
    """
    import onnx_ir as ir
    from onnxscript import optimizer

    graph = traced(model, input_shape, batch, outputs=outputs, larger=larger)
    fold_norms(graph.graph)
    optimizer.optimize(graph)
    proto = ir.to_proto(graph)
    if larger:
        _name_sizes(proto)
    clean(proto, metadata)
    write_model(proto, Path(path))


@collector_paused()
def traced(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    batch: Batch,
    *,
    outputs: Sequence[str] | None = None,
    larger: bool = False,
) -> "ir.Model":
    """The exporter's graph of ``model`` before any norm is folded: one node per operation, constants already computed.

    Raises ExportError when the exporter rejects the network.
    """
    from onnxscript import optimizer

    lowest, highest = batch if isinstance(batch, tuple) else (batch, batch)
    if not 1 <= lowest <= highest:
        raise ExportError(f"a batch range must hold 1 <= fewest <= most, but got ({lowest}, {highest})")
    if (size := sum(tensor.nbytes for tensor in model.state_dict().values())) > _MAX_BYTES:
        raise ExportError(f"one ONNX file holds at most 2 GiB, but the network's weights take {size / 2**30:.1f} GiB")
    dynamic = lowest != highest
    channels, height, width = input_shape
    require_memory(model, input_shape, 2 if dynamic else highest)
    # An example batch of 1 would be taken for a constant, so a range is traced with 2; maps of one place likewise.
    sizes = (2 * height, 3 * width) if larger else (height, width)
    images = torch.zeros((min(max(2, lowest), highest), channels, *sizes))
    shapes: dict[int, Any] = {0: torch.export.Dim("batch", min=lowest, max=highest)} if dynamic else {}
    shapes |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC} if larger else {}
    network = inference_copy(model)
    kinds = [parameter.kind for parameter in inspect.signature(network.forward).parameters.values()]
    dims: Any = ((shapes,),) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else (shapes,)

    def exported(opset: int) -> "ir.Model":
        try:
            with _quiet(), torch.no_grad():
                program = torch.onnx.export(
                    network,
                    (images,),
                    input_names=["input"],
                    dynamo=True,
                    opset_version=opset,
                    dynamic_shapes=dims if shapes else None,
                    optimize=False,
                    verbose=False,
                )
        except torch.onnx.errors.OnnxExporterError as problem:
            raise ExportError(f"the network cannot be exported to ONNX: {_why(problem, dynamic)}") from problem
        assert program is not None
        return program.model

    plain = None if larger else emit(network, images[:2])
    if plain is None or not len(plain):
        result = exported(OPSET)
        if (needed := _opset_of(result.graph)) > OPSET:
            result = exported(needed)
    else:
        result = _model_of(plain, "batch" if dynamic else highest)
    names = list(named_outputs(run(network, images)) if outputs is None else outputs)
    if (given := len(result.graph.outputs)) != len(names):
        count = "one tensor" if len(names) == 1 else f"{len(names)} tensors"
        raise ExportError(f"a network must give {count} to be exported, but gives {given}")
    for value, name in zip(result.graph.outputs, names, strict=True):
        value.name = name
    _require_float32(result.graph)
    # Also what is computed from large weights alone (their standardisation, for one), but nothing larger than the largest of them
    largest = max((value.const_value.size for value in result.graph.initializers.values() if value.const_value), default=0)
    largest = max(largest, 2**18)
    optimizer.fold_constants(result, input_size_limit=largest, output_size_limit=largest)
    pad_last_windows(result.graph)
    plain_equations(result.graph)
    return result


def _model_of(graph: "ir.Graph", batch: int | str) -> "ir.Model":
    """A model of one graph for ``batch`` images at once, a number or a name."""
    import onnx_ir as ir

    for value in (*graph.inputs, *graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([batch, *value.shape[1:]])
    graph.opset_imports[""] = OPSET
    return ir.Model(graph, ir_version=10)


def _why(problem: BaseException, dynamic: bool) -> str:
    """The cause of an exporter's error, with the user's file and line where it knows them."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    told = described(problem)
    # What torch.export says when a computation fixes the batch.
    if dynamic and any(word in told for word in ("inconsisten", "Constraints violated", "specializ")):
        return f"{told}: it may be made for one batch size, which is then to be asked for alone (--batch 1)"
    return told


def _opset_of(graph: "ir.Graph") -> int:
    """The lowest opset from OPSET on that has all operators of a graph: DeformConv, for one, came later."""
    import onnx

    lowest = OPSET
    for node in graph.all_nodes():
        if node.domain == "" and not onnx.defs.has(node.op_type, max_inclusive_version=lowest) and onnx.defs.has(node.op_type):
            versions = (item.since_version for item in onnx.defs.get_all_schemas_with_history() if item.name == node.op_type)
            lowest = max(lowest, min(versions))
    return lowest


def _require_float32(graph: "ir.Graph") -> None:
    """Raises ExportError when the network computes in bfloat16 of its own accord."""
    import onnx_ir as ir

    for node in graph.all_nodes():
        if any(value.dtype == ir.DataType.BFLOAT16 for value in node.outputs):
            raise ExportError(
                f"an ONNX file computes in float32, but {node_path(node.metadata_props) or 'the network'} computes in bfloat16 "
                "by itself (torch.autocast or .bfloat16() in a forward pass): leave that out, --precision asks for bf16"
            )


def _name_sizes(proto: "onnx.ModelProto") -> None:
    """Call the exporter's symbols for the size of an image "height" and "width", in the shapes of the outputs too."""
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    symbols = {dims[2].dim_param: "height", dims[3].dim_param: "width"}
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda found: symbols.get(found[0], found[0]), dim.dim_param)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's warnings, logs and prints off; what matters of them is in its exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _first_line(problem: BaseException) -> str:
    return next((line.strip() for line in str(problem).splitlines() if line.strip()), type(problem).__name__)


def write_model(proto: "onnx.ModelProto", path: Path) -> None:
    """Check ``proto`` fully and write it atomically, the same bytes each time. Raises ExportError when the check fails."""
    import onnx

    content = proto.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise ExportError(f"the exported network is not valid ONNX: {_first_line(problem)}") from problem
    write_bytes(path, content)


def open_session(network: Path | str | bytes, *, threads: int = 1) -> "InferenceSession":
    """A file, or its content, in ONNX Runtime on the CPU. Raises ExportError when ONNX Runtime rejects it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = network if isinstance(network, bytes) else str(network)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # ONNX Runtime's errors share no public base class
        what = "the network" if isinstance(network, bytes) else network
        raise ExportError(f"ONNX Runtime must be able to load {what}, but failed: {_first_line(problem)}") from problem


def run_session(session: "InferenceSession", images: Images, *, batch: int = 64) -> Images:
    """What a network gives for images (B, C, H, W), as `joined`, a batch at a time; a fixed batch is filled up and cut."""
    return np.concatenate([joined(session.run(None, given)) for given in batches(session, images, batch=batch)])[: len(images)]


def batches(session: "InferenceSession", images: Images, *, batch: int = 64) -> Iterator[dict[str, Images]]:
    """What a session is given for images (B, C, H, W), one run after the other; a fixed batch is filled up with the last one."""
    source = session.get_inputs()[0]
    fixed = isinstance(source.shape[0], int)
    size = source.shape[0] if fixed else batch
    for start in range(0, len(images), size):
        part = images[start : start + size]
        missing = size - len(part) if fixed else 0
        yield {source.name: np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part}


def verify_onnx(
    path: Path | str,
    model: nn.Module,
    images: Images,
    *,
    tolerance: float = 1e-5,
) -> dict[str, float]:
    """Compare the file in ONNX Runtime with the network in torch, both on the CPU, on images (B, C, H, W).

    Args:
        path: the exported file.
        model: the network it was made from; run on a copy in evaluation mode.
        images: normalised as the network expects them.
        tolerance: largest error allowed, as a share of the largest absolute output.

    Returns:
        max_abs_error, reference_scale (the largest absolute output) and tolerance (absolute).

    Raises:
        ExportError: an output differs by more, or is not finite.
    """
    reference = run_torch(model, images)
    outputs = run_session(open_session(path), images)
    return compare(outputs, reference, tolerance=tolerance)


def run_torch(model: nn.Module, *images: Images, batch: int = 64) -> Images:
    """(B, D): all that a copy of ``model`` gives on the CPU in evaluation mode for images (B, C, H, W), these after those."""
    network = inference_copy(model)
    parts = (some[start : start + batch] for some in images for start in range(0, len(some), batch))
    with torch.inference_mode(), user_code("the network must run, but its forward pass"):
        return np.concatenate([flat(network(torch.tensor(part))).numpy() for part in parts])  # copies, which it may change


def compare(outputs: Images, reference: Images, *, tolerance: float, scale: float | None = None) -> dict[str, float]:
    """How far ``outputs`` are from ``reference``. Raises ExportError beyond ``tolerance`` x its largest value, or ``scale``."""
    if outputs.shape != reference.shape:
        raise ExportError(f"an exported network must give outputs of shape {reference.shape}, but gives {outputs.shape}")
    scale = float(np.abs(reference).max()) if scale is None else scale
    error = float(np.abs(outputs.astype(np.float64) - reference).max())
    if not error <= tolerance * scale:
        raise ExportError(
            f"an exported network must agree with torch within {tolerance * scale:.3g} ({tolerance:g} of the largest output "
            f"{scale:.3g}), but differs by {error:.3g}"
        )
    return {"max_abs_error": error, "reference_scale": scale, "tolerance": tolerance * scale}


def check_runtime(name: str, source: Path, images: Images, outputs: Images, *, tolerance: float = 1e-4) -> None:
    """Compare what runtime ``name`` makes of the ONNX file ``source`` with ONNX Runtime. Raises ExportError where it differs.

    tolerance: largest error allowed, as a share of the largest absolute output.
    """
    check_outputs(name, str(source), outputs, run_session(open_session(source), images, batch=len(images)), tolerance=tolerance)


def check_outputs(name: str, source: str, outputs: Images, expected: Images, *, tolerance: float = 1e-4) -> None:
    """Compare what runtime ``name`` makes of ``source`` with what it should. Raises ExportError where it differs.

    outputs: (B, ...); expected: (B, D); tolerance: largest error allowed, as a share of the largest absolute output.
    """
    outputs = outputs.reshape(len(expected), -1)
    if outputs.shape != expected.shape:
        raise ExportError(
            f"{name} gives {outputs.shape[1]} numbers for an image, but {source} gives {expected.shape[1]}: use another runtime"
        )
    apart = float(np.abs(outputs - expected).max() / np.abs(expected).max())
    if not apart <= tolerance:
        raise ExportError(
            f"{name} computes something else than {source}: outputs may differ by {tolerance:g} of the largest, but differ by "
            f"{apart:.3g}: use another runtime"
        )
