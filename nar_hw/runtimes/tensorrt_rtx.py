"""TensorRT for RTX on an NVIDIA GPU (optional: pip install 'nar-hw[tensorrt-rtx]')."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nar_hw.errors import RuntimeUnavailableError
from nar_hw.export.engine import LibraryName
from nar_hw.export.gpus import CARDS, capabilities, number
from nar_hw.export.tensorrt import current_gpu, tensorrt_module
from nar_hw.files import write_bytes
from nar_hw.runtimes.config import RuntimeConfig
from nar_hw.runtimes.exporting import Deployed, Exported, Source
from nar_hw.runtimes.tensorrt import TensorRT, user_cache
from nar_hw.runtimes.torch_module import no_cuda

if TYPE_CHECKING:
    from torch import nn


class TensorRTRtx(TensorRT):
    """An engine of TensorRT for RTX: built anywhere, compiled for the GPU when it is loaded for the first time.

    What was compiled is kept in the user's cache folder, and the next load takes it from there.
    """

    name = "tensorrt-rtx"
    library: ClassVar[LibraryName] = "tensorrt-rtx"
    triton = None
    exports_anywhere = True

    cached: bool
    """Whether kernels of an earlier load were there."""
    load_ms: float
    """From the network to its first result: long where kernels are compiled, short where they were kept."""

    @classmethod
    def _missing(cls, config: RuntimeConfig) -> str | None:
        reason = super()._missing(config)
        only_runs_not = reason is not None and reason == no_cuda(config)
        return f"tensorrt-rtx builds engines here, but runs none: {reason}" if only_runs_not else reason

    @classmethod
    def unexportable(cls, config: RuntimeConfig) -> str | None:
        """Only the library is needed to build, no GPU."""
        try:
            tensorrt_module(cls.library)
        except RuntimeUnavailableError as problem:
            return str(problem)
        return None

    @classmethod
    def export(cls, source: Source, config: RuntimeConfig) -> Exported:
        """One engine for all of the source's GPUs and batch sizes."""
        engine = source.path(config.precision, ".rtx.engine")
        info = cls._built(source, config, engine, gpus=source.gpus)
        files = tuple(f"{engine.name}{end}" for end in ("", ".json", ".layers.json"))
        requires = {"tensorrt-rtx": info.tensorrt, "compute_capabilities": ", ".join(info.compute_capabilities)}
        if info.datatypes:
            requires["products"] = ", ".join(f"{count} in {kind}" for kind, count in info.datatypes.items())
        return Exported(files, source.batch, "cuda", requires)

    @classmethod
    def left_out(cls, precision: str, gpus: Sequence[str]) -> dict[str, str]:
        """What "all" does not mean in a precision: GPU -> why."""
        missing = [gpu for gpu in CARDS if gpu not in capabilities(gpus, precision)] if "all" in gpus else []
        return dict.fromkeys(missing, "TensorRT for RTX has fp16 only there")

    @classmethod
    def described(cls, precision: str, exported: Exported) -> str:
        """With the GPUs that it was built for, and in what it computes."""
        requires = exported.requires
        products = f", convolutions and matrix products {requires['products']}" if "products" in requires else ""
        where = f"GPUs of compute capability {requires['compute_capabilities']}"
        return f"TensorRT for RTX engine in {precision}, {where} with TensorRT for RTX {requires['tensorrt-rtx']}{products}"

    @classmethod
    def usage(cls, bundle: Deployed) -> str:
        """Which GPUs the engines are for."""
        needed = {name for made in bundle.exported for name in made.requires["compute_capabilities"].split(", ")}
        rows = [f"| {number(key)} | {cards} |" for key, cards in CARDS.items() if number(key) in needed]
        table = "\n".join(["## GPUs of the TensorRT for RTX engines", "| compute capability | GPUs |", "|---|---|", *rows, ""])
        return table if rows else ""

    def _load(self, network: "nn.Module | Path") -> None:
        start = time.perf_counter()
        super()._load(network)
        self._stream.synchronize()
        self.load_ms = (time.perf_counter() - start) * 1e3
        compiled = bytes(self._required(self._cache.serialize(), "keep what it compiled"))
        with suppress(OSError):  # no home, or none that can be written: the next time takes as long as this one
            write_bytes(self._cache_file, compiled)

    def _build_settings(self) -> dict[str, Any]:
        return {"gpus": (current_gpu()[1],)}

    def _made_context(self) -> Any:
        config = self._engine.create_runtime_config()
        # Kernels for the batch that is asked for, before the first result: by default others run until they are there
        config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._cache, self._cache_file = config.create_runtime_cache(), user_cache(self.library, self._trt.__version__)
        kept = self._cache_file.read_bytes() if self._cache_file.is_file() else b""
        self.cached = bool(kept) and bool(self._cache.deserialize(kept))  # of another driver: compiled again
        self._required(config.set_runtime_cache(self._cache), "keep what it compiles")
        return self._engine.create_execution_context(config)

    def close(self) -> None:
        """Free the graph, the context, the engine and their memory."""
        super().close()
        self.__dict__.pop("_cache", None)
