"""Everything that needs a GPU, in stages that can be stopped, chosen and called again: see README.md beside this file.

doctor     what works here; a network beside a copy of itself in several runtimes: the noise floor
tables     latency tables of four networks, each validated on 100 held-out random children
training   our training loop against a minimal one; a supernet's step against a child's; the paper's face search in GPU minutes
cifar10    baseline, search at 0.6 of its latency, child trained anew and fine-tuned, the paper's children; three seeds
export     baseline and child as ONNX, fp16 ONNX and AOTInductor packages, measured side by side at batch 1 to 256

Result: OUT/<device>/<stage>.json and OUT/<device>/latency_tables/*.json, to be committed in benchmarks/results/<device>/ and
latency_tables/. A stage stops by itself after --minutes; a call, also one after a kill, goes on with what is missing.
NOT RUN YET: so far there are no results of it.

    python benchmarks/gpu/session.py [--stages doctor,tables,...] [--only TEXT] [--out runs/gpu] [--smoke]

Exit code: 0 when all chosen pieces are finished, 3 when some are missing (call again), 2 when nothing could be begun.
"""

import argparse
import importlib.util
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("doctor", "tables", "training", "cifar10", "export")
MINUTES = 8.0
NEEDED = {
    # what is imported: its name in a package index
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "scipy": "scipy",
    "onnx": "onnx",
    "rich": "rich",
    "safetensors": "safetensors",
    "PIL": "pillow",
}
NEEDED_BY = {
    "cuda": {"pynvml": "nvidia-ml-py", "triton": "triton"},
    "cifar10": {name: name for name in ("fvcore", "iopath", "portalocker", "tabulate", "termcolor", "tqdm")},
    "export": {name: name for name in ("onnx_ir", "onnxscript", "onnxruntime")},
}


def missing_packages(stages: Sequence[str], device: str) -> list[str]:
    """The packages that these stages need and this Python lacks, as a package index calls them."""
    needed = NEEDED | {key: name for part in (device, *stages) for key, name in NEEDED_BY.get(part, {}).items()}
    return [name for module, name in needed.items() if importlib.util.find_spec(module) is None]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES), help="separated by commas; default: all")
    parser.add_argument("--only", default="", help="pieces whose name contains this text, and no others")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "gpu", help="small results; a folder per device is made in it"
    )
    parser.add_argument("--work", type=Path, help="checkpoints, weights and bundles; default: work in the device's folder")
    parser.add_argument("--data-root", type=Path, help="folder with cifar-10-batches-py")
    parser.add_argument("--sheets", type=Path, help="folder with some or all of CIFAR-10's WebP sheets, instead of --data-root")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which each stage stops")
    parser.add_argument("--list", action="store_true", help="say what is finished and what is not, and run nothing")
    parser.add_argument("--smoke", action="store_true", help="every stage in miniature on the CPU: its numbers mean nothing")
    arguments = parser.parse_args(argv)
    arguments.stages = arguments.stages.split(",")
    if unknown := [name for name in arguments.stages if name not in STAGES]:
        parser.error(f"stages are {', '.join(STAGES)}, but got {unknown[0]!r}")
    return arguments


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    if missing := missing_packages(arguments.stages, "cpu" if arguments.smoke else "cuda"):
        say(f"missing packages: {' '.join(missing)}; README.md beside this script tells how they come along")
        return 2
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from nar_hw.errors import NarError

    try:
        return run(arguments, shlex.join(["python", "benchmarks/gpu/session.py", *(sys.argv[1:] if argv is None else argv)]))
    except NarError as problem:
        say(str(problem))
        return 2


def run(arguments: argparse.Namespace, command: str) -> int:
    """The chosen stages; the exit code. Raises RunError when results or sheets cannot be used."""
    from benchmarks.gpu import cifar, deploying, measuring, plan, throughput
    from benchmarks.gpu.runner import Piece, Record, run_stage
    from nar_hw.latency.device import device_slug

    settings = plan.smoke() if arguments.smoke else plan.full()
    if reason := no_device(settings.device):
        say(reason)
        return 2
    about = {"smoke": arguments.smoke, "command": command, **header(settings.device)}
    out = arguments.out / device_slug(about["device"])
    work = arguments.work or out / "work"
    if arguments.sheets is not None:
        say(cifar.restore(arguments.sheets, work))
    restored = work / cifar.DATA if (work / cifar.DATA).exists() else None
    session = plan.Session(plan=settings, out=out, work=work, data_root=arguments.data_root or restored)
    builders: dict[str, Callable[[Any], list[Piece]]] = {
        "doctor": measuring.doctor,
        "tables": measuring.tables,
        "training": throughput.training,
        "cifar10": cifar.cifar10,
        "export": deploying.export,
    }
    complete = True
    for stage in arguments.stages:
        pieces = [piece for piece in builders[stage](session) if arguments.only in piece.key]
        record = Record(session.file(stage), {"stage": stage, **about})
        say(f"stage {stage}: {len(pieces) - len(record.left(pieces))} of {len(pieces)} pieces are finished")
        alive = arguments.list or run_stage(record, pieces, seconds=60 * arguments.minutes, say=say)
        for piece in (left := record.left(pieces)):
            say(f"  missing: {piece.key}: {record.missing.get(piece.key, 'not begun')}")
        complete &= not left
        if not alive:
            break
    return 0 if complete else 3


def no_device(device: str) -> str | None:
    """Why a session cannot run here; None when it can."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return f"a session needs a CUDA device, but torch {torch.__version__} finds none: check nvidia-smi, or use --smoke"
    return None


def header(device: str) -> dict[str, Any]:
    """On what is measured."""
    from nar_hw._version import versions
    from nar_hw.latency.device import fingerprint
    from nar_hw.runtimes import RuntimeConfig

    return {
        "versions": versions("torch"),
        "device": fingerprint(RuntimeConfig(runtime="torch_eager", device=device)),
        "system": platform.platform(),
    }


if __name__ == "__main__":
    sys.exit(main())
