"""Whether torch's compiler (Inductor) can work here: torch_compile and aoti stand on it."""

import importlib.util
import os
import shutil
import sys

from nar_hw.runtimes.base import RuntimeConfig


def no_compiler(config: RuntimeConfig) -> str | None:
    """Why Inductor cannot compile for ``config``, and what to install; None when it can."""
    default = "cl" if sys.platform == "win32" else "clang++" if sys.platform == "darwin" else "g++"
    wanted = os.environ.get("CXX", default)
    if shutil.which(wanted) is None:
        return f"{config.runtime} needs the C++ compiler {wanted}, which is not on the PATH: install it, or name another in CXX"
    if config.device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return f"{config.runtime} on cuda needs Triton: pip install triton"
    return None
