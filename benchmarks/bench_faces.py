"""Faces: a search and two trainings on real photographs (LFW), and the memory of large heads.

LFW (deep-funneled, 128x128 centre crops, brought to 48x48; not aligned by landmarks): a six-block, quarter-width LResNet-E-IR
of 128 outputs learns from the people of train_ids.txt with three or more photographs (one of each held out for validation) and
is scored on pairsDevTest.txt, 1,000 pairs of other people, dealt into ten folds: 50 % is chance. The settings were chosen by the
validation images alone. The search has 6 slots x 4 operators (block manner, the paper's codes 0-3), a latency table of ONNX
Runtime on this machine and a limit of 80 % of the network's latency; network and found child are then trained anew alike.
Memory: the centres of 85,000 identities x 512 with gradient and momentum, and what autograd keeps of one batch of 128.
Sampled training: a quarter of the centres per step (PartialFC) against all of them, on examples/faces' made people.
A step of LResNet50E-IR at batch 128 is timed where there is a GPU; "gpu": null says that there was none.

    OMP_NUM_THREADS=1 python benchmarks/bench_faces.py --lfw FOLDER --work FOLDER [--out benchmarks/results/faces.json]

FOLDER of --lfw has lfw_deepfunneled_128/, train_ids.txt and pairsDevTest.txt. What lies in --work already is not computed again.
About 16 minutes on one core.
"""

import argparse
import json
import os
import platform
import runpy
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nar_hw._version import versions
from nar_hw.faces.data import load_faces
from nar_hw.faces.heads import FaceHead
from nar_hw.faces.metrics import plot_roc, roc
from nar_hw.faces.protocols import Verified, verify
from nar_hw.faces.task import FacesTask
from nar_hw.files import write_json
from nar_hw.latency.device import fingerprint
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.models import build_model
from nar_hw.models.info import ModelInfo
from nar_hw.records import plain, replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.config import SearchConfig
from nar_hw.search.record import load_run
from nar_hw.steps.search import search_run
from nar_hw.steps.task import load_task
from nar_hw.steps.train import train_child
from nar_hw.training.child import Child
from nar_hw.training.loop import train
from nar_hw.training.recipes import Recipe

NETWORK = "examples/faces/network.py:small"
SIZE, EMBEDDING = 48, 128
OPTIONS = f"size={SIZE},embedding={EMBEDDING},min=3,scale=32,margin=0.3,margin_warmup=3"
RECIPE = Recipe(epochs=10, batch=64, lr=0.1, schedule="one-cycle", nesterov=True)
SEARCH = SearchConfig(
    strategy="reinforce",
    paths="strategy",
    epochs=6,
    warmup_epochs=4,
    batch=64,
    t_0=10,
    updates=5,
    samples=8,
    valid_batch=256,
    rescored=16,
    finalists=4,
)
TARGET = 0.8
IDENTITIES, LARGE, BATCH = 85_000, 512, 128


def linked(lfw: Path, work: Path) -> Path:
    """A folder with the people to learn from."""
    folder = work / "train"
    folder.mkdir(parents=True, exist_ok=True)
    for line in (lfw / "train_ids.txt").read_text().splitlines():
        name = line.split()[0]
        if not (folder / name).exists():
            (folder / name).symlink_to((lfw / "lfw_deepfunneled_128" / name).resolve(), target_is_directory=True)
    return folder


def on_lfw(lfw: Path, work: Path) -> dict[str, Any]:
    pairs, images = lfw / "pairsDevTest.txt", lfw / "lfw_deepfunneled_128"
    data = f"faces:{linked(lfw, work)},{OPTIONS},pairs={pairs},images={images}"
    info = ModelInfo(
        name=NETWORK,
        input_shape=(3, SIZE, SIZE),
        num_classes=EMBEDDING,
        manner="block",
        operators=("conv3x3", "dwsep3x3", "max3x3", "avg3x3"),
    )
    torch.manual_seed(0)
    out = work / "run"
    if not (work / "table.json").exists():
        profile(info.space(), config=RuntimeConfig(runtime="onnxruntime"), model_name=NETWORK).save(work / "table.json")
    table = LatencyTable.load(work / "table.json")
    target = TARGET * table.incumbent_ms
    search_run(NETWORK, data, table, target_ms=target, out=out, config=SEARCH, resume=True)
    found = load_run(out)
    arch = found.arch
    for name, operators in (("baseline", None), ("child", arch)):
        if not (out / name / "child.json").exists():
            train_child(
                info, operators, load_task(data), out=out / name, recipe=RECIPE, table=table, target_ms=target, resume=True
            )

    def of(network: nn.Module) -> Verified:
        return verify(network, pairs, images=images, size=SIZE)

    children = {name: Child.load(out / name) for name in ("baseline", "child")}
    trained = {name: of(child.network(out / name)) for name, child in children.items()}
    untrained = of(info.build().eval())
    plot_roc(work / "roc.png", {name: roc(item.scores, item.same) for name, item in {"untrained": untrained, **trained}.items()})
    learned = children["child"].record
    return {
        "learned": {**{name: learned["splits"][name]["size"] for name in ("train", "valid")}, "options": OPTIONS},
        "tested": {"pairs": len(untrained.same), "standard error of 80 % of them": 0.013},
        "archs": 4**6,
        "verification": {
            "chance": 0.5,
            "untrained network": told(untrained),
            "network": told(trained["baseline"]),
            "found child": told(trained["child"]),
        },
        "identification of validation images, by the head": {name: child.accuracy["valid"] for name, child in children.items()},
        "chance of identification": 1 / learned["identities"],
        "child": {
            "arch": list(arch),
            "params": [children[name].params for name in ("child", "baseline")],
            "flops": [children[name].flops for name in ("child", "baseline")],
            "target_ms": target,
            "predicted_ms": [found["predicted_ms"], table.incumbent_ms],
            "measured_ms": found["measured_ms"],
        },
    }


def told(item: Verified) -> dict[str, Any]:
    return {
        "accuracy": round(item.verification.accuracy, 4),
        "deviation over folds": round(item.verification.deviation, 4),
        "TAR at FAR": {f"{far:g}": tar for far, tar in item.tar.items()},
    }


def head_memory(sampled: float) -> dict[str, Any]:
    """MiB of one head, and of what a step at batch 128 keeps for its backward pass."""
    torch.manual_seed(0)
    head = FaceHead(IDENTITIES, LARGE, sampled=sampled)
    embedding = torch.randn(BATCH, LARGE, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in (head.weight.untyped_storage().data_ptr(),):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    start = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(*head(embedding, torch.randint(IDENTITIES, (BATCH,))))
    loss.backward()
    weights = head.weight.numel() * 4 / 2**20
    return {
        "sampled": sampled,
        "weights_mib": round(weights, 1),
        "gradient_mib": round(weights, 1),
        "momentum_mib": round(weights, 1),
        "kept_for_backward_mib": round(sum(kept.values()) / 2**20, 1),
        "step_cpu_s": round(time.process_time() - start, 2),
    }


def sampled_training() -> list[dict[str, Any]]:
    """Verification of unseen made people after training against all centres and against a quarter of them."""
    make = runpy.run_path("examples/faces/make_identities.py")["make"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder, "all"), identities=60, images=16, pixels=24, seed=0)
        for sampled in (1.0, 0.25):
            task = FacesTask(load_faces(f"faces:{folder}/all,size=24,embedding=64,valid=2,scale=16,margin=0.3,sampled={sampled}"))
            for seed in range(3):
                torch.manual_seed(seed)
                network = build_model(NETWORK, input_shape=(3, 24, 24), num_classes=64)
                result = train(network, task, replace(RECIPE, epochs=6, batch=32), seed=seed)
                test = task.evaluate(network, "test")
                rows.append({"sampled": sampled, "seed": seed, "identification": result.valid_accuracy, "verification": test})
    return rows


def on_gpu() -> list[dict[str, Any]] | None:
    """Training steps of LResNet50E-IR with a head of 85,000 identities."""
    if not torch.cuda.is_available():
        return None
    rows = []
    for precision in (torch.float32, torch.bfloat16):
        for sampled in (1.0, 0.1):
            torch.cuda.reset_peak_memory_stats()
            network = build_model("lresnet50e_ir", input_shape=(3, 112, 112), num_classes=LARGE).cuda()
            network = network.to(memory_format=torch.channels_last)
            head = FaceHead(IDENTITIES, LARGE, sampled=sampled).cuda()
            optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=1e-3, momentum=0.9, fused=True)
            images = torch.randn(BATCH, 3, 112, 112, device="cuda").contiguous(memory_format=torch.channels_last)
            labels = torch.randint(IDENTITIES, (BATCH,), device="cuda")
            times = []
            for _ in range(30):
                torch.cuda.synchronize()
                start = time.perf_counter()
                with torch.autocast("cuda", precision, enabled=precision != torch.float32):
                    output = network(images)
                loss = nn.functional.cross_entropy(*head(output, labels))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
            rows.append(
                {
                    "gpu": torch.cuda.get_device_name(),
                    "precision": str(precision).removeprefix("torch."),
                    "sampled": sampled,
                    "images_per_s": round(BATCH / sorted(times[10:])[10]),
                    "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
                }
            )
            del network, head, optimizer, output, loss
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lfw", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "faces.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lfw = on_lfw(asked.lfw, asked.work)
    if not (sampled := asked.work / "sampled.json").exists():
        write_json(sampled, sampled_training())
    write_json(
        asked.out,
        {
            "command": "OMP_NUM_THREADS=1 python benchmarks/bench_faces.py --lfw FOLDER --work FOLDER",
            "versions": versions("torch"),
            "device": fingerprint(RuntimeConfig(runtime="torch_eager"))["device"],
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "network": NETWORK,
            "recipe": plain(RECIPE),
            "search": plain(SEARCH),
            "lfw": lfw,
            "heads of 85,000 x 512, batch 128": [head_memory(sampled) for sampled in (1.0, 0.1)],
            "sampled training, 54 made people": json.loads(sampled.read_text()),
            "gpu": on_gpu(),
        },
    )
    for name, item in lfw["verification"].items():
        print(name, item)


if __name__ == "__main__":
    main()
