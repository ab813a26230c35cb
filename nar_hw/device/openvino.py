"""ONNX files and OpenVINO's own in OpenVINO on the CPU."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from nar_hw.device.visits import Network, joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


class Means:
    """Performance counters hold nothing but the mean of all inferences so far: what each of the later ones took."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._runs = 0
        self._means: dict[int, dict[str, float]] = {}  # after so many inferences: node -> ms

    def ran(self) -> None:
        """Count an inference."""
        self._runs += 1
        if bin(self._runs).count("1") == 1:  # a power of two: seldom, as reading takes 0.1 ms
            self._means[self._runs] = executed(self._request.profiling_info)

    def layers(self) -> list[dict[str, float]]:
        """Node -> ms of each inference: the mean of the later ones, half of them or more."""
        if not self._runs:
            return []
        means = executed(self._request.profiling_info)
        early = max((runs for runs in self._means if runs <= self._runs // 2), default=0)
        before = self._means.get(early, {})
        late = self._runs - early
        times = {name: max(0.0, (ms * self._runs - before.get(name, 0.0) * early) / late) for name, ms in means.items()}
        return [times] * self._runs


def executed(counters: Any) -> dict[str, float]:
    """Node name -> mean ms of the nodes that run (others were fused or are constant)."""
    return {plain(item.node_name): item.real_time.total_seconds() * 1e3 for item in counters if item.status.name == "EXECUTED"}


def plain(name: str) -> str:
    """The ONNX node's name: a convolution with a bias is split into the addition and "<name>/WithoutBiases"."""
    return name[: -len("/WithoutBiases")] if name.endswith("/WithoutBiases") else name


def readers(compiled: Any) -> dict[str, list[str]]:
    """Node -> the nodes that it reads from in the graph that OpenVINO runs, without constants."""
    table: dict[str, list[str]] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        sources = (source.get_source_output().get_node() for source in node.inputs())
        table[plain(node.get_friendly_name())] = [plain(source.get_friendly_name()) for source in sources]
    return table


def hints(threads: int, *, precision: str, profile: bool) -> dict[str, Any]:
    """How everything is compiled: one stream; by itself OpenVINO computes in bf16 where the CPU has it."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERF_COUNT": profile,
    }


@functools.cache
def _core() -> Any:
    """One for all networks: to make it takes as long as to compile a small one."""
    import openvino

    return openvino.Core()


class OpenVinoNetwork(Network):
    """One request."""

    def __init__(
        self,
        files: Sequence[str],
        images: npt.NDArray[np.float32],
        threads: int,
        *,
        profile: bool = False,
        precision: str = "f32",
    ) -> None:
        """``precision`` as OpenVINO calls it; where that is "f32", quantised files compute in int8 all the same."""
        core = _core()
        model = core.read_model(files[0])
        model.reshape(list(images.shape))
        self._images = images
        self.compiled = core.compile_model(model, "CPU", hints(threads, precision=precision, profile=profile))
        self._request = self.compiled.create_infer_request()
        self.means = Means(self._request) if profile else None
        self._bind(images)

    @staticmethod
    def version() -> str:
        """Of OpenVINO."""
        import openvino

        return str(openvino.__version__).split("-")[0]

    def _bind(self, images: npt.NDArray[np.float32]) -> None:
        import openvino

        self._bound = images  # OpenVINO reads this very memory
        self._request.set_input_tensor(openvino.Tensor(images, shared_memory=True))

    def infer(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The outputs for other images."""
        self._bind(np.ascontiguousarray(images))
        self.run()
        outputs = joined([tensor.data for tensor in self._request.output_tensors]).copy()
        self._bind(self._images)
        return outputs

    def run(self) -> None:
        """One inference."""
        self._request.infer()
        if self.means is not None:
            self.means.ran()

    def layers(self) -> dict[str, Any]:
        """Under the names of the ONNX nodes, with what each reads from."""
        assert self.means is not None
        runs = self.means.layers()
        names = list(runs[0]) if runs else []
        return {
            "names": names,
            "ms": [[run[name] for name in names] for run in runs],
            "producers": readers(self.compiled),
        }

    def close(self) -> None:
        """Release the request and the compiled network."""
        for name in ("means", "_request", "compiled", "_bound"):
            self.__dict__.pop(name, None)


NETWORK = OpenVinoNetwork
