"""ONNX files as runtimes see them: the precision they hold, and the graph that ONNX Runtime makes of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nar_hw.errors import ModelError
from nar_hw.export.graph import CHILD_WEIGHTS
from nar_hw.export.quantize import precision_of, to_bf16, to_fp16
from nar_hw.runtimes.inputs import Weights

if TYPE_CHECKING:
    import onnx


def one_line(problem: BaseException) -> str:
    """The first line of an exception's message."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def loaded(path: Path) -> "onnx.ModelProto":
    """The model in ``path``, which must hold all of its weights. Raises ModelError in one line."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as problem:  # protobuf's DecodeError among others; onnx documents none
        raise ModelError(f"{path} is not an ONNX file: {one_line(problem)}") from problem
    if not all(_here(tensor) for tensor in model.graph.initializer):
        raise ModelError(f"{path} must hold its weights itself, but names other files: save it without external data")
    return model


def image_shape(path: Path, batch: int, name: str) -> tuple[int, int, int]:
    """(C, H, W) of the images that an ONNX file takes, for a runtime with files for one number of images.

    Raises ModelError where the file does not say so, or is not for ``batch`` images.
    """
    sizes = [item.dim_value for item in loaded(path).graph.input[0].type.tensor_type.shape.dim]
    if len(sizes) != 4 or min(sizes[1:]) < 1:
        raise ModelError(f"{name} needs images of a fixed shape, but {path} takes {sizes}")
    if sizes[0] not in (0, batch):
        here = "one image at a time" if batch == 1 else f"{batch} images at a time"
        raise ModelError(f"{name} takes {here}, but {path} is for batch {sizes[0]} only: export it for batch {batch}")
    return sizes[1], sizes[2], sizes[3]


def _here(tensor: "onnx.TensorProto") -> bool:
    """Whether a weight is in the file itself, or in the one that children have beside theirs to be measured."""
    import onnx

    outside = tensor.data_location == onnx.TensorProto.EXTERNAL
    return not outside or any(entry.key == "location" and entry.value == CHILD_WEIGHTS for entry in tensor.external_data)


def weights(path: Path) -> list[Weights]:
    """The float32 initializers of an ONNX file, in its order."""
    from onnx import TensorProto, numpy_helper

    tensors = loaded(path).graph.initializer
    return [numpy_helper.to_array(tensor) for tensor in tensors if tensor.data_type == TensorProto.FLOAT and tensor.raw_data]


_CONVERSIONS = {"fp16": to_fp16, "bf16": to_bf16}


def with_precision(path: Path, precision: str, folder: Path) -> Path:
    """An ONNX file of ``precision``: ``path`` itself, or its conversion to fp16 or bf16 in ``folder``.

    Raises ModelError when the file is of another precision.
    """
    model = loaded(path)
    found = precision_of(model)
    if found == precision:
        return path
    if found != "fp32" or precision not in _CONVERSIONS:
        raise ModelError(
            f"{path} computes in {found}, but {precision} is asked for: export it in {precision}, or ask for {found}"
        )
    converted = folder / f"{precision}.onnx"
    _CONVERSIONS[precision](path, converted)
    return converted


class OptimizedGraph:
    """The nodes that ONNX Runtime runs, under the names of the exported nodes that they stand for.

    A node in the blocked layout of the CPU (NCHWc) is called by ONNX Runtime after the tensor that it replaces,
    "<tensor>_nchwc", or "<tensor>_bn_nchwc" for a lone BatchNormalization. With a fused activation this is the
    activation's tensor: following the exported graph back to an operation of the node's own type gives its name.
    Fusions elsewhere keep the name of their first node. ReorderInput and ReorderOutput stand for nothing
    exported: they are called after the node whose output they change.
    """

    def __init__(self, exported: Path, optimized: "Iterable[onnx.NodeProto]", profiled: Iterable[str]) -> None:
        """Join them.

        ``optimized``: the nodes that run, which get names where they have none; ``profiled``: the names of one inference's nodes
        in a profile, in the order in which they ran.
        """
        self._made_by = {output: node for node in loaded(exported).graph.node for output in node.output}
        self._nodes = list(optimized)
        self._names = self._named(list(profiled))

    def _named(self, profiled: list[str]) -> dict[str, str]:
        """A profile's names -> exported names, after every node of the graph has got its name in the profile.

        The file leaves nodes nameless that come from inlined functions; a profile calls them "<operation>_<number>".
        """
        named = {node.name for node in self._nodes}
        numbered = [name for name in profiled if name not in named]
        for number, node in enumerate(node for node in self._nodes if not node.name):
            match = next((name for name in numbered if name.rpartition("_")[0] == node.op_type), None)
            if match is not None:
                numbered.remove(match)
            node.name = match or f"{node.op_type}_unnamed_{number}"
        exported = {node.name for node in self._made_by.values()}
        makers = {output: node.name for node in self._nodes for output in node.output}
        names: dict[str, str] = {}
        for node in self._nodes:
            names[node.name] = node.name if node.name in exported else self._exported_name(node)
            if node.op_type in ("ReorderInput", "ReorderOutput"):
                # Their own names are numbers that mean other places in other networks
                names[node.name] = f"{node.op_type} ({names.get(makers.get(node.input[0], ''), node.input[0])})"
        return names

    def _exported_name(self, node: "onnx.NodeProto") -> str:
        if node.output[0] in self._made_by:
            return str(self._made_by[node.output[0]].name if "nchwc" not in node.domain else node.name)
        tensor = node.name.removesuffix("_nchwc")
        if tensor not in self._made_by and tensor.removesuffix("_bn") in self._made_by:
            return str(self._made_by[tensor.removesuffix("_bn")].name)
        while tensor in self._made_by:
            made_by = self._made_by[tensor]
            if made_by.op_type == node.op_type:
                return str(made_by.name)
            tensor = made_by.input[0] if made_by.input else ""
        return str(node.name)

    def renamed(self, times: dict[str, float]) -> dict[str, float]:
        """A profile's times (own name -> ms) under the exported names; two nodes of one name are added."""
        named: dict[str, float] = {}
        for own, ms in times.items():
            name = self._names.get(own, own)
            named[name] = named.get(name, 0.0) + ms
        return named

    def producers(self) -> dict[str, list[str]]:
        """The names of the nodes that each node reads from, in the order of its inputs."""
        made_by = {output: node.name for node in self._nodes for output in node.output}
        table: dict[str, list[str]] = {}
        for node in self._nodes:
            sources = (self._names[made_by[tensor]] for tensor in node.input if tensor in made_by)
            table.setdefault(self._names[node.name], []).extend(sources)
        return table
