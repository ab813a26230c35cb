"""Kits for devices without Python, run with stand-ins that print what benchmark_model and trtexec print."""

import gzip
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nar_hw.device.hollow import filled, hollowed
from nar_hw.errors import NarError, RuntimeUnavailableError, UserError
from nar_hw.latency.kit import table_from
from nar_hw.latency.programs import PROGRAMS, schedule
from nar_hw.latency.shell import times_in
from nar_hw.latency.table import LatencyTable
from nar_hw.runtimes import RuntimeConfig
from tests.test_kit import make, space

# What a network takes is a microsecond for every 20 bytes, and up to 3 more
BENCHMARK_MODEL = """#!/bin/sh
graph=${1#--graph=}
echo call >> calls
calls=$(($(wc -l < calls)))
[ -e fail ] && [ $calls = 6 ] && { echo "ERROR: Failed to load model $graph" >&2; exit 1; }
us=$(($(wc -c < "$graph") / 20 + calls % 4))
echo "INFO: STARTING!"
echo "INFO: Log parameter values verbosely: [0]"
echo "INFO: Num threads: [1]"
echo "INFO: Graph: [$graph]"
echo "INFO: Loaded model $graph"
echo "INFO: Initialized session in 5.579ms."
echo "INFO: count=3 first=9990 curr=9990 min=9990 max=9990 avg=9990 std=0 p5=9990 median=9990 p95=9990"
echo
echo "INFO: count=20 first=$us curr=$us min=$us max=99999 avg=4321.5 std=5 p5=$us median=$us p95=99999"
echo
echo "INFO: Inference timings in us: Init: 5579, First inference: 9990, Warmup (avg): 9990, Inference (avg): 4321.5"
"""
TRTEXEC = """#!/bin/sh
say() { echo "[01/10/2024-21:52:50] [I] $1"; }
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # $0 $*"
say "=== Device Information ==="
say "Selected Device: Orin"
say "Compute Capability: 8.7"
say "TensorRT version: 10.3.0"
case "$1" in
  --onnx=*)
    for word in "$@"; do case "$word" in --saveEngine=*) engine=${word#*=} ;; esac; done
    echo build >> builds
    wc -c < "${1#*=}" > "$engine"
    say "Engine built in 12.1 sec." ;;
  --loadEngine=*)
    echo call >> calls
    us=$(($(cat "${1#*=}") / 20 + $(wc -l < calls) % 4))
    ms=$(printf '%d.%03d' $((us / 1000)) $((us % 1000)))
    say "=== Performance summary ==="
    say "Throughput: 476.66 qps"
    say "Latency: min = 9 ms, max = 9 ms, mean = 9 ms, median = 9 ms, percentile(90%) = 9 ms, percentile(99%) = 9 ms"
    say "GPU Compute Time: min = $ms ms, max = 9 ms, mean = 8 ms, median = $ms ms, percentile(90%) = 9 ms"
    say "Total Host Walltime: 3.00424 s" ;;
esac
echo "&&&& PASSED TensorRT.trtexec [TensorRT v100300] # $0 $*"
"""


@pytest.fixture(scope="module")
def litert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ai_edge_litert")
    path = tmp_path_factory.mktemp("kit") / "kit"
    config = RuntimeConfig(runtime="litert")
    make(path, config=config, method="regression", rounds=2, validate=0, runtime_version="2.3.0", shell=True, budget_s=None)
    return path


def copied(kit: Path, folder: Path, program: str, text: str) -> Path:
    shutil.copytree(kit, folder)
    (folder / program).write_text(text)
    (folder / program).chmod(0o755)
    return folder


def measured(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", folder / "measure.sh", f"./{program}"]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})


@pytest.fixture(scope="module")
def times(litert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """times.txt of a kit for LiteRT whose measurement was stopped once by a failure."""
    folder = copied(litert, tmp_path_factory.mktemp("measured") / "kit", "benchmark_model", BENCHMARK_MODEL)
    (folder / "fail").touch()
    done = measured(folder, "benchmark_model")
    assert done.returncode == 2
    assert done.stderr.startswith("measure.sh: ./benchmark_model cannot run child ")
    assert done.stderr.endswith(" here: ERROR: Failed to load model current.tflite\n")
    assert done.stderr.count("\n") == 1
    (folder / "fail").unlink()
    done = measured(folder, "benchmark_model")
    assert (done.returncode, done.stderr) == (0, "")
    assert "bring this file back" in done.stdout
    visits = len((folder / "visits.txt").read_text().splitlines())
    assert len((folder / "calls").read_text().splitlines()) == visits + 1, "what was measured is not measured again"
    return folder / "times.txt"


def test_it_holds_what_the_device_needs_and_little_more(litert: Path) -> None:
    assert {path.name for path in litert.iterdir()} == {"children", "measure.sh", "plan.json", "visits.txt"}


def test_weights_that_repeat_take_no_room() -> None:
    weights = np.random.default_rng(0).normal(0.0, 0.1, 1_000_000).astype(np.float32)
    data = filled(hollowed(b"head" + weights.tobytes() + b"end", [weights]), period=1021)
    assert len(data) == 4 * len(weights) + 7
    assert len(gzip.compress(data)) < 0.02 * len(data)


def test_a_device_without_python_gives_the_table(litert: Path, times: Path, tmp_path: Path) -> None:
    found = times_in(times)
    table = table_from(found)
    table.check(space())
    size = len(gzip.decompress((litert / "children" / "0.tflite.gz").read_bytes()))
    assert table.incumbent_ms * 1e3 == pytest.approx(size // 20 + 1.5, abs=2)
    plan = found.plan
    for batch in found.batches:
        for position, child in enumerate(batch.members):
            size = len(gzip.decompress((litert / plan.children[child][0]).read_bytes()))
            runs = np.array(batch.runs)[:, position, 0] * 1e3
            assert (runs >= size // 20).all()
            assert (runs <= size // 20 + 3).all()
    mark = table.fingerprint
    assert (mark["runtime"], mark["runtime_version"], mark["runtime_version_from"]) == ("litert", "2.3.0", "--runtime-version")
    assert mark["program"] == "benchmark_model"
    assert mark["cpu"]
    assert mark["python"] is None
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table


def refused(folder: Path, text: str) -> str:
    (folder / "times.txt").write_text(text)
    with pytest.raises(NarError) as problem:
        table_from(times_in(folder / "times.txt"))
    assert "\n" not in str(problem.value)
    assert (folder / "times.txt").read_text() == text
    return str(problem.value)


def test_times_that_are_not_whole_are_refused(times: Path, tmp_path: Path) -> None:
    text = times.read_text()
    cut = refused(tmp_path, text[: int(len(text) * 0.9)])
    assert "are missing: start measure.sh again on the device, it goes on from what it has" in cut
    assert "its beginning is not" in refused(tmp_path, text[:300])
    assert "its beginning is not" in refused(tmp_path, "")
    assert "must begin with the kit's plan" in refused(tmp_path, text.replace('"config"', "config", 1))
    last = text.rindex("median=")
    for wrong in ("median=-5", "median=0", "median=nan", "median=fast"):
        said = refused(tmp_path, f"{text[:last]}{wrong} {text[last:].partition(' ')[2]}")
        assert "must hold what benchmark_model measured, but in one visit" in said
    plan = json.loads(text.split("@plan\n")[1].split("\n@machine")[0])
    other = json.dumps({**plan, "profile": {**plan["profile"], "space": "0" * 64}})
    assert "must be that of the kit" in refused(tmp_path, f"@plan\n{other}\n@machine{text.split('@machine', 1)[1]}")
    python = json.dumps({**plan, "config": {**plan["config"], "runtime": "onnxruntime"}})
    assert "its plan is for measure.py" in refused(tmp_path, f"@plan\n{python}\n@machine{text.split('@machine', 1)[1]}")
    with pytest.raises(NarError, match=r"other\.txt cannot be read: No such file"):
        times_in(tmp_path / "other.txt")


def test_a_device_that_cannot_measure_says_why_in_one_line(litert: Path, tmp_path: Path) -> None:
    folder = copied(litert, tmp_path / "kit", "benchmark_model", BENCHMARK_MODEL)
    done = measured(folder, "absent")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "there is no ./absent here: name it, like sh measure.sh ./benchmark_model" in done.stderr
    (folder / "times.txt").write_text("@visits 1 2\n")
    assert "times.txt was begun with another plan.json: delete it" in measured(folder, "benchmark_model").stderr
    assert (folder / "times.txt").read_text() == "@visits 1 2\n"
    (folder / "plan.json").unlink()
    assert "plan.json or visits.txt is missing: copy the kit again" in measured(folder, "benchmark_model").stderr


def test_tensorrt_without_python(tmp_path: Path) -> None:
    config = RuntimeConfig(runtime="tensorrt", device="cuda", precision="fp16")
    asked: dict[str, Any] = {
        "config": config,
        "method": "regression",
        "rounds": 2,
        "validate": 0,
        "shell": True,
        "budget_s": None,
    }
    plan = make(tmp_path / "kit", runtime_version="10.3", **asked)
    folder = copied(tmp_path / "kit", tmp_path / "device", "trtexec", TRTEXEC)
    done = measured(folder, "trtexec")
    assert (done.returncode, done.stderr) == (0, "")
    assert len((folder / "builds").read_text().splitlines()) == len(plan.children), "one build of each"
    table = table_from(times_in(folder / "times.txt"))
    network = gzip.decompress((folder / "children" / "0.onnx.gz").read_bytes())
    kinds = {tensor.data_type for tensor in onnx.load_from_string(network).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    size = len(network)
    assert table.incumbent_ms * 1e3 == pytest.approx(size // 20 + 1.5, abs=2)
    assert table.config == config
    mark = table.fingerprint
    assert (mark["device"], mark["kind"], mark["compute_capability"]) == ("Orin", "cuda", "8.7")
    assert (mark["runtime_version"], mark["runtime_version_from"]) == ("10.3.0", "the program")
    text = (folder / "times.txt").read_text().replace("TensorRT version: 10.3.0", "TensorRT version: 8.6.1")
    assert "were measured with tensorrt 8.6.1, but the kit is for 10.3" in refused(tmp_path, text)


def test_other_versions_print_other_things() -> None:
    ms = PROGRAMS["litert"].ms
    old = "count=50 first=249042 curr=250889 min=247067 max=254474 avg=249684 std=1442\n"
    old += "Inference timings in us: Init: 16242, First inference: 360262, Warmup (avg): 304586, Inference (avg): 2.49684e+05\n"
    assert ms(old) == pytest.approx(249.684)
    assert ms("count=1 curr=3512391\n") is None
    assert ms("INFO: count=9 median=51962 p95=87112\n") is None, "only warmed up"
    ms = PROGRAMS["tensorrt"].ms
    text = "[I] Latency: min = 9 ms, max = 9 ms, mean = 9 ms, median = 9 ms\n"
    text += "[I] GPU Compute Time: min = 2.05 ms, max = 2.59 ms, mean = 2.09 ms, median = 2.08276 ms, percentile(99%) = 2.58 ms\n"
    assert ms(text) == 2.08276
    assert ms("[E] Error[1]: out of memory") is None


def test_visits_are_interleaved(times: Path) -> None:
    plan = times_in(times).plan
    visits = schedule(plan.stages, 0)
    for number, stage in enumerate(plan.stages):
        orders = [[child for at, turn, child, mark in visits if (at, turn, mark) == (number, this, False)] for this in (0, 1)]
        assert all(sorted(order) == sorted(stage.members) for order in orders)
        assert orders[0] != orders[1]


def test_kits_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    tensorrt = {"runtime": "tensorrt", "device": "cuda"}
    for config, options, error, said in (
        ({"runtime": "litert"}, {"runtime_version": None}, UserError, "needs the version of litert there: --runtime-version"),
        ({"runtime": "litert"}, {"budget_s": 9.0}, UserError, "stop after so many rounds, not seconds"),
        ({"runtime": "litert"}, {"method": "in-context"}, UserError, "got method in-context: use regression"),
        ({"runtime": "ncnn"}, {}, RuntimeUnavailableError, r"for litert \(benchmark_model\), tensorrt \(trtexec\), but got"),
        ({"runtime": "tensorrt"}, {}, RuntimeUnavailableError, "needs device cuda, but got cpu"),
        ({**tensorrt, "precision": "int8"}, {}, RuntimeUnavailableError, "needs precision bf16 or fp16 or fp32, but got int8"),
    ):
        asked: dict[str, Any] = {"method": "regression", "runtime_version": "1.0", "shell": True, "budget_s": None, **options}
        with pytest.raises(error, match=said):
            make(tmp_path / "kit", config=RuntimeConfig(**config), **asked)
    assert list(tmp_path.iterdir()) == []
