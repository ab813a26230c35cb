"""Skip connections as slots: which they are, what a child without one is, and searches that choose them."""

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nar_hw.errors import SpaceError, TableMismatchError, UserError
from nar_hw.export.splice import ChildExporter
from nar_hw.latency.profiler import profile
from nar_hw.models.info import ModelInfo
from nar_hw.records import plain, replace
from nar_hw.runtimes import RuntimeConfig
from nar_hw.search.budget import Budget
from nar_hw.search.config import FitConfig, SearchConfig
from nar_hw.search.loop import search
from nar_hw.search.result import SearchResult
from nar_hw.search.run import SearchRun
from nar_hw.search.supernet import Supernet
from nar_hw.space.flops import SpaceCounts, count_module
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch
from nar_hw.tasks import ClassificationTask
from nar_hw.training.child import Child
from tests.networks import Block, PreActivation, TinyResNet
from tests.test_cli import DATA, Run, ok, refused, run
from tests.test_search import Task, made_task, outcome
from tests.test_table import for_space

__all__ = ["run"]  # a fixture

torch.set_num_threads(1)
SHAPE = (3, 8, 8)
OPERATORS = ("conv3x3", "dwsep3x3", "avg3x3")
NET = f"{__file__}:deeper"


class Deeper(TinyResNet):
    """With a second identity skip, behind a projected one."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes=classes)
        self.layer3 = Block(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(self.layer3(x).mean((2, 3)))


class WithoutSkip(Block):
    """The block without its addition, written out."""

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


def deeper(num_classes: int) -> nn.Module:
    """For --model."""
    return Deeper(num_classes)


def made_network() -> nn.Module:
    torch.manual_seed(0)
    return Deeper()


NETWORK = made_network()
SPACE = SearchSpace.from_model(NETWORK, SHAPE, operators=OPERATORS, skips=True)
FIXED = SearchSpace.from_model(NETWORK, SHAPE, operators=OPERATORS)
SKIP, NONE = (SPACE.operators.index(name) for name in ("skip", "none"))
SKIPS = [position for position, slot in enumerate(SPACE.slots) if slot.skip]
CONFIG = SearchConfig(
    skips="free",
    reward="accuracy",
    warmup_epochs=1,
    epochs=4,
    batch=64,
    lr=0.05,
    t_0=5,
    updates=2,
    samples=4,
    valid_batch=32,
    rescored=6,
    finalists=3,
)


def images() -> Tensor:
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))


def searched(config: SearchConfig = CONFIG, task: ClassificationTask | None = None, **options: Any) -> SearchResult:
    return search(SPACE, task or made_task(), config=config, **options)


def arch(first: int, second: int) -> Arch:
    """The network's own operators, and two skips."""
    return (*FIXED.incumbent, first, second)


class TestSpace:
    def test_has_a_slot_for_each_identity_shortcut_behind_the_others(self) -> None:
        assert [slot.name for slot in SPACE.slots] == [*(slot.name for slot in FIXED.slots), "layer1.skip_2", "layer3.skip_2"]
        assert [slot.candidates for slot in SPACE.slots[:-2]] == [slot.candidates for slot in FIXED.slots]
        assert SPACE.operators == (*FIXED.operators, "skip", "none")
        assert SPACE.size == 4 * FIXED.size
        spec = SPACE.slots[-1].sites[0].incumbent
        assert (spec.operator, spec.c_in, spec.h, spec.w) == ("skip", 16, 4, 4)

    def test_its_network_is_the_same(self) -> None:
        assert list(SPACE.model.state_dict()) == list(NETWORK.state_dict())
        for training in (False, True):
            expected = copy.deepcopy(NETWORK).train(training)(images())
            assert torch.equal(SPACE.build(SPACE.incumbent).train(training)(images()), expected)
            assert torch.equal(copy.deepcopy(SPACE.model).train(training)(images()), expected)

    @pytest.mark.parametrize("without", [("layer1",), ("layer3",), ("layer1", "layer3")])
    def test_a_child_without_a_skip_is_the_network_with_the_addition_left_out(self, without: tuple[str, ...]) -> None:
        expected = copy.deepcopy(NETWORK)
        for name in without:
            expected.get_submodule(name).__class__ = WithoutSkip
        child = SPACE.build(arch(*(NONE if name in without else SKIP for name in ("layer1", "layer3"))))
        assert torch.equal(child.eval()(images()), expected.eval()(images()))
        assert not torch.equal(child(images()), NETWORK.eval()(images()))

    def test_costs_of_a_child_are_those_of_what_is_built(self) -> None:
        counts = SpaceCounts(SPACE)
        rng = random.Random(0)
        for found in (SPACE.sample(rng), arch(SKIP, NONE), SPACE.incumbent):
            assert counts.count(found) == count_module(SPACE.build(found), SHAPE)
        assert counts.count(arch(NONE, NONE)) == SpaceCounts(FIXED).count(FIXED.incumbent)

    def test_blocks_that_cannot_be_taken_apart_keep_their_skips(self) -> None:
        class InTraining(Block):
            def forward(self, x: Tensor) -> Tensor:
                out = self.bn2(self.conv2(x))
                return out + x if self.training else out + 2 * x + x

        class OnData(Block):
            def forward(self, x: Tensor) -> Tensor:
                return self.bn2(self.conv2(x)) + x if float(x.detach().sum()) < 1e30 else x

        for kind in (InTraining, OnData):
            network = made_network()
            network.layer1 = kind(8, 8)
            space = SearchSpace.from_model(network, SHAPE, skips=True)
            assert [slot.name for slot in space.slots if slot.skip] == ["layer3.skip_2"]

    @pytest.mark.parametrize("network", [TinyResNet, PreActivation])
    def test_a_network_without_such_a_skip_is_one_error(self, network: type[nn.Module]) -> None:
        made = network()
        if isinstance(made, TinyResNet):
            made.layer1 = Block(8, 8, 2)
        with pytest.raises(SpaceError, match="but the model has none: leave the skips fixed"):
            SearchSpace.from_model(made, SHAPE, skips=True)

    def test_latencies_of_its_operators_are_refused(self) -> None:
        for ask in (
            lambda: ChildExporter(SPACE),
            lambda: profile(SPACE, config=RuntimeConfig(runtime="fake"), model_name="x"),
        ):
            with pytest.raises(SpaceError, match="measure a child as a whole"):
                ask()
        table = for_space(FIXED, lambda spec: 1.0)
        with pytest.raises(TableMismatchError, match="skips is fixed in the table, free here"):
            table.check(SPACE)

    def test_is_made_again_from_its_file_which_says_nothing_of_fixed_skips(self) -> None:
        free, fixed = ModelInfo.of(SPACE, NET), ModelInfo.of(FIXED, NET)
        assert plain(free) == {**plain(fixed), "skips": True}
        assert "skips" not in plain(fixed)
        again = replace(free, num_classes=5).space()
        assert [(slot.name, slot.candidates) for slot in again.slots] == [(slot.name, slot.candidates) for slot in SPACE.slots]


def test_a_file_without_a_skip_has_no_node_for_it(tmp_path: Path) -> None:
    """One addition less in ONNX, and what ONNX Runtime computes is what torch does."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from nar_hw.export.onnx import export_onnx

    adds = []
    for name, found in (("all", SPACE.incumbent), ("one", arch(SKIP, NONE)), ("no", arch(NONE, NONE))):
        child, path = SPACE.build(found).eval(), tmp_path / f"{name}.onnx"
        export_onnx(child, path, input_shape=SHAPE)
        adds.append([node.op_type for node in onnx.load(path).graph.node].count("Add"))
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {session.get_inputs()[0].name: images().numpy()})
        np.testing.assert_allclose(output, child(images()).detach().numpy(), atol=1e-4)
    assert adds == [adds[0], adds[0] - 1, adds[0] - 2]


def test_a_supernet_without_a_skip_is_that_child() -> None:
    supernet = Supernet(SPACE).eval()
    outputs = []
    for found in (arch(NONE, SKIP), arch(SKIP, SKIP), SPACE.sample(random.Random(3))):
        supernet.activate(found)
        outputs.append(supernet(images()))
        assert torch.equal(outputs[-1], supernet.child(found)(images()))
    assert not torch.equal(outputs[0], outputs[1])


class TestSearch:
    @pytest.mark.parametrize(("skips", "strategy"), [("free", "reinforce"), ("free", "surrogate"), ("alternate", "surrogate")])
    def test_resumes_to_the_same_bits(self, skips: Any, strategy: str, tmp_path: Path) -> None:
        config = replace(CONFIG, skips=skips, strategy=strategy)
        expected = searched(config)
        task: Task = made_task()
        task.stop_at = 3 * (task.train_size // config.batch) + 1
        with pytest.raises(KeyboardInterrupt):
            searched(config, task, out=tmp_path)
        assert outcome(searched(config, out=tmp_path, resume=True)) == outcome(expected)
        assert any("skip_kl" in log for log in expected.history)

    def test_tells_how_far_the_skip_policy_is_from_one_half(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """NAR, Figure 1: the mean over skips of p log 2p + (1 - p) log 2(1 - p), with p as drawn."""
        asked: list[list[Arch]] = []
        propose = SearchRun._proposed

        def spy(self: SearchRun, *args: Any) -> list[Arch]:
            asked.append(propose(self, *args))
            return asked[-1]

        monkeypatch.setattr(SearchRun, "_proposed", spy)
        result = searched(replace(CONFIG, strategy="random", samples=8))
        assert "skip_kl" not in result.history[0]
        assert len(asked) == 2 * CONFIG.epochs
        for log, archs in zip(result.history[1:], zip(asked[::2], asked[1::2], strict=True), strict=True):
            drawn = [*archs[0], *archs[1]]
            shares = [sum(found[position] == SKIP for found in drawn) / len(drawn) for position in SKIPS]
            divergence = [sum(q * math.log(2 * q) for q in (p, 1 - p) if q > 0) for p in shares]
            assert log["skip_kl"] == pytest.approx(sum(divergence) / len(divergence))
            assert log["skips"] == pytest.approx(sum(shares) / len(shares))

    def test_takes_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Operators with the skips as they are best, then skips with the operators as they are best."""
        made: list[SearchRun] = []
        asked: list[list[Arch]] = []
        propose = SearchRun._proposed

        def spy(self: SearchRun, player: Any, n: int) -> list[Arch]:
            made.append(self)
            best = self._best(player)
            archs = propose(self, player, n)
            held = slice(None, SKIPS[0]) if (self.epoch - CONFIG.warmup_epochs) % 2 else slice(SKIPS[0], None)
            assert {found[held] for found in archs} == {best[held]}
            asked.append(archs)
            return archs

        monkeypatch.setattr(SearchRun, "_proposed", spy)
        result = searched(replace(CONFIG, skips="alternate", samples=12))
        assert [("skip_kl" in log) for log in result.history] == [False, False, True, False, True]
        assert len({found[SKIPS[0] :] for found in asked[2]}) > 1
        assert len({found[: SKIPS[0]] for found in asked[0]}) > 1

    def test_alternating_archs_stay_within_the_limits(self) -> None:
        limit = int(np.median(SpaceCounts(SPACE).params([SPACE.sample(random.Random(seed)) for seed in range(50)])))
        config = replace(CONFIG, skips="alternate", reward="absolute", max_params=limit)
        result = searched(config)
        assert result.met
        assert all(found.load <= 1 + 1e-9 for found in result.scored)

    def test_fixed_skips_leave_everything_as_it_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same bits as without the code for skips and mixtures: as the loop was before there was either."""
        config = replace(CONFIG, skips="fixed", strategy="reinforce", paths="strategy")
        found = search(FIXED, made_task(), config=config)
        monkeypatch.setattr(SearchRun, "_proposed", lambda self, player, n: player.strategy.ask(n))
        monkeypatch.setattr(SearchRun, "_skips_of", lambda self, archs: {})
        monkeypatch.setattr(SearchRun, "_mixtures", lambda self: [])
        assert outcome(search(FIXED, made_task(), config=config)) == outcome(found)
        assert not {"skips", "skip_kl"} & {name for log in found.history for name in log}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"strategy": "gradient"}, "strategy gradient learns from slopes"),
            ({"strategy": "proxyless"}, "strategy proxyless learns from slopes"),
            ({"strategy": "reinforce", "skips": "alternate"}, r"did not propose \(surrogate\), but got reinforce"),
            ({"fit": FitConfig()}, "a skip has no weights to be fitted"),
            ({"skips": "some"}, "unknown skips"),
        ],
    )
    def test_what_cannot_choose_skips_is_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            replace(CONFIG, **settings)

    def test_a_space_of_the_other_kind_is_refused(self) -> None:
        for space, skips in ((FIXED, "free"), (SPACE, "fixed")):
            with pytest.raises(UserError, match=f"skips={skips} must be of a space with"):
                search(space, made_task(), config=replace(CONFIG, skips=skips))

    def test_a_mixture_weighs_a_skip_against_nothing(self) -> None:
        """DARTS: the weight of the addition is a factor on the shortcut."""
        supernet = Supernet(SPACE).eval()
        weights = torch.zeros(len(SPACE.slots), len(SPACE.operators))
        for position, code in enumerate(SPACE.incumbent):
            weights[position, code] = 1.0
        weights[SKIPS[0], SKIP], weights[SKIPS[0], NONE] = 0.3, 0.7
        expected = copy.deepcopy(NETWORK).eval()
        shortcut = expected.layer1.skip
        expected.layer1.skip = nn.Sequential(shortcut, Scaled(0.3))
        with supernet.mixed(weights):
            torch.testing.assert_close(supernet(images()), expected(images()))
        config = replace(CONFIG, strategy="darts", paths="strategy")
        made = SearchRun(SPACE, made_task(), [Budget.of(SPACE, [], (), config)], config)
        made.advance()
        made.advance()
        logits = made.players[0].strategy.logits
        assert logits[SKIPS[0], SKIP] != logits[SKIPS[0], NONE]


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class TestCommands:
    def test_a_child_is_searched_trained_exported_timed_and_reported(self, run: Run, tmp_path: Path) -> None:
        """With a child of the search in which one skip is taken out, whatever was found."""
        few = "--batch 32 --set updates=2 --set samples=4 --set rescored=4 --set finalists=2 --json"
        value = ok(
            run(f"search --model {NET} --data {DATA} --preset paper --skips free --out x --epochs 2 --warmup-epochs 1 {few}")
        )
        assert len(value["arch"]) == 6 + 2
        assert set(value["arch"][-2:]) <= {"skip", "none"}
        file = tmp_path / "x" / "run.json"
        written = json.loads(file.read_text())
        wanted = [*value["arch"][:-2], "none", "skip"]
        file.write_text(json.dumps(with_arch(written, value["arch"], wanted)))
        ok(run(f"train --arch x --data {DATA} --epochs 1 --set batch=32 --out x/child --json"))
        child = Child.load(tmp_path / "x" / "child")
        assert child.model.skips is True
        assert list(child.arch) == wanted
        assert child.params == count_module(child.space().build(child.space().parse(child.arch)), SHAPE).params
        ok(run("export x/child --to onnx --out x/bundle --json"))
        rows = ok(run("bench x/bundle --runtime onnxruntime --rounds 2 --json"))["rows"]
        assert rows
        assert all(row["p50_ms"] > 0 for row in rows)
        assert run("report x")[0] == 0
        (page,) = (tmp_path / "x").glob("*.html")
        text = page.read_text()
        assert "Skip policy" in text
        assert "--skips free" in text
        assert "--skips --" not in text

    def test_a_table_is_refused(self, run: Run) -> None:
        line = f"search --model {NET} --data {DATA} --table t.json --target-ms 1 --skips free --out run"
        assert "a latency table is of networks with all their skips" in refused(run(line))


def with_arch(value: Any, before: list[str], after: list[str]) -> Any:
    """JSON with another arch in its place."""
    if value == before:
        return after
    if isinstance(value, dict):
        return {key: with_arch(item, before, after) for key, item in value.items()}
    return [with_arch(item, before, after) for item in value] if isinstance(value, list) else value


def test_an_operator_called_as_a_skip_is_refused() -> None:
    """Its name would say two things."""

    def skip(spec: Any) -> nn.Module:
        return nn.Conv2d(spec.c_in, spec.c_out, 1, spec.stride)

    with pytest.raises(SpaceError, match="'skip' is taken: rename it"):
        SearchSpace.from_model(made_network(), SHAPE, operators=["conv3x3", skip], skips=True)
