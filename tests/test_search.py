import io
import itertools
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

import nar_hw
from nar_hw.data import Augmentation, load_data
from nar_hw.errors import (
    MeasurementError,
    MissingEntryError,
    RunError,
    TableError,
    TableMismatchError,
    TargetError,
    TrainingError,
    UnknownNameError,
    UserError,
)
from nar_hw.models.info import ModelInfo
from nar_hw.records import as_record, plain, replace
from nar_hw.search import loop
from nar_hw.search.budget import Budget
from nar_hw.search.config import SearchConfig
from nar_hw.search.feasible import Feasible
from nar_hw.search.folder import SearchFolder
from nar_hw.search.loop import search
from nar_hw.search.randomness import generator_states, restore_generators, seeded
from nar_hw.search.record import load_run
from nar_hw.search.result import Scored, SearchResult, choose
from nar_hw.search.run import SearchRun
from nar_hw.search.scoring import Scorer
from nar_hw.search.strategies import STRATEGIES
from nar_hw.search.strategies.gradient import GradientStrategy
from nar_hw.search.strategies.random import RandomStrategy
from nar_hw.search.supernet import Supernet
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch, OpSpec
from nar_hw.space.sums import Sums
from nar_hw.tasks import ClassificationTask
from tests.networks import TinyResNet
from tests.test_table import for_space

torch.set_num_threads(1)


class Dropping(TinyResNet):
    """With dropout, which draws from torch's global generator."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.1, self.training)


class Task(ClassificationTask):
    """Augments with Python's and NumPy's global generators, and may be stopped in the middle of an epoch."""

    stop_at: int | None = None
    batches = 0

    def train_batches(self, *args: Any, augment: bool = True, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in super().train_batches(*args, augment=augment, **options):
            if augment:
                self.batches += 1
                if self.batches == self.stop_at:
                    raise KeyboardInterrupt
                images = images * (1 + 0.01 * random.random()) + 0.01 * float(np.random.rand())
            yield images, targets


def made_task() -> Task:
    return Task(load_data("fake:3x8x8x5"), augmentation=Augmentation(flip=True))


def cost(spec: OpSpec) -> float:
    """Made milliseconds, different for every operator and size."""
    factor = {"conv3x3": 1.0, "dwsep3x3": 0.45, "max3x3": 0.3, "avg3x3": 0.25, "dwsep5x5": 0.6}[spec.operator]
    return 0.1 + factor * spec.c_in * spec.c_out / 256 / spec.stride[0]


def made_space() -> SearchSpace:
    torch.manual_seed(0)
    return SearchSpace.from_model(Dropping(), (3, 8, 8))


SPACE = made_space()
TABLE = for_space(SPACE, cost)
FASTEST, SLOWEST = TABLE.bounds()
TARGET = FASTEST + 0.6 * (SLOWEST - FASTEST)
CONFIG = SearchConfig(
    warmup_epochs=1, epochs=3, batch=64, lr=0.05, t_0=2, updates=2, samples=4, valid_batch=32, rescored=6, finalists=3
)


def run(space: SearchSpace = SPACE, task: Task | None = None, *, config: SearchConfig = CONFIG, **options: Any) -> SearchResult:
    return search(space, task or made_task(), TABLE, **{"target_ms": TARGET, "config": config, **options})


def outcome(result: SearchResult) -> SearchResult:
    """Without the seconds that it took."""
    history = tuple({name: value for name, value in log.items() if not name.endswith("_s")} for log in result.history)
    return replace(result, history=history)


RESULT = run()


def test_the_pick_is_the_best_finalist_under_the_target() -> None:
    assert RESULT.met
    assert RESULT.pick in RESULT.finalists
    assert RESULT.pick.predicted_ms == pytest.approx(TABLE.predict(RESULT.arch))
    assert RESULT.pick.predicted_ms <= TARGET
    assert RESULT.pick.measured_ms is None
    assert RESULT.pick.accuracy == max(item.accuracy for item in RESULT.finalists)
    assert len({item.arch for item in RESULT.finalists}) == len(RESULT.finalists) == 3
    assert "predicted" in RESULT.note


def test_history_tells_each_epoch() -> None:
    assert [log["epoch"] for log in RESULT.history] == [1, 2, 3, 4]
    assert [log["warmup"] for log in RESULT.history] == [1, 0, 0, 0]
    assert all({"loss", "lr"} <= log.keys() for log in RESULT.history)
    for log in RESULT.history[1:]:
        assert 0 <= log["accuracy"] <= 1
        assert FASTEST <= log["latency_ms"] <= TARGET
        slack = 1 - log["latency_ms"] / TARGET  # all are under the target, so the mean of the rewards is linear
        assert log["reward"] == pytest.approx(log["accuracy"] - 0.1 * slack)
        assert log["entropy"] > 0
    steps = made_task().train_size // CONFIG.batch
    last = [CONFIG.recipe.learning_rate(epoch + (steps - 1) / steps) for epoch in range(4)]
    assert [log["lr"] for log in RESULT.history] == last


def test_the_front_is_of_everything_scored() -> None:
    archs = [item.arch for item in RESULT.scored]
    assert len(set(archs)) == len(archs) >= 6
    assert set(RESULT.pareto) <= set(RESULT.scored)
    for item in RESULT.scored:
        assert item.predicted_ms <= TARGET
        assert any(better.accuracy >= item.accuracy and better.predicted_ms <= item.predicted_ms for better in RESULT.pareto)


def test_the_same_seed_gives_the_same_result_to_the_last_bit() -> None:
    random.seed(99)
    torch.manual_seed(99)
    assert outcome(run(made_space())) == outcome(RESULT)


def test_another_seed_gives_another_result() -> None:
    assert outcome(run(config=replace(CONFIG, seed=1))).history != outcome(RESULT).history


def test_the_callers_generators_are_left_as_they_were() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    run(config=replace(CONFIG, epochs=1))
    assert before[0] == random.getstate()
    assert before[1] == np.random.get_state()[1].tolist()
    assert torch.equal(before[2], torch.get_rng_state())


@pytest.mark.parametrize(("strategy", "paths"), [*((name, "strategy") for name in STRATEGIES), ("random", "fair")])
def test_every_strategy_searches_and_resumes_to_the_same_bits(strategy: str, paths: Any, tmp_path: Path) -> None:
    """Stopped in the middle of the third epoch, with dropout and generators of Python and NumPy in play."""
    config = replace(CONFIG, strategy=strategy, paths=paths)
    expected = run(config=config)
    task = made_task()
    steps = task.train_size // config.batch
    task.stop_at = 2 * steps + 3
    with pytest.raises(KeyboardInterrupt):
        run(task=task, config=config, out=tmp_path)
    assert (tmp_path / "state.pt").exists()
    assert not (tmp_path / "run.json").exists()
    torch.manual_seed(5)
    resumed = made_task()
    assert outcome(run(task=resumed, config=config, out=tmp_path, resume=True)) == outcome(expected)
    assert resumed.batches == 2 * steps  # two whole epochs were not repeated
    assert not (tmp_path / "state.pt").exists()


def test_a_finished_search_is_read_and_not_repeated(tmp_path: Path) -> None:
    first = run(out=tmp_path)
    task = made_task()
    again = run(task=task, out=tmp_path, resume=True)
    assert task.batches == 0
    assert again == first


def test_run_json_tells_everything(tmp_path: Path) -> None:
    info = ModelInfo(name="file.py:net", input_shape=(3, 8, 8), num_classes=5, operators=("conv3x3", "max3x3"))
    result = run(out=tmp_path, model=info, measure=lambda archs: [TABLE.predict(arch) for arch in archs])
    value = json.loads((tmp_path / "run.json").read_text())
    found = load_run(tmp_path)
    model, arch = found.network, found.arch
    assert model == info
    assert arch == SPACE.names(result.arch) == tuple(value["arch"])
    assert value["schema"] == 1
    assert (value["target_ms"], value["reward"], value["strategy"], value["seed"]) == (TARGET, "absolute", "surrogate", 0)
    assert (value["predicted_ms"], value["measured_ms"]) == (result.pick.predicted_ms, result.pick.measured_ms)
    assert value["accuracy"] == result.pick.accuracy
    assert value["manner"] == "conv"
    assert value["operators"] == ["conv3x3", "dwsep3x3", "max3x3", "avg3x3", "dwsep5x5"]
    assert value["data"] == "fake:3x8x8x5"
    assert value["table_hash"] == TABLE.hash == type(TABLE).load(value["table"]).hash
    assert value["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert [tuple(item["arch"]) for item in value["finalists"]] == [SPACE.names(item.arch) for item in result.finalists]
    assert len(value["pareto"]) == len(result.pareto)
    assert len(value["history"]) == 4
    supernet = Supernet(SPACE)
    from nar_hw.models.weights import load_weights

    load_weights(supernet, tmp_path / "supernet.safetensors")


def test_a_folder_with_a_search_is_not_overwritten(tmp_path: Path) -> None:
    task = made_task()
    task.stop_at = task.train_size // CONFIG.batch + 1
    with pytest.raises(KeyboardInterrupt):
        run(task=task, out=tmp_path)
    with pytest.raises(RunError, match=r"holds a search already \(state.pt\): resume it, or choose another folder"):
        run(out=tmp_path)
    run(out=tmp_path, resume=True)
    with pytest.raises(RunError, match=r"holds a search already \(run.json\)"):
        run(out=tmp_path)


@pytest.mark.parametrize("finished", [False, True])
def test_a_search_with_other_settings_is_not_resumed(tmp_path: Path, finished: bool) -> None:
    task = made_task()
    task.stop_at = None if finished else task.train_size // CONFIG.batch + 1
    try:
        run(task=task, out=tmp_path)
    except KeyboardInterrupt:
        assert not finished
    with pytest.raises(RunError, match=r"config.lr is 0.05 there and 0.01 now"):
        run(out=tmp_path, resume=True, config=replace(CONFIG, lr=0.01))
    with pytest.raises(RunError, match="target_ms is"):
        run(out=tmp_path, resume=True, target_ms=TARGET * 0.99)
    with pytest.raises(RunError, match=r"data\.name is 'fake:3x8x8x5' there and 'fake:3x8x8x6' now"):
        run(task=Task(load_data("fake:3x8x8x6")), out=tmp_path, resume=True)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_one_error(tmp_path: Path, damage: bytes | None) -> None:
    task = made_task()
    task.stop_at = task.train_size // CONFIG.batch + 1
    with pytest.raises(KeyboardInterrupt):
        run(task=task, out=tmp_path)
    state = tmp_path / "state.pt"
    state.write_bytes(state.read_bytes()[:-1000] if damage is None else damage)
    with pytest.raises(RunError, match=r"state\.pt"):
        run(out=tmp_path, resume=True)


def test_a_checkpoint_without_its_parts_is_one_error(tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path, SPACE, made_task(), [TABLE], targets_ms=[TARGET], config=CONFIG, model=None)
    folder.save({"supernet": {}})
    with pytest.raises(RunError, match="does not fit this search"):
        run(out=tmp_path, resume=True)


def test_a_damaged_result_is_one_error(tmp_path: Path) -> None:
    run(out=tmp_path)
    path = tmp_path / "run.json"
    value = json.loads(path.read_text())
    del value["finalists"]
    path.write_text(json.dumps(value))
    with pytest.raises(RunError, match="must have 'finalists'"):
        run(out=tmp_path, resume=True)
    path.write_text("{")
    with pytest.raises(RunError, match="not valid JSON"):
        run(out=tmp_path, resume=True)


@pytest.mark.parametrize("target", [0.5 * FASTEST, 1.5 * SLOWEST, math.nan])
def test_a_target_out_of_reach_is_refused_before_anything_is_trained(target: float) -> None:
    task = made_task()
    with pytest.raises(TargetError, match=f"within {FASTEST:.4g} and {SLOWEST:.4g} ms.*but got"):
        run(task=task, target_ms=target)
    assert task.batches == 0


def test_a_table_of_another_space_is_refused() -> None:
    with pytest.raises(TableMismatchError):
        run(SearchSpace.from_model(TinyResNet(), (3, 8, 8), manner="block"))


def test_a_table_without_an_entry_is_refused() -> None:
    with pytest.raises(MissingEntryError, match="conv5x5"):
        run(SearchSpace.from_model(TinyResNet(), (3, 8, 8), limit_params=False))

    class Holed:
        sums = Sums.one(np.where(np.arange(TABLE.matrix.shape[1]) == 2, np.nan, TABLE.matrix), TABLE.fixed_ms)

    with pytest.raises(MissingEntryError, match=r"max3x3 in slot 0 \(layer1.conv1\)"):
        Feasible.from_table(SPACE, Holed(), TARGET)  # type: ignore[arg-type]


def test_a_table_that_is_not_additive_is_refused() -> None:
    class Crooked:
        sums = TABLE.sums

        def predict(self, archs: np.ndarray) -> np.ndarray:
            return TABLE.predict(archs) ** 1.01

    with pytest.raises(TableError, match="sums of its entries"):
        Feasible.from_table(SPACE, Crooked(), TARGET)  # type: ignore[arg-type]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"batch=1000, images=350\): use a smaller batch"):
        run(config=replace(CONFIG, batch=1000))


def test_diverged_weights_are_an_error() -> None:
    with pytest.raises(TrainingError, match=r"must be finite, but was \w+ in epoch \d.*lower the learning rate, now 1e\+06"):
        run(config=replace(CONFIG, lr=1e6))


@pytest.mark.parametrize("times", [[1.0], [1.0, 2.0, math.nan], [1.0, 2.0, 0.0]])
def test_measurements_must_be_times(times: list[float]) -> None:
    with pytest.raises(MeasurementError, match="one positive time in ms for each of 3 archs"):
        run(measure=lambda archs: times)


def test_what_is_slower_on_the_device_than_asked_is_not_picked() -> None:
    asked: list[Arch] = []

    def measure(archs: list[Arch]) -> list[float]:
        asked.extend(archs)
        return [TARGET * 1.01, TARGET * 1.01, TARGET * 0.9]

    result = run(measure=measure)
    assert asked == [item.arch for item in result.finalists]
    assert result.met
    assert result.pick == result.finalists[2]
    assert result.pick.measured_ms == TARGET * 0.9
    assert "measured" in result.note


def test_others_are_tried_where_the_device_is_slower_than_the_table() -> None:
    asked: list[list[Arch]] = []

    def measure(archs: list[Arch]) -> list[float]:
        asked.append(archs)
        return [1.15 * TABLE.predict(arch) for arch in archs]

    target = FASTEST + 0.5 * (SLOWEST - FASTEST)
    config = replace(CONFIG, strategy="reinforce", paths="strategy", reward_options={"slope": -10.0})
    result = run(target_ms=target, measure=measure, config=config)
    first, second = asked
    assert all(1.15 * TABLE.predict(arch) > target for arch in first)  # this reward asks for archs at the very target
    assert not set(first) & set(second)
    assert result.met
    assert result.arch in second
    assert {item.arch for item in result.finalists} == {*first, *second}
    assert list(result.finalists) == sorted(result.finalists, key=lambda item: -item.accuracy)


def test_a_target_that_is_missed_on_the_device_is_told_plainly() -> None:
    result = run(measure=lambda archs: [max(1.1 * TARGET, 1.2 * TABLE.predict(arch)) for arch in archs])
    assert not result.met
    assert result.pick.measured_ms == 1.1 * TARGET
    told = f"none of the 6 finalists meets {TARGET:.4g} ms on the device: the nearest takes {TARGET * 1.1:.4g} ms"
    assert result.note.startswith(told)
    assert "\n" not in result.note


def test_a_device_that_no_arch_is_fast_enough_for_is_measured_once() -> None:
    calls: list[int] = []
    result = run(measure=lambda archs: [calls.append(len(archs)) or 100 * SLOWEST for _ in archs])
    assert len(calls) == 3
    assert not result.met


def scored(accuracy: float, predicted: float, measured: float | None = None) -> Scored:
    load = max(predicted, measured or 0) / 2
    return Scored(arch=(), accuracy=accuracy, predicted_ms=predicted, measured_ms=measured, load=load)


def test_choice_among_finalists() -> None:
    slow, good, tied = scored(0.99, 2.1, 1.0), scored(0.9, 1.9, 1.95), scored(0.9, 1.9, 1.8)
    assert choose([slow, good, tied]) == tied
    assert choose([slow, good]) == good
    assert choose([scored(0.9, 1.5, 2.5), scored(0.8, 1.9, 2.3)]).accuracy == 0.8
    assert choose([scored(0.9, 2.0), scored(0.8, 1.9)]).accuracy == 0.9  # exactly at the target


class Spy(RandomStrategy):  # type: ignore[misc]
    """Counts what it is asked and told."""

    calls: list[tuple[str, int]]

    def ask(self, n: int) -> list[Arch]:
        self.calls.append(("ask", n))
        return super().ask(n)

    def learn(self, archs: list[Arch], rewards: np.ndarray, slopes: np.ndarray | None) -> None:
        self.calls.append(("tell", len(archs)))


def made_run(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> SearchRun:
    monkeypatch.setitem(STRATEGIES, "random", Spy)
    config = replace(CONFIG, strategy="random", **settings)
    made = SearchRun(SPACE, made_task(), [Budget.of(SPACE, [TABLE], [TARGET], config)], config)
    made.players[0].strategy.calls = []
    return made


def test_the_strategy_is_frozen_during_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_run(monkeypatch, warmup_epochs=2, epochs=1)
    made.advance()
    made.advance()
    assert made.players[0].strategy.calls == []
    made.advance()
    assert made.players[0].strategy.calls == [("ask", 4), ("tell", 4)] * 2


@pytest.mark.parametrize(("kind", "most"), [("fair", 1), ("uniform", 5)])
def test_paths_of_the_warm_up(monkeypatch: pytest.MonkeyPatch, kind: str, most: int) -> None:
    """Fairly dealt, the operators of a slot differ by at most one step; drawn at random, by more in some slot."""
    made = made_run(monkeypatch, warmup_epochs=4, warmup_paths=kind)
    seen: list[Arch] = []
    activate = made.supernet.activate
    monkeypatch.setattr(made.supernet, "activate", lambda arch: (seen.append(tuple(arch)), activate(arch)))
    for _ in range(4):
        made.advance()
    assert len(seen) == 4 * made.steps
    columns = zip(SPACE.slots, zip(*seen, strict=True), strict=True)
    counts = [[column.count(code) for code in slot.candidates] for slot, column in columns]
    assert (max(max(item) - min(item) for item in counts) <= 1) is (most == 1)


def test_steps_train_what_the_strategy_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_run(monkeypatch, warmup_epochs=0, paths="strategy")
    fixed = SPACE.sample(random.Random(3))
    monkeypatch.setattr(made.players[0].strategy, "paths", lambda n: [fixed] * n)
    before = {name: value.clone() for name, value in made.supernet.named_parameters()}
    made._train_weights()
    made.supernet.activate(fixed)
    active = {id(parameter) for module in made.supernet.path() for parameter in module.parameters(False)}
    for name, parameter in made.supernet.named_parameters():
        assert torch.equal(before[name], parameter) is (id(parameter) not in active), name


def test_a_score_is_the_accuracy_of_the_child_itself() -> None:
    """Recalibrated child, built alone, on the same images: the arch that was sampled is the one that is scored."""
    task = made_task()
    supernet = Supernet(SPACE)
    scorer = Scorer(supernet, task, CONFIG, torch.Generator().manual_seed(0))
    scorer.renew()
    archs = [SPACE.sample(random.Random(seed)) for seed in (0, 1, 2, 0)]
    seen = torch.Generator()
    seen.set_state(scorer._generator.get_state())
    images, targets = next(task.eval_batches("valid", CONFIG.valid_batch, generator=seen))
    assert len(images) == 32
    scores = scorer.on_minibatch(archs)
    assert scores[0] == scores[3]
    for arch, score in zip(archs, scores, strict=True):
        supernet.activate(arch)
        supernet.recalibrate(scorer._calibration)
        child = supernet.child(arch).eval()
        assert score == pytest.approx(float((child(images).argmax(1) == targets).float().mean()))
    assert scorer.on_all(archs[1:2])[0] == pytest.approx(task.evaluate(restored(supernet, scorer, archs[1]), "valid"))


def test_slopes_are_those_of_the_loss_when_a_slot_puts_out_more() -> None:
    """Against finite differences of the child with the weights and biases of the norms behind one slot made larger."""
    task = made_task()
    supernet = Supernet(SPACE).double()
    scorer = Scorer(supernet, task, CONFIG, torch.Generator().manual_seed(0))
    scorer.renew()
    scorer._calibration = [images.double() for images in scorer._calibration]
    images, targets = next(task.eval_batches("valid"))
    images = images.double()
    scorer._minibatch = lambda: (images, targets)
    archs = [SPACE.sample(random.Random(seed)) for seed in (0, 1)]
    accuracies, slopes = scorer.with_slopes(archs)
    assert accuracies == scorer.on_minibatch(archs)
    for arch, found in zip(archs, slopes, strict=True):
        child = restored(supernet, scorer, arch).double().eval()
        for slot, slope in zip(SPACE.slots, found, strict=True):
            losses = []
            for factor in (1 + 1e-5, (1 - 1e-5) / (1 + 1e-5)):
                for site in slot.sites:
                    norm = child.get_submodule(site.norm)
                    norm.weight.data *= factor
                    norm.bias.data *= factor
                losses.append(float(task.loss(child(images), targets).detach()))
            for site in slot.sites:
                norm = child.get_submodule(site.norm)
                norm.weight.data /= 1 - 1e-5
                norm.bias.data /= 1 - 1e-5
            assert slope == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-3, abs=1e-6)


def test_a_search_by_gradients_is_told_the_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    learn = GradientStrategy.learn

    def spy(self: GradientStrategy, archs: Any, rewards: Any, slopes: Any) -> None:
        told.append(slopes.shape)
        learn(self, archs, rewards, slopes)

    monkeypatch.setattr(GradientStrategy, "learn", spy)
    config = replace(CONFIG, strategy="gradient")
    result = run(config=config)
    assert told == [(config.samples, len(SPACE.slots))] * (config.updates * config.epochs)
    assert result.met


def test_slopes_of_a_mixture_are_those_of_the_sum_of_weighted_operators() -> None:
    """Against autograd of the sum written out by hand, in a network of one slot, with statistics averaged by hand."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)
    )
    space = SearchSpace.from_model(network, (3, 8, 8))
    task, supernet = made_task(), Supernet(space)
    before = {key: value.clone() for key, value in supernet.named_parameters()}
    scorer = Scorer(supernet, task, CONFIG, torch.Generator().manual_seed(0))
    scorer.renew()
    images, targets = next(task.eval_batches("valid"))
    scorer._minibatch = lambda: (images, targets)
    (slot,) = space.slots
    weights = np.zeros((1, len(space.operators)))
    weights[0, list(slot.candidates)] = np.random.default_rng(0).dirichlet(np.ones(len(slot.candidates)))
    found = scorer.with_mixture(weights)

    shares = torch.tensor(weights[0], dtype=torch.float32, requires_grad=True)
    stem, operators, norms, *rest = supernet.network
    total = torch.zeros(1)
    for code in slot.candidates:
        operator, norm = operators.choices[str(code)], norms.choices[str(code)]
        outputs = [operator(stem(batch)) for batch in scorer._calibration]
        mean = torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0)
        variance = torch.stack([output.var((0, 2, 3)) for output in outputs]).mean(0)
        output = (operator(stem(images)) - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
        total = total + shares[code] * (output * norm.weight[:, None, None] + norm.bias[:, None, None])
    (expected,) = torch.autograd.grad(task.loss(nn.Sequential(*rest)(total), targets), shares)
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-3, atol=1e-5)
    assert np.count_nonzero(found) == len(slot.candidates)
    assert all(torch.equal(before[key], value) and value.grad is None for key, value in supernet.named_parameters())


def test_a_mixture_of_one_operator_a_slot_is_that_child() -> None:
    supernet = Supernet(SPACE).eval()
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    arch = SPACE.sample(random.Random(5))
    weights = torch.nn.functional.one_hot(torch.tensor(arch), len(SPACE.operators)).float()
    with torch.no_grad(), supernet.mixed(weights):
        mixed = supernet(images)
    supernet.activate(arch)
    with torch.no_grad():
        torch.testing.assert_close(mixed, supernet(images))


@pytest.mark.parametrize(("paths", "together"), [("strategy", True), ("fair", False)])
def test_only_a_search_by_mixtures_with_paths_of_its_own_trains_all_operators_in_a_step(
    monkeypatch: pytest.MonkeyPatch, paths: str, together: bool
) -> None:
    config = replace(CONFIG, strategy="darts", paths=paths, warmup_epochs=0)
    made = SearchRun(SPACE, made_task(), [Budget.of(SPACE, [TABLE], [TARGET], config)], config)
    moved = []

    def spy(supernet: nn.Module) -> None:
        moved.append(all(weight.grad is not None for weight in supernet.parameters()))

    monkeypatch.setattr("nar_hw.search.run.average_gradients", spy)
    logits = made.players[0].strategy.logits.detach().clone()
    made.advance()
    assert len(moved) == made.steps
    assert set(moved) == {together}
    assert not torch.equal(logits, made.players[0].strategy.logits)


def restored(supernet: Supernet, scorer: Scorer, arch: Arch) -> nn.Module:
    supernet.activate(arch)
    supernet.recalibrate(scorer._calibration)
    return supernet.child(arch)


def test_validation_images_change_neither_weights_nor_statistics() -> None:
    """After a score, the network is what recalibration on training images alone makes it, whatever was validated on."""
    task = made_task()
    supernet = Supernet(SPACE).train()
    scorer = Scorer(supernet, task, CONFIG, torch.Generator().manual_seed(0))
    scorer.renew()
    arch = SPACE.sample(random.Random(4))
    supernet.activate(arch)
    supernet.recalibrate(scorer._calibration)
    expected = {key: value.clone() for key, value in supernet.state_dict().items()}
    for score in (lambda: scorer.on_minibatch([arch]), lambda: scorer.with_slopes([arch]), lambda: scorer.on_all([arch])):
        score()
        assert all(torch.equal(expected[key], value) for key, value in supernet.state_dict().items())
    assert all(parameter.grad is None for parameter in supernet.parameters())
    assert supernet.training


def test_images_for_the_statistics_are_training_images_and_change_each_epoch() -> None:
    task = made_task()
    scorer = Scorer(Supernet(SPACE), task, CONFIG, torch.Generator().manual_seed(0))
    kept = []
    for _ in range(2):
        scorer.renew()
        assert [len(images) for images in scorer._calibration] == [64, 64]
        kept.append(scorer._calibration[0])
    assert not torch.equal(*kept)
    everything = torch.cat([images for images, _ in task.eval_batches("train")]).flatten(1)
    assert all((everything == image).all(1).any() for image in kept[0].flatten(1))


def test_scores_are_not_reused_when_weights_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_run(monkeypatch, warmup_epochs=0, samples=2, updates=1)
    arch = (
        SPACE.incumbent
        if made.players[0].budget.feasible.meets([SPACE.incumbent])[0]
        else made.players[0].budget.feasible.sample(1, np.random.default_rng(0))[0]
    )
    monkeypatch.setattr(made.players[0].strategy, "ask", lambda n: [arch] * n)
    counted = []
    forward = made.supernet.forward
    monkeypatch.setattr(made.supernet, "forward", lambda images: (counted.append(len(images)), forward(images))[1])
    for _ in range(2):
        counted.clear()
        made._train_strategy()
        assert counted == [64, 64, 32]  # once for both archs of the update, and again in the next epoch


def test_a_score_that_is_no_number_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_run(monkeypatch, warmup_epochs=0, epochs=1)
    monkeypatch.setattr(made.scorer, "on_minibatch", lambda archs: [math.nan, *[0.5] * (len(archs) - 1)])
    made.advance()
    assert made.history[0]["dropped"] == 2
    assert made.history[0]["accuracy"] == 0.5
    assert all(math.isfinite(accuracy) for accuracy, _ in made.scores.values())
    assert [call for call in made.players[0].strategy.calls if call[0] == "tell"] == [("tell", 3)] * 2


def test_one_search_finds_an_arch_for_each_target(tmp_path: Path) -> None:
    lowest, highest = TABLE.bounds()
    targets = [highest - 0.2 * (highest - lowest), highest - 0.7 * (highest - lowest)]
    measured: list[list[Arch]] = []

    def measure(archs: list[Arch]) -> list[float]:
        measured.append(list(archs))
        return [TABLE.predict(arch) for arch in archs]

    result = run(target_ms=targets, out=tmp_path, measure=measure)
    assert [found.target_ms for found in result.outcomes] == targets
    for found in result.outcomes:
        assert found.met
        assert found.pick.measured_ms == TABLE.predict(found.pick.arch) <= found.target_ms
    assert len(measured) == 1  # the finalists of all targets, in one session
    assert set(measured[0]) == {item.arch for found in result.outcomes for item in found.finalists}
    kept = load_run(tmp_path)
    assert [item.pick.arch for item in kept.outcomes] == [SPACE.names(found.pick.arch) for found in result.outcomes]
    assert kept.outcome(targets[1]).pick.arch == SPACE.names(result.outcomes[1].pick.arch)
    with pytest.raises(RunError, match=r"the target must be one that the search was asked for \(.* ms\), but got 99"):
        kept.outcome(99.0)
    assert outcome(run(target_ms=targets, out=tmp_path, resume=True, measure=measure)) == outcome(result)


@pytest.mark.parametrize("strategy", ["surrogate", "reinforce", "evolution", "random"])
def test_of_more_targets_than_updates_all_have_their_turn(strategy: str, tmp_path: Path) -> None:
    lowest, highest = TABLE.bounds()
    targets = [lowest + share * (highest - lowest) for share in (0.9, 0.7, 0.5)]
    config = replace(CONFIG, strategy=strategy, warmup_epochs=0, epochs=2, updates=2)
    made = SearchRun(SPACE, made_task(), [Budget.of(SPACE, [TABLE], [target], config) for target in targets], config)
    asked: list[int] = []
    for number, player in enumerate(made.players):
        ask = player.strategy.ask
        player.strategy.ask = lambda n, ask=ask, number=number: (asked.append(number), ask(n))[1]  # type: ignore[method-assign]
    made.advance()
    made.advance()
    assert list(dict.fromkeys(asked)) == [0, 1, 2]
    assert all(math.isfinite(value) for log in made.history for value in log.values())
    json.dumps(made.history, allow_nan=False)  # as run.json wants it


def test_a_score_counts_for_every_target(monkeypatch: pytest.MonkeyPatch) -> None:
    lowest, highest = TABLE.bounds()
    targets = [highest, (lowest + highest) / 2]
    config = replace(CONFIG, strategy="surrogate", warmup_epochs=0, updates=2)
    made = SearchRun(SPACE, made_task(), [Budget.of(SPACE, [TABLE], [target], config) for target in targets], config)
    seen: list[list[Arch]] = [[], []]
    for player, archs in zip(made.players, seen, strict=True):
        monkeypatch.setattr(player.strategy, "learn", lambda asked, *_, archs=archs: archs.extend(asked))
    made.advance()
    assert seen[0] == seen[1]
    assert len(seen[0]) == config.updates * config.samples


def test_only_archs_within_the_budget_are_scored_whatever_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_run(monkeypatch, warmup_epochs=0, epochs=1)
    slow = max(itertools.product(*(slot.candidates for slot in SPACE.slots)), key=TABLE.predict)
    good = made.players[0].budget.feasible.sample(1, np.random.default_rng(0))
    assert made._within(made.players[0], lambda n: [slow, *good], 3) == good * 3
    archs = made._within(made.players[0], lambda n: [slow] * n, 5)
    assert len(archs) == 5
    assert made.players[0].budget.feasible.meets(archs).all()


def test_channels_last_searches_the_same_space() -> None:
    result = run(config=replace(CONFIG, channels_last=True, epochs=1))
    assert result.met


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_scores_and_keeps_weights_in_fp32(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = Supernet.forward

    def spy(self: Supernet, images: torch.Tensor) -> Any:
        output = forward(self, images)
        seen.append((self.training, output.dtype))
        return output

    monkeypatch.setattr(Supernet, "forward", spy)
    config = replace(CONFIG, precision=precision, epochs=1, lr=0.01)
    search_run = SearchRun(SPACE, made_task(), [Budget.of(SPACE, [TABLE], [TARGET], config)], config)
    while search_run.epoch < search_run.epochs:
        search_run.advance()
    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert set(seen) == {(True, wanted), (False, wanted)}
    assert {parameter.dtype for parameter in search_run.supernet.parameters()} == {torch.float32}
    assert all(parameter.isfinite().all() for parameter in search_run.supernet.parameters())


def test_no_more_archs_are_scored_at_the_end_than_there_are() -> None:
    result = run(target_ms=FASTEST, config=replace(CONFIG, epochs=1))
    assert len(result.finalists) == 1
    assert result.pick.predicted_ms == pytest.approx(FASTEST)


def test_progress_is_shown() -> None:
    output = io.StringIO()
    with Progress(disable=True, console=Console(file=output, width=200)) as progress:
        run(progress=progress)
        (bar,) = progress.tasks
    every = list(itertools.product(*(slot.candidates for slot in SPACE.slots)))
    under = sum(TABLE.predict(arch) <= TARGET + 1e-12 for arch in every)
    assert output.getvalue() == (
        f"{FASTEST:.4g} to {SLOWEST:.4g} ms by the table; {under:,} of {len(every):,} archs take at most {TARGET:.4g} ms\n"
    )
    assert bar.completed == bar.total == 4
    assert "reward" in bar.description
    assert f"of {TARGET:.4g} ms" in bar.description
    assert f"entropy {RESULT.history[-1]['entropy']:.1f}" in bar.description


def test_the_package_is_callable() -> None:
    assert nar_hw.search is not loop.search
    result = nar_hw.search(SPACE, made_task(), TABLE, target_ms=TARGET, config=replace(CONFIG, epochs=1))  # type: ignore[operator]
    assert isinstance(result, SearchResult)


def test_a_config_survives_json() -> None:
    config = SearchConfig(
        strategy="reinforce", strategy_options={"lr": 0.1}, reward_options={"slope": -0.2}, epochs=7, channels_last=True
    )
    assert as_record(json.loads(json.dumps(plain(config))), SearchConfig, where="search") == config


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"strategy": "reinforced"}, UnknownNameError, "unknown strategy 'reinforced': use one of reinforce"),
        ({"reward": "absolut"}, UnknownNameError, "unknown reward 'absolut': use one of absolute"),
        (
            {"strategy": "reinforce", "strategy_options": {"lrr": 1}},
            UnknownNameError,
            "unknown option of strategy reinforce 'lrr': use one of lr",
        ),
        ({"reward_options": {"slop": 1}}, UnknownNameError, "unknown option of reward absolute 'slop': use one of slope"),
        (
            {"strategy": "reinforce", "strategy_options": {"seed": 1}},
            UnknownNameError,
            "unknown option of strategy reinforce 'seed'",
        ),
        ({"paths": "best"}, UnknownNameError, "unknown paths 'best'"),
        ({"warmup_paths": "strategy"}, UserError, "warmup_paths is fair or uniform must hold"),
        ({"warmup_epochs": -1}, UserError, r"warmup_epochs >= 0 must hold in a search, but got \(warmup_epochs=-1\)"),
        ({"epochs": 0}, UserError, "epochs >= 1"),
        ({"samples": 0}, UserError, "samples >= 1"),
        ({"recalibration_batches": 0}, UserError, "recalibration_batches >= 1"),
        ({"finalists": 9, "rescored": 8}, UserError, r"finalists=9, rescored=8"),
        ({"lr": -1.0}, TrainingError, "lr > 0"),
        ({"t_0": 0}, TrainingError, "t_0 > 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], error: type[UserError], message: str) -> None:
    with pytest.raises(error, match=message):
        SearchConfig(**settings)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(RunError, match=r"search: it has an unknown field 'epoch' \(is 'epochs' meant\?\)"):
        as_record({"epoch": 3}, SearchConfig, where="search")


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def fails() -> None:
    with seeded(7):
        raise KeyboardInterrupt


def test_generators_are_restored_after_a_failure() -> None:
    before = generator_states()
    with pytest.raises(KeyboardInterrupt):
        fails()
    expected = draws()
    restore_generators(before)
    assert draws() == expected


def test_generators_are_seeded_for_a_while_and_restored() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = generator_states()
    expected = draws()
    restore_generators(before)
    with seeded(7):
        first = draws()
    assert draws() == expected
    with seeded(7):
        assert draws() == first
    with seeded(8):
        assert draws() != first
