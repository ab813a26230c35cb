"""Damaged files, absurd options and kill -9: whatever happens, one line or the right result, and nothing is left behind.

Mutated files go through every loader, absurd values through every option of every command, and every command that writes is
killed at random moments, again and again in the same folder, and then finished: its results must be those of an undisturbed
run. Counted are tracebacks, hangs over 30 s, processes over 2 GiB, writes outside of the folder (as Python sees them),
programs that data or refused options start, leftovers after the last run, and results that differ; the target is 0 of each.
Result: results/faults.json, 0 of each.

    python benchmarks/bench_faults.py [--files 2000] [--options 300] [--kills 200] [--out benchmarks/results/faults.json]

Every trial is a process forked from this one, which has imported torch and computed nothing; a trial costs what its command
costs, without the start of Python.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import random
import re
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime
import torch
import typer
from PIL import Image

from nar_hw._version import versions
from nar_hw.bench.rows import BenchFile
from nar_hw.bundles.manifest import load_bundle
from nar_hw.cli import app as cli
from nar_hw.data.images import read_image
from nar_hw.errors import NarError
from nar_hw.export.onnx import open_session
from nar_hw.faces.pairs import load_pairs
from nar_hw.files import MARK, SCRATCH
from nar_hw.latency.journal import Journal
from nar_hw.latency.table import LatencyTable
from nar_hw.models.weights import _read, load_weights
from nar_hw.proxy.subset import ProxyIndex
from nar_hw.report.run import read_run
from nar_hw.search.record import load_run
from nar_hw.training.checkpoints import load_state
from nar_hw.training.child import Child
from nar_hw.training.recipes import recipe_named

USED = (
    *("fvcore.nn", "onnxscript", "pydantic", "torchvision", "torch.export", "torch._dynamo", "torch._inductor.compile_fx"),
    *("torch.onnx._internal.exporter", "nar_hw.export.onnx", "nar_hw.export.splice", "nar_hw.bundles.triton"),
    *("nar_hw.proxy.steps", *(f"nar_hw.steps.{name}" for name in ("bench", "export", "profile", "refine", "search", "verify"))),
)
"""Modules that are imported once, not in every trial."""
HANG_S = 30.0
MEMORY_MIB = 2048
NET = "--model net.py:net"
CODE = """
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()

def net(num_classes=3):
    stem = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, Block(16), Block(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""
"""The network of all trials: small, for trials are many."""
DATA = "--data fake:1x8x8x3"
TINY = "--operators conv3x3,max3x3,avg3x3,dwsep3x3"
SEARCH = "--epochs 1 --warmup-epochs 1 --batch 64 --set samples=2 --set updates=1 --set finalists=2 --set rescored=2"
MAKE = {
    "table": f"profile {NET} --classes 3 --input 1x8x8 -o table.json --runtime fake --rounds 2 --validate 4 {TINY}",
    "device": f"profile {NET} --classes 3 --input 1x8x8 -o device.json --rounds 2 --validate 4 {TINY}",
    "child": f"train --arch incumbent {NET} {DATA} --out child --recipe demo --epochs 1",
    "search": f"search {NET} {DATA} --table table.json --target-ms 0.14 --out search {SEARCH}",
    "bundle": "export child --out bundle --batch 1-4",
    "proxy": f"proxy select {NET} {DATA} --size 60 --by random --out proxy.json",
    "bench": "bench bundle --rounds 2 -o bench.json",
}
"""What trials begin with, in a folder of their own, in this order."""
FAULTS = ("tracebacks", "hangs", "over 2 GiB", "writes outside", "programs", "leftovers", "differing results")


UNSEEN = {"files": ("leftovers", "differing results"), "options": ("differing results",), "kills": ("programs",)}
"""What is not looked for: commands that run may start programs."""


class Trial(NamedTuple):
    """What became of one process."""

    code: int
    """Exit code; of a killed one minus the signal."""
    seconds: float
    mib: float
    """The most memory that it took."""
    said: str
    """Stderr, and behind it what was written outside and started."""


def forked(work: Callable[[], None], *, inside: Path, kill_after: float | None = None) -> Trial:
    """``work`` in a process of its own with the working, home and temporary folders in ``inside``; killed where it hangs."""
    log = inside / "log"
    log.unlink(missing_ok=True)
    start = time.monotonic()
    if (pid := os.fork()) == 0:
        _child(work, inside, log)
    end = start + (HANG_S if kill_after is None else kill_after)
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() > end:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            break
        time.sleep(0.002)
    said = log.read_text(errors="replace") if log.exists() else ""
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return Trial(code, time.monotonic() - start, usage.ru_maxrss / 1024, said)


def _child(work: Callable[[], None], inside: Path, log: Path) -> None:
    os.setpgid(0, 0)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, errors="backslashreplace") for stream in (1, 2))
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    cli.errors.file = sys.stderr
    (inside / "tmp").mkdir(exist_ok=True)
    os.chdir(inside)
    os.environ |= {"HOME": str(inside), "TMPDIR": str(inside / "tmp"), "COLUMNS": "200"}
    tempfile.tempdir = None
    sys.addaudithook(_watch(inside))
    code = 99
    try:
        work()
        code = 0
    except SystemExit as problem:
        code = problem.code if isinstance(problem.code, int) else 1
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _watch(inside: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """Tells of what is opened to be written elsewhere and of programs, but for the list of fonts that Matplotlib makes once."""
    allowed = (str(inside), "/dev/", "/proc/self/", "pipe:")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
            name = str(Path.cwd() / arguments[0])
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not name.startswith(allowed) and "/__pycache__/" not in name:
                os.write(2, f"WRITES OUTSIDE {name}\n".encode())
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn") and arguments[0] != "fc-list":
            os.write(2, f"STARTS {arguments[0]!r}\n".encode())

    return hook


def command(line: str) -> Callable[[], None]:
    """``nar-hw`` with the words of a line."""
    return lambda: words(shlex.split(line))


def words(arguments: list[str]) -> None:
    """``nar-hw`` with these words."""
    sys.argv = ["nar-hw", *arguments]
    cli.main()


def made(folder: Path, lines: Iterable[str]) -> Path:
    """What trials begin with; everything must work here."""
    folder.mkdir()
    (folder / "net.py").write_text(CODE)
    for line in lines:
        done = forked(command(line), inside=folder)
        assert done.code == 0, (line, done)
    for kind, name in {
        "PNG": "png",
        "JPEG": "jpg",
        "WEBP": "webp",
        "BMP": "bmp",
        "TIFF": "tif",
        "GIF": "gif",
        "PPM": "ppm",
    }.items():
        Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(folder / f"image.{name}", format=kind)
    names = [f"a b {left} {right}" if left > 2 else f"a {left} {right}" for left in (1, 2) for right in (3, 4)]
    (folder / "pairs.txt").write_text("2 1\n" + "\n".join(names) + "\n")
    (folder / "recipe.json").write_text(json.dumps({"epochs": 2, "batch": 64}))
    (folder / "table.json.part").write_text('{"a": 1}\n' + json.dumps({"stage": "children"}) + "\n")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in torch.nn.Conv2d(1, 2, 3).state_dict().items()}}, folder / "w.pt"
    )
    return folder


def loaders(home: Path) -> dict[str, Callable[[Path], object]]:
    """File -> what reads it; the file may be another's copy."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3))

    def table(path: Path) -> None:
        found = LatencyTable.load(path)
        found.predict(found.incumbent), found.bounds(), found.ties(), found.hash

    return {
        "table.json": table,
        "child/child.json": lambda path: Child.load(path.parent),
        "child/weights.safetensors": lambda path: load_weights(network, path),
        "child/state.pt": load_state,
        "search/run.json": lambda path: load_run(path.parent),
        "search": lambda path: read_run(path),
        "bundle/manifest.json": lambda path: load_bundle(path.parent),
        "bundle/model.onnx": open_session,
        "bench.json": BenchFile.load,
        "proxy.json": ProxyIndex.load,
        "recipe.json": lambda path: recipe_named(str(path)),
        "table.json.part": lambda path: Journal(path, {"a": 1}, resume=True),
        "w.pt": _read,
        "pairs.txt": load_pairs,
        **{path.name: read_image for path in sorted(home.glob("image.*"))},
    }


def damaged(good: bytes, rng: random.Random) -> bytes:
    """Cut, flipped, with other bytes put in or taken from elsewhere, or other values in JSON."""
    data = bytearray(good)
    kind = rng.randrange(6)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data) + 1)])
    if kind == 1 and good[:1] in b"{[":
        values = ["null", "-1", "1e400", '"\\ud800"', "[]", "{}", "9" * 5000, '"../../up"', "NaN", "[" * 5000, "true"]
        places = [match.span() for match in re.finditer(rb'(?<=: )[^,\n{\[]+|"[^"\n]*"', good)]
        start, end = rng.choice(places)
        return good[:start] + rng.choice(values).encode() + good[end:]
    if kind == 2:
        start, size = rng.randrange(len(data)), rng.choice((1, 16, 4096))
        data[start : start + size] = rng.randbytes(size)
    if kind == 3:
        start, size, to = rng.randrange(len(data)), rng.randrange(1, 200), rng.randrange(len(data))
        data[to:to] = data[start : start + size]
    if kind == 4:
        data[: rng.randrange(1, 64)] = rng.choice(
            (b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x80\x04cos\nsystem\n", b"PK\x03\x04", b"", b"\xff" * 64)
        )
    for _ in range(rng.randrange(1, 5)):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _lines(text: str, mark: str) -> str:
    return " ".join(line for line in text.splitlines() if mark in line)


class Tally:
    """Faults by kind, with an example of each."""

    def __init__(self) -> None:
        self.faults, self.examples, self.seconds = Counter[str](), {}, []  # type: ignore[var-annotated]

    def add(self, kind: str, example: str) -> None:
        """Note one."""
        self.faults[kind] += 1
        self.examples.setdefault(kind, example[:600])
        print(f"  {kind}: {example[-1500:]}", flush=True)

    def judge(self, what: str, trial: Trial, *, data: bool = True) -> None:
        """Note what a trial that should end by itself did wrong."""
        self.seconds.append(trial.seconds)
        if trial.code == -signal.SIGKILL:
            self.add("hangs", what)
        elif "Traceback (most" in trial.said or trial.code not in (0, 2, 130):
            self.add("tracebacks", f"{what}: {trial.code} {trial.said}")
        self.look(what, trial, data=data)

    def look(self, what: str, trial: Trial, *, data: bool = False) -> None:
        """Note what a trial did wrong, however it ended; it may start programs unless it only reads ``data``."""
        if trial.mib > MEMORY_MIB:
            self.add("over 2 GiB", f"{what}: {trial.mib:.0f} MiB")
        if "WRITES OUTSIDE" in trial.said:
            self.add("writes outside", f"{what}: {_lines(trial.said, 'WRITES OUTSIDE')}")
        if data and "STARTS" in trial.said:
            self.add("programs", f"{what}: {_lines(trial.said, 'STARTS')}")

    def record(self, trials: int, *without: str) -> dict[str, Any]:
        """For the result file, ``without`` what is not looked for."""
        return {
            "trials": trials,
            **{name: self.faults[name] for name in FAULTS if name not in without},
            "longest_s": round(max(self.seconds, default=0), 2),
        }


def files(home: Path, work: Path, count: int, rng: random.Random) -> Tally:
    """Mutated files through the loaders; twenty in a process, one by one where one of these fails."""
    tally, found = Tally(), {name: load for name, load in loaders(home).items() if (home / name).is_file()}
    work.mkdir()
    jobs = [(name, rng.getrandbits(32)) for _ in range(-(-count // len(found))) for name in found][:count]

    def load(group: list[tuple[str, int]]) -> None:
        for name, seed in group:
            place = work / name
            place.parent.mkdir(parents=True, exist_ok=True)
            for path in (home / name).parent.iterdir():  # what lies beside it
                if path.is_file() and path.parent != home and not (place.parent / path.name).exists():
                    os.link(path, place.parent / path.name)
            place.unlink(missing_ok=True)
            place.write_bytes(damaged((home / name).read_bytes(), random.Random(seed)))
            try:
                found[name](place)
            except NarError as problem:
                if "\n" in str(problem):
                    raise ValueError(f"an error of several lines: {problem}") from problem
            place.unlink(missing_ok=True)

    for start in range(0, len(jobs), 20):
        group = jobs[start : start + 20]
        trial = forked(lambda: load(group), inside=work)  # noqa: B023  # runs at once
        if trial.code == 0 and "STARTS" not in trial.said and "WRITES" not in trial.said and trial.mib < MEMORY_MIB:
            tally.seconds.append(trial.seconds / len(group))
            continue
        for item in group:
            tally.judge(f"{item[0]}, seed {item[1]}", forked(lambda: load([item]), inside=work))  # noqa: B023
    return tally


VALUES = (
    "",
    "²",
    "-1",
    "nan",
    "1e999",
    "9" * 5000,
    "../../x",
    "\x1b[2J",
    "a\nb",
    "[red]x[/]",
    "~nosuchuser/x",
    "x" * 300,
    "\udcff",
    "0x10",
    "1,,2",
    "--json",
)


WRITTEN = ("--out", "--output", "--csv", "--plot")


def lines() -> dict[str, list[str]]:
    """Each command with words that it accepts."""
    words = {
        **{name: line for name, line in MAKE.items() if name not in ("table", "device", "bundle", "child", "proxy")},
        "space": f"space {NET} --input 1x8x8",
        "count": f"count {NET} --input 1x8x8",
        "profile": MAKE["table"].replace("table.json", "new.json"),
        "train": MAKE["child"].replace("--out child", "--out new"),
        "search": MAKE["search"].replace("--out search", "--out new"),
        "export": "export child --out new --batch 1",
        "eval": f"eval {NET} {DATA} --weights child/weights.safetensors",
        "bench": MAKE["bench"],
        "report": "report search -o new.html",
        "refine": f"refine {NET} {DATA} --weights child/weights.safetensors --targets 0.9 --out new --plan",
        "table list": "table list",
        "table show": "table show table.json",
        "table predict": "table predict table.json --arch incumbent",
        "table validate": "table validate table.json --children 3",
        "bundle verify": "bundle verify bundle",
        "bundle triton": "bundle triton bundle --out models",
        "proxy select": MAKE["proxy"].replace("proxy.json", "new.json"),
        "proxy study": f"proxy study {NET} {DATA} --out new --batch 20 --epochs 1",
    }
    return {name: shlex.split(line) for name, line in words.items()}


def options_of(name: str) -> list[str]:
    """The options of a command that take a value."""
    found: Any = typer.main.get_command(cli.app)
    for part in name.split():
        found = found.commands[part]
    return [item.opts[0] for item in found.params if item.opts[0].startswith("-") and not getattr(item, "is_flag", False)]


def options(home: Path, work: Path, count: int, rng: random.Random, only: Collection[str] = ()) -> Tally:
    """Absurd values for every option; what is accepted runs."""
    tally = Tally()
    known = {name: words for name, words in lines().items() if name in only or not only}
    jobs = [(name, words, option, value) for name, words in known.items() for option in options_of(name) for value in VALUES]
    jobs = [job for job in jobs if not (job[2] in WRITTEN and job[3].startswith(".."))]  # which may be written, being asked for
    for number, (name, good, option, value) in enumerate(rng.sample(jobs, min(count, len(jobs)))):
        inside = copied(home, work / str(number))
        line = [*good, option, value]
        trial = forked(lambda: words(line), inside=inside)  # noqa: B023  # runs at once
        tally.judge(f"{name} {option} {value[:40]!r}", trial, data=trial.code == 2)
        if left := leftovers(inside):
            tally.add("leftovers", f"{name} {option} {value[:40]!r}: {left}")
        removed(inside)
    return tally


def copied(home: Path, to: Path) -> Path:
    """A copy that shares what files hold until they are written, which all writers here do by replacing them."""
    for path in home.rglob("*"):
        target = to / path.relative_to(home)
        if path.is_file() and path.name != "log":
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return to


def removed(folder: Path) -> None:
    """Without it."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def leftovers(folder: Path) -> list[str]:
    """What no finished command leaves: unfinished files, locks, journals, folders of temporary files."""
    found = [path for path in folder.rglob("*") if MARK in path.name or path.suffix in (".lock", ".part")]
    return [str(path.relative_to(folder)) for path in [*found, *folder.glob(f"tmp/{SCRATCH}*")] if path.name != "table.json.part"]


KILLED: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": (
        f"train --arch incumbent {NET} {DATA} --out new --recipe demo --epochs 3 --resume",
        ("new/weights.safetensors",),
    ),
    "search": (MAKE["search"].replace("--out search", "--out new --resume"), ("new/supernet.safetensors",)),
    "profile": (MAKE["table"].replace("-o table.json", "-o new.json --resume"), ()),
    "export": ("export child --out new --batch 1-4", ("new/model.onnx", "new/weights.safetensors")),
    "bench": ("bench bundle --rounds 2 -o new.json", ()),
    "eval": (f"eval {NET} {DATA} --weights child/weights.safetensors --out new", ("new/weights.safetensors",)),
    "validate": ("table validate table.json --children 3", ()),
    "report": ("report search -o new.html", ("new.html",)),
    "triton": ("bundle triton bundle --out models --name net", ()),
    "select": (f"proxy select {NET} {DATA} --size 30 --by gradient --score-epochs 1 --out new.json", ("new.json",)),
    "study": (f"proxy study {NET} {DATA} --out new --batch 20 --epochs 3 --resume", ("new/distances.npy",)),
    "refine": (
        f"refine {NET} {DATA} {TINY} --weights child/weights.safetensors --targets 0.8 --out new --table device.json "
        "--recipe recipe.json --set epochs=1 --set samples=2 --set updates=1 --set finalists=2 --set rescored=2",
        ("new/baseline/weights.safetensors",),
    ),
}  # fmt: skip
"""Command -> its words, and the files that must be those of an undisturbed run."""


def kills(
    home: Path, work: Path, count: int, rng: random.Random, only: tuple[str, ...] = tuple(KILLED)
) -> tuple[Tally, dict[str, Any]]:
    """Every command killed at random moments of its run, up to five times in one folder, then finished."""
    global HANG_S
    tally, rows = Tally(), {}
    per_command = -(-count // len(only))
    for name in only:
        line, same = KILLED[name]
        HANG_S, usual = 300.0, HANG_S  # a whole refinement is no hang
        calm = forked(command(line), inside=(undisturbed := copied(home, work / f"{name}-calm")))
        HANG_S = usual
        if calm.code != 0:
            tally.add("tracebacks", f"{name} undisturbed: {calm.code} {calm.said}")
            continue
        killed = rounds = ended = 0
        while killed < per_command and rounds < 3 * per_command:
            inside = copied(home, work / f"{name}-{rounds}")
            rounds += 1
            for _ in range(5):
                trial = forked(command(line), inside=inside, kill_after=rng.uniform(0.01, 1) * calm.seconds)
                killed += trial.code == -signal.SIGKILL
                ended += trial.code != -signal.SIGKILL
                tally.look(f"{name}, killed", trial)
                if trial.code not in (-signal.SIGKILL, 0, 2):
                    tally.add("tracebacks", f"{name} after a kill: {trial.code} {trial.said}")
                if trial.code == 0:
                    break
            HANG_S = 300.0
            last = forked(command(line), inside=inside)
            HANG_S = usual
            tally.judge(f"{name}, the last run", last, data=False)
            if last.code != 0 and not (name == "triton" and "already" in last.said):
                tally.add("differing results", f"{name}, the last run: {last.code} {last.said}")
            if left := leftovers(inside):
                tally.add("leftovers", f"{name}: {left}")
            for file in same:
                if not (inside / file).exists() or (inside / file).read_bytes() != (undisturbed / file).read_bytes():
                    tally.add("differing results", f"{name}: {file}")
            removed(inside)
        rows[name] = {"killed": killed, "ended_before": ended, "folders": rounds, "undisturbed_s": round(calm.seconds, 2)}
        print(name, rows[name], flush=True)
    return tally, rows


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder for all trials."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        yield Path(folder).resolve()


def main() -> None:
    """Run all and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in {"files": 2000, "options": 300, "kills": 200}.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--only", nargs="*", default=list(KILLED), choices=list(KILLED))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "faults.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for module in USED:
        importlib.import_module(module)
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/bench_faults.py", *sys.argv[1:]]),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            **versions("torch", "pillow", "typer"),
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        },
    }
    with workplace() as folder:
        home = made(folder / "home", MAKE.values())
        for name, run in {"files": files, "options": options}.items():
            count, start = getattr(asked, name), time.monotonic()
            if count:
                tally = run(home, folder / name, count, random.Random(asked.seed))
                result[name] = tally.record(count, *UNSEEN[name])
                print(name, result[name], f"{time.monotonic() - start:.0f} s", flush=True)
        if asked.kills:
            tally, rows = kills(home, folder / "kills", asked.kills, random.Random(asked.seed), tuple(asked.only))
            result["kills"] = {**tally.record(sum(row["killed"] for row in rows.values()), *UNSEEN["kills"]), "commands": rows}
            print("kills", {key: value for key, value in result["kills"].items() if key != "commands"}, flush=True)
    if asked.out.name != "-":
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
