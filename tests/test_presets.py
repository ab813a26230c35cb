"""The paper's own search by name, searches without a latency table, and settings of the controller from the command line."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nar_hw.data import load_data
from nar_hw.errors import RunError, UnknownNameError, UserError
from nar_hw.records import replace, settings, with_settings
from nar_hw.search.budget import Budget
from nar_hw.search.config import FITTED, FitConfig, SearchConfig
from nar_hw.search.feasible import Feasible
from nar_hw.search.loop import search
from nar_hw.search.presets import PRESETS, preset_named
from nar_hw.search.run import SearchRun
from nar_hw.search.strategies.reinforce import ReinforceStrategy
from nar_hw.space.flops import SpaceCounts
from nar_hw.space.space import SearchSpace
from nar_hw.steps.search import search_again
from nar_hw.steps.train import find_arch
from nar_hw.tasks import ClassificationTask
from tests.networks import TinyResNet
from tests.test_cli import DATA, Run, ok, refused, run
from tests.test_table import for_space

__all__ = ["run"]  # a fixture

torch.manual_seed(0)
SPACE = SearchSpace.from_model(TinyResNet(classes=5), (3, 8, 8))
TABLE = for_space(SPACE, lambda spec: 0.1 + spec.c_in * spec.c_out / (256 if spec.operator == "conv3x3" else 512))
FASTEST, SLOWEST = TABLE.bounds()
NET = f"{__file__}:small"
SHORT = "--epochs 1 --warmup-epochs 1 --batch 32 --set updates=2 --set samples=4 --set rescored=4 --set finalists=2"
FEW: dict[str, Any] = {"warmup_epochs": 1, "epochs": 2, "batch": 64, "updates": 2, "samples": 4, "rescored": 4, "finalists": 2}


def small(num_classes: int) -> nn.Module:
    """For --model."""
    return TinyResNet(classes=num_classes)


def made_task() -> ClassificationTask:
    return ClassificationTask(load_data("fake:3x8x8x5"))


class TestPreset:
    @pytest.mark.parametrize("name", PRESETS)
    def test_is_the_papers(self, name: str) -> None:
        """NAR sections 3.2 and 4.1.1: 150 epochs, SGDR 10, x2, 0.1 to 1e-4; accuracy is the reward, sampled children train."""
        config = preset_named(name).search
        assert (config.strategy, config.reward, config.paths, config.warmup_paths) == (
            "reinforce",
            "accuracy",
            "strategy",
            "uniform",
        )
        assert config.recipe.epochs == 150
        assert config.recipe.cosine_ends() == (10, 30, 70, 150)
        assert [config.recipe.learning_rate(epoch) for epoch in (0, 10, 30, 70)] == [0.1] * 4
        assert config.recipe.learning_rate(149.9999) == pytest.approx(1e-4, abs=1e-9)
        assert (config.warmup_epochs == 0) == name.endswith("without-pretrain")
        assert (config.batch, preset_named(name).manner) == ((512, "block") if "faces" in name else (128, "conv"))
        assert preset_named(name).operators == ("conv3x3", "dwsep3x3", "max3x3", "avg3x3")

    def test_has_enas_controller(self) -> None:
        """Its script for the macro space: 50 updates of 20 archs an epoch, Adam without first moment, eps 1e-3."""
        config = preset_named("paper").search
        assert (config.updates, config.samples, config.valid_batch) == (50, 20, 128)
        feasible = Feasible.from_table(SPACE, TABLE, SLOWEST)
        made = ReinforceStrategy(feasible, seed=0, **config.strategy_options)
        assert made.update == "reinforce"
        assert made.steps == 1
        assert {(group["lr"], group["betas"], group["eps"]) for group in made.optimizer.param_groups} == {
            (1e-3, (0.0, 0.999), 1e-3)
        }
        assert (made.controller.tanh_constant, made.controller.temperature, made.controller.lstm.hidden_size) == (1.5, 1.0, 64)
        assert (made.entropy_weight, made.baseline.decay) == (1e-4, 0.99)

    def test_unknown(self) -> None:
        with pytest.raises(UnknownNameError, match="unknown preset 'papers': use one of paper-faces"):
            preset_named("papers")


class TestWithoutTable:
    CONFIG = replace(preset_named("paper").search, **FEW)

    def test_everything_is_within_it_and_nothing_is_said_of_latency(self, tmp_path: Path) -> None:
        result = search(SPACE, made_task(), config=self.CONFIG, out=tmp_path)
        assert result.met
        assert result.target_ms is None
        assert result.arch == max(result.finalists, key=lambda item: item.accuracy).arch
        assert {item.predicted_ms for item in result.scored} == {None}
        assert "latency_ms" not in result.history[-1]
        assert re.search(r"nothing but accuracy: \d+\.\d\d % of the validation images", result.note)
        assert not (tmp_path / "table.json").exists()
        assert search(SPACE, made_task(), config=self.CONFIG, out=tmp_path, resume=True) == result
        value = json.loads((tmp_path / "run.json").read_text())
        assert [value[name] for name in ("target_ms", "table", "table_hash", "predicted_ms")] == [None] * 4

    def test_pretrain_draws_uniformly_and_leaves_the_controller_alone(self) -> None:
        torch.manual_seed(0)
        found = SearchRun(SPACE, made_task(), [Budget.of(SPACE, [], [], self.CONFIG)], self.CONFIG)
        strategy = found.players[0].strategy
        assert isinstance(strategy, ReinforceStrategy)
        before = [value.clone() for value in strategy.controller.state_dict().values()]
        drawn = strategy.generator.get_state()
        found.advance()
        assert all(itertools.starmap(torch.equal, zip(before, strategy.controller.state_dict().values(), strict=True)))
        assert torch.equal(drawn, strategy.generator.get_state())  # no path was the policy's
        found.advance()
        assert not torch.equal(drawn, strategy.generator.get_state())
        assert not all(itertools.starmap(torch.equal, zip(before, strategy.controller.state_dict().values(), strict=True)))

    def test_every_arch_can_be_drawn(self) -> None:
        budget = Budget.of(SPACE, [], [], self.CONFIG)
        assert budget.feasible.count == SPACE.size
        assert budget.reach == f"{SPACE.size:,} archs, none of them ruled out: nothing limits their costs"
        assert budget.loads([SPACE.incumbent]).tolist() == [1.0]

    def test_a_limit_of_flops_is_kept(self) -> None:
        counts = SpaceCounts(SPACE)
        most = int(0.8 * counts.count(SPACE.incumbent).flops)
        result = search(SPACE, made_task(), config=SearchConfig(**FEW, max_flops=most))
        assert all(counts.count(item.arch).flops <= most for item in result.scored)
        assert [(item.name, item.target) for item in result.others] == [("FLOPs", most)]
        assert result.others[0].cost == counts.count(result.arch).flops
        loads = [item.load for item in result.pareto]
        assert loads == sorted(loads)
        assert re.search(r"the pick takes [\d.e+]+ of [\d.e+]+ FLOPs: ", result.note)

    @pytest.mark.parametrize(
        ("config", "options", "message"),
        [
            (SearchConfig(**FEW), {}, "reward absolute weighs accuracy against a cost, but nothing limits one: give a latency"),
            (CONFIG, {"target_ms": 3.0}, "a target of 3 ms needs a latency table, but there is none"),
            (replace(CONFIG, combine="mean"), {}, "combine=mean is of latency tables, but there are none"),
        ],
    )
    def test_what_does_not_go_together(self, config: SearchConfig, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            search(SPACE, made_task(), config=config, **options)

    def test_a_table_limits_it_too(self) -> None:
        target = FASTEST + 0.5 * (SLOWEST - FASTEST)
        result = search(SPACE, made_task(), TABLE, target_ms=target, config=self.CONFIG)
        assert result.met
        assert all(TABLE.predict(item.arch) <= target * (1 + 1e-9) for item in result.scored)


class TestCommand:
    def test_preset_in_one_line(self, run: Run, tmp_path: Path) -> None:
        found = ok(run(f"search --preset paper --model {NET} --data {DATA} {SHORT} --out x --json"))
        assert found["target_ms"] is found["predicted_ms"] is found["measured_ms"] is None
        assert found["met"]
        assert set(found["arch"]) <= {"conv3x3", "dwsep3x3", "max3x3", "avg3x3"}
        value = json.loads((tmp_path / "x/run.json").read_text())
        config = value["identity"]["config"]
        assert config["strategy_options"] == dict(PRESETS["paper"].settings["strategy_options"])
        assert (config["reward"], config["paths"], config["lr"], config["updates"]) == ("accuracy", "strategy", 0.1, 2)
        assert value["model"]["operators"] == list(PRESETS["paper"].operators)
        # what came of it can be trained and reported
        assert list(find_arch("x", model=None, task=ClassificationTask(made_task().data)).arch or ()) == found["arch"]
        page = ok(run("report x --json"))["report"]
        text = Path(page).read_text()
        assert "--set controller.lr=0.001" in text
        assert "--operators conv3x3,dwsep3x3,max3x3,avg3x3" in text
        assert "nar-hw profile" not in text
        with pytest.raises(RunError, match="x was searched without a latency table"):
            search_again(Path("x"), target_ms=1.0, out=Path("y"))

    def test_other_options_change_it(self, run: Run, tmp_path: Path) -> None:
        more = "--manner block --operators conv3x3,max3x3 --strategy random"
        found = ok(run(f"search --preset paper-faces --model {NET} --data {DATA} {SHORT} {more} --out x --json"))
        value = json.loads((tmp_path / "x/run.json").read_text())
        assert len(found["arch"]) == value["arch"].__len__() == len(small_space("block").slots)
        assert set(found["arch"]) <= {"conv3x3", "max3x3"}
        assert value["identity"]["config"]["strategy_options"] == {}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("--model m --data digits", "a search needs --model, --data and what to search for"),
            ("--model m --data digits --table t.json", "--table and --target-ms go together, but one of them is missing"),
            ("--model m --data digits --preset paper --target-ms 1", "--table and --target-ms go together"),
            ("--model m --data digits --table t --target-ms 1 --manner block", "says what is searched, but got --manner beside"),
            ("--model m --data digits --preset paper --weights w", "a --preset searches from scratch, but got trained weights"),
            ("--model m --data digits --preset papier", "unknown preset 'papier': use one of paper"),
            ("--from x", "--from chooses for other targets: give --target-ms"),
        ],
    )
    def test_what_does_not_go_together(self, run: Run, options: str, message: str) -> None:
        assert message in refused(run(f"search {options} --out x"))
        assert not Path("x").exists()


def small_space(manner: Any) -> SearchSpace:
    return SearchSpace.from_model(TinyResNet(), (3, 8, 8), manner=manner)


class TestGroups:
    """``--set controller.lr=0.001``."""

    BASE = SearchConfig(strategy="reinforce")

    def test_set_one_at_a_time(self) -> None:
        found = with_settings(
            self.BASE,
            ["controller.lr=1e-3", "controller.update=reinforce", "reward.slope=-.5", "fit.epochs=3", "updates=50", "samples=20"],
        )
        assert found.strategy_options == {"lr": 1e-3, "update": "reinforce"}
        assert found.reward_options == {"slope": -0.5}
        assert found.fit == FitConfig(epochs=3)
        assert (found.updates, found.samples) == (50, 20)
        assert with_settings(FITTED, ["fit.lr=0.02"]).fit == FitConfig(lr=0.02)

    def test_add_to_what_is_there(self) -> None:
        found = with_settings(preset_named("paper").search, ["controller.entropy_weight=0.01"])
        assert found.strategy_options == {**PRESETS["paper"].settings["strategy_options"], "entropy_weight": 0.01}

    @pytest.mark.parametrize(
        "config", [preset_named("paper").search, FITTED, with_settings(SearchConfig(), ["reward.slope=-1", "fit.deal=false"])]
    )
    def test_are_printed_as_they_are_given(self, config: SearchConfig) -> None:
        words = settings(config)
        assert words[::2] == ["--set"] * (len(words) // 2)
        assert with_settings(SearchConfig(strategy=config.strategy), words[1::2]) == config

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("controller.rl=1", "unknown option of strategy reinforce 'rl': use one of lr"),
            ("controller.lr=fast", "lr must be float, but is 'fast', as option of strategy reinforce"),
            ("controller.update=plain", "unknown update of strategy reinforce 'plain': use one of ppo, reinforce"),
            ("controler.lr=1", r"unknown setting 'controler.lr': use one of controller.NAME"),
            ("reward.slop=1", "unknown option of reward absolute 'slop': use one of slope"),
            ("fit.epoch=1", r"--set fit.NAME: it has an unknown field 'epoch' \(is 'epochs' meant\?\)"),
            ("fit.epochs=0", "epochs >= 1 must hold for fitting"),
            ("controller.=1", "--set takes name=value"),
            ("strategy_options={}", "--set takes name=value"),
        ],
    )
    def test_are_checked_by_name_and_type(self, setting: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            with_settings(self.BASE, [setting])
