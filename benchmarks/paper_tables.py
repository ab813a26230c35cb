"""Tables 1 to 5 of the NAR paper, each row with what it prints and what our code gives.

Parameters and FLOPs are counted (`nar_hw.space.flops`), ratios are to the table's first row. Accuracies are of trained children:
folders with a child.json (`nar-hw train`), told apart by network, operators and data; what nobody trained is "not run". Of a
verification set that the training did not test on they are from FOLDER/verify-NAME.json (`nar-hw data faces-verify --json`, NAME
lfw, cfp_fp or agedb_30). Latencies are measured here with --measure and kept in the result file: the networks of a table in turn,
between visits of its first row (`measure_children`), one image, one thread.
Result: results/paper_tables.json. On one core of a shared two-core Intel Xeon with all other programs stopped, ResNet-18-16 takes
0.81 (ONNX Runtime) and 0.82 (OpenVINO) of ResNet-18's time at 0.80 of its FLOPs, Ours-2 0.80 and 0.76 of LResNet50E-IR's at 0.74.
No accuracy was trained: each needs a GPU; docs/concepts/papers.md has the commands.

    OMP_NUM_THREADS=1 python benchmarks/paper_tables.py [--measure onnxruntime,openvino,torch_eager] [--children FOLDER ...]
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from nar_hw._version import versions
from nar_hw.bundles.children import NamedChild, named_child
from nar_hw.files import read_json, write_json
from nar_hw.latency.device import fingerprint
from nar_hw.latency.measure import measure_children
from nar_hw.records import Record, replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.space.flops import SpaceCounts
from nar_hw.space.operators import PAPER_OPERATORS
from nar_hw.space.spec import Arch
from nar_hw.training.child import CHILD, Child

RESULT = Path(__file__).parent / "results" / "paper_tables.json"
NOT_RUN = "not run"


class Printed(Record, frozen=True, kw_only=True):
    """A network as the paper prints it."""

    child: str
    """Name of the child that ships with nar_hw; "resnet18" is the network itself."""
    params: float
    flops: float
    accuracies: Mapping[str, Mapping[str, float]] = {}
    """Table -> column -> %."""


FACES = {
    "LResNet50E-IR": Printed(
        child="lresnet50e-ir",
        params=4.35e7,
        flops=6.32e9,
        accuracies={
            "table 2": {"lfw": 99.68, "cfp_fp": 97.54, "agedb_30": 96.86},
            "table 3": {"lfw": 99.55, "cfp_fp": 93.64, "agedb_30": 95.51},
        },
    ),
    "Ours-1": Printed(
        child="lresnet50e-ir-based",
        params=3.40e7,
        flops=5.31e9,
        accuracies={
            "table 2": {"lfw": 99.73, "cfp_fp": 97.59, "agedb_30": 97.32},
            "table 3": {"lfw": 99.55, "cfp_fp": 93.76, "agedb_30": 95.55},
        },
    ),
    "Ours-2": Printed(
        child="lresnet50e-ir-based-pretrain",
        params=3.38e7,
        flops=4.69e9,
        accuracies={
            "table 2": {"lfw": 99.75, "cfp_fp": 97.61, "agedb_30": 97.13},
            "table 3": {"lfw": 99.56, "cfp_fp": 94.42, "agedb_30": 95.60},
        },
    ),
}
IMAGES = {
    "ResNet-18": Printed(
        child="resnet18",
        params=1.17e7,
        flops=1.76e9,
        accuracies={"table 5": {"cifar10": 93.46, "imagenet top-1": 69.39, "imagenet top-5": 89.09}},
    ),
    "ResNet-18-8": Printed(
        child="resnet18-8",
        params=1.16e7,
        flops=1.57e9,
        accuracies={"table 5": {"cifar10": 93.72, "imagenet top-1": 69.42, "imagenet top-5": 89.10}},
    ),
    "ResNet-18-16": Printed(
        child="resnet18-16",
        params=0.92e7,
        flops=1.41e9,
        accuracies={"table 5": {"cifar10": 93.71, "imagenet top-1": 69.18, "imagenet top-5": 88.81}},
    ),
}
TRAINED_ON = {"table 2": "v2", "table 3": "v1"}
"""What the folder of a face set is called, in lower case, where it tells the versions of the paper's set apart."""


def shipped(printed: Printed) -> NamedChild:
    if printed.child != "resnet18":
        return named_child(printed.child)
    base = named_child("resnet18-8")
    return replace(base, arch=("conv3x3",) * len(base.arch))


def codes(child: NamedChild) -> list[int]:
    """As the paper's tables write them."""
    return [PAPER_OPERATORS.index(name) for name in child.arch]


def counted(networks: Mapping[str, Printed]) -> dict[str, dict[str, Any]]:
    """Network -> vector, parameters and FLOPs, printed and ours, with their ratios to the first row."""
    rows: dict[str, dict[str, Any]] = {}
    first: dict[str, float] = {}
    for name, printed in networks.items():
        child = shipped(printed)
        space = child.model.space()
        counts = SpaceCounts(space).count(space.parse(child.arch))
        ours = {"params": float(counts.params), "flops": float(counts.flops)}
        theirs = {"printed params": printed.params, "printed flops": printed.flops}
        first = first or {**ours, **theirs}
        rows[name] = {
            "arch": codes(child),
            "params": counts.params,
            **theirs,
            "flops": counts.flops,
            "pool operations": counts.pool_ops,
            **{f"{key}, ratio": round(value / first[key], 4) for key, value in {**ours, **theirs}.items()},
        }
    return rows


def per_conv(arch: tuple[str, ...], slots: int) -> tuple[str, ...]:
    """One operator for each convolution, of one for each block."""
    return tuple(name for name in arch for _ in range(slots // len(arch)))


def measured(networks: Mapping[str, Printed], runtimes: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Runtime -> network -> ms, relative uncertainty and ratio to the first row."""
    children = {name: shipped(printed) for name, printed in networks.items()}
    finest = max(children.values(), key=lambda child: len(child.arch))
    space = finest.model.space()
    archs: dict[str, Arch] = {name: space.parse(list(per_conv(child.arch, len(space.slots)))) for name, child in children.items()}
    found = {}
    for runtime in runtimes:
        config = RuntimeConfig(runtime=runtime)
        times = measure_children(space, list(archs.values()), config, rounds=rounds)
        device = fingerprint(config)
        found[runtime] = {
            "runtime version": device["runtime_version"],
            "rounds": times.rounds,
            "networks": {
                name: {"ms": round(ms, 3), "rel": round(rel, 4), "ratio": round(ms / times.ms[0], 4)}
                for name, ms, rel in zip(archs, times.ms, times.rel, strict=True)
            },
        }
    return found


def accuracies(networks: Mapping[str, Printed], folders: list[Path]) -> dict[str, dict[str, Any]]:
    """Table -> network -> column -> what the paper prints and what was trained, in %."""
    known = {(name, table, column): value for folder in folders for name, table, column, value in trained(networks, folder)}
    tables: dict[str, dict[str, Any]] = {}
    for name, printed in networks.items():
        for table, columns in printed.accuracies.items():
            tables.setdefault(table, {})[name] = {
                column: {"printed": value, "ours": known.get((name, table, column), NOT_RUN)} for column, value in columns.items()
            }
    return tables


def trained(networks: Mapping[str, Printed], folder: Path) -> Iterator[tuple[str, str, str, float]]:
    """(network, table, column, %) that the folder of a trained child says."""
    child = Child.load(folder)
    for name, printed in networks.items():
        wanted = shipped(printed)
        slots = max(len(wanted.arch), len(child.arch))
        if child.model.name != wanted.model.name or per_conv(wanted.arch, slots) != per_conv(child.arch, slots):
            continue
        for table, columns in printed.accuracies.items():
            data, _, options = child.data.partition(",")
            if table == "table 5":
                column = "cifar10" if data == "cifar10" else "imagenet top-1" if "imagenet" in data else ""
                if column in columns:
                    yield name, table, column, round(100 * child.accuracy["test"], 2)
                if column.endswith("top-1") and "test" in child.top5:
                    yield name, table, "imagenet top-5", round(100 * child.top5["test"], 2)
            elif TRAINED_ON[table] in data.lower():
                for column in columns:
                    if f"{column}.bin" in options:
                        yield name, table, column, round(100 * child.accuracy["test"], 2)
                    if (path := folder / f"verify-{column}.json").exists():
                        yield name, table, column, round(100 * read_json(path, what="verification")["accuracy"], 2)


def markdown(result: Mapping[str, Any]) -> str:
    """The five tables to be read."""
    parts = []
    for title, group in (("Tables 1, 2 and 3", "faces"), ("Tables 4 and 5", "images")):
        latency = result["latency"].get(group, {})
        head = ["network", "operators", "parameters (printed)", "FLOPs (printed)", "ratio (printed)"]
        head += [f"{runtime}, ms (ratio)" for runtime in latency]
        lines = []
        for name, row in result["counts"][group].items():
            cells = [
                name,
                ",".join(map(str, row["arch"])),
                f"{row['params']:,} ({row['printed params']:.3g})",
                f"{row['flops']:,} ({row['printed flops']:.3g})",
                f"{row['flops, ratio']:.3f} ({row['printed flops, ratio']:.3f})",
            ]
            times = (found["networks"][name] for found in latency.values())
            lines.append([*cells, *(f"{time['ms']:.4g} ({time['ratio']:.3f})" for time in times)])
        parts += [f"{title}: networks", table(head, lines)]
    for title, rows in result["accuracies"].items():
        head = ["network", *next(iter(rows.values()))]
        lines = [[name, *(f"{cell['ours']} ({cell['printed']})" for cell in row.values())] for name, row in rows.items()]
        parts += [f"{title.capitalize()}: accuracy in % (printed)", table(head, lines)]
    return "\n\n".join(parts)


def table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def made(folders: list[Path], latency: Mapping[str, Any]) -> dict[str, Any]:
    """All that the tables hold."""
    return {
        "counts": {"faces": counted(FACES), "images": counted(IMAGES)},
        "accuracies": {**accuracies(FACES, folders), **accuracies(IMAGES, folders)},
        "latency": latency,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=Path, nargs="*", default=[], help="folders with a child.json, or folders of them")
    parser.add_argument("--measure", default="", help="runtimes separated by commas; default: the latencies of the result file")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = read_json(arguments.out, what="result") if arguments.out.exists() else {}
    latency = kept.get("latency", {})
    for runtime in filter(None, arguments.measure.split(",")):
        for group, networks in (("faces", FACES), ("images", IMAGES)):
            latency = {
                **latency,
                group: {**latency.get(group, {}), **measured(networks, [runtime], arguments.rounds)},
            }
    if arguments.measure:
        kept = {
            "command": f"python benchmarks/paper_tables.py --measure {arguments.measure} --rounds {arguments.rounds}",
            "versions": versions("torch"),
            "device": fingerprint(RuntimeConfig(runtime="torch_eager"))["device"],
        }
    folders = [path.parent for root in arguments.children for path in sorted(root.rglob(CHILD))]
    result = {**kept, **made(folders, latency)}
    write_json(arguments.out, result)
    print(markdown(result))


if __name__ == "__main__":
    main()
