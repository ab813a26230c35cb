"""MNN's files (.mnn) on the CPU, in fp32."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nar_hw.device.visits import Network, fine_thread_clock, unsaid

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


class MnnNetwork(Network):
    """One session. With ``profile``, single threads are timed by their own clock, as whole networks are."""

    def __init__(self, files: Sequence[str], images: npt.NDArray[np.float32], threads: int, *, profile: bool = False) -> None:
        self._package = package()
        if not Path(files[0]).read_bytes():
            raise ValueError(f"{files[0]} is empty")
        with unsaid():
            try:
                self._interpreter = self._package.Interpreter(files[0])
            except Exception as problem:  # it raises no other
                raise ValueError(f"{files[0]} is no network of MNN") from problem
            # By itself it computes in fp16 where the CPU can
            asked = {"backend": "CPU", "numThread": threads, "precision": "high"}
            self._session = self._interpreter.createSession(asked)
            entry = self._interpreter.getSessionInput(self._session)
            if (takes := tuple(entry.getShape())[1:]) != images.shape[1:]:
                raise ValueError(f"the file takes images of shape {takes}, but got {images.shape[1:]}")
            self._interpreter.resizeTensor(entry, images.shape)
            self._interpreter.resizeSession(self._session)
        self._input = self._interpreter.getSessionInput(self._session)
        self._output = self._interpreter.getSessionOutput(self._session)
        self._images = images
        self._feed(images)
        self._clock = time.thread_time if threads == 1 and fine_thread_clock() else time.perf_counter
        self._runs: list[list[tuple[str, float]]] | None = [] if profile else None

    @staticmethod
    def version() -> str:
        """Of MNN."""
        return str(package().version())

    def _tensor(self, array: npt.NDArray[np.float32]) -> Any:
        kinds = self._package.Halide_Type_Float, self._package.Tensor_DimensionType_Caffe
        return self._package.Tensor(array.shape, kinds[0], array, kinds[1])

    def _feed(self, images: npt.NDArray[np.float32]) -> None:
        self._input.copyFrom(self._tensor(np.ascontiguousarray(images)))

    def infer(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The outputs for other images."""
        self._feed(images)
        self.run()
        outputs = np.zeros(tuple(self._output.getShape()), np.float32)
        held = self._tensor(outputs)
        self._output.copyToHostTensor(held)
        outputs = np.array(held.getNumpyData(), np.float32).reshape(len(images), -1)
        self._feed(self._images)
        return outputs

    def run(self) -> None:
        """One inference."""
        if self._runs is None:
            self._interpreter.runSession(self._session)
            return
        clock, starts, times = self._clock, [0.0], list[tuple[str, float]]()

        def before(tensors: object, layer: object) -> bool:
            starts[0] = clock()
            return True

        def after(tensors: object, layer: Any) -> bool:
            times.append((layer.getName(), (clock() - starts[0]) * 1e3))
            return True

        self._interpreter.runSessionWithCallBackInfo(self._session, before, after)
        self._runs.append(times)

    def layers(self) -> dict[str, Any]:
        """Under the names of the tensors that they make, as the ONNX file has them; what moves or turns one is counted to it."""
        assert self._runs is not None
        runs: list[dict[str, float]] = []
        for times in self._runs:
            runs.append({})
            for name, ms in times:
                tensor = _ADDED.sub("", name)
                runs[-1][tensor] = runs[-1].get(tensor, 0.0) + ms
        names = list(runs[0]) if runs else []
        return {"names": names, "ms": [[run[name] for name in names] for run in runs]}

    def close(self) -> None:
        """Release the network."""
        for name in ("_input", "_output", "_session", "_interpreter"):
            self.__dict__.pop(name, None)


_ADDED = re.compile(r"(__matmul_converted)?(_raster_\d+)?$")
"""What MNN adds to the name of a tensor."""


def package() -> Any:
    """MNN, which tells of the CPU when it is first imported. Raises ImportError."""
    if "MNN" not in sys.modules:
        with unsaid():
            import MNN  # noqa: F401
    return sys.modules["MNN"]


NETWORK = MnnNetwork
