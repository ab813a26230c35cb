"""ONNX files in ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nar_hw.device.visits import Network, joined

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it queues events on models and machine for its maker
_KERNEL = "_kernel_time"


def session_options(threads: int, *, profile: str = "", optimized: str = "") -> Any:
    """Options of every session that is timed; the names of the files that it writes where it is profiled."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning workers starve whatever else runs on a busy machine, this session's own main thread included
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # says at load time that the optimized graph suits this machine only, which is meant
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
        options.optimized_model_filepath = optimized
    return options


def kernel_runs(events: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Milliseconds of each node, per inference, from the events of a profile: an inference's event follows its nodes'."""
    runs: list[dict[str, float]] = []
    times: dict[str, float] = {}
    for event in events:
        name = str(event["name"])
        if name == "model_run":
            runs.append(times)
            times = {}
        elif event.get("cat") == "Node" and name.endswith(_KERNEL):
            node = name[: -len(_KERNEL)]
            times[node] = times.get(node, 0.0) + event["dur"] / 1e3
    return runs


class OnnxRuntimeNetwork(Network):
    """One session, its input and output bound once."""

    def __init__(self, files: Sequence[str], images: npt.NDArray[np.float32], threads: int, *, profile: bool = False) -> None:
        import onnxruntime

        self._scratch = tempfile.TemporaryDirectory() if profile else None
        folder = Path(self._scratch.name if self._scratch else "")
        self._optimized = folder / "optimized.onnx"
        written = {"profile": str(folder / "profile"), "optimized": str(self._optimized)} if profile else {}
        options = session_options(threads, **written)
        self._session = onnxruntime.InferenceSession(files[0], options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy(images)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_input(self._input, self._value)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name)

    @staticmethod
    def version() -> str:
        """Of ONNX Runtime."""
        import onnxruntime

        return str(onnxruntime.__version__)

    def infer(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The outputs for other images."""
        return joined(self._session.run(None, {self._input: images}))

    def run(self) -> None:
        """One inference."""
        self._session.run_with_iobinding(self._binding)

    def layers(self) -> dict[str, Any]:
        """Names as in the profile, and the nodes of the optimized graph, of which nar_hw makes the names of the exported one."""
        runs = kernel_runs(json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8")))
        names = list(dict.fromkeys(name for run in runs for name in run))
        nodes = onnx_nodes(self._optimized.read_bytes())
        return {"names": names, "ms": [[run.get(name, 0.0) for name in names] for run in runs], "nodes": nodes}

    def close(self) -> None:
        """End the session and delete its files."""
        for name in ("_binding", "_value", "_session"):
            self.__dict__.pop(name, None)
        if self._scratch is not None:
            self._scratch.cleanup()


def onnx_nodes(model: bytes) -> list[dict[str, Any]]:
    """Name, op_type, domain, input and output of the nodes of an ONNX file, without the onnx package."""
    graph = next(value for number, value in _fields(memoryview(model)) if number == 7)
    return [_node(value) for number, value in _fields(graph) if number == 1]


def _node(message: memoryview) -> dict[str, Any]:
    node: dict[str, Any] = {"name": "", "op_type": "", "domain": "", "input": [], "output": []}
    known = {1: "input", 2: "output", 3: "name", 4: "op_type", 7: "domain"}
    for number, value in _fields(message):
        if number in known:
            text = bytes(value).decode()
            if number <= 2:
                node[known[number]].append(text)
            else:
                node[known[number]] = text
    return node


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(field number, content) of a protobuf message's fields that have a length; others are passed over."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 2:
            size, at = _varint(message, at)
            yield key >> 3, message[at : at + size]
            at += size
        elif kind == 0:
            _, at = _varint(message, at)
        else:
            at += {1: 8, 5: 4}[kind]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


NETWORK = OnnxRuntimeNetwork
