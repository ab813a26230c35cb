"""Kits: profiles of devices without torch and nar_hw."""

import ast
import datetime
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest

import nar_hw
import nar_hw.cli
from nar_hw.bench.kit import bench_from, predictions, write_bench_kit
from nar_hw.bench.rows import BenchFile
from nar_hw.bundles.manifest import Latency
from nar_hw.cli.app import app
from nar_hw.device.hollow import filled, hollowed
from nar_hw.device.measure import checksum
from nar_hw.device.onnxruntime import onnx_nodes
from nar_hw.errors import MeasurementError, NarError, RunError, RuntimeUnavailableError, UserError
from nar_hw.latency.designs import profiled as seen
from nar_hw.latency.kit import Plan, Times, table_from, write_kit
from nar_hw.latency.scripts import script
from nar_hw.latency.table import LatencyTable
from nar_hw.models.info import ModelInfo
from nar_hw.runtimes import RUNTIMES, RuntimeConfig, runtime_class
from nar_hw.space.space import SearchSpace
from tests.bundles import exported
from tests.networks import TinyResNet

TINY = f"{Path(__file__).parent / 'networks.py'}:TinyResNet"
NET = ModelInfo(name=TINY, input_shape=(3, 16, 16), num_classes=5, operators=("dwsep3x3", "max3x3"))
ORT = RuntimeConfig()
DEVICE = Path(nar_hw.__file__).parent / "device"
PACKAGES = {"litert": ("ai_edge_litert",), "mnn": ("MNN", "_mnncengine")}
"""Runtimes that are imported under another name."""


def loaded(folder: Path) -> ModuleType:
    """A kit's script, as Python runs it."""
    spec = importlib.util.spec_from_file_location("kit_script", folder / "measure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(folder: Path) -> Path:
    module = loaded(folder)
    assert module.main(module.NETWORK, folder) == 0
    return folder / "times.json"


@cache
def space() -> SearchSpace:
    return NET.space()


def make(folder: Path, **options: Any) -> Plan:
    asked = {"config": ORT, "rounds": 4, "tolerance": 0.0, "validate": 3, "budget_s": 14.0, **options}
    return write_kit(space(), folder, model_name=NET.name, **asked)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kit") / "kit"
    make(path)
    return path


def copied(kit: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a kit, with changes of its plan."""
    shutil.copytree(kit, folder)
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**plan, **changes}))
    return folder


@pytest.fixture(scope="module")
def folder(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit that was measured, again where the machine was so busy that its times are refused."""
    for _ in range(3):
        path = copied(kit, tmp_path_factory.mktemp("measured") / "kit")
        times = measured(path)
        with suppress(MeasurementError):
            table_from(Times.load(times))
            break
    return path


@pytest.fixture(scope="module")
def times(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "times.json").read_text())
    return found


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[Any], str]:
    """What is said of times.json with such content, a text or JSON values whose checksum is right."""

    def refused(content: Any) -> str:
        path = tmp_path / "times.json"
        if not isinstance(content, str):
            content.pop("sha256", None)
            content = json.dumps({**content, "sha256": checksum(content)})
        path.write_text(content)
        with pytest.raises(NarError) as problem:
            table_from(Times.load(path))
        assert path.read_text() == content
        assert "\n" not in str(problem.value)
        return str(problem.value)

    return refused


def again(times: dict[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(times))
    return copy


@pytest.fixture(scope="module")
def table(folder: Path) -> LatencyTable:
    return table_from(Times.load(folder / "times.json"))


def test_a_device_gives_the_table(folder: Path, table: LatencyTable, tmp_path: Path) -> None:
    times = Times.load(folder / "times.json")
    table.save(tmp_path / "table.json")
    table = LatencyTable.load(tmp_path / "table.json")
    table.check(space())
    assert table.method.name == "in-context"
    assert table.validation is not None
    assert table.validation.children == 3
    assert table.config == ORT
    assert table.fingerprint["runtime_version"] == onnxruntime.__version__
    assert {"governor", "mhz", "highest_mhz", "celsius"} == set(table.fingerprint["before"])
    # Whole children come as they were measured: the median of the rounds, each at the speed of its round
    batch = next(batch for batch in times.batches if batch.stage == "children")
    marks = np.array(batch.marks)
    assert marks.min() <= table.incumbent_ms <= marks.max()


def test_what_a_profile_says_of_layers_is_joined_to_slots(folder: Path) -> None:
    times = Times.load(folder / "times.json")
    batch = next(batch for batch in times.batches if batch.stage == "operators in context")
    assert batch.layers is not None
    kinds = {node["op_type"] for layers in batch.layers for node in layers.nodes}
    assert {"Conv", "MaxPool"} <= kinds


def test_the_script_needs_numpy_and_the_runtime_only() -> None:
    for path in DEVICE.glob("*.py"):
        text = path.read_text()
        for line in text.splitlines():
            words = line.split()
            if (words[:1] == ["from"] and words[2:3] == ["import"]) or words[:1] == ["import"]:
                top = words[1].split(".")[0]
                own = words[1].startswith("nar_hw.device")
                runtimes = ("onnxruntime", "openvino", "ncnn", "ai_edge_litert", "MNN")
                assert own or top in sys.stdlib_module_names or top in ("numpy", *runtimes), line
    for name in RUNTIMES:
        if runtime_class(name).kit:
            text = script(runtime_class(name))
            assert "nar_hw." not in "".join(line for line in text.splitlines() if "import" in line)
            compile(text, "measure.py", "exec")


def test_the_script_needs_no_later_python_than_it_says(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3.10, which JetPack 6 has: syntax, and the one name of a later one that was used."""
    for path in (*DEVICE.glob("*.py"), kit / "measure.py"):
        ast.parse(path.read_text(), feature_version=(3, 10))
    monkeypatch.delattr("datetime.UTC")
    mark = loaded(kit)._fingerprint(json.loads((kit / "plan.json").read_text())["config"], "1.0")
    assert datetime.datetime.fromisoformat(mark["date"]).utcoffset() == datetime.timedelta(0)


def test_a_stopped_measurement_goes_on(kit: Path, tmp_path: Path) -> None:
    path = copied(kit, tmp_path / "kit")
    module = loaded(path)
    original, part = module.Clock.time_ms, path / "times.part"

    def stops(clock: Any, network: Any, repeats: int) -> list[float]:
        if part.exists() and len(part.read_text().splitlines()) == 3:  # within the second stage, after its first round
            raise KeyboardInterrupt
        found: list[float] = original(clock, network, repeats)
        return found

    module.Clock.time_ms = stops
    assert module.main(module.NETWORK, path) == 130
    kept = [json.loads(line) for line in part.read_text().splitlines()]
    assert kept[1]["stage"] == "operators in context"
    assert kept[2]["stage"] == "children"
    with part.open("a") as file:
        file.write('{"stage": "chil')  # cut off by a crash
    whole = json.loads(measured(path).read_text())
    assert whole["batches"][0]["runs"] == [visit for visit, _ in kept[1]["rounds"]]
    assert whole["batches"][1]["runs"][0] == kept[2]["visit"]
    assert not part.exists()
    Times.load(path / "times.json")


def test_a_complete_measurement_is_not_made_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = loaded(folder)
    before = (folder / "times.json").read_bytes()
    assert module.main(module.NETWORK, folder) == 2
    assert "is complete already: delete it to measure again" in capsys.readouterr().err
    assert (folder / "times.json").read_bytes() == before


def test_another_runtime_version_is_refused_with_both(kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied(kit, tmp_path / "kit", runtime_version="1.2.3")
    module = loaded(path)
    assert module.main(module.NETWORK, path) == 2
    version = onnxruntime.__version__
    assert f"the kit is for onnxruntime 1.2.3, but {version} is installed here" in capsys.readouterr().err
    assert not (path / "times.part").exists()


def test_a_runtime_that_was_changed_in_between_is_refused(kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied(kit, tmp_path / "kit")
    module = loaded(path)
    part = path / "times.part"
    mark = hashlib.sha256((path / "plan.json").read_bytes()).hexdigest()
    head = {"plan": mark, "fingerprint": {"runtime_version": "0.9"}, "clock": "wall", "repeats": 5}
    part.write_text(json.dumps(head) + "\n")
    assert module.main(module.NETWORK, path) == 2
    assert "was begun with version 0.9 of the runtime, but" in capsys.readouterr().err
    part.write_text(json.dumps({**head, "plan": "other"}) + "\n")
    assert module.main(module.NETWORK, path) == 2
    assert "was begun with another plan.json" in capsys.readouterr().err
    assert part.exists()


@pytest.mark.parametrize("name", ["plan.json", "children/0.onnx.z"])
def test_a_damaged_kit_is_refused(kit: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path = copied(kit, tmp_path / "kit")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    module = loaded(tmp_path)
    assert module.main(module.NETWORK, tmp_path) == 2
    out = capsys.readouterr().err
    assert out.count("\n") == 1
    assert f"{name} cannot be read" in out
    assert "copy the kit again" in out


def test_times_that_were_cut_are_refused(folder: Path, refused: Callable[[Any], str]) -> None:
    text = (folder / "times.json").read_text()
    assert "is not valid JSON" in refused(text[: len(text) // 2])
    assert "is not valid JSON" in refused("")


def test_times_that_were_edited_are_refused(folder: Path, times: dict[str, Any], refused: Callable[[Any], str]) -> None:
    changed = again(times)
    changed["batches"][1]["runs"][0][0][0] *= 0.5
    assert "its checksum differs" in refused(json.dumps(changed))
    changed = again(times)
    changed["plan"]["children"] = changed["plan"]["children"][1:]
    assert "its checksum differs" in refused(json.dumps(changed))
    del changed["sha256"]
    assert "its checksum differs" in refused(json.dumps(changed))


def test_times_that_are_no_numbers_are_refused(times: dict[str, Any], refused: Callable[[Any], str]) -> None:
    changed = again(times)
    changed["batches"][1]["runs"][0][0][0] = float("nan")
    assert "is not valid JSON" in refused(changed)
    for wrong in (-1.0, 0.0):
        changed = again(times)
        changed["batches"][1]["runs"][0][0][0] = wrong
        assert "must hold positive times, but 1 of stage 'children' are negative or zero" in refused(changed)
    changed = again(times)
    changed["batches"][1]["runs"][0][0][0] = "fast"
    assert "must be float, but is 'fast'" in refused(changed)


def test_times_with_missing_children_are_refused(times: dict[str, Any], refused: Callable[[Any], str]) -> None:
    changed = again(times)
    del changed["batches"][1]
    assert "are missing: start measure.py again on the device" in refused(changed)
    changed = again(times)
    changed["batches"][1]["runs"] = [turn[1:] for turn in changed["batches"][1]["runs"]]
    assert "runs of each child in each round" in refused(changed)
    changed = again(times)
    changed["batches"][0]["layers"] = None
    assert "must hold the layers of what is profiled" in refused(changed)
    for edit in (lambda ms: ms[0].pop(), lambda ms: ms.clear()):
        changed = again(times)
        edit(changed["batches"][0]["layers"][0]["ms"])
        assert "must hold a time of each layer for each run" in refused(changed)
    changed = again(times)
    changed["batches"][0]["layers"][0]["ms"][0][0] = -1.0
    assert "must hold layers' times of 0 or more, but 1 are negative" in refused(changed)
    for edit in (lambda marks: marks[0].pop(), lambda marks: marks[0][0].pop(), lambda marks: marks[0].clear()):
        changed = again(times)
        edit(changed["batches"][1]["marks"])
        assert "runs of each child in each round" in refused(changed)


def test_times_of_another_version_or_plan_are_refused(times: dict[str, Any], refused: Callable[[Any], str]) -> None:
    changed = again(times)
    changed["fingerprint"]["runtime_version"] = "0.9.1"
    wanted = times["plan"]["runtime_version"]
    assert f"measured with onnxruntime 0.9.1, but the kit is for {wanted}" in refused(changed)
    changed = again(times)
    changed["plan"]["profile"]["space"] = "0" * 64
    assert "must be that of the kit" in refused(changed)
    changed = again(times)
    archs = changed["plan"]["profile"]["archs"]
    archs[1] = archs[0]
    assert "make the kit again" in refused(changed)
    changed = again(times)
    changed["plan"]["profile"]["archs"].pop()
    assert "must say what each of the" in refused(changed)
    changed = again(times)
    changed["plan"]["profile"]["method"] = "guess"
    assert "the kit's method must be one of in-context" in refused(changed)
    changed = again(times)
    changed["schema"] = 2
    assert "must have schema 1" in refused(changed)


def test_kits_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "kit"
    for options, error, said in (
        ({"config": RuntimeConfig(runtime="torch_eager")}, RuntimeUnavailableError, "kits can be made for onnxruntime"),
        ({"config": RuntimeConfig(precision="int8")}, RuntimeUnavailableError, "kits profile in fp32"),
        ({"config": RuntimeConfig(device="cuda")}, RuntimeUnavailableError, "on the device's CPU"),
        ({"method": "isolated"}, UserError, "got method isolated"),
        ({"method": "isolate"}, UserError, "unknown profiling method"),
    ):
        with pytest.raises(error, match=said):
            make(path, **options)
    path.mkdir()
    (path / "mine").write_text("")
    with pytest.raises(UserError, match="new or empty folder"):
        make(path)
    assert list(tmp_path.iterdir()) == [path]


def test_hollow_files_are_filled_with_weights_of_the_same_mean_and_spread() -> None:
    rng = np.random.default_rng(0)
    large, small = (rng.normal(0.1, 0.02, size).astype(np.float32) for size in (500_000, 64))
    data = b"head" + large.tobytes() + b"between" + small.tobytes() + b"end"
    packed = hollowed(data, [small, large])
    assert len(packed) < 1000
    again = filled(packed)
    assert len(again) == len(data)
    assert again[:4] == b"head"
    assert again[4 + large.nbytes :] == data[4 + large.nbytes :]
    made = np.frombuffer(again[4 : 4 + large.nbytes], np.float32)
    assert made.mean() == pytest.approx(0.1, abs=1e-3)
    assert made.std() == pytest.approx(0.02, rel=0.01)
    for wrong in (b"no kit", zlib.compress(b"no kit")):
        with pytest.raises(ValueError, match=r"."):
            filled(wrong)


def test_children_go_without_their_weights(folder: Path) -> None:
    size = sum(file.stat().st_size for file in (folder / "children").iterdir())
    whole = len(filled((folder / "children" / "0.onnx.z").read_bytes()))
    assert size < 0.3 * whole * len(list((folder / "children").iterdir()))


def test_nodes_of_a_file_are_read_without_onnx(folder: Path) -> None:
    import onnx

    data = filled((folder / "children" / "1.onnx.z").read_bytes())
    for own, node in zip(onnx_nodes(data), onnx.load_from_string(data).graph.node, strict=True):
        assert own == {
            "name": node.name,
            "op_type": node.op_type,
            "domain": node.domain,
            "input": list(node.input),
            "output": list(node.output),
        }


def bare(folder: Path, packages: tuple[str, ...]) -> Path:
    """The python of a new environment with nothing but these packages, borrowed from where this runs."""
    venv.create(folder / "venv", with_pip=False)
    borrowed = folder / "only"
    borrowed.mkdir()
    for name in packages:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        file = Path(spec.origin)
        source = file.parent if spec.submodule_search_locations else file  # a package, or one file
        (borrowed / source.name).symlink_to(source)
        for libraries in source.parent.glob("*.libs"):
            if libraries.stem.lower() == name.lower():
                (borrowed / libraries.name).symlink_to(libraries)
    site = next((folder / "venv").rglob("site-packages"))
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    return next(path for path in (folder / "venv").rglob("python*") if path.name in ("python", "python.exe"))


def test_the_network_itself_is_loaded_among_the_children(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First, in the middle and near the end of the whole children; bundles twice, the second time last first."""
    folder = copied(kit, tmp_path / "kit")
    plan = json.loads((folder / "plan.json").read_text())
    module = loaded(folder)
    order: list[int] = []
    whole = module._Session.loaded

    def watched(self: Any, child: int, **how: Any) -> Any:
        order.append(child)
        return whole(self, child, **how)

    monkeypatch.setattr(module._Session, "loaded", watched)
    module.measure(folder, module.NETWORK)
    members = [member for stage in plan["stages"] for member in stage["members"]]
    many = sum(len(stage["members"]) >= 8 for stage in plan["stages"])
    assert many > 0
    assert order.count(plan["reference"]) == 1 + 2 * many + members.count(plan["reference"])
    assert len(order) == len(members) + 1 + 2 * many


def run_bare(folder: Path, scratch: Path, runtime: str) -> None:
    """A kit in an environment that has numpy and the runtime only."""
    python = bare(scratch, ("numpy", *PACKAGES.get(runtime, (runtime,))))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    for name in ("torch", "nar_hw", "onnx"):
        failed = subprocess.run([python, "-c", f"import {name}"], capture_output=True, env=environment, cwd=scratch)
        assert failed.returncode == 1
    command = [python, folder / "measure.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=scratch)
    assert (done.returncode, done.stderr) == (0, "")
    assert "bring this file back" in done.stdout


def test_a_kit_runs_where_neither_torch_nor_nar_hw_is(kit: Path, tmp_path: Path) -> None:
    folder = copied(kit, tmp_path / "kit")
    run_bare(folder, tmp_path, "onnxruntime")
    assert Times.load(folder / "times.json").clock in ("thread", "wall")


slow = pytest.mark.skipif("NAR_HW_SLOW_TESTS" not in os.environ, reason="converts or compiles: set NAR_HW_SLOW_TESTS=1")


@pytest.mark.parametrize(
    ("runtime", "method", "files"),
    [
        ("litert", "regression", {"0.tflite.z"}),
        pytest.param("ncnn", "regression", {"0.param.z", "0.bin.z"}, marks=slow),
        ("mnn", "in-context", {"0.mnn.z"}),
        pytest.param("openvino", "in-context", {"0.onnx.z"}, marks=slow),
    ],
)
def test_kits_of_other_runtimes_run_where_nothing_else_is(tmp_path: Path, runtime: str, method: str, files: set[str]) -> None:
    pytest.importorskip(PACKAGES.get(runtime, (runtime,))[0])
    folder = tmp_path / "kit"
    make(folder, config=RuntimeConfig(runtime=runtime), method=method, validate=0)
    sizes = {file.name: file.stat().st_size for file in (folder / "children").iterdir()}
    assert files <= set(sizes)
    run_bare(folder, tmp_path, runtime)
    times = Times.load(folder / "times.json")
    assert times.fingerprint["runtime"] == runtime
    if runtime != "openvino":  # whose worker has no clock of its own, and the wall's is too coarse for such networks
        table_from(times).check(space())
    for batch in times.batches:
        for layers in batch.layers or ():
            sites = {name.rpartition("/")[0] for name in layers.names}
            assert {"layer1.conv1", "layer2.conv2"} <= {path for site in sites for path in (site, ".".join(site.split(".")[:2]))}
            assert runtime == "mnn" or set(layers.names) <= set(layers.producers)  # MNN's are read from the ONNX file


# Bundles


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = TinyResNet().eval()
    latency = Latency(predicted_ms=1.5)
    return exported(network, tmp_path_factory.mktemp("bundle") / "bundle", batch=(1, 4), latency=latency)


def test_bundles_are_measured_on_a_device(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kit"
    write_bench_kit({"child": bundle, "baseline": bundle}, folder, RuntimeConfig(batch=2), rounds=4)
    assert (folder / "children" / "0" / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    module = loaded(folder)
    order: list[int] = []
    whole = module._Session.loaded
    monkeypatch.setattr(module._Session, "loaded", lambda self, child, **how: order.append(child) or whole(self, child, **how))
    module.measure(folder, module.NETWORK)
    assert order == [0, 0, 1, 1, 0], "one to see how long a visit takes, then each twice, the second time last first"
    times = Times.load(folder / "times.json")
    assert times.clock == "wall"
    found = bench_from(times)
    assert [row.subject for row in found.rows] == ["child", "baseline"]
    assert [row.batch for row in found.rows] == [2, 2]
    runs = np.array(times.batches[0].runs)
    for item, row in enumerate(found.rows):
        assert row.n == 4 * (times.repeats - 1)
        assert row.p50_ms == pytest.approx(np.median(runs[:, item, 1:]))
        assert row.fingerprint["runtime_version"] == onnxruntime.__version__
    assert found.comparisons[0].rounds == 4
    assert predictions(times) == {"child": 1.5, "baseline": 1.5}
    found.save(tmp_path / "bench.json")
    assert BenchFile.load(tmp_path / "bench.json") == found
    with pytest.raises(RunError, match="these are of a benchmark: use nar-hw bench --from"):
        table_from(times)


def test_profiles_are_no_benchmarks(folder: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="these are of a profile: use nar-hw profile --from"):
        bench_from(Times.load(folder / "times.json"))
    with pytest.raises(RuntimeUnavailableError, match="takes 1 to 4 images, not 8"):
        write_bench_kit({"child": bundle}, tmp_path / "kit", RuntimeConfig(batch=8))
    with pytest.raises(RuntimeUnavailableError, match="kits can be made for"):
        write_bench_kit({"child": bundle}, tmp_path / "kit", RuntimeConfig(runtime="aoti"))
    assert list(tmp_path.iterdir()) == []


# Commands


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("profile --from times.json --model resnet18 -o t.json", "--from takes what it needs from the times"),
        ("profile --from times.json", "add -o table.json"),
        ("profile --from times.json -o t.json", "times of a kit times.json does not exist"),
        ("profile --model resnet18 --input 3x32x32 --kit kit -o t.json", "--kit measures nothing here"),
        ("profile --model resnet18 --input 3x32x32 -o t.json --runtime-version 1.2", "--runtime-version goes with --kit"),
        ("profile -o t.json", "add --model and --input"),
        ("profile --model resnet18 --input 3x32x32", "add -o table.json"),
        ("bench", "either a bundle or --from"),
        ("bench bundle --from times.json", "either a bundle or --from"),
        ("bench --from times.json --against bundle", "but got --kit, --ssh or --against"),
        ("bench bundle --ssh pi@board --kit kit", "--kit measures nothing here, but got --ssh"),
        ("bench bundle --batch 1,2 --ssh pi@board", "make one kit for each"),
        ("profile --model resnet18 --input 3x32x32 --kit kit --ssh pi@board", "--kit measures nothing here"),
        ("profile --model resnet18 --input 3x32x32 -o t.json --ssh pi@board --resume", "by itself, but got --fill or --resume"),
        ("profile --from times.json -o t.json --ssh pi@board", "--from takes what it needs from the times"),
        ("bench bundle --batch 1,2 --kit kit", "make one kit for each"),
    ],
)
def test_words_that_do_not_go_together(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        app(words.split())
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_held_out_children_are_measured_in_the_rounds_of_the_others(kit: Path, table: LatencyTable) -> None:
    stages = json.loads((kit / "plan.json").read_text())["stages"]
    assert [stage["name"] for stage in stages] == ["operators in context", "children"]
    assert table.validation is not None
    assert len(stages[-1]["members"]) == table.method.children + table.validation.children
    assert table.validation.rounds == table.method.rounds
    assert not {pair.arch for pair in table.validation.pairs} & {space().names(arch) for arch in seen(space(), table.method)}


def test_commands_make_a_table_of_times(
    folder: Path, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nar_hw.latency.kit.table_from", lambda times: table)
    with pytest.raises(SystemExit) as stopped:
        app(["profile", "--from", str(folder / "times.json"), "-o", str(tmp_path / "table.json"), "--json"])
    assert stopped.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["model"] == NET.name
    assert LatencyTable.load(tmp_path / "table.json") == table
    assert table.incumbent_ms == said["incumbent_ms"]
