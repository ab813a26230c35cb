"""Torch on an NVIDIA GPU, the whole forward pass captured as one CUDA graph: no gaps between launches."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nar_hw.runtimes.torch_module import TorchRuntime, prepared, to_device, torch_state

_WARM_UP = 3  # forward passes before the capture, on a stream of their own, as torch asks for: cuDNN picks its kernels in them


class CudaGraph(TorchRuntime):
    """Timed with CUDA events, so that the host's part of a replay is not in the time."""

    name = "cuda_graph"
    devices = ("cuda",)

    def _load(self, network: nn.Module | Path) -> None:
        self._module = prepared(network, self.config, own=self.own)  # the graph reads its weights
        self._input = to_device(self.images, self.config)
        self._static = self._input.clone()
        cuda: Any = torch.cuda  # partly untyped
        with torch_state(self.config):
            self._graph = cuda.CUDAGraph()
            side = cuda.Stream()
            side.wait_stream(cuda.current_stream())
            with cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._module(self._static)
            cuda.current_stream().wait_stream(side)
            with cuda.graph(self._graph):
                self._output = self._module(self._static)
        self._forward = self._replayed

    def _replayed(self, images: Tensor) -> Any:
        self._static.copy_(images)
        self._graph.replay()
        return self._output

    def time_ms(self, repeats: int) -> list[float]:
        """The milliseconds of each of ``repeats`` replays in a row, on the GPU's own clock; the input lies in place."""
        cuda: Any = torch.cuda
        times = []
        with torch_state(self.config):
            for _ in range(repeats):
                start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
                start.record()
                self._graph.replay()
                end.record()
                end.synchronize()
                times.append(float(start.elapsed_time(end)))
        return times

    def close(self) -> None:
        """Free the graph with its memory, and the module."""
        super().close()
        for name in ("_graph", "_output", "_static", "_module"):
            self.__dict__.pop(name, None)
