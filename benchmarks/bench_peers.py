"""Ways to predict a network's latency, judged by the same held-out children: what they are off by, how they rank, what they cost.

    our table            `nar-hw profile`: operators timed inside real networks
    isolated operators   each operator alone, summed; what is outside the slots is the network's own time less its operators'
    one-swap table       the network with one operator replaced at a time, minus the network
    dictionary           as Once-for-All: every part alone (operators with their activation, stem, head), all looked up and summed
    kernel regression    as nn-Meter: a random forest for each kind of fused kernel, learnt from kernels of random sizes that were
                         timed alone; the kernels of a network are predicted and summed (our own small implementation of its
                         method, with SAMPLES kernels of each kind where the paper takes thousands)
    FLOPs                a straight line through random whole children
    trees                gradient boosting on the operators of random whole children

FLOPs and trees learn from RANDOM children that are measured for them. All of it is timed beside the network itself and given
at one speed, so that the machine's drift does not count; "seconds" is the CPU time of the measurements of a method, with exports
(wall time where its "clock" says so: the machine was quiet). What is in the file is not measured again, so that it can be made in
several sessions, each with what else ran; let nothing else run. Result: results/peers.json, and docs/pictures/peers.svg by
pictures.py.

    OMP_NUM_THREADS=1 python benchmarks/bench_peers.py [--seconds 200] [--out benchmarks/results/peers.json]
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from bench_latency_table import actual_ms, judged, one_slot_swap, space_of, whole
from onnx import TensorProto, helper, numpy_helper
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from torch import nn

from nar_hw.files import read_json, write_json
from nar_hw.latency import isolated
from nar_hw.latency.children import measure
from nar_hw.latency.designs import contexts, held_out
from nar_hw.latency.device import fingerprint
from nar_hw.latency.loader import ChildLoader
from nar_hw.latency.profiler import profile
from nar_hw.records import plain
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.space.flops import SpaceCounts
from nar_hw.space.spec import Arch

MODEL, SIZE = "resnet18", 32
CONFIG = RuntimeConfig(runtime="onnxruntime")
CHILDREN, RANDOM, SAMPLES, ROUNDS, SEED = 40, 100, 24, 10, 0

Archs = np.ndarray
Predict = Callable[[Archs], np.ndarray]


@dataclass(frozen=True)
class Kernel:
    """A fused kernel, as nn-Meter cuts networks: its kind and what its predictor sees."""

    kind: str
    hw: int
    c_in: int
    c_out: int
    kernel: int
    stride: int

    def features(self) -> list[float]:
        """Sizes, multiply-adds and values moved."""
        out = -((-self.hw // self.stride) ** 2)
        dense = self.c_in if self.kind in ("conv-relu", "fc") else 1
        work = out * self.c_out * dense * self.kernel**2
        moved = self.hw**2 * self.c_in + out * self.c_out
        return [self.hw, self.c_in, self.c_out, self.kernel, self.stride, work, moved]


def kernels(network: nn.Module, shape: tuple[int, int, int]) -> list[Kernel]:
    """The kernels of a network: convolutions with norm and activation, pools, additions with activation, the classifier."""
    found: list[Kernel] = []

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        value = inputs[0]
        hw, c_in, c_out = (value.shape[2] if value.dim() == 4 else 1), value.shape[1], output.shape[1]
        if isinstance(module, nn.Conv2d):
            kind = "conv-relu" if module.groups == 1 else "dwconv-relu"
            found.append(Kernel(kind, hw, c_in, c_out, module.kernel_size[0], module.stride[0]))
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            kernel, stride = (item if isinstance(item, int) else item[0] for item in (module.kernel_size, module.stride))
            found.append(Kernel("maxpool" if isinstance(module, nn.MaxPool2d) else "avgpool", hw, c_in, c_out, kernel, stride))
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            found.append(Kernel("global-avgpool", hw, c_in, c_out, hw, hw))
        elif isinstance(module, nn.Linear):
            found.append(Kernel("fc", 1, c_in, c_out, 1, 1))
        elif type(module).__name__ in ("BasicBlock", "Bottleneck"):
            found.append(Kernel("add-relu", output.shape[2], c_out, c_out, 1, 1))

    handles = [module.register_forward_hook(hook) for module in network.modules()]
    with torch.inference_mode():
        network.eval()(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return found


def kernel_file(kernel: Kernel, path: Path) -> None:
    """The kernel as a network of its own."""
    rng = np.random.default_rng(0)
    pads, strides = [kernel.kernel // 2] * 4, [kernel.stride] * 2
    window = {"kernel_shape": [kernel.kernel] * 2, "strides": strides, "pads": pads}
    groups = kernel.c_in if kernel.kind == "dwconv-relu" else 1
    shapes = {
        "conv-relu": (kernel.c_out, kernel.c_in, kernel.kernel, kernel.kernel),
        "dwconv-relu": (kernel.c_out, 1, kernel.kernel, kernel.kernel),
        "add-relu": (1, kernel.c_in, kernel.hw, kernel.hw),
        "fc": (kernel.c_in, kernel.c_out),
    }
    weights = []
    if kernel.kind in shapes:
        weights = [numpy_helper.from_array(0.1 * rng.standard_normal(shapes[kernel.kind]).astype(np.float32), "w")]
    nodes = {
        "conv-relu": [helper.make_node("Conv", ["input", "w"], ["x"], **window, group=groups)],
        "dwconv-relu": [helper.make_node("Conv", ["input", "w"], ["x"], **window, group=groups)],
        "add-relu": [helper.make_node("Add", ["input", "w"], ["x"])],
        "fc": [helper.make_node("Flatten", ["input"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["output"])],
        "maxpool": [helper.make_node("MaxPool", ["input"], ["output"], **window)],
        "avgpool": [helper.make_node("AveragePool", ["input"], ["output"], **window)],
        "global-avgpool": [helper.make_node("GlobalAveragePool", ["input"], ["output"])],
    }[kernel.kind]
    if kernel.kind.endswith("relu"):
        nodes.append(helper.make_node("Relu", ["x"], ["output"]))
    shape = [1, kernel.c_in, kernel.hw, kernel.hw]
    graph = helper.make_graph(
        nodes,
        "kernel",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def sampled(seen: Sequence[Kernel]) -> list[Kernel]:
    """Random kernels of every kind that occurs: sizes between the least and the greatest that occur, as nn-Meter samples them."""
    rng = np.random.default_rng(SEED)
    kinds: dict[str, list[Kernel]] = defaultdict(list)
    for kernel in seen:
        kinds[kernel.kind].append(kernel)
    found = []
    for kind, own in kinds.items():
        for _ in range(SAMPLES):
            like = own[rng.integers(len(own))]
            sizes = [item.hw for item in own]
            channels = [c for item in own for c in (item.c_in, item.c_out)]
            c_in, c_out = (int(2 ** rng.uniform(*np.log2([min(channels), max(channels)])) / 8 + 0.5) * 8 or 3 for _ in range(2))
            hw = int(2 ** rng.uniform(*np.log2([min(sizes), max(sizes)])) + 0.5)
            same = kind not in ("conv-relu", "fc")
            window = hw if kind == "global-avgpool" else like.kernel
            found.append(
                Kernel(kind, hw, c_in, c_in if same else c_out, window, window if kind == "global-avgpool" else like.stride)
            )
    return list(dict.fromkeys(found))


class Bench:
    """One network, its held-out children and what the methods make of them."""

    def __init__(self) -> None:
        self.space = space_of(MODEL, SIZE)
        self.exclude = contexts(self.space, replicates=7, seed=SEED)
        self.archs = held_out(self.space, CHILDREN, exclude=self.exclude, seed=SEED + 1)
        self.incumbent_ms = 0.0

    def timed_alone(self, load: Callable[[Any, bool], Any], keys: Sequence[Any]) -> dict[Any, float]:
        """ms of networks of their own, at the speed of the network itself."""
        with ChildLoader(self.space, CONFIG) as loader:
            found = measure(load, keys, loader.incumbent, at_once=24, rounds=ROUNDS, repeats=20)
        scale = self.incumbent_ms / float(np.median(found.reference))
        return {key: scale * float(np.median(times.whole)) for key, times in found.children.items()}

    def specs(self, arch: Sequence[int]) -> list[Any]:
        return [spec for _, _, spec in self.space.specs(tuple(arch))]

    def our_table(self) -> tuple[Predict, int]:
        table = profile(self.space, config=CONFIG, model_name=MODEL, validate=0)
        scale = self.incumbent_ms / table.incumbent_ms
        return (lambda archs: scale * table.predict(archs)), table.method.children

    def isolated_operators(self) -> tuple[Predict, int]:
        specs, load = isolated.operator_loader(self.space, CONFIG)
        ms = self.timed_alone(load, specs)
        own = self.incumbent_ms - sum(ms[spec] for spec in self.specs(self.space.incumbent))
        return (lambda archs: np.array([own + sum(ms[spec] for spec in self.specs(arch)) for arch in archs.tolist()])), len(ms)

    def dictionary(self) -> tuple[Predict, int]:
        specs, _ = isolated.operator_loader(self.space, CONFIG)
        places = {
            spec: (site, code)
            for slot in self.space.slots
            for code in slot.candidates
            for site in slot.sites
            for spec in self.space.site_specs(site, code)
        }
        model = self.space.model
        stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
        head = nn.Sequential(model.avgpool, nn.Flatten(), model.fc)
        shortcuts = [
            (block.downsample, block.conv1.in_channels)
            for layer in (model.layer1, model.layer2, model.layer3, model.layer4)
            for block in layer
            if block.downsample is not None
        ]
        with torch.inference_mode():
            last = nn.Sequential(stem, model.layer1, model.layer2, model.layer3, model.layer4).eval()(
                torch.zeros(1, 3, SIZE, SIZE)
            )
        sides = {spec.c_in: spec.h for spec in specs}
        parts: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {
            "stem": (stem, (3, SIZE, SIZE)),
            "head": (head, (last.shape[1], *last.shape[2:])),
            **{f"shortcut {c_in}": (module, (c_in, sides[c_in], sides[c_in])) for module, c_in in shortcuts},
        }

        def load(key: Any, profile: bool = False) -> Any:
            if isinstance(key, str):
                return runtime_class(CONFIG.runtime)(parts[key][0].eval(), parts[key][1], CONFIG)
            site, code = places[key]
            norm = self.space.norm_for(site, code)
            module = nn.Sequential(self.space.module_for(site, code), *([] if norm is None else [norm]), nn.ReLU()).eval()
            return runtime_class(CONFIG.runtime)(module, (key.c_in, key.h, key.w), CONFIG)

        ms = self.timed_alone(load, [*parts, *specs])
        fixed = sum(ms[name] for name in parts)
        return (lambda archs: np.array([fixed + sum(ms[spec] for spec in self.specs(arch)) for arch in archs.tolist()])), len(ms)

    def kernel_regression(self) -> tuple[Predict, int]:
        shape = self.space.input_shape
        mixed = [self.space.build(arch) for arch in (self.space.incumbent, *self.exclude[:4])]
        asked = sampled([kernel for network in mixed for kernel in kernels(network, shape)])
        with TemporaryDirectory() as folder:

            def load(kernel: Kernel, profile: bool = False) -> Any:
                path = Path(folder) / "kernel.onnx"
                kernel_file(kernel, path)
                return runtime_class(CONFIG.runtime)(path, (kernel.c_in, kernel.hw, kernel.hw), CONFIG)

            ms = self.timed_alone(load, asked)
        models = {}
        for kind in {kernel.kind for kernel in asked}:
            own = [kernel for kernel in asked if kernel.kind == kind]
            forest = RandomForestRegressor(n_estimators=100, random_state=SEED)
            models[kind] = forest.fit([kernel.features() for kernel in own], np.log([ms[kernel] for kernel in own]))

        def predict(archs: Archs) -> np.ndarray:
            found = [kernels(self.space.build(tuple(arch)), shape) for arch in archs.tolist()]
            distinct = list(dict.fromkeys(kernel for network in found for kernel in network))
            cost = {kernel: float(np.exp(models[kernel.kind].predict([kernel.features()])[0])) for kernel in distinct}
            return np.array([sum(cost[kernel] for kernel in network) for network in found])

        return predict, len(asked)

    def one_swap(self) -> tuple[Predict, int]:
        predict, cost = one_slot_swap(self.space, CONFIG, ROUNDS, self.incumbent_ms)
        return predict, cost["children"]

    def random(self) -> tuple[list[Arch], np.ndarray]:
        """Random children and what they take."""
        archs = held_out(self.space, RANDOM, exclude=[*self.exclude, *self.archs], seed=SEED + 2)
        found, _ = whole(self.space, CONFIG, archs, rounds=ROUNDS)
        return list(found.children), actual_ms(found, self.incumbent_ms)

    def flops(self, archs: Archs) -> np.ndarray:
        counts = SpaceCounts(self.space)
        return np.array([counts.count(tuple(arch)).flops for arch in archs.tolist()], dtype=float)

    def one_hot(self, archs: Archs) -> np.ndarray:
        return np.eye(len(self.space.operators))[archs].reshape(len(archs), -1)

    def line_and_trees(self) -> Iterator[tuple[str, Predict, int]]:
        archs, ms = self.random()
        known = np.array(archs)
        slope, start = np.polyfit(self.flops(known), ms, 1)
        yield "FLOPs", lambda asked: slope * self.flops(asked) + start, len(archs)
        trees = GradientBoostingRegressor(n_estimators=400, max_depth=3, learning_rate=0.05, subsample=0.7, random_state=SEED)
        trees.fit(self.one_hot(known), np.log(ms))
        yield "trees", lambda asked: np.exp(trees.predict(self.one_hot(asked))), len(archs)


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """The CPU seconds of the block, in a list: what it takes on a quiet machine, for nothing here waits."""
    start, seconds = time.process_time(), [0.0]
    yield seconds
    seconds[0] = round(time.process_time() - start, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no method later than this")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "peers.json")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    torch.set_num_threads(1)
    bench = Bench()
    result: dict[str, Any] = read_json(arguments.out) if arguments.out.exists() else {}
    # Measured in every session: what a method's predictions are judged by is as old as they are, and sessions are compared
    with stopwatch() as seconds:
        found, _ = whole(bench.space, CONFIG, bench.archs, rounds=12)
    bench.incumbent_ms = float(np.median(found.reference))
    sessions = result.setdefault("sessions", [])
    now = actual_ms(found, 1.0)
    sessions.append(
        {
            "seconds": seconds[0],
            "incumbent_ms": bench.incumbent_ms,
            "relative": now.tolist(),
            "rounds": found.rounds,
            "contention": plain(found.contention),
        }
    )
    odd, even = (np.array([np.median(times.whole[turn::2]) for times in found.children.values()]) for turn in (0, 1))
    result |= {
        "command": "OMP_NUM_THREADS=1 python benchmarks/bench_peers.py",
        "network": f"{MODEL} 3x{SIZE}x{SIZE}, {CONFIG.runtime} {CONFIG.precision}",
        "slots": len(bench.space.slots),
        "operators": list(bench.space.operators),
        "children": CHILDREN,
        "fingerprint": fingerprint(CONFIG),
    }
    result.setdefault("noise floor", {})
    result["noise floor"].setdefault("odd / even rounds", 100 * float(np.mean(np.abs(even / odd - 1))))
    if len(sessions) > 1:
        result["noise floor"]["sessions"] = 100 * float(np.mean(np.abs(now / np.array(sessions[0]["relative"]) - 1)))
    methods = result.setdefault("methods", {})
    ways: dict[str, Callable[[], tuple[Predict, int]]] = {
        "our table": bench.our_table,
        "isolated operators": bench.isolated_operators,
        "one-swap table": bench.one_swap,
        "dictionary": bench.dictionary,
        "kernel regression": bench.kernel_regression,
    }

    def keep(name: str, predict: Predict, networks: int, seconds: float) -> None:
        errors = judged(predict, found, bench.incumbent_ms)
        relative = (predict(np.array(bench.archs)) / bench.incumbent_ms).round(6).tolist()
        methods[name] = {
            **errors,
            "measured": networks,
            "seconds": seconds,
            "session": len(sessions) - 1,
            "relative": relative,
        }
        write_json(arguments.out, result)
        print(name, {key: round(value, 3) for key, value in errors.items()}, networks, seconds, flush=True)

    for name, way in ways.items():
        if name not in methods and time.monotonic() < deadline:
            with stopwatch() as seconds:
                predict, networks = way()
            keep(name, predict, networks, seconds[0])
    if "trees" not in methods and time.monotonic() < deadline:
        start = time.process_time()
        for name, predict, networks in bench.line_and_trees():
            keep(name, predict, networks, round(time.process_time() - start, 1))


if __name__ == "__main__":
    main()
