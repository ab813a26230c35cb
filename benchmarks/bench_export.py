"""What exporting is worth, on one CPU thread: our ONNX files against hand-made ones, our runtimes against bare calls, precisions.

- files: torchvision networks exported by nar_hw and by hand (torch.onnx.export, then onnxslim, with the same range of batches
  and with a batch of one fixed), batch 1 in ONNX Runtime with equal options. Sessions of all files are opened anew LOADS times,
  since where a session's memory lies matters, and visited in turn; "ratio" is the median over the loads of the median quotient
  of a round. The noise floor is the same quotient of two sessions of one and the same file: its 95 % interval (bootstrap over
  loads) is how far from 1 a ratio may be by chance.
- overhead: `Runtime.time_ms` and `Runtime.predict` against a loop of `InferenceSession.run` on the very same session, batch 1.
- precisions: resnet18, all in turn; times relative to ONNX Runtime's fp32. int8 is calibrated on random images.

Times of the first two are CPU times of the thread, of the third wall times. BatchNorms have the statistics of random images.
Result: results/export.json. On one core of a shared two-core Xeon (AVX-512 VNNI, AMX): our files take 0.977 to 1.008 of the
hand-made ones at noise floors of 0.010 to 0.027; `time_ms` 0.999 and `predict` 1.002 of the bare call on resnet18, 0.988 and
1.015 on the 0.65 ms network. resnet18, batch 1, relative to ONNX Runtime's fp32: its int8 0.37, OpenVINO bf16 0.20 and int8 0.11,
AOTInductor bf16 0.38. There is no fp16: our runtimes compute in it on GPUs only.

    pip install onnxslim
    OMP_NUM_THREADS=1 python benchmarks/bench_export.py [files] [overhead] [precisions] [--out benchmarks/results/export.json]
"""

import argparse
import contextlib
import gc
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import nn

from nar_hw._version import versions
from nar_hw.errors import RuntimeUnavailableError
from nar_hw.export.onnx import export_onnx, open_session, verify_onnx
from nar_hw.export.quantize import to_int8
from nar_hw.files import read_json, write_json
from nar_hw.latency.device import fingerprint
from nar_hw.latency.timing import interleave
from nar_hw.models import build_model
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.runtimes.base import Runtime
from nar_hw.runtimes.onnxruntime import OnnxRuntime

Floats = npt.NDArray[np.float64]

SHAPE = (3, 224, 224)
MODELS = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x1_0", "efficientnet_b0", "densenet121")
LOADS, ROUNDS = 8, 8
VISIT_MS = 25.0
SMALL = ("resnet_digits", (1, 8, 8))
"""A network so small that what surrounds it shows."""
PRECISIONS = {
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "torch_eager": ("fp32", "bf16"),
    "aoti": ("fp32", "bf16"),
}


def trained(model: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """``model`` with norms that have seen random images, in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(8, *shape))
    return model.eval()


def by_hand(model: nn.Module, path: Path, *, dynamic: bool) -> None:
    """What one writes without nar_hw."""
    import onnxslim

    torch.onnx.export(
        model,
        (torch.randn(2 if dynamic else 1, *SHAPE),),
        path,
        input_names=["input"],
        output_names=["output"],
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None,
        verbose=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        onnxslim.slim(str(path), str(path))


def thread_ms(work: Callable[[], Any], repeats: int) -> float:
    """CPU milliseconds of one of ``repeats`` calls in a row, after one that is not timed."""
    work()
    start = time.thread_time_ns()
    for _ in range(repeats):
        work()
    return (time.thread_time_ns() - start) / 1e6 / repeats


def visits(works: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Floats]:
    """(rounds,) milliseconds of each, visited in turn, every other round backwards."""
    repeats = {name: max(1, round(VISIT_MS / thread_ms(work, 2))) for name, work in works.items()}
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds):
        for name in list(works)[:: 1 if turn % 2 else -1]:
            times[name].append(thread_ms(works[name], repeats[name]))
    return {name: np.array(values) for name, values in times.items()}


def interval(values: Floats) -> list[float]:
    """The 95 % interval of their median (bootstrap)."""
    medians = np.median(np.random.default_rng(0).choice(values, (4000, len(values))), axis=1)
    return [round(float(value), 4) for value in np.quantile(medians, (0.025, 0.975))]


def files(folder: Path) -> list[dict[str, Any]]:
    return [against_hand(name, folder) for name in MODELS]


def against_hand(name: str, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model = trained(torchvision.models.get_model(name), SHAPE)
    paths = {label: folder / f"{name}.{label}.onnx" for label in ("ours", "by hand", "by hand, batch 1")}
    export_onnx(model, paths["ours"], input_shape=SHAPE)
    by_hand(model, paths["by hand"], dynamic=True)
    by_hand(model, paths["by hand, batch 1"], dynamic=False)
    images = np.random.default_rng(0).standard_normal((1, *SHAPE), dtype=np.float32)
    for path in paths.values():
        verify_onnx(path, model, images, tolerance=1e-4)
    subjects = {"ours": paths["ours"], "ours again": paths["ours"], **paths}
    quotients: dict[str, list[float]] = {label: [] for label in subjects if label != "ours"}
    ms: list[float] = []
    for load in range(LOADS):
        order = list(subjects)[load % 4 :] + list(subjects)[: load % 4]
        sessions = {label: open_session(subjects[label]) for label in order}
        works = {label: lambda session=session: session.run(None, {"input": images}) for label, session in sessions.items()}
        times = visits(works, ROUNDS)
        ms.append(float(np.median(times["ours"])))
        for label, values in quotients.items():
            values.append(float(np.median(times["ours"] / times[label])))
        del works, sessions
        gc.collect()
    ratios = {label: {"ratio": round(float(np.median(v)), 4), "95 %": interval(np.array(v))} for label, v in quotients.items()}
    noise = ratios.pop("ours again")
    floor = max(abs(end - 1) for end in noise["95 %"])
    found = {
        "model": name,
        "ours_ms": round(float(np.median(ms)), 3),
        "noise floor": {**noise, "floor": round(floor, 4)},
        "against": ratios,
        "nodes": {label: len(_nodes(path)) for label, path in paths.items()},
        "bytes": {label: path.stat().st_size for label, path in paths.items()},
        "target <= 1.00 within the noise floor holds": all(item["ratio"] <= 1 + floor for item in ratios.values()),
    }
    print(name, found["ours_ms"], noise, ratios, found["nodes"], flush=True)
    return found


def _nodes(path: Path) -> Any:
    import onnx

    return onnx.load(path).graph.node


def overhead(folder: Path) -> list[dict[str, Any]]:
    return [wrapper(name, shape) for name, shape in (("resnet18", SHAPE), SMALL)]


def wrapper(name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = trained(build_model(name, input_shape=shape, num_classes=1000 if shape == SHAPE else 10), shape)
    with OnnxRuntime(model, shape, RuntimeConfig()) as runtime:
        session, images = runtime._session, runtime.images
        names = ([session.get_outputs()[0].name], session.get_inputs()[0].name)

        def bare() -> Any:
            return session.run(names[0], {names[1]: images})

        works = {
            "bare": bare,
            "bare again": bare,
            "time_ms": lambda: runtime.time_ms(1),
            "predict": lambda: runtime.predict(images),
        }
        times = visits(works, 6 * ROUNDS)
    ratios = {label: values / times["bare"] for label, values in times.items() if label != "bare"}
    found = {
        "model": name,
        "bare_ms": round(float(np.median(times["bare"])), 4),
        "against bare": {
            label: {"ratio": round(float(np.median(values)), 4), "95 %": interval(values)} for label, values in ratios.items()
        },
    }
    found["target <= 1.02 holds"] = bool(np.median(ratios["time_ms"]) <= 1.02)
    print(found, flush=True)
    return found


def precisions(folder: Path) -> list[dict[str, Any]]:
    return [speeds(batch, folder) for batch in (1, 8)]


def speeds(batch: int, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    model = trained(torchvision.models.resnet18(), SHAPE)
    rng = np.random.default_rng(0)
    paths = {precision: folder / f"{precision}.onnx" for precision in ("fp32", "int8")}
    export_onnx(model, paths["fp32"], input_shape=SHAPE)
    to_int8(paths["fp32"], paths["int8"], rng.standard_normal((32, *SHAPE), dtype=np.float32))
    runtimes: dict[str, Runtime] = {}
    left_out = {}
    for runtime, kinds in PRECISIONS.items():
        for precision in kinds:
            config = RuntimeConfig(runtime=runtime, precision=precision, batch=batch)
            source = paths.get(precision, paths["fp32"]) if runtime_class(runtime).consumes == "onnx" else model
            try:
                runtimes[f"{runtime} {precision}"] = runtime_class(runtime)(source, SHAPE, config)
            except RuntimeUnavailableError as problem:
                left_out[f"{runtime} {precision}"] = str(problem)
    images = rng.standard_normal((batch, *SHAPE), dtype=np.float32)
    with torch.inference_mode():
        reference = model(torch.from_numpy(images)).numpy()
    errors = {label: np.abs(item.predict(images) - reference).max() / np.abs(reference).max() for label, item in runtimes.items()}
    times = interleave(runtimes, rounds=3 * ROUNDS)
    for item in runtimes.values():
        item.close()
    base = times["onnxruntime fp32"]
    found = {
        "model": "resnet18",
        "batch": batch,
        "ms": {label: round(float(np.median(values)), 2) for label, values in times.items()},
        "of onnxruntime fp32": {
            label: {"ratio": round(float(np.median(values / base)), 3), "95 %": interval(values / base)}
            for label, values in times.items()
        },
        "largest error / largest output": {label: float(f"{error:.2g}") for label, error in errors.items()},
        "left out": left_out,
    }
    print(found, flush=True)
    return found


PARTS = {"files": files, "overhead": overhead, "precisions": precisions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "export.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        found = {part: PARTS[part](Path(folder)) for part in arguments.parts}
    import onnxruntime
    import onnxslim

    own = {"onnxruntime": onnxruntime.__version__, "onnxslim": onnxslim.__version__, "torchvision": torchvision.__version__}
    kept = read_json(arguments.out).get("results", {}) if arguments.out.is_file() else {}
    write_json(
        arguments.out,
        {
            "command": "OMP_NUM_THREADS=1 python benchmarks/bench_export.py",
            "versions": {**versions("torch"), **own},
            "device": fingerprint(RuntimeConfig(runtime="torch_eager"))["device"],
            "cores": os.cpu_count(),
            "load before and after": [round(before[0], 2), round(os.getloadavg()[0], 2)],
            "system": platform.platform(),
            "results": {**kept, **found},
        },
    )


if __name__ == "__main__":
    main()
