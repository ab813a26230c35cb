"""CIFAR-10, published weights: what nar-hw makes of a network against what users would take instead, at equal measured latency.

The network is benchmarks/claim/resnet20.py with its published weights. "refined" is what `nar-hw refine` does for 0.6 and 0.4 of
the measured latency. The alternatives are made for 0.6 from the same weights: "narrowed" keeps the channels of largest norms, the
same share in every layer, "pruned" those of largest Taylor importance over the whole network (both torch-pruning), "fastnas" is
nvidia-modelopt's pruning by measured sensitivity, "random" is a child that the latency table allows, with fitted candidates. Of
each pruning several sizes are measured, and the one with the most FLOPs that meets the target is trained; widths are any or
multiples of 8, whichever is better (of fastnas multiples of 4). All are trained by the same recipe (RECIPE), seeds and teacher.
Seconds are CPU seconds of one thread; they count searching and training, not the choice of sizes.

    NAR_HW_DATA=DATA OMP_NUM_THREADS=1 python benchmarks/bench_claim.py train --work DIR [--seeds 0 1]
    ... bench_claim.py sizes --work DIR     before train, for the alternatives
    ... bench_claim.py choice --work DIR    then, on a machine that does nothing else
    ... bench_claim.py front --work DIR     in the end, the same; writes results/claim.json
    ... bench_claim.py remedies --work DIR  other recipes for the child of 0.6; adds to results/claim.json
    ... bench_claim.py tables --work DIR    what operators can save elsewhere, the machine quiet; adds to it

train takes hours; repeat it to go on, from the repository's root. The table (DIR/table.json) is made by
`nar-hw profile --model benchmarks/claim/resnet20.py:build --input 3x32x32`. pip install torch-pruning nvidia-modelopt.
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from nar_hw._version import versions
from nar_hw.bench.benchmark import bench
from nar_hw.bundles.config import ExportConfig
from nar_hw.export.onnx import export_onnx, open_session, run_session
from nar_hw.files import read_json, write_json
from nar_hw.latency.device import fingerprint
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.models.info import ModelInfo
from nar_hw.models.weights import load_weights
from nar_hw.records import plain, replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.config import FITTED, FitConfig
from nar_hw.space.flops import count_module
from nar_hw.steps.refine import RefineConfig, refine
from nar_hw.steps.task import load_task
from nar_hw.steps.train import train_child
from nar_hw.tasks import ClassificationTask
from nar_hw.training.child import Child
from nar_hw.training.loop import train
from nar_hw.training.memory import kept_memory
from nar_hw.training.recipes import RECIPES, Recipe
from nar_hw.training.seed import set_seed

HERE = Path("benchmarks")
WEIGHTS = HERE / "claim" / "resnet20.safetensors"
RESULT = HERE / "results" / "claim.json"
MODEL = ModelInfo(name="benchmarks/claim/resnet20.py:build", input_shape=(3, 32, 32), num_classes=10)
SHAPE = (3, 32, 32)
TARGET, TARGETS = 0.6, ("0.6", "0.4")
FAST = {"precision": "bf16", "channels_last": True}
RECIPE = replace(RECIPES["finetune"], epochs=16, **FAST)
SEARCH = replace(FITTED, fit=FitConfig(epochs=3, precision="bf16", channels_last=True), **FAST)
RATIOS = tuple(round(0.05 * step, 2) for step in range(2, 17))
MULTIPLES = (None, 8)
PRUNED = ("fastnas", "narrowed", "pruned")
ALTERNATIVES = (*PRUNED, "random")
REMEDIES = {"8 epochs": {"epochs": 8, "compile": True}, "8 epochs, the teacher alone": {"epochs": 8, "distill": 1.0}}
"""Other recipes, tried on the child of 0.6; the first on the alternatives too."""
RESNET = ModelInfo(name="resnet18", input_shape=(3, 128, 128), num_classes=10)
LITE = ModelInfo(name="timm:efficientnet_lite0", input_shape=(3, 128, 128), num_classes=50)
TABLES = {
    "ResNet-20, onnxruntime int8": (MODEL, RuntimeConfig(precision="int8")),
    "ResNet-18 at 128 pixels, onnxruntime int8": (RESNET, RuntimeConfig(precision="int8")),
    "ResNet-18 at 128 pixels, openvino int8": (RESNET, RuntimeConfig(runtime="openvino", precision="int8")),
    "EfficientNet-Lite0, onnxruntime": (LITE, RuntimeConfig()),
    "EfficientNet-Lite0, openvino": (LITE, RuntimeConfig(runtime="openvino")),
}
"""Where else operators might be refined: what the fastest child takes by a table."""


def trained() -> nn.Module:
    network = MODEL.build()
    load_weights(network, WEIGHTS)
    network.eval()
    return network


@contextmanager
def timed(work: Path, name: str) -> Iterator[None]:
    """Add the CPU seconds of the block to those that ``name`` took before."""
    start = time.process_time()
    try:
        yield
    finally:
        file = work / "seconds" / f"{name}.json"
        known = read_json(file, what="seconds")["seconds"] if file.exists() else 0.0
        write_json(file, {"seconds": known + time.process_time() - start})


def seconds(work: Path, name: str) -> float:
    return float(read_json(work / "seconds" / f"{name}.json", what="seconds")["seconds"])


def channels(network: nn.Module, task: ClassificationTask, method: str, ratio: float, multiple: int | None) -> None:
    """Remove ``ratio`` of the channels, in place."""
    import torch_pruning as tp

    narrowed = method == "narrowed"
    pruner = tp.pruner.BasePruner(
        network,
        torch.zeros(2, *SHAPE),
        importance=tp.importance.GroupMagnitudeImportance(p=2) if narrowed else tp.importance.GroupTaylorImportance(),
        global_pruning=not narrowed,
        pruning_ratio=ratio,
        max_pruning_ratio=0.9,
        round_to=multiple,
        ignored_layers=[network.fc],
    )
    if not narrowed:
        for number, (images, labels) in enumerate(task.eval_batches("train", 256)):
            if number == 8:
                break
            nn.functional.cross_entropy(network(images), labels).backward()
    pruner.step()
    network.zero_grad()


def fastnas(network: nn.Module, task: ClassificationTask, ratio: float, multiple: int | None, work: Path) -> nn.Module:
    """The network at ``1 - ratio`` of its FLOPs by nvidia-modelopt; the sensitivities are measured once, on 500 images."""
    import modelopt.torch.prune as mtp

    images, labels = next(iter(task.eval_batches("valid", 500)))

    def score(candidate: nn.Module) -> float:
        with torch.no_grad():
            return float((candidate(images).argmax(1) == labels).float().mean())

    pruned, _ = mtp.prune(
        network,
        mode=[("fastnas", {"nn.Conv2d": {"*": {"channel_divisor": multiple}}, "nn.BatchNorm2d": {"*": {}}})],
        constraints={"flops": f"{100 * (1 - ratio):g}%"},
        dummy_input=torch.zeros(1, *SHAPE),
        config={
            "data_loader": [(batch,) for batch in images.split(100)],
            "score_func": score,
            "checkpoint": str(work / "fastnas.pt"),
            "verbose": False,
        },
    )
    found: nn.Module = pruned
    return found


def made(method: str, task: ClassificationTask, ratio: float, multiple: int | None, work: Path) -> nn.Module:
    set_seed(0)
    network = trained()
    if method == "fastnas":
        return fastnas(network, task, ratio, multiple, work)
    channels(network, task, method, ratio, multiple)
    return network


def sizes(work: Path) -> None:
    """Every size of every pruning as an ONNX file, and what it is in sizes/all.json."""
    task = load_task("cifar10")
    assert isinstance(task, ClassificationTask)
    export_onnx(trained(), work / "sizes" / "network.onnx", input_shape=SHAPE, batch=1)
    file = work / "sizes" / "all.json"
    found: dict[str, Any] = read_json(file, what="sizes") if file.exists() else {}
    for method in PRUNED:
        for multiple in MULTIPLES if method != "fastnas" else (4,):
            for ratio in RATIOS:
                if f"{method}-{ratio}-{multiple}" in found:
                    continue
                network = made(method, task, ratio, multiple, work)
                flops = count_module(network, SHAPE).flops
                if any((item["method"], item["flops"]) == (method, flops) for item in found.values()):
                    continue
                name = f"{method}-{ratio}-{multiple}"
                found[name] = {"method": method, "ratio": ratio, "multiple": multiple, "flops": flops}
                export_onnx(network, work / "sizes" / f"{name}.onnx", input_shape=SHAPE, batch=1)
                write_json(file, found)
                print(name, f"{flops:,}", flush=True)


def choice(work: Path) -> None:
    """Measure all sizes beside the network; of each pruning keep the largest that meets the target."""
    found = read_json(work / "sizes" / "all.json", what="sizes")
    files = {name: work / "sizes" / f"{name}.onnx" for name in ("network", *found)}
    rows = {row.subject: row.p50_ms for row in bench(files, input_shape=SHAPE, configs=[RuntimeConfig()], rounds=20)}
    for name, item in found.items():
        item["share"] = rows[name] / rows["network"]
    write_json(work / "sizes" / "all.json", found)
    chosen = {}
    for method in PRUNED:
        meeting = [item for item in found.values() if item["method"] == method and item["share"] <= TARGET]
        chosen[method] = max(meeting, key=lambda item: item["flops"])
        print(method, chosen[method])
    write_json(work / "sizes.json", {**chosen, "all": found})


def random_arch(table: LatencyTable, seed: int) -> tuple[int, ...]:
    """A random arch that takes 0.97 to 1 of the target by the table."""
    space, generator = MODEL.space(), random.Random(seed)
    limit = TARGET * table.incumbent_ms
    while True:
        arch = space.sample(generator)
        if 0.97 * limit <= table.predict(arch) <= limit:
            return arch


def child_of_0_6(
    seed: int, arch: Sequence[str | int], task: ClassificationTask, work: Path, out: Path, recipe: Recipe
) -> nn.Module:
    """A child with fitted candidates, trained: the refinement's own by another recipe, or a random one."""
    folder = work / f"refined-{seed}"
    train_child(MODEL, arch, task, out=out, recipe=recipe, seed=seed, baseline=folder / "baseline", fitted=folder, resume=True)
    return Child.load(out).network(out)


def alternative(method: str, seed: int, task: ClassificationTask, work: Path, out: Path, recipe: Recipe = RECIPE) -> None:
    if (out / "result.json").exists():
        return
    with timed(work, out.name):
        if method == "random":
            arch = random_arch(LatencyTable.load(work / "table.json"), seed)
            network = child_of_0_6(seed, arch, task, work, out, recipe)
        else:
            size = read_json(work / "sizes.json", what="sizes")[method]
            network = made(method, task, size["ratio"], size["multiple"], work)
            network.train()
            train(network, task, recipe, out=out, seed=seed, teacher=trained(), resume=True)
    export_onnx(network, out / "model.onnx", input_shape=SHAPE, batch=(1, 64))
    counts = count_module(network, SHAPE)
    write_json(
        out / "result.json",
        {
            "test": kept_memory()(task.evaluate)(network, "test"),
            "params": sum(parameter.numel() for parameter in network.parameters()),
            "flops": counts.flops,
        },
    )


def refined(seed: int, work: Path) -> None:
    config = RefineConfig(
        model=MODEL,
        data="cifar10",
        targets=TARGETS,
        search=SEARCH,
        recipe=RECIPE,
        seed=seed,
        export=ExportConfig(targets=("onnx", "openvino"), precisions=("fp32", "int8")),
    )
    with timed(work, f"refined-{seed}"):
        refine(config, work / f"refined-{seed}", weights=WEIGHTS, table=work / "table.json")


def plain_epoch(task: ClassificationTask, work: Path) -> float:
    """CPU seconds of one epoch of training the network alone, in the arithmetic of RECIPE: of 40 steps."""
    network = trained()
    network.train()
    steps = 40
    forward = torch.compile(network.to(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    spent: list[float] = []

    def step(images: Tensor, labels: Tensor) -> None:
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(forward(images.to(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        spent.append(time.process_time() - start)

    for number, (images, labels) in enumerate(task.train_batches(RECIPE.batch, torch.Generator().manual_seed(0))):
        if number == steps:
            break
        kept_memory()(step)(images, labels)
    return float(np.median(spent)) * (task.train_size // RECIPE.batch)


def remedies(seed: int, task: ClassificationTask, work: Path, methods: Sequence[str]) -> None:
    """Other recipes for the child of 0.6, and the first for the alternatives too; test accuracies."""
    found: dict[str, dict[str, float]] = {}
    for name, changes in REMEDIES.items():
        recipe, folder = replace(RECIPE, **changes), work / "remedies" / name
        arch = Child.load(work / f"refined-{seed}" / "children" / "0.6").arch
        child_of_0_6(seed, arch, task, work, folder / "refined", recipe)
        found[name] = {"refined": Child.load(folder / "refined").accuracy["test"]}
    first = work / "remedies" / next(iter(REMEDIES))
    for method in methods:
        alternative(method, seed, task, work, first / method, replace(RECIPE, **next(iter(REMEDIES.values()))))
        found[first.name][method] = read_json(first / method / "result.json", what="result")["test"]
    write_json(RESULT, {**read_json(RESULT, what="result"), "remedies": {"seed": seed, **found}})


def tables(work: Path) -> None:
    found = {}
    for name, (info, config) in TABLES.items():
        file = work / "tables" / f"{name}.json"
        if not file.exists():
            profile(info.space(), config=config, model_name=info.name).save(file)
        found[name] = reach(LatencyTable.load(file))
    write_json(RESULT, {**read_json(RESULT, what="result"), "tables": found})


def reach(table: LatencyTable) -> dict[str, Any]:
    """What the fastest child takes."""
    fastest, _ = table.bounds()
    assert table.validation is not None
    return {
        "network, ms": table.incumbent_ms,
        "fastest child, share": fastest / table.incumbent_ms,
        "error, %": table.validation.mape,
        "noise floor, %": table.validation.floor_mape,
        "notes": list(table.notes),
    }


def tested(file: Path, images: np.ndarray, labels: np.ndarray) -> float:
    return float((run_session(open_session(file), images).argmax(1) == labels).mean())


def front(work: Path, seeds: list[int]) -> None:
    """Measure all that was made in one session, and write the result."""
    task = load_task("cifar10")
    assert isinstance(task, ClassificationTask)
    batches = list(task.eval_batches("test"))
    images, labels = (np.concatenate([batch[part].numpy() for batch in batches]) for part in (0, 1))
    first = work / f"refined-{seeds[0]}" / "bundles"
    files: dict[str, Path] = {}
    points: dict[str, dict[str, Any]] = {}
    for seed in seeds:
        refinement = work / f"refined-{seed}"
        folders = {f"refined {target}, seed {seed}": refinement / "children" / target for target in TARGETS}
        if seed == seeds[0]:
            folders = {"network": refinement / "baseline", **folders}
        for name, folder in folders.items():
            if not (folder / "child.json").exists():
                continue  # not trained yet
            child = Child.load(folder)
            keep = ("arch", "params", "flops", "predicted_ms", "target_ms")
            points[name] = {"test": child.accuracy["test"], **{key: plain(child)[key] for key in keep}}
            files[name] = refinement / "front" / f"{folder.name}.onnx"
            export_onnx(child.network(folder), files[name], input_shape=SHAPE, batch=(1, 64))
        for method in ALTERNATIVES:
            out = work / f"{method}-{seed}"
            if (out / "result.json").exists():
                name = f"{method} {TARGET}, seed {seed}"
                files[name], points[name] = out / "model.onnx", read_json(out / "result.json", what="result")
                points[name]["CPU seconds"] = seconds(work, out.name)
    rows = {row.subject: row for row in bench(files, input_shape=SHAPE, configs=[RuntimeConfig()], rounds=40)}
    for name, row in rows.items():
        points[name] |= {"p50_ms": row.p50_ms, "share": row.p50_ms / rows["network"].p50_ms, "noise_floor": row.noise_floor}
    int8: dict[str, Any] = {}
    bundles = {"network": first / "baseline", "refined 0.6": first / "0.6", "refined 0.4": first / "0.4"}
    configs = [
        RuntimeConfig(runtime=runtime, precision=precision)
        for runtime in ("onnxruntime", "openvino")
        for precision in ("fp32", "int8")
    ]
    for row in bench(bundles, input_shape=SHAPE, configs=configs, rounds=40):
        int8[f"{row.subject}, {row.runtime} {row.precision}"] = {"p50_ms": row.p50_ms, "noise_floor": row.noise_floor}
    for name, bundle in bundles.items():
        for precision, file in (("fp32", "model.onnx"), ("int8", "model.int8.onnx")):
            int8[f"{name}, onnxruntime {precision}"]["test"] = tested(bundle / file, images, labels)
    methods = sorted({name.partition(",")[0] for name in points})
    tests = {method: [item["test"] for name, item in points.items() if name.partition(",")[0] == method] for method in methods}
    kept = read_json(RESULT, what="result") if RESULT.exists() else {}
    write_json(
        RESULT,
        {
            "summary": {
                method: {
                    "test, mean": float(np.mean(values)),
                    "test, from": min(values),
                    "test, to": max(values),
                    "seeds": len(values),
                    "points lost": 100 * float(points["network"]["test"] - np.mean(values)),
                }
                for method, values in tests.items()
            },
            "command": "python benchmarks/bench_claim.py sizes, choice, train, front",
            "device": fingerprint(RuntimeConfig()),
            "versions": {
                **versions("torch", "openvino", "torch-pruning", "nvidia-modelopt"),
                "onnxruntime": onnxruntime.__version__,
            },
            "recipe": RECIPE.options(),
            "CPU seconds of a search and its children": {
                seed: seconds(work, f"refined-{seed}") for seed in seeds if (work / "seconds" / f"refined-{seed}.json").exists()
            },
            "epochs of the published training": 200,
            "CPU seconds of an epoch of plain training": plain_epoch(task, work),
            "points": points,
            "int8, seed 0": int8,
            **{key: value for key, value in kept.items() if key in ("remedies", "tables")},
            "sizes": read_json(work / "sizes.json", what="sizes")["all"],
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("sizes", "choice", "train", "remedies", "tables", "front"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=("refined", *ALTERNATIVES), default=["refined", *ALTERNATIVES])
    args = parser.parse_args()
    if args.stage == "sizes":
        sizes(args.work)
    elif args.stage == "choice":
        choice(args.work)
    elif args.stage == "tables":
        tables(args.work)
    elif args.stage == "front":
        front(args.work, args.seeds)
    else:
        task = load_task("cifar10")
        assert isinstance(task, ClassificationTask)
        if args.stage == "remedies":
            remedies(args.seeds[0], task, args.work, [method for method in ALTERNATIVES if method in args.only])
            return
        for seed in args.seeds:
            if "refined" in args.only:
                refined(seed, args.work)
            for method in (method for method in ALTERNATIVES if method in args.only):
                alternative(method, seed, task, args.work, args.work / f"{method}-{seed}")


if __name__ == "__main__":
    main()
