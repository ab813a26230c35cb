"""OpenVINO IR: a network as model.xml (operations) and model.bin (weights), for any CPU that OpenVINO knows."""

import re
from pathlib import Path

import onnx

from nar_hw.errors import ExportError, RuntimeUnavailableError

INSTALL = "openvino is not installed: pip install 'nar-hw[openvino]'"

_NUMBERED = re.compile(r"\w+_\d+")  # what OpenVINO calls operations of its own: the number counts all that the process has made


def save_ir(source: Path, target: Path) -> tuple[Path, Path]:
    """Write the ONNX file ``source`` as ``target`` (.xml) and the .bin beside it, its weights as they are; returns both.

    Operations keep the names of the ONNX nodes. The files are the same each time.

    Raises:
        RuntimeUnavailableError: OpenVINO is not installed.
        ExportError: OpenVINO cannot read the network, or the files cannot be written.
    """
    try:
        import openvino
    except ImportError as problem:
        raise RuntimeUnavailableError(INSTALL) from problem
    try:
        names = {node.name for node in onnx.load(source, load_external_data=False).graph.node}
        model = openvino.convert_model(str(source))
        for position, operation in enumerate(model.get_ordered_ops()):
            if _NUMBERED.fullmatch(name := operation.get_friendly_name()) and name not in names:
                operation.set_friendly_name(f"{operation.get_type_name()}:{position}")
        openvino.save_model(model, str(target), compress_to_fp16=False)
    except Exception as problem:  # protobuf's DecodeError, and several kinds from OpenVINO's frontends
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise ExportError(f"OpenVINO cannot convert {source}: {reason}") from problem
    return target, target.with_suffix(".bin")
