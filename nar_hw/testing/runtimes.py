"""What every inference runtime must do."""

import copy
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nar_hw.errors import ModelError, RuntimeUnavailableError, UnknownNameError
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.base import Runtime

SHAPE = (3, 32, 32)
# Largest error allowed, as a share of the largest output
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 5e-3}


class RuntimeConformance:
    """``runtime``: a class that works here; ``network``: (module, what that runtime loads: the module or its ONNX file)."""

    @pytest.fixture
    def config(self, runtime: type[Runtime]) -> RuntimeConfig:
        config = RuntimeConfig(runtime=runtime.name, batch=2, device=runtime.devices[0])
        if reason := runtime.unavailable(config):
            pytest.skip(reason)
        return config

    @pytest.fixture
    def images(self) -> np.ndarray:
        return np.random.default_rng(7).standard_normal((5, *SHAPE), dtype=np.float32)

    def test_versions_start_with_its_own(self, runtime: type[Runtime], config: RuntimeConfig) -> None:
        versions = runtime.versions()
        assert json.loads(json.dumps(versions)) == versions
        assert next(iter(versions.values()))[0].isdigit()

    def test_agrees_with_torch_in_every_precision_and_for_any_number_of_images(
        self, runtime: type[Runtime], network: tuple[nn.Module, nn.Module | Path], config: RuntimeConfig, images: np.ndarray
    ) -> None:
        module, source = network
        with torch.inference_mode():
            expected = module(torch.from_numpy(images)).numpy()
        scale = np.abs(expected).max()
        for precision in runtime.precisions:
            asked = replace(config, precision=precision)
            if precision == "int8" or runtime.unavailable(asked):
                continue  # int8 takes a file that is quantised already
            with runtime(source, SHAPE, asked) as loaded:
                given = {count: loaded.predict(images[:count]) for count in (5, 2, 1)}  # all kept: no buffer is used again
                for count, outputs in given.items():
                    assert outputs.shape == (count, expected.shape[1])
                    assert outputs.dtype == np.float32
                    assert np.abs(outputs - expected[:count]).max() <= TOLERANCE[precision] * scale

    def test_times_layers_and_leaves_everything_as_it_was(
        self,
        runtime: type[Runtime],
        network: tuple[nn.Module, nn.Module | Path],
        config: RuntimeConfig,
        images: np.ndarray,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """One loaded network for several checks: loading takes some runtimes many seconds."""
        module, source = network
        scratch, threads = tmp_path / "scratch", torch.get_num_threads()
        scratch.mkdir()
        torch.set_num_threads(threads + 1)
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        weights = copy.deepcopy(module.state_dict())
        module.train()  # a runtime evaluates all the same, without touching the module that it was given
        profile = runtime.layers_on(config)
        try:
            with runtime(source, SHAPE, config, profile=profile) as loaded:
                first = loaded.predict(images[:2])
                times = loaded.time_ms(21)
                loaded.run()
                loaded.synchronize()
                np.testing.assert_array_equal(loaded.predict(images[:2]), first)
                layers = loaded.layer_ms() if profile else []
                readers = loaded.producers()
                with pytest.raises(ModelError, match=r"images must have the shape \(B, 3, 32, 32\)"):
                    loaded.predict(images[:, :1])
            loaded.close()
        finally:
            training = [part.training for part in module.modules()]
            module.eval()
            threads_after = torch.get_num_threads()
            torch.set_num_threads(threads)
        assert len(times) == 21
        assert all(ms > 0 for ms in times)
        if profile:
            self.check_layers(module, layers, readers, times)
        assert threads_after == threads + 1
        assert all(training)
        assert all(torch.equal(value, weights[key]) for key, value in module.state_dict().items())
        assert list(scratch.glob("nar_hw-*")) == []

    def check_layers(
        self, module: nn.Module, layers: list[dict[str, float]], readers: dict[str, list[str]], times: list[float]
    ) -> None:
        assert len(layers) == 24, "one entry per inference since loading: predict, 21 timed, run, predict"
        named = set(layers[-1])
        paths = {name.rpartition("/")[0] for name in named}
        assert {path for path, part in module.named_modules() if isinstance(part, nn.Conv2d)} <= paths
        # Bounds that hold when other programs take the core during some runs, and for runtimes that tell a mean only
        parts = float(np.mean([sum(run.values()) for run in layers[1:22]]))
        assert 0.3 * min(times) < parts < 1.1 * max(times)
        assert all(ms >= 0 for run in layers for ms in run.values())
        if readers:
            assert named <= set(readers)
            assert {name for names in readers.values() for name in names} <= set(readers)

    def test_a_larger_batch_takes_longer(
        self, runtime: type[Runtime], network: tuple[nn.Module, nn.Module | Path], config: RuntimeConfig
    ) -> None:
        if config.device_type == "cuda" or runtime.name in ("torch_compile", "aoti", "executorch"):
            pytest.skip("a GPU hides it, and compiling twice takes long")
        _, source = network
        with runtime(source, SHAPE, config) as two, runtime(source, SHAPE, replace(config, batch=16)) as sixteen:
            small, large = (min(time for _ in range(5) for time in loaded.time_ms(3)) for loaded in (two, sixteen))
        assert large > 2 * small

    def test_refuses_what_it_cannot_do_in_one_line(
        self, runtime: type[Runtime], network: tuple[nn.Module, nn.Module | Path], config: RuntimeConfig, tmp_path: Path
    ) -> None:
        _, source = network
        with pytest.raises(UnknownNameError, match="unknown precision 'fp33': use one of"):
            replace(config, precision="fp33")
        for precision in {"fp32", "bf16", "fp16", "int8"} - set(runtime.precisions):
            with pytest.raises(RuntimeUnavailableError, match=rf"^{runtime.name} needs precision [^\n]*, but got {precision}$"):
                runtime(source, SHAPE, replace(config, precision=precision))
        if not runtime.layers_on(config):
            with pytest.raises(RuntimeUnavailableError, match=r"^\w+ has no per-layer times on [^\n]*$"):
                runtime(source, SHAPE, config, profile=True)
        if runtime.consumes == "module":
            with pytest.raises(ModelError, match=r"^\w+ runs a torch module, but got the file [^\n]*$"):
                runtime(tmp_path / "x.onnx", SHAPE, config)
        else:
            with pytest.raises(ModelError, match="does not exist"):
                runtime(tmp_path / "x.onnx", SHAPE, config)
            (tmp_path / "bad.onnx").write_bytes(b"not a protobuf")
            with pytest.raises(ModelError, match=r"^[^\n]*bad.onnx is not an ONNX file[^\n]*$"):
                runtime(tmp_path / "bad.onnx", SHAPE, config)
