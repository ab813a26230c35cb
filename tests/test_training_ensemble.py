"""Ensembles of snapshots, teachers, recipes from files, and what is told of each epoch."""

import copy
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nar_hw.data import Augmentation, load_data
from nar_hw.errors import RunError, TrainingError, UserError
from nar_hw.models.info import ModelInfo
from nar_hw.models.weights import load_weights
from nar_hw.records import plain, replace
from nar_hw.steps.ensemble import ensemble, plain_scores
from nar_hw.steps.train import train_child
from nar_hw.tasks import ClassificationTask
from nar_hw.training.child import Child
from nar_hw.training.loop import train
from nar_hw.training.phases import two_phase
from nar_hw.training.recipes import RECIPES, Recipe, fine_tuning, recipe_named
from nar_hw.training.snapshots import kept_snapshots, score_ensemble, snapshot_epochs, snapshot_path, with_snapshots

DATA = load_data("fake:3x8x8x7")
SHORT = Recipe(epochs=6, batch=35, t_0=2, t_mult=1, lr=0.05)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7)
    )


def task() -> ClassificationTask:
    return ClassificationTask(DATA, augmentation=Augmentation())


class TestSnapshotEpochs:
    @pytest.mark.parametrize(
        ("recipe", "ends"),
        [
            (RECIPES["paper"], (5, 15, 35)),
            (replace(RECIPES["paper"], epochs=20), (5, 15, 20)),
            (replace(RECIPES["paper"], epochs=5), (5,)),
            (Recipe(epochs=3, t_0=5), (3,)),
            (RECIPES["fast"], (30,)),
        ],
    )
    def test_ends_of_cosines(self, recipe: Recipe, ends: tuple[int, ...]) -> None:
        assert recipe.cosine_ends() == ends
        for end in ends[:-1]:  # where the rate jumps
            assert recipe.learning_rate(end) == recipe.lr > 100 * recipe.learning_rate(end - 1e-3)

    @pytest.mark.parametrize(
        ("recipe", "count", "epochs"),
        [
            (RECIPES["paper"], 3, (5, 15, 35)),
            (RECIPES["paper"], 2, (15, 35)),
            (RECIPES["paper"], 4, (32, 33, 34, 35)),
            (RECIPES["paper"], 0, ()),
            (RECIPES["fast"], 1, (30,)),
            (RECIPES["fast"], 3, (28, 29, 30)),
        ],
    )
    def test_the_last_cosines_or_else_the_last_epochs(self, recipe: Recipe, count: int, epochs: tuple[int, ...]) -> None:
        assert snapshot_epochs(recipe, count) == epochs

    @pytest.mark.parametrize("count", [-1, 7])
    def test_a_number_out_of_range(self, count: int) -> None:
        with pytest.raises(TrainingError, match=rf"0 <= snapshots <= epochs must hold, but got \(snapshots={count}, epochs=6\)"):
            snapshot_epochs(SHORT, count)


class Constant(nn.Module):
    """The same answer to everything."""

    def __init__(self, label: int = 0, height: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("logits", height * nn.functional.one_hot(torch.tensor(label), 7))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


class TestEnsembles:
    def test_mean_and_majority_against_numpy(self, tmp_path: Path) -> None:
        result = train(model := network(), task(), SHORT, out=tmp_path, snapshots=3)
        assert result.snapshots == kept_snapshots(tmp_path) == (2, 4, 6)
        asked = task()
        found = score_ensemble(((item, asked) for item in with_snapshots(model, tmp_path, result.snapshots)), "test", fallback=1)
        labels = DATA.test.labels
        chances, choices = [], []
        for epoch in (2, 4, 6):
            load_weights(member := network(9), snapshot_path(tmp_path, epoch))
            with torch.no_grad():
                logits = np.concatenate([member.eval()(images).double().numpy() for images, _ in task().eval_batches("test")])
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            chances.append(odds / odds.sum(axis=1, keepdims=True))
            choices.append(logits.argmax(axis=1))
        mean = np.mean(chances, axis=0)
        winners, undecided = [], 0
        for votes in np.array(choices).T.tolist():
            ranked = Counter(votes).most_common()
            tie = len(ranked) > 1 and ranked[0][1] == ranked[1][1]
            undecided += tie
            winners.append(votes[1] if tie else ranked[0][0])
        assert found.members == pytest.approx([np.mean(choice == labels) for choice in choices])
        assert found.mean == pytest.approx(np.mean(mean.argmax(axis=1) == labels))
        best_five = np.argsort(-mean, axis=1)[:, :5]
        assert found.mean_top5 == pytest.approx(np.mean([label in row for label, row in zip(labels, best_five, strict=True)]))
        assert found.vote == pytest.approx(np.mean(np.array(winners) == labels))
        assert found.undecided == undecided
        assert len(set(found.members)) > 1

    @pytest.mark.parametrize(
        ("answers", "fallback", "chosen", "undecided"),
        [
            ([1, 1, 4], 2, 1, 0),  # a majority wins against the fallback
            ([1, 4], 0, 1, 4),
            ([1, 4], 1, 4, 4),
            ([1, 2, 3], -1, 3, 4),  # no two agree
            ([1, 1, 2, 2, 3], 4, 3, 4),  # the fallback may be neither of the equals
            ([1, 1, 2, 3], 3, 1, 0),  # more votes than every other, though not more than half
        ],
    )
    def test_the_tie_rule(self, answers: list[int], fallback: int, chosen: int, undecided: int) -> None:
        images = DATA.test.images[:4]  # type: ignore[attr-defined]
        part = replace(DATA.test, labels=np.full(4, chosen), images=images, indices=np.arange(4))  # type: ignore[call-arg]
        only = ClassificationTask(replace(DATA, test=part))
        found = score_ensemble([(Constant(label, 50.0), only) for label in answers], "test", fallback=fallback)
        assert (found.vote, found.undecided) == (1, undecided)

    def test_five_classes_have_no_top_five(self, tmp_path: Path) -> None:
        data = ClassificationTask(load_data("fake:3x8x8x5"))
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        result = train(model, data, replace(SHORT, epochs=2, batch=20), out=tmp_path, snapshots=1)
        assert result.snapshots == (2,)
        assert score_ensemble([(model, data)], "test").mean_top5 is None

    def test_snapshots_of_the_second_phase(self, tmp_path: Path) -> None:
        result = two_phase(network(), task(), SHORT, new=[], out=tmp_path, snapshots=2)
        assert result.snapshots == (5, 6)
        load_weights(last := network(9), snapshot_path(tmp_path, 6))
        load_weights(also := network(8), tmp_path / "last.safetensors")
        assert all(torch.equal(one, two) for one, two in zip(last.state_dict().values(), also.state_dict().values(), strict=True))

    def test_a_snapshot_that_was_not_kept(self, tmp_path: Path) -> None:
        train(network(), task(), replace(SHORT, epochs=4), out=tmp_path)
        with pytest.raises(RunError, match="must hold the ensemble's snapshot of epoch 2, but does not: ask for fewer"):
            train(network(), task(), SHORT, out=tmp_path, snapshots=3, resume=True)
        result = train(network(), task(), SHORT, out=tmp_path, snapshots=2, resume=True)  # that of epoch 4 is the last one
        assert result.snapshots == (4, 6)
        assert {path.name for path in (tmp_path / "snapshots").iterdir()} == {"epoch4.safetensors", "epoch6.safetensors"}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("ensemble")
    (root / "net.py").write_text(
        "from torch import nn\n\n\ndef build(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, num_classes))\n"
    )
    info = ModelInfo(name=f"{root / 'net.py'}:build", input_shape=(3, 8, 8), num_classes=7, manner="conv")
    for seed in (0, 1):
        train_child(info, None, task(), out=root / str(seed), recipe=replace(SHORT, epochs=4), seed=seed, ensemble=2)
    return root / "0", root / "1"


class TestAcrossTrainings:
    """What `nar-hw ensemble` does, on two networks whose weights are known."""

    def test_the_latest_snapshots_of_each(self, trainings: tuple[Path, Path]) -> None:
        found = ensemble(trainings, snapshots=2, fallback=trainings[0])
        assert found.members == tuple((folder, epoch) for folder in trainings for epoch in (2, 4))
        assert found.fallback == (trainings[0], 4)
        kept = [Child.load(folder).ensemble for folder in trainings]
        assert found.scores.members == tuple(value for record in kept if record for value in record["members"])
        single = ensemble(trainings[1:], snapshots=2)
        assert kept[1] == json.loads(json.dumps({"epochs": (2, 4), **asdict(single.scores)}))

    def test_the_last_weights_and_the_best_fallback(self, trainings: tuple[Path, Path]) -> None:
        found = ensemble(trainings)
        children = [Child.load(folder) for folder in trainings]
        assert found.scores.members == tuple(child.accuracy["test"] for child in children)
        valid = [child.accuracy["valid"] for child in children]
        assert found.fallback == (trainings[valid.index(max(valid))], None)
        assert plain_scores(found)["fallback"] == {"folder": str(found.fallback.folder), "epoch": None}

    def test_what_cannot_be(self, trainings: tuple[Path, Path], tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"must hold 3 snapshots or more, but holds 2: train it with --ensemble 3"):
            ensemble(trainings, snapshots=3)
        with pytest.raises(UserError, match=r"--fallback must be one of the trainings .*, but got elsewhere"):
            ensemble(trainings, fallback=Path("elsewhere"))
        with pytest.raises(UserError, match="each training must be named once"):
            ensemble([trainings[0]] * 2)
        other = tmp_path / "other"
        shutil.copytree(trainings[0], other)
        content = json.loads((other / "child.json").read_text())
        (other / "child.json").write_text(json.dumps({**content, "data": "fake:3x8x8x6"}))
        with pytest.raises(UserError, match="all trainings must be of the same test images and classes"):
            ensemble([trainings[0], other])


class TestTeachers:
    def test_the_loss_is_that_of_labels_and_teacher(self) -> None:
        """One step without momentum: the change of the weights is the gradient of the formula."""
        recipe = Recipe(epochs=1, batch=490, lr=1.0, lr_min=1.0, momentum=0.0, weight_decay=0.0, distill=0.3, temperature=2.5)

        def linear(seed: int) -> nn.Sequential:
            torch.manual_seed(seed)
            return nn.Sequential(nn.Flatten(), nn.Linear(192, 7))

        student, teacher = linear(0), linear(1)
        before = copy.deepcopy(student)
        result = train(student, task(), recipe, teacher=teacher)
        ((images, labels),) = task().train_batches(490, torch.Generator().manual_seed(0))
        own, wanted = before(images), teacher(images).detach()
        p, q = (torch.exp(wanted / 2.5), torch.exp(own / 2.5))
        p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
        divergence = (p * (p.log() - q.log())).sum(1).mean() * 2.5**2
        correct = -own.log_softmax(1)[torch.arange(490), labels].mean()
        loss = 0.7 * correct + 0.3 * divergence
        (gradient,) = torch.autograd.grad(loss, before[1].weight)
        assert result.history[0].loss == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(before[1].weight - student[1].weight, gradient, rtol=1e-4, atol=1e-6)
        assert all(parameter.grad is None for parameter in teacher.parameters())

    def test_a_teacher_alone_is_imitated_even_where_it_is_wrong(self) -> None:
        recipe = replace(SHORT, epochs=12, t_0=12, lr=0.2)
        train(teacher := network(1), task(), recipe)
        with torch.no_grad():  # its answers are one class further
            teacher[5].weight.copy_(teacher[5].weight.roll(1, 0))
            teacher[5].bias.copy_(teacher[5].bias.roll(1, 0))
        before = copy.deepcopy(teacher.state_dict())
        train(pupil := network(2), task(), replace(recipe, distill=1.0), teacher=teacher)
        images = torch.cat([images for images, _ in task().eval_batches("test")])
        agreed = (pupil(images).argmax(1) == teacher(images).argmax(1)).float().mean()
        assert agreed > 0.9
        assert task().evaluate(pupil, "test") < 0.1
        assert not teacher.training
        assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())  # nor its norms

    def test_both_or_neither(self) -> None:
        message = r"distill > 0 must hold exactly where there is a teacher, but got \(distill=0.5, teacher=none\)"
        with pytest.raises(TrainingError, match=message):
            train(network(), task(), replace(SHORT, distill=0.5))
        with pytest.raises(TrainingError, match=r"\(distill=0.0, teacher=given\)"):
            train(network(), task(), SHORT, teacher=network())

    def test_both_phases_have_the_teacher(self) -> None:
        assert [phase.distill for phase in fine_tuning(replace(SHORT, distill=0.5))] == [0.5, 0.5]
        (alone, taught) = (network(), network())
        two_phase(alone, task(), replace(SHORT, epochs=2), new=[])
        two_phase(taught, task(), replace(SHORT, epochs=2, distill=0.5), new=[], teacher=network(1))
        assert not torch.equal(alone[5].weight, taught[5].weight)

    @pytest.mark.parametrize(
        ("values", "message"), [({"distill": 1.1}, "0 <= distill <= 1"), ({"temperature": 0.0}, "temperature > 0")]
    )
    def test_values_out_of_range(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(TrainingError, match=message):
            Recipe(epochs=1, **values)


class TestRecipeFiles:
    def test_a_recipe_comes_back(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.json"
        path.write_text(json.dumps(plain(RECIPES["fast"])))
        assert recipe_named(str(path)) == RECIPES["fast"]

    def test_a_file_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"recipe .*absent.json does not exist"):
            recipe_named(str(tmp_path / "absent.json"))
        (tmp_path / "x.json").write_text('{"epochs": 3, "learning_rate": 0.1}')
        with pytest.raises(TrainingError, match="has an unknown field 'learning_rate'"):
            recipe_named(str(tmp_path / "x.json"))


def test_every_epoch_is_told_once(tmp_path: Path) -> None:
    told: list[Mapping[str, float]] = []
    train(network(), task(), replace(SHORT, epochs=2), out=tmp_path, on_epoch=told.append)
    result = train(network(), task(), SHORT, out=tmp_path, resume=True, on_epoch=told.append)
    assert [(log["epoch"], log["loss"]) for log in told] == [(log.epoch, log.loss) for log in result.history]
