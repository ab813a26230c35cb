"""Whether torch's compiler (Inductor) can work here: torch_compile and aoti stand on it."""

import importlib.util
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from nar_hw.runtimes.base import RuntimeConfig


@contextmanager
def compiling() -> Iterator[None]:
    """Without Inductor's advice to use TF32, which is not fp32."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        yield


def no_compiler(config: RuntimeConfig) -> str | None:
    """Why Inductor cannot compile for ``config``, and what to install; None when it can."""
    default = "cl" if sys.platform == "win32" else "clang++" if sys.platform == "darwin" else "g++"
    wanted = next(iter(os.environ.get("CXX", default).split()), default)  # CXX may hold flags too
    if shutil.which(wanted) is None:
        return f"{config.runtime} needs the C++ compiler {wanted}, which is not on the PATH: install it, or name another in CXX"
    if config.device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return f"{config.runtime} on cuda needs Triton: pip install triton"
    return None
