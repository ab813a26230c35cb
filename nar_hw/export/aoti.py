"""AOTInductor: a network compiled ahead of time into one .pt2 file, which torch runs without its compiler or the network's code.

A package holds machine code: it runs on the kind of device that it was made on, for one batch size, and only packages from
people whom one trusts are to be loaded.
"""

import json
import logging
import re
import shutil
import subprocess
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from nar_hw.errors import ExportError, ModelError, RunError, RuntimeUnavailableError
from nar_hw.files import Scratch, atomic_path

_FLAGS = {"AVX512": "avx512f", "ASIMD": "asimd"}
"""What Inductor calls an instruction set -> what Linux calls it, where it is not the same in lower case."""


class Float32Ends(nn.Module):
    """A network of another precision that takes and gives float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to outputs (B, classes)."""
        output: Tensor = self.network(images.to(self.dtype))
        return output.float()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on CUDA compilers that are not needed, and Inductor's advice to use TF32, which is not fp32."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
            yield
    finally:
        logging.disable(level)


def compile_package(network: nn.Module, images: Tensor, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Compile ``network`` for inputs like ``images`` into ``path``: the weights are constants, the number of threads is free.

    The sources that Inductor generated, which tell of this machine's folders, are left out of the file.

    Raises:
        ModelError: torch.export cannot trace the network.
        ExportError: Inductor fails, or the file cannot be written.
    """
    settings = {
        "aot_inductor.metadata": dict(metadata or {}),
        "cpp.dynamic_threads": True,
        "freezing": images.device.type == "cpu",  # lays the weights out for the CPU's convolutions: twice as fast
    }
    with (
        Scratch() as scratch,
        _quiet(),
        torch.inference_mode(mode=False),
        torch.no_grad(),
    ):
        made = Path(scratch) / "network.pt2"
        try:
            program = torch.export.export(network, (images,))
        except Exception as problem:  # whatever the network raises under the tracer
            raise ModelError(f"torch.export must be able to trace the network, but failed: {_one_line(problem)}") from problem
        try:
            torch._inductor.aoti_compile_and_package(program, package_path=str(made), inductor_configs=settings)
        except Exception as problem:  # its own errors and the compiler's
            raise ExportError(f"Inductor must be able to compile the network, but failed: {_one_line(problem)}") from problem
        try:
            with atomic_path(path) as temporary:
                _without_sources(made, temporary)
        except OSError as problem:
            raise ExportError(f"package {path} cannot be written: {problem}") from problem


def _without_sources(source: Path, target: Path) -> None:
    """Copy a package without its C++ sources, this machine's paths and the random number that torch gives every archive."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.endswith(".so"):
                data = _without_paths(data)
            elif item.filename.endswith("serialization_id"):
                data = b"0" * len(data)
            elif item.filename.endswith(".cpp"):
                data = b""  # torch 2.11 finds the metadata by the name of this file
            new.writestr(zipfile.ZipInfo(item.filename), data)


def _without_paths(library: bytes) -> bytes:
    """A shared library without debug symbols (where there is a strip command), and without the folders in its messages."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # takes a second

    if (strip := shutil.which("strip")) is not None:
        with Scratch() as scratch:
            file = Path(scratch) / "network.so"
            file.write_bytes(library)
            subprocess.run([strip, "--strip-debug", file], capture_output=True, check=False)
            library = file.read_bytes()
    for folder in (cache_dir(), str(Path(torch.__file__).parent.parent)):
        library = library.replace(folder.encode(), b"/" * len(folder.encode()))
    return library


def read_metadata(path: Path) -> dict[str, str]:
    """What a package says of itself, without loading it: AOTI_MACHINE, AOTI_CPU_ISA, ... and what it was compiled with.

    Raises RunError when the file is missing or no package.
    """
    try:
        with zipfile.ZipFile(path) as package:
            (name,) = [name for name in package.namelist() if name.endswith(".wrapper_metadata.json")]
            found = json.loads(package.read(name))
    except FileNotFoundError:
        raise RunError(f"package {path} does not exist") from None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as problem:
        raise RunError(f"{path} is not a whole AOTInductor package ({_one_line(problem)}): export it again") from None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise RunError(f"{path} must say in texts what it was made for, but does not: export it again")
    return found


def load_package(path: Path) -> Callable[[Tensor], Tensor]:
    """The network in ``path``, for tensors like the one it was compiled for.

    Raises:
        RunError: the file is missing or no package.
        RuntimeUnavailableError: it was made for another kind of machine.
        ExportError: torch cannot load it all the same.
    """
    if reason := misfit(read_metadata(path)):
        raise RuntimeUnavailableError(f"package {path} {reason}: export it again here")
    try:
        with _quiet():
            loaded: Callable[[Tensor], Tensor] = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
    except RuntimeError as problem:
        raise ExportError(f"torch {torch.__version__} cannot load {path}: {_one_line(problem)}") from problem
    return loaded


def misfit(metadata: Mapping[str, str]) -> str | None:
    """Why a package does not run on this machine; None when it does."""
    import platform

    machine, isa = metadata.get("AOTI_MACHINE", ""), metadata.get("AOTI_CPU_ISA", "")
    if machine != platform.machine():
        return f"was made for {machine or 'an unknown machine'}, but this is {platform.machine()}"
    if metadata.get("AOTI_DEVICE_KEY") == "cuda" and not torch.cuda.is_available():
        return "was made for a CUDA device, but torch finds none"
    have = _cpu_flags()
    lacking = [name for name in isa.split() if have and _FLAGS.get(name, name.lower()) not in have]
    return f"was made for a CPU with {isa}, but this one has no {', '.join(lacking)}" if lacking else None


def _cpu_flags() -> set[str]:
    """Instruction sets of this CPU, as Linux calls them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.M)
    return set(found[1].split()) if found else set()


def _one_line(problem: BaseException) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]
