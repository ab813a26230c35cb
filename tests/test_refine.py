"""From trained weights to a front: every stage, what is refused before anything starts, and going on after a stop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from nar_hw.bundles.config import ExportConfig
from nar_hw.cli.app import app
from nar_hw.errors import ModelError, RunError, TargetError, UserError
from nar_hw.latency.profiler import profile
from nar_hw.models.info import ModelInfo
from nar_hw.models.weights import save_weights
from nar_hw.records import replace
from nar_hw.runtimes.config import RuntimeConfig
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.search.config import FITTED, FitConfig
from nar_hw.steps.refine import RefineConfig, Refinement, in_ms, refine
from nar_hw.training.child import Child
from nar_hw.training.recipes import RECIPES
from tests.networks import TinyResNet

NET = f"{__file__}:wide"
MODEL = ModelInfo(name=NET, input_shape=(3, 8, 8), num_classes=4, operators=("conv3x3", "dwsep3x3", "max3x3"))
CONFIG = RefineConfig(
    model=MODEL,
    data="fake:3x8x8x4",
    targets=("0.98", "0.95"),
    search=replace(FITTED, fit=FitConfig(epochs=1, batch=32), epochs=2, updates=2, samples=3, batch=32, rescored=4, finalists=2),
    recipe=replace(RECIPES["finetune"], epochs=2, batch=32),
    export=ExportConfig(batch=(1, 4)),
)


def wide(num_classes: int = 4) -> TinyResNet:
    """Wide enough that convolutions decide its latency."""
    return TinyResNet(width=32, classes=num_classes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, MODEL.build())
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a device that is not here, so that nothing in a refinement depends on times."""
    path = tmp_path_factory.mktemp("table") / "t.json"
    with FakeRuntime.on(FakeDevice(noise=0.0)):
        profile(MODEL.space(), config=RuntimeConfig(runtime="fake"), model_name=NET, validate=0).save(path)
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, weights: Path, table: Path) -> Refinement:
    return refine(CONFIG, tmp_path_factory.mktemp("runs") / "x", weights=weights, table=table, allow_mismatch=True)


def test_every_stage_leaves_the_files_of_its_command(done: Refinement) -> None:
    assert [file.relative_to(done.out).as_posix() for file, _ in done.stages.values()] == [
        "baseline/child.json",
        "table.json",
        "run.json",
        "children/0.98/child.json",
        "children/0.95/child.json",
        "bundles/baseline/manifest.json",
        "bundles/0.98/manifest.json",
        "bundles/0.95/manifest.json",
        "bench.json",
    ]
    assert all(file.exists() for file, _ in done.stages.values())
    rows = done.outcome()["networks"]
    assert [row["name"] for row in rows] == ["baseline", "0.98", "0.95"]
    assert [row["target_ms"] / rows[0]["predicted_ms"] for row in rows[1:]] == pytest.approx([0.98, 0.95])
    assert all(row["predicted_ms"] <= row["target_ms"] for row in rows[1:])
    assert rows[0]["ratio"] == 1
    children = [Child.load(done.out / "children" / name) for name in CONFIG.targets]
    assert [child.init for child in children] == ["fitted", "fitted"]
    assert Child.load(done.out / "baseline").init == "given"
    page = (done.out / "report.html").read_text()
    assert "Test accuracy against measured latency" in page
    assert "What it cost, and what was gained" in page


def children_of(out: Path) -> dict[str, bytes]:
    return {name: (out / "children" / name / "weights.safetensors").read_bytes() for name in CONFIG.targets}


def test_a_refinement_stopped_after_each_stage_goes_on_to_the_same_bits(
    done: Refinement, weights: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Refinement:
        return refine(CONFIG, tmp_path / "x", weights=weights, table=table, allow_mismatch=True)

    for stage in ("_search", "_train", "_export"):
        real: Callable[..., None] = getattr(Refinement, stage)
        calls: list[tuple[Any, ...]] = []

        def stopped(*arguments: Any, real: Callable[..., None] = real, calls: list[tuple[Any, ...]] = calls) -> None:
            real(*arguments)
            calls.append(arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Refinement, stage, stopped)
            with pytest.raises(KeyboardInterrupt):
                run()
        assert len(calls) == 1
    again = run()
    assert children_of(again.out) == children_of(done.out)
    assert [row["arch"] for row in again.outcome()["networks"]] == [row["arch"] for row in done.outcome()["networks"]]


def test_a_folder_of_other_settings_or_other_things_is_refused(
    done: Refinement, weights: Path, table: Path, tmp_path: Path
) -> None:
    common = {"weights": weights, "table": table, "allow_mismatch": True}
    with pytest.raises(RunError, match=r"config\.seed is 0 there and 1 now"):
        refine(replace(CONFIG, seed=1), done.out, **common)  # type: ignore[arg-type]
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(RunError, match="must be a new folder or one of nar-hw refine, but holds something else"):
        refine(CONFIG, tmp_path, **common)  # type: ignore[arg-type]


@pytest.mark.parametrize(("target", "ms"), [("0.5", 1.0), ("0.4ms", 0.4), (".25", 0.5), (" 3 ms ", 3.0)])
def test_targets_are_shares_or_milliseconds(target: str, ms: float) -> None:
    assert in_ms(target, 2.0) == pytest.approx(ms)


@pytest.mark.parametrize("target", ["1.0", "0", "-1ms", "fast", "", "0.4s", "1e3ms", "\u00b2ms", "nan", "0ms"])
def test_a_target_that_is_neither_is_refused(target: str) -> None:
    with pytest.raises(
        TargetError, match=r"a target must be a share of the network's latency between 0 and 1, like 0\.6, or a time"
    ):
        in_ms(target, 2.0)


def test_what_cannot_work_is_refused_before_anything_is_written(weights: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"

    def refused(error: type[UserError], message: str, config: RefineConfig = CONFIG, **options: Any) -> None:
        with pytest.raises(error, match=message) as caught:
            refine(config, out, **{"weights": weights, "table": table, "allow_mismatch": True, **options})
        assert "\n" not in str(caught.value)
        assert not out.exists()

    save_weights(tmp_path / "other.safetensors", replace(MODEL, num_classes=7).build())
    refused(
        ModelError,
        r"with 4 classes \(those of fake:3x8x8x4\): .* do, but .* is 7x\d+ in the file",
        weights=tmp_path / "other.safetensors",
    )
    refused(RunError, r"^trained network .*none does not exist$", weights=tmp_path / "none")
    refused(RunError, r"^latency table .*none\.json does not exist$", table=tmp_path / "none.json")
    (tmp_path / "empty").mkdir()
    refused(RunError, r"^trained network .*weights\.safetensors does not exist$", weights=tmp_path / "empty")
    refused(RunError, r"^latency table .*empty must be a file, but is a folder$", table=tmp_path / "empty")
    refused(
        TargetError,
        r"targets must be within .* ms \(.* of the network's .*\), but got 0.0001ms",
        replace(CONFIG, targets=("0.0001ms",)),
    )
    refused(
        UserError,
        "in a runtime that loads files, but torch_eager",
        replace(CONFIG, conditions=RuntimeConfig(runtime="torch_eager")),
    )
    refused(UserError, "the model's input must be the data's image shape", replace(CONFIG, data="fake:3x9x9x4"))
    fixed = replace(CONFIG, model=replace(MODEL, operators=("conv3x3",)))
    refused(UserError, "no slot with a choice", fixed, table=None)
    with pytest.raises(TargetError, match="every target must be another one"):
        replace(CONFIG, targets=("0.5", ".5"))
    assert replace(CONFIG, targets=("0.5", "0.5ms")).targets == ("0.5", "0.5ms")


# The command


def test_the_command_plans_and_scores(weights: Path, table: Path, tmp_path: Path) -> None:
    common = ["--model", NET, "--data", "fake:3x8x8x4", "--weights", str(weights), "--json"]
    planned = CliRunner().invoke(app, ["refine", *common, "--targets", "0.9", "--out", str(tmp_path / "x"), "--plan"])
    assert planned.exit_code == 0, planned.output
    stages = json.loads(planned.stdout)["stages"]
    assert [stage["stage"] for stage in stages] == (
        ["baseline", "latency table", "search", "train 0.9", "export baseline", "export 0.9", "benchmark"]
    )
    assert all(stage["seconds"] > 0 for stage in stages)
    tabled = [
        "refine",
        *common,
        "--operators",
        "conv3x3,dwsep3x3,max3x3",
        "--table",
        str(table),
        "--out",
        str(tmp_path / "x"),
        "--plan",
        "--targets",
    ]
    given = json.loads(CliRunner().invoke(app, [*tabled, "0.95"]).stdout)["stages"][1]
    assert given == {"stage": "latency table", "what": f"given: {table}", "seconds": 0.0, "done": False}
    refused = CliRunner().invoke(app, [*tabled, "0.01"])
    assert refused.exit_code == 2
    assert "targets must be within" in str(refused.stderr or refused.exception)
    assert not (tmp_path / "x").exists()
    scored = CliRunner().invoke(app, ["eval", *common, "--out", str(tmp_path / "b")])
    value = json.loads(scored.stdout)
    assert value["accuracy"] == dict(Child.load(tmp_path / "b").accuracy)
    assert value["weights"]["tensors"] == len(MODEL.build().state_dict())


def test_refining_needs_trained_weights(tmp_path: Path) -> None:
    words = ["refine", "--model", NET, "--data", "fake:3x8x8x4", "--targets", "0.9", "--out", str(tmp_path / "x")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "give either --weights FILE or --baseline FOLDER" in result.output


# One search, many targets


def test_a_search_from_weights_and_another_target_from_its_folder(weights: Path, table: Path, tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        result = CliRunner().invoke(app, ["search", *words, "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    first = ["--model", NET, "--data", "fake:3x8x8x4", "--table", str(table), "--weights", str(weights), "--allow-mismatch"]
    settings = ["--batch", "32", "--epochs", "2", "--set", "updates=2", "--set", "rescored=4", "--set", "finalists=2"]
    fast, slow = (f"{share * 0.1965:.6f}" for share in (0.95, 0.99))
    both = run(
        *first,
        *settings,
        "--set",
        "fit.epochs=1",
        "--set",
        "fit.batch=32",
        "--target-ms",
        slow,
        "--target-ms",
        fast,
        "--out",
        str(tmp_path / "x"),
    )
    assert [item["target_ms"] for item in both["targets"]] == [float(slow), float(fast)]
    assert both["arch"] == both["targets"][0]["arch"]
    again = run("--from", str(tmp_path / "x"), "--target-ms", fast, "--out", str(tmp_path / "y"))
    assert [item["target_ms"] for item in again["targets"]] == [float(fast)]
    old, new = (load_file(tmp_path / name / "supernet.safetensors") for name in "xy")
    # Scoring estimates the statistics of norms anew; no weight was trained again.
    assert all(
        torch.equal(old[key], new[key]) for key in old if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )


def test_a_search_needs_a_network_or_a_search(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["search", "--target-ms", "1", "--out", str(tmp_path / "x")])
    assert result.exit_code == 2
    assert "a search needs --model, --data and what to search for" in result.output
