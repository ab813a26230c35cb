"""MNN's files: a network as one .mnn, made of an ONNX file by the converter that MNN's package holds."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np

from nar_hw.device.mnn import MnnNetwork
from nar_hw.errors import ExportError, RuntimeUnavailableError
from nar_hw.export.onnx import check_runtime
from nar_hw.files import Scratch, write_bytes

INSTALL = "mnn is not installed: pip install 'nar-hw[mnn]'"
# The command `mnnconvert` would install a package that sends its maker what was converted
_CONVERT = "import sys, _tools; sys.exit(not _tools.mnnconvert(sys.argv))"


def save_mnn(source: Path, target: Path, images: tuple[int, int, int, int]) -> Path:
    """Write the ONNX file ``source`` as ``target`` (.mnn), compared with ONNX Runtime on random ``images`` (B, C, H, W).

    Raises:
        RuntimeUnavailableError: MNN is not installed.
        ExportError: MNN cannot have the network, or computes something else.
    """
    if importlib.util.find_spec("MNN") is None:
        raise RuntimeUnavailableError(INSTALL)
    inputs = np.random.default_rng(0).standard_normal(images, dtype=np.float32)
    with Scratch() as scratch:
        made = Path(scratch) / "m.mnn"
        options = ["-f", "ONNX", "--modelFile", str(source.absolute()), "--MNNModel", str(made), "--bizCode", "nar_hw"]
        command = [sys.executable, "-c", _CONVERT, *options]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, errors="replace")
        if done.returncode or not made.is_file():
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise ExportError(f"MNN cannot convert {source}: {said[-1] if said else f'exit code {done.returncode}'}")
        try:
            network = MnnNetwork([str(made)], inputs, 1)
            outputs = network.infer(inputs)
        except ValueError as problem:
            raise ExportError(f"{source} cannot run in MNN: {problem}") from problem
        network.close()
        check_runtime("MNN", source, inputs, outputs)
        write_bytes(target, made.read_bytes())
    return target
