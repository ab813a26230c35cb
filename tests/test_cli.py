"""The commands through their real entry point, on a tiny network, made data and the fake runtime."""

import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nar_hw.cli import main
from nar_hw.errors import RuntimeUnavailableError, TableError
from nar_hw.latency.device import fingerprint
from nar_hw.latency.table import LatencyTable
from nar_hw.runtimes import RuntimeConfig, runtime_class

NET = f"{Path(__file__).parent / 'networks.py'}:tiny"
DATA = "fake:3x8x8x4"
SPACE = f"--model {NET} --input 3x8x8 --operators conv3x3,dwsep3x3,max3x3"

SHORT = "--epochs 2 --warmup-epochs 1 --batch 32"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nar-hw", *shlex.split(line)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def reachable(table: Path) -> float:
    """A target in the middle of what the space reaches."""
    return sum(LatencyTable.load(table).bounds()) / 2


def ok(result: tuple[int, str, str]) -> Any:
    code, out, err = result
    assert code == 0, err
    (line,) = out.splitlines()
    return json.loads(line)


def refused(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert code == 2, (out, err)
    assert out == ""
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("nar-hw: ")]
    return line


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, a search, a trained child and its bundle, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("runs")
    lines = [
        f"profile {SPACE} --classes 4 --runtime fake --validate 8 -o table.json",
        f"search --model {NET} --data {DATA} --table table.json --target-ms {{target}} --out x {SHORT}",
        f"train --arch x --data {DATA} --recipe demo --epochs 1 --out x/child",
        f"train --arch incumbent --model {NET} --data {DATA} --recipe demo --epochs 1 --out x/baseline",
        "export x/child --out x/bundle",
        "export x/baseline --out x/baseline_bundle",
        "bench x/bundle --against x/baseline_bundle --rounds 6 --json",
        "report x",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in lines:
            if "{target}" in line:
                line = line.format(target=reachable(folder / "table.json"))
            patch.setattr(sys, "argv", ["nar-hw", *shlex.split(line)])
            with pytest.raises(SystemExit) as stop:
                main()
            assert not stop.value.code, line
    return folder


def test_the_whole_path_leaves_what_it_says(home: Path) -> None:
    child = json.loads((home / "x/child/child.json").read_text())
    run = json.loads((home / "x/run.json").read_text())
    assert child["arch"] == run["arch"]
    assert run["predicted_ms"] <= run["target_ms"] == child["target_ms"]
    assert {"model.onnx", "manifest.json", "weights.safetensors", "arch.json", "README.md"} <= {
        path.name for path in (home / "x/bundle").iterdir()
    }
    assert "<html" in (home / "x/report.html").read_text()


def test_help_answers_without_torch() -> None:
    code = "import sys; sys.argv = ['nar-hw', '--help']; from nar_hw.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "doctor",
        "space",
        "count",
        "classify",
        "profile",
        "search",
        "train",
        "export",
        "bench",
        "report",
        "bundle verify",
        "bundle triton",
        "proxy study",
        "proxy select",
    ],
)
def test_every_command_has_an_example(run: Run, command: str) -> None:
    code, out, _ = run(f"{command} --help")
    assert code == 0
    assert re.search(rf"Example:\s+nar-hw\s+{command.replace(' ', chr(92) + 's+')}", out)


def test_version(run: Run) -> None:
    code, out, _ = run("--version")
    assert (code, out.strip()) == (0, "nar-hw 0.1.0")


def test_doctor(run: Run) -> None:
    found = ok(run("doctor --json"))
    runtimes = {item["name"]: item for item in found["runtimes"]}
    assert runtimes["onnxruntime"]["works"]
    assert all(item["works"] or item["reason"] for item in runtimes.values())
    code, out, _ = run("doctor")
    assert code == 0
    assert "onnxruntime" in out
    if not runtimes["tensorrt"]["works"]:
        assert "pip install 'nar-hw[tensorrt]'" in out


def test_space(run: Run) -> None:
    found = ok(run(f"space {SPACE} --json"))
    assert [slot["name"] for slot in found["slots"]] == ["layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2"]
    assert [item["code"] for item in found["slots"][0]["candidates"]] == [0, 1, 2]
    code, out, _ = run(f"space {SPACE} --manner block")
    assert code == 0
    assert "2 slots, 9 archs" in out


def test_ones_own_operators_and_slots_go_the_whole_way(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ops.py").write_text(
        "from torch import nn\n"
        "def thin(spec):\n"
        "    return nn.Sequential(nn.Conv2d(spec.c_in, 2, 3, spec.stride, 1), nn.Conv2d(2, spec.c_out, 1))\n"
    )
    chosen = f"--model {NET} --input 3x8x8 --classes 4 --operators conv3x3,ops.py:thin --slots 'layer2.conv*'"
    slots = ok(run(f"space {chosen} --json"))["slots"]
    assert [(slot["name"], [item["operator"] for item in slot["candidates"]]) for slot in slots] == [
        ("layer2.conv1", ["conv3x3", "thin"]),
        ("layer2.conv2", ["conv3x3", "thin"]),
    ]
    ok(run(f"profile {chosen} --runtime fake --validate 0 -o t.json --json"))
    target = reachable(tmp_path / "t.json")
    found = ok(run(f"search --model {NET} --data {DATA} --table t.json --target-ms {target} --out x {SHORT} --json"))
    assert "thin" in found["arch"]
    ok(run(f"train --arch x --data {DATA} --recipe demo --epochs 1 --out x/child --json"))
    assert ok(run("export x/child --out x/bundle --json"))


def test_count_agrees_with_the_sum_over_slots(run: Run) -> None:
    whole = ok(run(f"count {SPACE} --json"))
    child = ok(run(f"count {SPACE} --arch 0,2,dwsep3x3,0 --json"))
    assert child["arch"] == ["conv3x3", "max3x3", "dwsep3x3", "conv3x3"]
    own = ok(run(f"count {SPACE} --arch 0,0,0,0 --json"))
    for key in ("params", "flops", "pool_ops"):
        assert own[key] == whole[key]
        change = sum(slot[key] for slot in child["slots"]) - sum(slot[key] for slot in own["slots"])
        assert child[key] - own[key] == change


def test_count_several_networks_in_one_table(run: Run) -> None:
    """AlexNet and ResNeXt-50 as published; each with its own usual images."""
    found = ok(run("count --model alexnet,resnext50_32x4d,lenet5 --json"))["networks"]
    assert [(row["model"], row["params"]) for row in found] == [
        ("alexnet", 61_100_840),
        ("resnext50_32x4d", 25_028_904),
        ("lenet5", 44_426),
    ]
    assert [row["input_shape"] for row in found] == [[3, 224, 224], [3, 224, 224], [1, 28, 28]]
    code, out, _ = run("count --model lenet5,nin")
    assert code == 0
    assert "44,426" in out


def test_count_a_child_of_the_paper_by_name(run: Run) -> None:
    found = ok(run("count --arch resnet18-8 --json"))
    assert (found["params"], found["model"], found["input_shape"]) == (11_625_128, "resnet18", [3, 224, 224])
    assert found["arch"] == ["dwsep3x3", *["conv3x3"] * 7]
    small = ok(run("count --arch resnet18-8 --input 3x32x32 --classes 10 --json"))
    assert small["params"] == 11_625_128 - 64 * 3 * (49 - 9) - 513 * 990
    assert "--model must be resnet18, of which resnet18-8 is a child" in refused(run("count --arch resnet18-8 --model resnet34"))
    assert "says what its slots are, but got --manner" in refused(run("count --arch resnet18-8 --manner conv"))
    assert "counting needs --model, or --arch with a child of the paper" in refused(run("count --arch 0,0"))
    assert "--arch is of one network, but --model names 2" in refused(run("count --model lenet5,nin --arch 0,0"))


def test_a_face_network_embeds_into_512_numbers(run: Run) -> None:
    assert ok(run("count --model lresnet50e_ir --json"))["params"] == 43_590_848


def test_tables(run: Run, home: Path) -> None:
    table = home / "table.json"
    shown = ok(run(f"table show {table} --json"))
    assert len(shown["slots"]) == 4
    assert shown["ties"] == {slot: list(map(list, pairs)) for slot, pairs in LatencyTable.load(table).ties().items()}
    predicted = ok(run(f"table predict {table} --arch 0,0,0,0 --json"))["predicted_ms"]
    assert predicted == pytest.approx(shown["fixed_ms"] + sum(slot["ms"]["conv3x3"] for slot in shown["slots"]))
    listed = ok(run(f"table list {home} --json"))["tables"]
    assert {item["file"] for item in listed} == {str(file) for file in home.rglob("table.json")}
    assert {item["incumbent_ms"] for item in listed} == {shown["incumbent_ms"]}
    again = ok(run(f"table validate {table} --children 6 --json"))
    assert again["mape_percent"] < 10
    for command in (f"show {table}", f"predict {table} --arch 0,0,0,0", f"list {home}", "list"):
        code, out, _ = run(f"table {command}")
        assert code == 0
        assert out


def test_a_table_is_filled_compared_found_and_plotted(run: Run, home: Path, tmp_path: Path) -> None:
    old = tmp_path / "t.json"
    shutil.copy(home / "table.json", old)
    more = SPACE.replace("max3x3", "max3x3,avg3x3")
    ok(run(f"profile {more} --classes 4 --runtime fake --fill -o {old} --validate 8 --json"))
    assert "avg3x3" in ok(run(f"table show {old} --json"))["slots"][0]["ms"]
    found = ok(run(f"table diff {home}/table.json {old} --json"))
    assert len(found["changes"]) == 12
    assert found["beyond_noise"] == 0
    code, out, _ = run(f"table diff {home}/table.json {old}")
    assert code == 0
    assert "0 of 12 differences exceed the noise" in " ".join(out.split())
    assert (
        len(ok(run(f"table list {tmp_path} --runtime fake --device FAKE --model {NET} --precision fp32 --json"))["tables"]) == 1
    )
    for other in ("--runtime onnxruntime", "--device gpu", "--model x", "--precision int8"):
        assert ok(run(f"table list {tmp_path} {other} --json"))["tables"] == []
    ok(run(f"table validate {old} --children 6 --plot {tmp_path}/v.png --json"))
    assert (tmp_path / "v.png").exists()


def test_bench_prints_a_ratio(run: Run, home: Path) -> None:
    code, out, err = run(f"bench {home}/x/bundle --against {home}/x/baseline_bundle --rounds 4")
    assert code == 0, err
    assert re.search(r"x/bundle takes \d\.\d+ of .*x/baseline_bundle \(95 % interval", " ".join(out.split()))


def test_bench_writes_what_it_is_asked_for(run: Run, home: Path, tmp_path: Path) -> None:
    line = f"bench {home}/x/bundle --runtime onnxruntime --precision fp32,int8 --batch 1,2 --rounds 4"
    code, out, err = run(f"{line} --csv {tmp_path}/b.csv --plot {tmp_path}/b.png -o {tmp_path}/b.json --json")
    assert code == 0, err
    value = json.loads(out)
    assert json.loads((tmp_path / "b.json").read_text()) == value
    assert [(row["precision"], row["batch"]) for row in value["rows"]] == [("fp32", 1), ("fp32", 2)]
    assert [(item["precision"], item["batch"]) for item in value["left_out"]] == [("int8", 1), ("int8", 2)]
    assert len((tmp_path / "b.csv").read_text().splitlines()) == 3
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = run(f"bench {home}/x/bundle --precision fp32,int8 --rounds 2")
    assert "left out onnxruntime int8, batch 1: bundle" in out


def test_a_bundle_is_verified_and_made_a_triton_model(run: Run, home: Path, tmp_path: Path) -> None:
    checked = ok(run(f"bundle verify {home}/x/bundle --data {DATA} --json"))["checked"]
    child = json.loads((home / "x/child/child.json").read_text())
    assert checked["fp32"]["accuracy"] == pytest.approx(child["accuracy"]["valid"])
    code, out, _ = run(f"bundle verify {home}/x/bundle")
    assert code == 0
    assert "all hashes are right" in out
    assert ok(run(f"bundle triton {home}/x/bundle --out {tmp_path}/models --name net --json"))["model"] == "net"
    assert 'name: "net"' in (tmp_path / "models/net/config.pbtxt").read_text()
    assert "has a model net already" in refused(run(f"bundle triton {home}/x/bundle --out {tmp_path}/models --name net"))
    assert "--data must have the bundle's images" in refused(run(f"bundle verify {home}/x/bundle --data digits"))


def test_a_finished_search_is_not_repeated(run: Run, home: Path) -> None:
    saved = json.loads((home / "x/run.json").read_text())
    line = f"search --model {NET} --data {DATA} --table {home}/table.json --target-ms {saved['target_ms']} --out {home}/x"
    assert ok(run(f"{line} --epochs 2 --warmup-epochs 1 --batch 32 --resume --json"))["arch"] == saved["arch"]
    assert "holds a search already" in refused(run(f"{line} --epochs 2 --warmup-epochs 1 --batch 32"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("space --model resnet81 --input 3x32x32", r"unknown model 'resnet81': use one of .*resnet18"),
        ("space --model resnet18 --input 3x32", r"must be CxHxW, like 3x224x224, but got '3x32'"),
        (f"space {SPACE},conv9x9", r"unknown operator 'conv9x9': use one of .*conv3x3"),
        (f"count {SPACE} --arch 0,0,0", r"one code per slot: 4 slots, but got 3"),
        (f"count {SPACE} --arch 0,0,0,5", r"admits the codes 0 \(conv3x3\)"),
        (f"profile {SPACE} --runtime onnxrunime -o t.json", r"unknown runtime 'onnxrunime': use one of .*onnxruntime"),
        (f"profile {SPACE} --runtime cuda_graph --device cuda -o t.json", r"cuda_graph"),
        (f"profile {SPACE} --method guess -o t.json", r"unknown profiling method 'guess'"),
        (f"profile {SPACE} --runtime fake --precision fp8 -o t.json", r"unknown precision 'fp8'"),
        ("table show none.json", r"none.json does not exist"),
        (f"train --arch 0,0,0,0 --model {NET} --data diggits --out c", r"unknown data set 'diggits': use one of digits"),
        (f"train --arch 0,0,0,0 --data {DATA} --out c", r"--model must name the network"),
        (f"train --arch 0,0,0,0 --model {NET} --data {DATA} --recipe slow --out c", r"unknown recipe 'slow'"),
        (f"train --arch 0,0,0,0 --model {NET} --data {DATA} --init inherited --out c", r"inherited together with --baseline"),
        (f"train --arch . --data {DATA} --out c", r"run.json does not exist"),
        ("export . --out b", r"child.json does not exist"),
        ("export . --batch many --out b", r"--batch must be one number or a range"),
        ("bench .", r"manifest"),
        ("report .", r"run.json"),
    ],
)
def test_a_users_error_is_one_line(run: Run, line: str, message: str) -> None:
    assert re.search(message, refused(run(line)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 1e-6}, r"reach"),
        ({"target": 1e6}, r""),
        ({"model": "resnet18"}, r"measured for another search space: number of slots is \d+ in the table, 16 here"),
        ({"data": "fake:3x9x9x4"}, r"must be the data's image shape"),
        ({"reward": "gold"}, r"unknown reward 'gold'"),
        ({"strategy": "magic"}, r"unknown strategy 'magic'"),
    ],
)
def test_a_search_that_cannot_be(run: Run, home: Path, change: dict[str, Any], message: str) -> None:
    options = {"model": NET, "data": DATA, "target": 0.01, "reward": "absolute", "strategy": "reinforce", **change}
    line = (
        f"search --model {options['model']} --data {options['data']} --table {home}/table.json --target-ms {options['target']} "
        f"--reward {options['reward']} --strategy {options['strategy']} --out y"
    )
    assert re.search(message, refused(run(line)))


def edited(home: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    content = json.loads((home / "table.json").read_text())
    edit(content)
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(content))
    return path


def test_a_table_of_another_device_is_refused_unless_allowed(run: Run, home: Path, tmp_path: Path) -> None:
    table = edited(home, tmp_path, lambda content: content["fingerprint"].update(device="another device"))
    target = reachable(table)
    line = (
        f"search --model {NET} --data {DATA} --table {table} --target-ms {target} --out y --epochs 1 --warmup-epochs 0 --batch 32"
    )
    assert "device is another device in the table, fake device here" in refused(run(line))
    assert ok(run(f"{line} --allow-mismatch --json"))["measured_ms"] is None


def test_a_table_of_another_cpu_is_refused_where_its_runtime_is_not_installed(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> dict[str, str]:
        raise RuntimeUnavailableError("onnxruntime is not installed")

    monkeypatch.setattr(runtime_class("onnxruntime"), "versions", missing)
    mine = fingerprint(RuntimeConfig(runtime="torch_eager"))
    mine |= {"runtime": "onnxruntime", "runtime_version": "1.31.1"}
    options = f"--target-ms {reachable(home / 'table.json')} --epochs 1 --warmup-epochs 0 --batch 32"
    line = f"search --model {NET} --data {DATA} {options} --table {tmp_path}/edited.json --out {tmp_path}/x"
    table = edited(home, tmp_path, lambda content: content.update(fingerprint={**mine, "device": "another CPU"}))
    for command in (line, f"table validate {table}"):
        assert "device is another CPU in the table" in refused(run(command))
    edited(home, tmp_path, lambda content: content.update(fingerprint=mine))
    found = ok(run(f"{line} --json"))
    (note,) = found["allowed_mismatch"]
    assert note == "runtime_version is 1.31.1 in the table and cannot be compared: the runtime is not installed here"
    assert found["measured_ms"] is None


def test_a_folder_of_tables_may_hold_other_files_but_must_exist(run: Run, home: Path, tmp_path: Path) -> None:
    shutil.copy(home / "table.json", tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"other": 1}')
    (tmp_path / "c.json").write_text("{")
    found = ok(run(f"table list {tmp_path} --json"))
    assert [Path(row["file"]).name for row in found["tables"]] == ["a.json"]
    assert [Path(name).name for name in found["skipped"]] == ["b.json", "c.json"]
    code, out, _ = run(f"table list {tmp_path}")
    assert code == 0
    assert f"no table: latency table {tmp_path}/b.json must have schema" in out
    assert "must exist, but" in refused(run(f"table list {tmp_path}/nothing"))
    assert "unknown runtime 'ort': use one of onnxruntime" in refused(run("table list --runtime ort"))


def test_the_network_itself_can_be_named_and_lies_in_the_printed_range(run: Run, home: Path) -> None:
    by_name = ok(run(f"table predict {home}/table.json --arch incumbent --json"))["predicted_ms"]
    assert by_name == ok(run(f"table predict {home}/table.json --arch 0,0,0,0 --json"))["predicted_ms"]
    shown = ok(run(f"table show {home}/table.json --json"))
    assert shown["fastest_ms"] <= shown["incumbent_predicted_ms"] == by_name <= shown["slowest_ms"]


def test_a_table_without_an_entry_names_it_and_the_command(run: Run, home: Path, tmp_path: Path) -> None:
    table = edited(home, tmp_path, lambda content: content["slots"][1]["candidates"].pop("max3x3"))
    message = refused(run(f"table predict {table} --arch 0,2,0,0"))
    assert "layer1.conv2: max3x3" in message
    assert "nar-hw profile --model" in message


def test_a_truncated_table_is_refused(run: Run, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "half.json"
    path.write_text((home / "table.json").read_text()[:500])
    assert "truncated or was edited by hand" in refused(run(f"table show {path}"))


def test_a_folder_that_cannot_be_written_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refused(run(f"profile {SPACE} --runtime fake --validate 0 -o file/t.json"))
    assert "must be a folder, but it or one that it is in is a file" in said


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nar_hw.cli.app._debug", False)  # which the command sets
    with pytest.raises(TableError, match=r"none\.json"):  # which Python prints with its traceback
        run("table show none.json --debug")


def test_ctrl_c_keeps_what_is_finished(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nar_hw.steps.profile.profile", interrupt)
    code, _, err = run(f"profile {SPACE} --runtime fake -o t.json")
    assert code == 130
    assert "what was finished is kept" in err


def test_a_full_disk_is_one_line_and_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nar_hw.files.os.fsync", full)
    assert "No space left on device" in refused(run(f"profile {SPACE} --runtime fake --validate 0 -o t.json"))
    assert not list(tmp_path.iterdir())
