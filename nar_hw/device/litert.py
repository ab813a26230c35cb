"""LiteRT's files (.tflite) on the CPU, in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nar_hw.device.visits import Network, joined, unsaid

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


class LiteRtNetwork(Network):
    """One interpreter; a file is for one number of images, which it takes as (B, H, W, C)."""

    def __init__(self, files: Sequence[str], images: npt.NDArray[np.float32], threads: int, *, profile: bool = False) -> None:
        from ai_edge_litert.interpreter import Interpreter

        if profile:
            raise ValueError("LiteRT has no per-layer times in Python")
        with unsaid():  # which kernels it takes
            self._interpreter = Interpreter(model_path=files[0], num_threads=threads)
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        self._outputs = [output["index"] for output in self._interpreter.get_output_details()]
        self._images = images
        self._feed(images)

    @staticmethod
    def version() -> str:
        """Of LiteRT."""
        import ai_edge_litert

        return str(ai_edge_litert.__version__)

    def _feed(self, images: npt.NDArray[np.float32]) -> None:
        batch = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        if (takes := tuple(map(int, self._input["shape"]))) != batch.shape:
            raise ValueError(f"the file takes images of shape {takes} (B, H, W, C), but got {batch.shape}")
        self._interpreter.set_tensor(self._input["index"], batch)

    def infer(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The outputs for other images."""
        self._feed(images)
        self.run()
        outputs = joined([self._interpreter.get_tensor(output) for output in self._outputs])
        self._feed(self._images)
        return outputs

    def run(self) -> None:
        """One inference."""
        self._interpreter.invoke()

    def close(self) -> None:
        """Release the interpreter."""
        self.__dict__.pop("_interpreter", None)


NETWORK = LiteRtNetwork
