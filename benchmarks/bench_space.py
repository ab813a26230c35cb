"""Search spaces of all torchvision classifiers and 40 timm CNNs (random weights): does one call work on any network?

For each network: seconds of `SearchSpace.from_model`, slots, candidates per family, whether the all-incumbent child is
bit-identical, and whether random children run forward and backward and export to ONNX. Result: results/space.json.

    python benchmarks/bench_space.py [--only NAME ...] [--jobs 1] [--out benchmarks/results/space.json]

About an hour with two jobs. It goes on where it was stopped: networks that are in the result file are not examined again.
"""

import argparse
import collections
import json
import multiprocessing
import platform
import random
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from nar_hw.errors import NarError
from nar_hw.export.onnx import export_onnx
from nar_hw.files import write_json
from nar_hw.models import build_model
from nar_hw.space.operators import family
from nar_hw.space.space import SearchSpace

TIMM = [
    "resnet26d", "resnetv2_50", "seresnet33ts", "ecaresnet26t", "skresnet18", "resnest14d", "res2net50_26w_4s", "resnext26ts",
    "regnetz_b16", "densenetblur121d", "dpn68b", "dla34", "hrnet_w18_small", "ese_vovnet19b_dw", "darknet53", "cspresnet50",
    "efficientnetv2_rw_t", "tf_efficientnet_b0", "mixnet_s", "fbnetc_100", "spnasnet_100", "mobilenetv3_small_100",
    "hardcorenas_a", "ghostnet_100", "lcnet_050", "tinynet_e", "rexnet_100", "repvgg_a0", "mobileone_s0", "convnext_atto",
    "convmixer_768_32",
    "nf_resnet26", "inception_v4", "xception41", "selecsls42b", "edgenext_xx_small", "starnet_s1", "hgnetv2_b0",
    "repghostnet_050", "mobilenetv4_conv_small",
]  # fmt: skip
SIZES = {"inception_v3": 96, "timm:inception_v4": 96, "maxvit_t": 224, "timm:convmixer_768_32": 63}


def input_size(name: str) -> int:
    return 224 if name.startswith("vit_") else SIZES.get(name, 64)


def examine(name: str, children: int) -> dict[str, Any]:
    size = input_size(name)
    shape = (3, size, size)
    row: dict[str, Any] = {"model": name, "input_shape": shape}
    torch.manual_seed(0)
    model = build_model(name, input_shape=shape, num_classes=10).eval()
    start = time.perf_counter()
    try:
        space = SearchSpace.from_model(model, shape)
    except NarError as error:
        return {**row, "slots": 0, "searchable": 0, "passed": "kernel larger than 1x1" in str(error), "explanation": str(error)}
    row["seconds"] = round(time.perf_counter() - start, 3)
    row["slots"] = len(space.slots)
    row["searchable"] = sum(not slot.fixed for slot in space.slots)
    row["blocks"] = len(SearchSpace.from_model(model, shape, manner="block").slots)
    per_family: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for slot in space.slots:
        own = slot.sites[0].incumbent
        per_family[family(own.c_in, own.c_out, own.groups)].update(space.operators[code] for code in slot.candidates)
    row["candidates"] = {kind: dict(counts) for kind, counts in per_family.items()}
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        row["identical"] = torch.equal(space.build(space.incumbent).eval()(images), model(images))
    del model  # the largest networks hardly fit otherwise
    problems = [] if row["identical"] else ["the all-incumbent child differs from the network"]
    rng = random.Random(0)
    row["children_trained"] = row["children_exported"] = 0
    for _ in range(children):
        arch = space.sample(rng)
        try:
            child = space.build(arch)
            loss(child, images).backward()
            child.zero_grad()
            row["children_trained"] += 1
            with tempfile.TemporaryDirectory() as folder:
                export_onnx(child, Path(folder) / "child.onnx", input_shape=shape)
            row["children_exported"] += 1
        except Exception as error:
            problems.append(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
    row["passed"] = not problems
    if problems:
        row["explanation"] = "; ".join(sorted(set(problems)))
    return row


def loss(child: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The sum of squared outputs in eval mode: at these sizes some maps are 1x1, which batch statistics refuse."""
    output: torch.Tensor = child.eval()(images)
    return output.square().sum()


def prepare() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--children", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "space.json")
    arguments = parser.parse_args()
    names = arguments.only or [
        *torchvision.models.list_models(module=torchvision.models),
        *(f"timm:{name}" for name in TIMM),
    ]
    rows: dict[str, dict[str, Any]] = {}
    if arguments.out.exists():
        rows = {row["model"]: row for row in json.loads(arguments.out.read_text())["networks"]}
    missing = [name for name in names if name not in rows]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, context, prepare, max_tasks_per_child=1) as pool:
        for work in as_completed(pool.submit(examine, name, arguments.children) for name in missing):
            row = work.result()
            rows[row["model"]] = row
            outcome = "pass" if row["passed"] else row["explanation"]
            print(f"{row['model']}: {row['searchable']}/{row['slots']} slots, {row.get('seconds')} s, {outcome}", flush=True)
            save(arguments.out, [rows[name] for name in names if name in rows], arguments.children)


def save(path: Path, rows: list[dict[str, Any]], children: int) -> None:
    versions = {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "onnx")}
    write_json(
        path,
        {
            "command": "python benchmarks/bench_space.py",
            "children": children,
            "threads per job": 1,
            "versions": {"python": platform.python_version(), **versions},
            "summary": {
                "networks": len(rows),
                "passed": sum(row["passed"] for row in rows),
                "two or more searchable slots": sum(row["searchable"] >= 2 for row in rows),
            },
            "networks": rows,
        },
    )


if __name__ == "__main__":
    main()
