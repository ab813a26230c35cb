"""ncnn's own files (.param, .bin) on the CPU, in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from nar_hw.device.visits import Network

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt


class NcnnNetwork(Network):
    """ncnn has no batch: images run one after another."""

    def __init__(self, files: Sequence[str], images: npt.NDArray[np.float32], threads: int, *, profile: bool = False) -> None:
        import ncnn

        if profile:
            raise ValueError("ncnn has no per-layer times")
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = threads
        # By itself it keeps weights in fp16 and, on ARM, computes in it
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        if self._net.load_param(files[0]) or self._net.load_model(files[1]):
            raise ValueError(f"ncnn cannot load {files[0]}")
        self._input, self._output = self._net.input_names()[0], self._net.output_names()[0]
        self._images = [np.ascontiguousarray(image) for image in images]

    @staticmethod
    def version() -> str:
        """Of ncnn, which counts days: 20261020 for 1.0.20261020."""
        import ncnn

        return str(ncnn.__version__).rpartition(".")[2]

    def _one(self, image: npt.NDArray[np.float32]) -> Any:
        import ncnn

        with self._net.create_extractor() as extractor:
            extractor.input(self._input, ncnn.Mat(image))
            code, output = extractor.extract(self._output)
        if code:
            raise ValueError(f"ncnn cannot run the network: it answers {code}")
        return output

    def infer(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The outputs for other images."""
        return np.stack([np.array(self._one(np.ascontiguousarray(image)), dtype=np.float32) for image in images])

    def run(self) -> None:
        """One inference of each image."""
        for image in self._images:
            self._one(image)

    def close(self) -> None:
        """Release the network."""
        self.__dict__.pop("_net", None)


NETWORK = NcnnNetwork
