"""ncnn's files: a network as model.ncnn.param (operations, text) and model.ncnn.bin (weights), made by pnnx of an ONNX file."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np

from nar_hw.device.ncnn import NcnnNetwork
from nar_hw.errors import ExportError, RuntimeUnavailableError
from nar_hw.export.onnx import check_runtime
from nar_hw.files import Scratch

INSTALL = "ncnn is not installed: pip install 'nar-hw[ncnn]'"


def save_ncnn(source: Path, target: Path, input_shape: tuple[int, int, int]) -> tuple[Path, Path]:
    """Write the ONNX file ``source`` as ``target`` (.param) and the .bin beside it, for one image at a time; returns both.

    The weights stay fp32, and what ncnn computes is compared with ONNX Runtime on one random image.

    Raises:
        RuntimeUnavailableError: ncnn or pnnx is not installed.
        ExportError: pnnx cannot convert the network, or ncnn computes something else.
    """
    if importlib.util.find_spec("ncnn") is None or (found := importlib.util.find_spec("pnnx")) is None or found.origin is None:
        raise RuntimeUnavailableError(INSTALL)
    program = Path(found.origin).parent / "pnnx"  # `import pnnx` would import torch, the command would too
    image = np.random.default_rng(0).standard_normal((1, *input_shape), dtype=np.float32)
    with Scratch() as scratch:
        folder = Path(scratch)
        shutil.copyfile(source, folder / "m.onnx")
        shape = ",".join(map(str, image.shape))
        command = [str(program), "m.onnx", "fp16=0", f"inputshape=[{shape}]"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        made = (folder / "m.ncnn.param", folder / "m.ncnn.bin")
        if done.returncode or not all(file.is_file() for file in made):
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise ExportError(f"pnnx cannot convert {source} for ncnn: {said[-1] if said else f'exit code {done.returncode}'}")
        unknown = [line.split()[0] for line in made[0].read_text().splitlines()[2:] if "." in line.split()[0]]
        if unknown:
            raise ExportError(f"ncnn does not have {', '.join(sorted(set(unknown)))}, which {source} needs: use another runtime")
        try:
            network = NcnnNetwork([str(file) for file in made], image, 1)
            outputs = network.infer(image)
        except ValueError as problem:
            raise ExportError(f"{source} cannot run in ncnn: {problem}") from problem
        check_runtime("ncnn", source, image, outputs)
        weights = target.with_suffix(".bin")
        for file, name in zip(made, (target, weights), strict=True):
            shutil.copyfile(file, name)
    return target, weights
