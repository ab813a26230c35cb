"""ONNX Runtime with the plugin for TensorRT for RTX: what it says without a GPU; and its sessions, on the CPU's device."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from nar_hw.errors import ModelError, RuntimeUnavailableError
from nar_hw.export.onnx import export_onnx
from nar_hw.export.quantize import to_int8
from nar_hw.runtimes import RuntimeConfig, onnxruntime_rtx, survey
from nar_hw.runtimes.onnxruntime_rtx import PLUGIN, OnnxRuntimeRtx

SHAPE = (3, 8, 8)
CONFIG = RuntimeConfig(runtime="onnxruntime-rtx", device="cuda", batch=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("files")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    found = {name: folder / f"{name}.onnx" for name in ("fp32", "int8")}
    export_onnx(network, found["fp32"], input_shape=SHAPE)
    to_int8(found["fp32"], found["int8"], np.random.default_rng(0).standard_normal((4, *SHAPE), dtype=np.float32))
    return found


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device that ONNX Runtime has on every machine in the place of the plugin's."""
    monkeypatch.setattr(OnnxRuntimeRtx, "_missing", classmethod(lambda cls, config: None))
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime_rtx, "plugin_devices", lambda: tuple(devices))
    monkeypatch.setattr(onnxruntime_rtx, "SETTINGS", {})  # it is the CPU, which must not be ruled out


def test_without_the_plugin_or_a_gpu_it_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {row["name"]: row for row in survey()}["onnxruntime-rtx"]
    if not torch.cuda.is_available() and importlib.util.find_spec(PLUGIN) is not None:
        assert found["reason"].startswith("onnxruntime-rtx on cuda needs a CUDA device, but torch ")
        assert list(found["versions"])[:2] == ["onnxruntime-ep-nv-tensorrt-rtx-cu13", "onnxruntime"]
        assert PLUGIN not in sys.modules  # which would load libraries of 300 MB to no purpose
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"^onnxruntime-ep-nv-tensorrt-rtx-cu13 is not installed: pip install 'nar-hw\[onnxruntime-rtx\]'$"
    with pytest.raises(RuntimeUnavailableError, match=message):
        OnnxRuntimeRtx(Path("x.onnx"), SHAPE, CONFIG)


def test_without_a_driver_the_plugin_does_not_load() -> None:
    if importlib.util.find_spec(PLUGIN) is None or torch.cuda.is_available():
        pytest.skip("needs the plugin, and no GPU")
    # In a process of its own: the plugin brings another copy of the libraries of the package tensorrt_rtx
    code = "from nar_hw.runtimes.onnxruntime_rtx import plugin_devices; plugin_devices()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "RuntimeUnavailableError: onnxruntime-ep-nv-tensorrt-rtx-cu13 cannot be loaded (" in last
    assert "libcuda.so.1" in last
    assert last.endswith("pip install 'nar-hw[onnxruntime-rtx]'")


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_sessions_give_what_onnx_runtime_gives(precision: str, files: dict[str, Path]) -> None:
    images = np.random.default_rng(1).standard_normal((2, *SHAPE), dtype=np.float32)
    session = onnxruntime.InferenceSession(files["fp32"], providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input": images})
    config = RuntimeConfig(runtime="onnxruntime-rtx", device="cuda", batch=2, precision=precision)
    with OnnxRuntimeRtx(files[precision], SHAPE, config) as runtime:
        np.testing.assert_allclose(runtime.predict(images), expected, atol=1e-5 if precision == "fp32" else 0.05)
        assert len(runtime.time_ms(2)) == 2


@pytest.mark.usefixtures("on_cpu")
def test_what_cannot_be_had_is_told_in_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    other = RuntimeConfig(runtime="onnxruntime-rtx", device="cuda:7", batch=2)
    with pytest.raises(
        RuntimeUnavailableError, match=r"^device cuda:7 must be one of the 1 GPUs that TensorRT for RTX finds[^\n]*$"
    ):
        OnnxRuntimeRtx(files["fp32"], SHAPE, other)
    with pytest.raises(ModelError, match=r"^[^\n]* takes images of shape \(3, 8, 8\), but got \(3, 9, 9\)$"):
        OnnxRuntimeRtx(files["fp32"], (3, 9, 9), CONFIG)
