"""The report of a run: what it reads, what it draws, and that a page stays whole whatever the files hold."""

import dataclasses
import io
import itertools
import json
import math
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from rich.console import Console
from scipy.stats import binomtest

from nar_hw.bench.rows import BenchRow
from nar_hw.bundles.bundle import Arch, export_bundle
from nar_hw.data.preprocessing import Preprocessing
from nar_hw.errors import RunError, TableError, UserError
from nar_hw.files import write_json
from nar_hw.latency.profiler import profile
from nar_hw.latency.record import Cache
from nar_hw.latency.table import LatencyTable
from nar_hw.models.info import ModelInfo
from nar_hw.records import plain as to_plain, replace
from nar_hw.report import read_run, render, terminal_table, words, write_report
from nar_hw.report.charts import LEFT, RIGHT, TOP, Guide, Point, Series, chart, nice_ticks, smoothed, tick_labels
from nar_hw.report.page import COLOURS, _why, colour
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.config import SearchConfig
from nar_hw.space.operators import FAMILIES, OPERATORS, PAPER_OPERATORS
from nar_hw.space.space import SearchSpace
from nar_hw.training.child import Child
from nar_hw.training.recipes import Recipe
from tests.networks import TinyResNet

TEMPLATES = Path(words.__file__).parent
KEPT = ["conv3x3", "conv3x3", "conv3x3", "conv3x3"]
ARCH = ["conv3x3", "dwsep3x3", "max3x3", "conv3x3"]
MODEL = ModelInfo(name="tiny", input_shape=(3, 8, 8), num_classes=3)


@pytest.fixture(scope="module")
def table() -> Iterator[LatencyTable]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    space = SearchSpace.from_model(TinyResNet(width=16, classes=3), (3, 8, 8))
    yield profile(space, config=RuntimeConfig(runtime="fake"), model_name="tiny", validate=8)
    torch.set_num_threads(before)


def scored(arch: list[str], accuracy: float, predicted: float, measured: float | None = None) -> dict[str, Any]:
    load = (measured or predicted) / 0.1
    return {"arch": arch, "accuracy": accuracy, "predicted_ms": predicted, "measured_ms": measured, "load": load}


def network(arch: list[str], test: float, params: int, init: str) -> dict[str, Any]:
    child = Child(
        model=MODEL,
        arch=tuple(arch),
        data="digits",
        recipe=Recipe(epochs=3, lr=0.1),
        seed=7,
        init=init,
        accuracy={"valid": test - 0.01, "test": test},
        params=params,
        flops=40 * params,
        pool_ops=12_345,
        target_ms=0.1,
        predicted_ms=None,
        table_hash=None,
        fingerprint=None,
        preprocessing=Preprocessing(mean=(0.5,), std=(0.2,), classes=("cat", "dog", "<script>alert(1)</script>")),
        versions={"nar_hw": "0.1.0"},
    )
    return {"schema": 2, **to_plain(child)}


def bench_row(subject: str, ms: float) -> dict[str, Any]:
    row = BenchRow(
        **to_plain(RuntimeConfig(runtime="fake")),
        subject=subject,
        p50_ms=ms,
        p90_ms=1.1 * ms,
        p99_ms=None,
        n=90,
        images_per_s=1000 / ms,
        rel=0.01,
        noise_floor=None,
        round_ms=(ms, ms),
        session="s",
        fingerprint={"device": "fake device"},
    )
    return dict(to_plain(row))


def files(table: LatencyTable) -> dict[str, dict[str, Any]]:
    """Everything that a finished run holds."""
    pick = scored(ARCH, 0.91, 0.0951, 0.0962)
    others = [scored(KEPT, 0.95, 0.14), scored(["max3x3"] * 4, 0.71, 0.07), scored(["avg3x3"] * 4, 0.6, 0.08)]
    epochs = [
        {"epoch": epoch, "loss": 2 / epoch, "train_accuracy": 0.5, "valid_accuracy": 1 - 1 / (epoch + 1), "lr": 0.1}
        | {"images_per_s": 9.0, "pieces": 1, "phase": 1}
        for epoch in range(1, 4)
    ]
    history = [
        {"epoch": 1, "warmup": 1, "loss": 2.0},
        {"epoch": 2, "warmup": 0, "loss": 1.5, "reward": 0.6, "accuracy": 0.62, "latency_ms": 0.12, "entropy": 5.5},
        {"epoch": 3, "warmup": 0, "loss": 1.2, "reward": 0.7, "accuracy": 0.7, "latency_ms": 0.11, "entropy": 5.1},
    ]
    config = SearchConfig(epochs=2, warmup_epochs=1, strategy="reinforce", seed=3, updates=6)
    common = {"model": to_plain(MODEL), "manner": "conv", "target_ms": 0.1, "table_hash": table.hash}
    run = {
        "schema": 1,
        **common,
        "operators": sorted({name for item in (pick, *others) for name in item["arch"]}),
        "data": "digits",
        "reward": config.reward,
        "strategy": config.strategy,
        "seed": config.seed,
        "table": "table.json",
        "tables": ["table.json"],
        "versions": {"nar_hw": "0.1.0", "torch": "2.15.0"},
        **pick,
        "met": True,
        "note": "the pick takes 0.0962 ms",
        "pick": pick,
        "finalists": [pick, others[1]],
        "pareto": [others[1], pick, others[0]],
        "scored": [pick, *others],
        "history": history,
        "identity": {**common, "slots": [], "data": {}, "config": to_plain(config)},
    }
    setting = to_plain(RuntimeConfig(runtime="fake"))
    comparison = {"subject": "child", "against": "baseline", **setting, "ratio": 0.7, "low": 0.68, "high": 0.72, "rounds": 30}
    return {
        "run.json": run,
        "child/child.json": network(ARCH, 0.97, 6_873_221, "inherited"),
        "child/history.json": {"schema": 1, "epochs": epochs},
        "baseline/child.json": network(KEPT, 0.975, 11_173_962, "scratch"),
        "baseline/history.json": {"schema": 1, "epochs": epochs},
        "bench.json": {"schema": 1, "rows": [bench_row("baseline", 0.2), bench_row("child", 0.14)], "comparisons": [comparison]},
    }


@pytest.fixture(scope="module")
def content(table: LatencyTable) -> dict[str, dict[str, Any]]:
    return files(table)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, content: dict[str, dict[str, Any]], table: LatencyTable) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "x"
    for name, value in content.items():
        write_json(folder / name, value)
    table.save(folder / "table.json")
    torch.manual_seed(0)
    about = Arch(name="tiny", input_shape=(3, 8, 8), operators=tuple(ARCH), codes=(0, 1, 2, 0))
    classes = Preprocessing(mean=(0.5,) * 3, std=(0.2,) * 3, classes=("a", "b", "c"))
    export_bundle(TinyResNet(classes=3).eval(), folder / "bundle", arch=about, preprocessing=classes)
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(whole, tmp_path / "x"))


class Page(HTMLParser):
    """Elements, ids and texts of a page; asserts that what is opened is closed."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return plain(" ".join(self.texts))


def page(folder: Path) -> Page:
    return Page(render(read_run(folder)))


def change(folder: Path, name: str, **fields: Any) -> None:
    value = json.loads((folder / name).read_text())
    for key, item in fields.items():
        if item is None:
            value.pop(key, None)
        else:
            value[key] = item
    write_json(folder / name, value)


def plain(text: str) -> str:
    """With ordinary spaces and letters."""
    return re.sub(r"\s+", " ", text).replace(words.TIMES, "x").replace(words.MINUS, "-")


def headline(folder: Path) -> dict[str, tuple[str, ...]]:
    return {row.name: tuple(map(plain, (row.baseline, row.child, row.change))) for row in words.headline(read_run(folder))}


# The page


def test_the_headline_has_every_number_with_its_unit(whole: Path, table: LatencyTable) -> None:
    found = page(whole).text
    rows = headline(whole)
    baseline_ms = plain(words.ms(table.incumbent_ms))
    assert rows["Test accuracy"] == ("97.50 %", "97.00 %", "-0.50 points")
    assert rows["Parameters"] == ("11.2 M", "6.87 M", "-38.5 %")
    assert rows["FLOPs"] == ("447 M", "275 M", "-38.5 %")
    assert rows["Pool operations"] == ("12.3 k", "12.3 k", "0.0 %")
    assert rows["Latency asked"] == ("", "0.100 ms", "")
    predicted = table.predict([PAPER_OPERATORS.index(name) for name in KEPT])
    assert rows["Latency predicted"][:2] == (plain(words.ms(predicted)), "0.0951 ms")
    assert rows["Latency measured"][:2] == (baseline_ms, "0.0962 ms")
    assert rows["Measured over predicted"][1] == "+1.2 %"
    for cells in rows.values():
        for cell in cells:
            assert cell in found
    assert "Target met: 0.0962 ms measured, 0.100 ms asked" in found


def test_the_page_is_one_file_that_fetches_and_runs_nothing(whole: Path, tmp_path: Path) -> None:
    path = write_report(whole, tmp_path / "deep" / "page.html")
    text = path.read_text(encoding="utf-8")
    found = Page(text)
    assert {tag for tag, _ in found.elements}.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base", "form"})
    assert not re.search(r"https?:|url\(|@import|javascript:|\bsrc=|\bhref=|\bon\w+=", text)
    assert "default-src 'none'" in text
    assert len(text) < 200_000
    assert write_report(whole) == whole / "report.html"
    (whole / "report.html").unlink()


def test_the_same_run_gives_the_same_page(whole: Path) -> None:
    assert render(read_run(whole)) == render(read_run(whole))


def test_charts_speak_to_who_cannot_see_them(whole: Path) -> None:
    found = page(whole)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    images = [attributes for tag, attributes in found.elements if tag == "svg" and "aria-hidden" not in attributes]
    # The front, Pareto, five of the search, predicted against measured, two of the training
    assert len(images) == 10
    for attributes in images:
        assert attributes["role"] == "img"
        assert set(str(attributes["aria-labelledby"]).split()) <= set(ids)
    assert any(tag == "html" and attributes.get("lang") == "en" for tag, attributes in found.elements)
    assert "Accuracy against predicted latency of 4 scored children; the front has 3." in found.text
    assert "Reward from 0.6000 at epoch 2 to 0.7000 at epoch 3." in found.text


def test_every_slot_shows_its_operator_and_what_it_costs(whole: Path, table: LatencyTable) -> None:
    found = page(whole)
    cells = [attributes for tag, attributes in found.elements if tag == "li" and "cell" in str(attributes.get("class"))]
    assert [cell["title"] for cell in cells] == [
        "slot 0 (layer1.conv1): conv3x3, kept",
        "slot 1 (layer1.conv2): dwsep3x3, was conv3x3",
        "slot 2 (layer2.conv1): max3x3, was conv3x3",
        "slot 3 (layer2.conv2): conv3x3, kept",
    ]
    assert "2 of 4 slots have another operator" in found.text
    bars = [attributes for tag, attributes in found.elements if tag == "span" and "style" in attributes]
    widths = [float(str(bar["style"]).removeprefix("width:").removesuffix("%")) for bar in bars]
    costs = table.matrix[[0, 1, 2, 3], 0], table.matrix[[0, 1, 2, 3], [PAPER_OPERATORS.index(name) for name in ARCH]]
    expected = np.stack(costs, axis=1).ravel() / max(map(np.max, costs)) * 100
    assert widths == pytest.approx(expected.tolist(), abs=0.06)


def test_the_benchmark_is_grouped_by_setting_with_its_comparison(whole: Path) -> None:
    found = page(whole).text
    assert "fake, fp32, batch 1, 1 thread" in found
    assert (
        "child takes 0.700 x the time of baseline: faster (95 % interval 0.680 to 0.720; fake, fp32, batch 1, 1 thread)" in found
    )
    assert "p99" not in found  # null in every row
    assert "GPU memory" not in found


def test_what_comes_from_files_cannot_become_markup(run: Path) -> None:
    evil = "<script>alert('1')</script>\"><img src=x>"
    change(
        run,
        "run.json",
        model={**to_plain(MODEL), "name": evil},
        arch=[evil, *ARCH[1:]],
        data=evil,
        note=evil,
        versions={evil: evil},
    )
    change(run, "bench.json", rows=[bench_row(evil, 1.0)])
    found = page(run)
    assert {tag for tag, _ in found.elements}.isdisjoint({"script", "img"})
    assert "<script>alert('1')</script>" in found.text  # the model's name, as text
    assert "<script>alert(1)</script>" in found.text  # the class's


# Parts that are not there


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("child/child.json", "nar-hw train --arch {run} --data digits --out {run}/child"),
        (
            "baseline/child.json",
            "nar-hw train --arch incumbent --model tiny --data digits --recipe paper --set epochs=3 --seed 7 "
            "--out {run}/baseline",
        ),
        ("table.json", "nar-hw profile --model tiny --input 3x8x8 --classes 3 -o {run}/table.json"),
        ("bench.json", "nar-hw bench {run}/bundle --against {run}/baseline_bundle --json > {run}/bench.json"),
        ("bundle/manifest.json", "nar-hw export {run}/child --to onnx --out {run}/bundle"),
    ],
)
def test_a_missing_file_is_left_out_with_the_command_that_makes_it(run: Path, name: str, command: str) -> None:
    (run / name).unlink()
    found = page(run).text
    assert found.count("Left out") == 1
    assert f"Make it with {command.format(run=run)} " in found


def test_a_run_alone_makes_a_page(run: Path, content: dict[str, dict[str, Any]]) -> None:
    for name in (*content, "table.json"):
        if name != "run.json":
            (run / name).unlink()
    shutil.rmtree(run / "bundle")
    change(run, "run.json", measured_ms=None)
    change(run, "run.json", **{"pick": {**content["run.json"]["pick"], "measured_ms": None}})
    found = page(run)
    assert found.text.count("Left out") == 7
    assert not re.search(r"\b0\.00\b", found.text)  # what is unknown is not zero
    assert " 0 " not in found.text.replace("0 conv3x3 slot 0", "")


def test_a_table_of_another_search_is_not_shown(run: Path) -> None:
    change(run, "run.json", table_hash="0" * 64)
    found = page(run).text
    assert f"because {run / 'table.json'} is another one than the search used" in found
    assert "Latency per slot" not in found


def test_scores_are_called_what_the_task_calls_them(run: Path) -> None:
    identity = json.loads((run / "run.json").read_text())["identity"]
    change(run, "run.json", identity={**identity, "data": {**identity["data"], "metric": "IoU"}})
    assert headline(run)["Test IoU"] == ("97.50 %", "97.00 %", "-0.50 points")
    found = page(run).text
    assert "IoU of sampled children" in found
    assert "Validation IoU" in found
    assert not re.findall(r"(?i)(?:test|validation|sampled) accuracy|accuracy (?:\(%\)|against|of)", found)


def test_what_is_unknown_is_absent(run: Path) -> None:
    change(run, "child/child.json", accuracy={"valid": 0.9})
    (run / "baseline/child.json").unlink()
    change(run, "run.json", measured_ms=None, history=[{"epoch": 1, "reward": 0.5}])
    rows = headline(run)
    assert rows["FLOPs"] == (words.ABSENT, "275 M", "")
    assert "Test accuracy" not in rows
    assert rows["Latency measured"] == ("0.200 ms", "0.140 ms", "-30.0 %")  # the benchmark's
    found = page(run)
    assert "Entropy of the proposals" not in found.text
    assert "Measured side by side by nar-hw bench" in found.text


def test_bundles_measured_by_the_command_line_are_known_by_their_folders(run: Path) -> None:
    change(run, "run.json", measured_ms=None)
    change(run, "bench.json", rows=[bench_row("runs/x/bundle", 0.3), bench_row("runs/x/baseline_bundle", 0.4)])
    found = read_run(run)
    assert (found.child.measured_ms, found.baseline.measured_ms) == (0.3, 0.4)


@pytest.mark.parametrize(
    ("measured", "text"),
    [
        (0.08, "Test accuracy 97.00 % against 97.50 %: -0.50 points; 0.0800 ms measured against 0.100 ms: -20.0 %"),
        (0.2, "Test accuracy 97.00 % against 97.50 %: -0.50 points; 0.200 ms measured against 0.100 ms: +100.0 %"),
        (0.1001, "Test accuracy 97.00 % against 97.50 %: -0.50 points; 0.100 ms measured against 0.100 ms: +0.1 %"),
    ],
)
def test_the_result_is_told_in_one_sentence(run: Path, measured: float, text: str) -> None:
    change(run, "run.json", measured_ms=None)
    change(run, "bench.json", rows=[bench_row("baseline", 0.1), bench_row("child", measured)])
    assert plain(words.sentence(read_run(run))) == text
    assert f"{text}." in page(run).text


def test_a_missed_target_is_told(run: Path) -> None:
    change(run, "run.json", target_ms=0.0925)
    outcome = words.verdict(read_run(run))
    assert outcome is not None
    assert outcome[1] is False
    assert plain(outcome[0]) == "Target missed by 4.0 %: 0.0962 ms measured, 0.0925 ms asked"


def records(size: int) -> dict[str, Any]:
    return {"splits": {"test": {"size": size, "sha256": "0"}}}


def test_what_was_lost_comes_with_its_interval(run: Path) -> None:
    size = 400
    for name in ("child", "baseline"):
        change(run, f"{name}/child.json", record=records(size))
    after, before = (binomtest(round(share * size), size).proportion_ci(method="wilson") for share in (0.97, 0.975))
    low = -0.005 - math.hypot(0.97 - after.low, before.high - 0.975)
    high = -0.005 + math.hypot(after.high - 0.97, 0.975 - before.low)
    assert words.interval(0.97, 0.975, size) == pytest.approx((low, high), abs=1e-9)
    ends = f"{100 * low:+.2f} to {100 * high:+.2f}"
    assert f"-0.50 points (95 % interval {ends})" in page(run).text
    assert plain(words.front(read_run(run))[1]["interval"]) == ends
    change(run, "baseline/child.json", record=records(size + 1))  # other images
    assert "interval" not in plain(words.sentence(read_run(run)))


def test_a_loss_that_nobody_measured_is_no_success(run: Path) -> None:
    (run / "baseline/child.json").unlink()
    found = page(run)
    assert "What was lost is not known" in found.text
    assert (
        f"or score weights that you have: nar-hw eval --model tiny --weights WEIGHTS --data digits --out {run}/baseline"
        in found.text
    )
    assert "What was lost is not known" not in page_of(run, with_baseline=True)


def page_of(run: Path, *, with_baseline: bool) -> str:
    if with_baseline:
        write_json(run / "baseline/child.json", network(KEPT, 0.975, 11_173_962, "scratch"))
    return page(run).text


@pytest.fixture
def refined(run: Path) -> Path:
    """A refinement for two targets: one met, one missed by a tenth."""
    faster = ["max3x3", "dwsep3x3", "max3x3", "max3x3"]
    pick = scored(faster, 0.8, 0.06, 0.066)
    outcome = {"target_ms": 0.06, "met": False, "note": "", "pick": pick, "finalists": [pick]}
    change(run, "run.json", more=[outcome], operators=["avg3x3", "conv3x3", "dwsep3x3", "max3x3"])
    shutil.rmtree(run / "child")
    for name, arch, target in (("0.1", ARCH, 0.1), ("0.06", faster, 0.06)):
        (run / "children" / name).mkdir(parents=True)
        write_json(run / "children" / name / "child.json", {**network(arch, 0.96, 5, "inherited"), "target_ms": target})
    return run


def test_every_target_is_answered_and_explained(refined: Path, table: LatencyTable) -> None:
    found = page(refined)
    assert "1 of 2 targets met, as measured; missed: 0.06 by 10 %" in found.text
    assert "2 networks: test accuracy -1.50 to -1.50 points against 97.50 %" in found.text
    assert [tag for tag, _ in found.elements].count("details") == 2
    assert [row["met"] for row in words.front(read_run(refined))] == ["", "yes", f"10{words.SPACE}% over"]


@pytest.mark.parametrize("cached", [False, True])
def test_the_slots_sum_to_what_the_table_predicts(refined: Path, table: LatencyTable, cached: bool) -> None:
    if cached:
        sizes = tuple({name: 500 * (1 + place) for place, name in enumerate(slot.candidates)} for slot in table.slots)
        table = replace(table, cache=Cache(params=9000, ms_per_million=5.0, fixed=100, slots=sizes))
    for child in _why(dataclasses.replace(read_run(refined), table=table)):
        operators = [cell["operator"] for cell in child["strip"]]
        predicted = [table.predict([table.operators.index(name) for name in arch]) for arch in (KEPT, operators)]
        sums = {line["name"]: plain(line["text"]) for line in child["sums"]}
        whole = sums["with all else: predicted"].removesuffix(" ms")
        before, after = map(float, whole.split(" \N{RIGHTWARDS ARROW} "))
        assert (before, after) == pytest.approx(predicted, abs=1e-3)
        shown = [float(plain(row["saved"]).removesuffix(" ms")) for row in child["slots"] if row["saved"]]
        total = next(line for line in child["sums"] if line["name"] == "all slots")["saved"]
        assert sum(shown) == pytest.approx(float(plain(total).removesuffix(" ms")), abs=1e-3)
        saved = [0.0, 0.0]
        if cached:
            saved = [float(ms) for ms in sums["saved in the caches"].removesuffix(" ms").split(" \N{RIGHTWARDS ARROW} ")]
            assert saved[0] != 0
        assert sum(shown) + saved[1] - saved[0] == pytest.approx(predicted[1] - predicted[0], abs=3e-3)


def test_a_cache_that_no_network_here_stays_in_is_not_mentioned(refined: Path, table: LatencyTable) -> None:
    sizes = tuple(dict.fromkeys(slot.candidates, 500) for slot in table.slots)
    table = replace(table, cache=Cache(params=50, ms_per_million=5.0, fixed=100, slots=sizes))
    for child in _why(dataclasses.replace(read_run(refined), table=table)):
        assert [line["name"] for line in child["sums"]][:2] == ["all slots", "with all else: predicted"]


def test_a_page_of_twenty_thousand_archs_stays_small(run: Path) -> None:
    archs = [list(item) for item in itertools.product(("conv3x3", "dwsep3x3", "max3x3", "avg3x3"), repeat=4)]
    values = np.random.default_rng(0).uniform(0.05, 0.2, (20_000, 2)).tolist()
    some = [scored(archs[index % len(archs)], *pair) for index, pair in enumerate(values)]
    change(run, "run.json", scored=some, operators=["avg3x3", "conv3x3", "dwsep3x3", "max3x3"])
    text = render(read_run(run))
    assert "scored (20000)" in text
    assert len(text.encode()) < 500_000


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_no_page_is_wider_than_its_window(refined: Path, tmp_path: Path) -> None:
    write_report(refined, tmp_path / "page.html")
    frames = "".join(f'<iframe src="page.html" width="{width}" height="900"></iframe>' for width in (400, 800, 1440))
    width = "f.contentDocument.documentElement.scrollWidth"
    script = f"onload=()=>{{document.title=[...document.querySelectorAll('iframe')].map(f=>{width})}}"
    (tmp_path / "frames.html").write_text(f"<!doctype html>{frames}<script>{script}</script>")
    browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
    line = [*browser, f"--user-data-dir={tmp_path}/user", "--dump-dom", f"file://{tmp_path}/frames.html"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert re.search(r"<title>(.*)</title>", done.stdout)[1] == "400,800,1440"  # type: ignore[index]


# Files that are wrong


def test_without_run_json_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"must hold run.json, but .* does not: make it with nar-hw search"):
        write_report(tmp_path)
    with pytest.raises(RunError, match=r"run\.json"):
        terminal_table(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("child/child.json", {"params": "many"}, r"child.json: params must be int, but is 'many': train it again$"),
        ("child/child.json", {"accuracy": 0.5}, r"child.json: accuracy must be object, but is 0\.5"),
        ("baseline/child.json", {"flops": True}, r"child.json: flops must be int \| null, but is True"),
        ("run.json", {"arch": [1, 2]}, r"run.json: arch\[0\] must be str, but is 1"),
        ("run.json", {"scored": [3]}, r"run.json: scored\[0\] must be object, but is 3"),
        ("run.json", {"target_ms": "1"}, r"run.json: target_ms must be float \| null, but is '1'"),
        ("run.json", {"history": {}}, r"run.json: history must be array, but is \{\}"),
        ("bench.json", {"rows": [{"runtime": 5}]}, r"bench.json: rows\[0\]\.runtime must be str, but is 5"),
        ("bundle/manifest.json", {"variants": {"fp32": 1}}, r"manifest.json: variants\.fp32 must be object, but is 1"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(run: Path, name: str, fields: dict[str, Any], message: str) -> None:
    change(run, name, **fields)
    with pytest.raises(RunError, match=message) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["run.json", "child/child.json", "child/history.json", "bundle/manifest.json", "bench.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": NaN}', "\x00"])
def test_a_damaged_file_is_named(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    with pytest.raises(RunError, match=re.escape(str(run / name))):
        read_run(run)


def test_a_damaged_table_is_named(run: Path) -> None:
    (run / "table.json").write_text('{"schema": 1}')
    with pytest.raises(TableError, match=r"table\.json"):
        read_run(run)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    (name, key)
    for name, keys in {
        "run.json": (
            "model",
            "arch",
            "target_ms",
            "history",
            "scored",
            "finalists",
            "identity",
            "versions",
            "data",
            "seed",
            "table",
        ),
        "child/child.json": ("accuracy", "params", "recipe", "preprocessing", "seed", "init"),
        "child/history.json": ("epochs",),
        "bench.json": ("rows", "comparisons"),
    }.items()
    for key in keys
]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(PLACES), value=json_values)
def test_whatever_a_field_holds_there_is_a_page_or_one_clear_line(
    whole: Path, tmp_path: Path, content: dict[str, dict[str, Any]], place: tuple[str, str], value: Any
) -> None:
    folder = tmp_path / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    name, key = place
    (folder / name).write_text(json.dumps({**content[name], key: value}))
    try:
        Page(render(read_run(folder)))
    except UserError as problem:
        assert "\n" not in str(problem)  # noqa: PT017


# Commands


def test_the_commands_are_those_of_the_command_line(run: Path) -> None:
    import typer

    from nar_hw.cli import app as cli

    group = typer.main.get_command(cli.app)
    found = read_run(run)
    lines = [*found.commands.everything, *(command for _, command in found.missing.values())]
    assert [shlex.split(line)[1] for line in lines] == [
        "profile",
        "search",
        "train",
        "train",
        "export",
        "export",
        "bench",
        "report",
    ]
    for line in lines:
        program, name, *arguments = shlex.split(line.partition(" > ")[0])
        assert program == "nar-hw"
        command = group.commands[name]
        command.make_context(name, arguments, resilient_parsing=False)
    assert f"--arch {run}" in lines[3]
    assert "--strategy reinforce --seed 3 --warmup-epochs 1 --epochs 2 --set updates=6" in lines[1]
    assert f"--init inherited --baseline {run}/baseline" in lines[3]


def test_a_folder_with_a_space_is_quoted(run: Path) -> None:
    folder = run.rename(run.parent / "my run")
    for line in read_run(folder).commands.everything:
        assert not any(word.startswith("run") for word in shlex.split(line))


def test_a_demo_is_made_again_by_the_demo(run: Path) -> None:
    write_json(run / "refine.json", {"schema": 1, "command": ["demo", "--seed", "3"]})
    assert read_run(run).commands.everything == (f"nar-hw demo --seed 3 --out {run}",)


# The terminal


def test_the_terminal_shows_the_same_headline(run: Path) -> None:
    change(run, "run.json", model={**to_plain(MODEL), "name": "[red]net[/red]"})
    console = Console(file=io.StringIO(), width=120)
    console.print(terminal_table(run))
    text = plain(console.file.getvalue().replace("\n", "|"))  # type: ignore[attr-defined]
    assert "[red]net[/red] 3x8x8" in text
    for name, cells in headline(run).items():
        (line,) = [line for line in text.split("|") if line.startswith(f"│ {name} ")]
        assert all(cell in line for cell in cells)
    assert "Target met" in text


# Numbers as words


@given(st.floats(1e-12, 1e12), st.integers(2, 5))
def test_digits_keep_the_value_and_are_never_scientific(value: float, significant: int) -> None:
    text = words.digits(value, significant)
    assert "e" not in text
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.5 * 10 ** (1 - significant) + 1e-9)
    assert words.digits(-value, significant) == f"{words.MINUS}{text}"


def test_numbers_as_people_write_them() -> None:
    assert [words.digits(value) for value in (0, 9.996, 0.00123456, 123456)] == ["0", "10.0", "0.00123", "123,456"]
    assert [plain(words.amount(value)) for value in (43_590_848, 6.326e9, 999, 12_345)] == ["43.6 M", "6.33 G", "999", "12.3 k"]
    assert plain(words.signed(-0.001, 2, "points")) == "0.00 points"
    assert plain(words.signed(1.5, 1, "points")) == "+1.5 points"
    assert words.change(0.0, 1.0) == words.change(None, 1.0) == ""


# Geometry


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_round_and_cover_the_range(low: float, span: float, count: int) -> None:
    ticks = nice_ticks(low, low + span, count)
    steps = np.diff(ticks)
    step = float(np.median(steps))
    assert np.allclose(steps, step, rtol=1e-3)
    assert ticks[0] <= low + 1e-6 * step
    assert ticks[-1] >= low + span - 1e-6 * step
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-3)
    assert min(abs(mantissa - good) for good in (1, 2, 5)) < 0.05
    assert 2 <= len(ticks) <= 3 * count + 1


@given(st.floats(-1e6, 1e6))
def test_one_value_has_an_axis_too(value: float) -> None:
    ticks = nice_ticks(value, value)
    assert ticks[0] < value < ticks[-1] or math.isclose(ticks[0], value, rel_tol=1e-6)


@given(st.floats(0.001, 1000), st.floats(0.01, 100))
def test_tick_labels_tell_ticks_apart_and_say_where_they_are(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    labels = tick_labels(ticks)
    assert len(set(labels)) == len(labels)
    assert [float(label) for label in labels] == pytest.approx(ticks, abs=0.05 * (ticks[1] - ticks[0]))


points = st.lists(st.tuples(st.floats(0, 100), st.floats(-5, 5)), min_size=1, max_size=30)


@given(points, st.booleans(), st.booleans())
def test_points_are_placed_in_order_inside_the_plot(pairs: list[tuple[float, float]], square: bool, whole_x: bool) -> None:
    series = Series(label="a", points=tuple(Point(x, y) for x, y in pairs), kind="blue")
    made = chart("c", "t", "s", [series], x_label="x", y_label="y", square=square, whole_x=whole_x)
    assert all(made.left <= mark.x <= made.right and made.top <= mark.y <= made.bottom for mark in made.marks)
    order = sorted(range(len(pairs)), key=lambda index: pairs[index][0])
    xs = [made.marks[index].x for index in order]
    assert xs == sorted(xs)
    top = max(range(len(pairs)), key=lambda index: pairs[index][1])
    assert made.marks[top].y == min(mark.y for mark in made.marks)
    assert [tick.at for tick in made.x_ticks] == sorted({tick.at for tick in made.x_ticks})
    if square:
        assert [tick.label for tick in made.x_ticks if not whole_x] in ([], [tick.label for tick in made.y_ticks])


def test_a_guide_reaches_the_edges_and_widens_the_axis() -> None:
    series = Series(label="a", points=(Point(1.0, 1.0), Point(2.0, 2.0)), kind="blue", line=True)
    guide = Guide(start=(4.0, -math.inf), end=(4.0, math.inf), kind="target", label="target")
    made = chart("c", "t", "s", [series], x_label="x", y_label="y", guides=[guide])
    (x, low), (_, high) = (map(float, point.split(",")) for point in made.guides[0].points.split())
    assert (low, high) == (made.bottom, made.top)
    assert made.marks[1].x < x <= made.right
    assert (made.left, made.right, made.top) == (LEFT, made.width - RIGHT, TOP)


def test_long_labels_of_the_y_axis_begin_inside_the_chart() -> None:
    series = Series(label="a", points=(Point(1.0, 0.99991), Point(2.0, 0.99992)), kind="blue")
    made = chart("c", "t", "s", [series], x_label="x", y_label="y")
    longest = max(len(tick.label) for tick in made.y_ticks)
    assert longest == len("0.999910")
    assert made.left - 7 - 6.2 * longest >= 0  # digits of 11 pixels are 6.2 wide
    assert min(mark.x for mark in made.marks) >= made.left


def test_a_cloud_draws_what_coincides_once() -> None:
    near = (Point(1 + 1e-9 * number, 2.0) for number in range(500))
    series = Series(label="a", points=(*near, Point(3.0, 4.0)), kind="scored", shape="cloud")
    made = chart("c", "t", "s", [series], x_label="x", y_label="y")
    assert made.marks == ()
    assert made.clouds[0].points.count("M") == 2


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.integers(0, 4))
def test_smoothing_is_a_centred_mean(values: list[float], half: int) -> None:
    window = 2 * half + 1
    means = smoothed(values, window)
    assert len(means) == len(values)
    if len(values) >= window:
        inner = np.convolve(values, np.ones(window) / window, mode="valid")
        assert means[half : len(values) - half] == pytest.approx(inner.tolist(), abs=1e-9)
    assert means[0] == pytest.approx(np.mean(values[: half + 1]), abs=1e-9)


def test_a_long_history_is_smoothed(run: Path) -> None:
    change(run, "run.json", history=[{"epoch": epoch, "reward": epoch % 2} for epoch in range(1, 61)])
    assert "Thin: each epoch. Thick: mean of 7 epochs." in page(run).text


# Colours


def declarations(selector: str) -> dict[str, str]:
    style = (TEMPLATES / "page.css.html").read_text()
    start = style.index(selector)
    return dict(re.findall(r"--([\w-]+): (#\w+)", style[start : style.index("}", start)]))


def operator_colours() -> list[str]:
    style = (TEMPLATES / "page.css.html").read_text()
    found = dict(re.findall(r"\.op(\d) \{ background: (#\w+)", style))
    return [found[str(number)] for number in range(COLOURS + 1)]


def linear(colour_code: str) -> np.ndarray:
    digits = colour_code.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    values = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """WCAG 2.2, 1.4.3."""
    dark, light = sorted(float(linear(item) @ [0.2126, 0.7152, 0.0722]) for item in (first, second))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [":root", "@media (prefers-color-scheme: dark)"])
def test_text_can_be_read_in_both_themes(theme: str) -> None:
    colours = declarations(theme)
    pairs = [(text, back) for text in ("ink", "muted", "good", "bad") for back in ("back", "card")]
    pairs += [("good", "good-back"), ("bad", "bad-back"), ("red", "card")]
    for text, back in pairs:
        assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
    for line in ("blue", "red", "grey"):
        assert contrast(colours[line], colours["card"]) >= 3, line
    for background in operator_colours():
        assert contrast("#10151b", background) >= 7


# Machado, Oliveira and Fernandes 2009, severity 1.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = (
        np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]) @ rgb
    )
    ratio = xyz / [0.95047, 1.0, 1.08883]
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_the_papers_operators_differ_in_colour_for_every_eye(deficiency: str) -> None:
    seen = [lab(np.clip(DEFICIENCIES[deficiency] @ linear(item), 0, 1)) for item in operator_colours()[: len(PAPER_OPERATORS)]]
    distances = {(a, b): float(np.linalg.norm(seen[a] - seen[b])) for a in range(6) for b in range(a)}
    assert min(distances.values()) > 10, distances


def test_every_operator_has_a_colour() -> None:
    assert [colour(name, PAPER_OPERATORS) for name in PAPER_OPERATORS] == list(range(6))
    assert [colour(name, FAMILIES["depthwise"]) for name in FAMILIES["depthwise"]] == [6, 7, 8, 8, 8]
    assert {colour(name, list(OPERATORS)) for name in OPERATORS} == set(range(COLOURS + 1))
