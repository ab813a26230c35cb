"""Recipes, the training loop, checkpoints and resuming, two-phase fine-tuning."""

import copy
import io
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from nar_hw.data import Augmentation, load_data
from nar_hw.data.loader import Batch
from nar_hw.errors import ModelError, RunError, TrainingError, UnknownNameError
from nar_hw.models.weights import load_weights, save_weights
from nar_hw.records import as_record, plain, replace, with_settings
from nar_hw.tasks import ClassificationTask
from nar_hw.training.checkpoints import load_state
from nar_hw.training.loop import train
from nar_hw.training.phases import two_phase
from nar_hw.training.precision import autocast
from nar_hw.training.recipes import RECIPES, Recipe, fine_tuning, recipe_named
from nar_hw.training.result import TrainResult
from nar_hw.training.seed import set_seed

DATA = load_data("fake:3x8x8x4")  # 280, 40 and 80 images
SHORT = Recipe(epochs=4, batch=40, t_0=2, t_mult=1, lr=0.05, weight_decay=1e-3)


def network(seed: int = 0) -> nn.Sequential:
    """Convolutions, BatchNorm and Dropout: everything with a state or randomness of its own."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16, 4),
    )


def linear(seed: int = 0) -> nn.Sequential:
    """Nothing whose result depends on how a batch is cut."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


def task(**augmentation: Any) -> ClassificationTask:
    return ClassificationTask(DATA, augmentation=Augmentation(**augmentation))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def numbers(result: TrainResult) -> list[tuple[float, ...]]:
    """The history without its speed."""
    return [(log.epoch, log.loss, log.train_accuracy, log.valid_accuracy, log.lr, log.phase) for log in result.history]


class TestSchedules:
    def test_the_paper_anneals_over_5_10_and_20_epochs(self) -> None:
        recipe = RECIPES["paper"]
        for start, length in ((0, 5), (5, 10), (15, 20)):
            for progress in (0.0, 0.25, 0.5, 0.9):
                expected = 1e-4 + (0.1 - 1e-4) / 2 * (1 + math.cos(math.pi * progress))
                assert recipe.learning_rate(start + progress * length) == pytest.approx(expected)
        assert recipe.learning_rate(34.999999) == pytest.approx(1e-4)

    def test_one_cycle_rises_in_a_line_and_falls_by_a_cosine(self) -> None:
        recipe = Recipe(epochs=20, schedule="one-cycle", warmup=0.25, lr=0.5, lr_min=0.1)
        points = {0: 0.1, 2.5: 0.3, 5: 0.5, 12.5: 0.3, 19.999999: 0.1}
        assert [recipe.learning_rate(epoch) for epoch in points] == pytest.approx(list(points.values()))

    def test_steps(self) -> None:
        recipe = Recipe(epochs=9, schedule="step", milestones=(3, 6), gamma=0.1, lr=1.0)
        assert [recipe.learning_rate(epoch) for epoch in (0, 2.9, 3, 5.9, 6, 8.9)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])

    @given(
        recipe=st.builds(
            Recipe,
            epochs=st.integers(1, 200),
            schedule=st.sampled_from(["sgdr", "one-cycle"]),
            t_0=st.integers(1, 20),
            t_mult=st.integers(1, 3),
            warmup=st.floats(0, 0.9),
            lr=st.floats(1e-3, 10),
            lr_min=st.floats(0, 1e-3),
        ),
        share=st.floats(0, 1, exclude_max=True),
    )
    @settings(deadline=None)
    def test_rates_stay_between_their_limits(self, recipe: Recipe, share: float) -> None:
        rate = recipe.learning_rate(share * recipe.epochs)
        assert recipe.lr_min * (1 - 1e-9) <= rate <= recipe.lr * (1 + 1e-9)


class TestRecipes:
    @pytest.mark.parametrize("recipe", [*RECIPES.values(), Recipe(epochs=3, milestones=(1, 2), clip_norm=1.0, ema_decay=0.9)])
    def test_json_keeps_everything(self, recipe: Recipe) -> None:
        assert as_record(json.loads(json.dumps(plain(recipe))), Recipe, where="recipe") == recipe
        assert plain(recipe).keys() == set(Recipe.__struct_fields__)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"epochs": 0}, r"0 < epochs < 1e9 must hold in a recipe, but got \(epochs=0\)"),
            ({"batch": 4, "accumulate": 5}, r"1 <= accumulate <= batch .* \(accumulate=5, batch=4\)"),
            ({"lr": 0.1, "lr_min": 0.2}, r"0 <= lr_min <= lr .* \(lr_min=0\.2, lr=0\.1\)"),
            ({"lr": math.inf}, r"lr <= 1e6 and .* lr=inf"),
            ({"t_0": 0}, "t_0 > 0"),
            ({"t_mult": 0}, "t_mult >= 1"),
            ({"warmup": 1.0}, "0 <= warmup < 1"),
            ({"milestones": (3, 2)}, r"milestones in ascending order .*milestones=\(3, 2\)"),
            ({"gamma": 0.0}, "0 < gamma <= 1"),
            ({"momentum": 1.0}, "0 <= momentum < 1"),
            ({"momentum": 0.0, "nesterov": True}, "momentum > 0 with nesterov"),
            ({"weight_decay": -1.0}, "weight_decay >= 0"),
            ({"label_smoothing": 1.0}, "0 <= label_smoothing < 1"),
            ({"clip_norm": 0.0}, "clip_norm > 0"),
            ({"ema_decay": 1.0}, "0 < ema_decay < 1"),
        ],
    )
    def test_values_out_of_range(self, values: dict[str, Any], message: str) -> None:
        with pytest.raises(TrainingError, match=message):
            Recipe(**{"epochs": 1, **values})

    def test_unknown_names(self) -> None:
        with pytest.raises(UnknownNameError, match="unknown recipe 'papers': use one of paper"):
            recipe_named("papers")
        with pytest.raises(UnknownNameError, match="unknown schedule 'cosine'"):
            Recipe(epochs=1, schedule="cosine")  # type: ignore[arg-type]
        with pytest.raises(UnknownNameError, match="unknown precision 'int8'"):
            Recipe(epochs=1, precision="int8")  # type: ignore[arg-type]
        with pytest.raises(TrainingError, match=r"recipe: it has an unknown field 'momentun' \(is 'momentum' meant\?\)"):
            as_record({"epochs": 1, "momentun": 0.9}, Recipe, where="recipe", error=TrainingError)

    def test_files_of_the_wrong_kind(self) -> None:
        with pytest.raises(TrainingError, match="it must have 'epochs'"):
            as_record({"lr": 0.1}, Recipe, where="recipe", error=TrainingError)
        with pytest.raises(TrainingError, match="epochs must be a number, but is 'many'"):
            as_record({"epochs": "many"}, Recipe, where="recipe", error=TrainingError)

    def test_two_phases_share_the_epochs(self) -> None:
        first, then = fine_tuning(RECIPES["paper"])
        assert (first.epochs, then.epochs) == (7, 28)
        assert (first.t_0, then.t_0) == (7, 28)
        assert then.lr < first.lr == RECIPES["paper"].lr
        assert (first.schedule, then.schedule) == ("sgdr", "sgdr")

    def test_each_phase_keeps_its_schedule(self) -> None:
        step = Recipe(epochs=20, schedule="step", milestones=(10, 15), lr=1.0, lr_min=0.0)
        first, then = fine_tuning(step)
        assert (first.epochs, first.milestones, then.epochs, then.milestones) == (4, (2, 3), 16, (8, 12))
        assert [first.learning_rate(epoch) for epoch in (0, 1.99, 2, 3.5)] == pytest.approx([1, 1, 0.1, 0.01])
        assert [then.learning_rate(epoch) for epoch in (0, 7.99, 8, 12)] == pytest.approx([0.3, 0.3, 0.03, 0.003])
        cycle = Recipe(epochs=10, schedule="one-cycle", warmup=0.5, lr=1.0, lr_min=0.0)
        first, then = fine_tuning(cycle)
        assert [first.learning_rate(epoch) for epoch in (0, 0.5, 1, 2)] == pytest.approx([0, 0.5, 1, 0])
        assert [then.learning_rate(epoch) for epoch in (0, 2, 4, 8)] == pytest.approx([0, 0.15, 0.3, 0])

    def test_a_first_phase_is_as_it_is_written(self, tmp_path: Path) -> None:
        first = Recipe(epochs=0.5, batch=40, schedule="step", milestones=(0.25,), lr=0.2)
        recipe = replace(SHORT, first_phase=first)
        assert fine_tuning(recipe) == (first, SHORT)
        (tmp_path / "two.json").write_text(json.dumps(plain(recipe)))
        assert recipe_named(str(tmp_path / "two.json")) == recipe
        assert with_settings(SHORT, [f"first_phase.{name}={json.dumps(value)}" for name, value in plain(first).items()]) == recipe
        with pytest.raises(TrainingError, match="a recipe with a first_phase is of networks that inherit weights"):
            train(network(), task(), recipe)
        with pytest.raises(TrainingError, match="no first phase of a first phase must hold"):
            replace(recipe, first_phase=recipe)
        with pytest.raises(TrainingError, match=r"batch <= training images must hold, but got \(batch=999, images=280\)"):
            two_phase(network(), task(), replace(recipe, batch=999), new=[], out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_part_of_an_epoch_has_a_part_of_its_steps(self, tmp_path: Path) -> None:
        """7 steps an epoch: 0.5 epochs are 4 (3.5 to the even), of which the third and fourth have the second rate."""
        rates: list[float] = []
        recipe = Recipe(epochs=0.5, batch=40, schedule="step", milestones=(0.25,), lr=0.2)
        assert (recipe.passes, recipe.steps(7)) == (1, 4)
        assert [recipe.learning_rate(step / 7) for step in range(4)] == pytest.approx([0.2, 0.2, 0.02, 0.02])
        counted = Counting(DATA, augmentation=Augmentation())
        log = rates.append
        result = train(network(), counted, replace(recipe, epochs=1.3), out=tmp_path, on_epoch=lambda epoch: log(epoch["lr"]))
        assert counted.losses == 7 + 2  # 1.3 epochs are 9.1 steps
        assert rates == pytest.approx([0.02, 0.02])
        assert [log.epoch for log in result.history] == [1, 2]
        with pytest.raises(RunError, match=r"goes on from a whole epoch, but .* has ended after 1.3 and 2 were asked for"):
            train(network(), task(), replace(recipe, epochs=2), out=tmp_path, resume=True)
        again = train(network(), task(), replace(recipe, epochs=1.3), out=tmp_path, resume=True)
        assert numbers(again) == numbers(result)

    def test_two_phases_need_two_epochs(self) -> None:
        with pytest.raises(TrainingError, match="epochs >= 2 must hold for training in two phases"):
            fine_tuning(Recipe(epochs=1))


class Counting(ClassificationTask):
    losses = 0

    def loss(self, output: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        self.losses += 1
        return super().loss(output, target, label_smoothing=label_smoothing)


class TestSteps:
    """The loop against the same training written out by hand."""

    def by_hand(self, model: nn.Module, recipe: Recipe, work: ClassificationTask, seed: int) -> list[float]:
        """SGD with momentum and decoupled groups, from its formula; a learning rate for every step."""
        generator = torch.Generator().manual_seed(seed)
        velocity = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
        steps = work.train_size // recipe.batch
        losses = []
        model.train()
        for epoch in range(recipe.epochs):
            for step, (images, targets) in enumerate(work.train_batches(recipe.batch, generator)):
                rate = recipe.learning_rate(epoch + step / steps)
                model.zero_grad()
                loss = nn.functional.cross_entropy(model(images), targets, label_smoothing=recipe.label_smoothing)
                loss.backward()
                losses.append(loss.item())
                with torch.no_grad():
                    for name, parameter in model.named_parameters():
                        assert parameter.grad is not None
                        decay = recipe.weight_decay if recipe.decay_vectors or parameter.ndim > 1 else 0.0
                        gradient = parameter.grad + decay * parameter
                        velocity[name] = recipe.momentum * velocity[name] + gradient
                        parameter -= rate * (gradient + recipe.momentum * velocity[name] if recipe.nesterov else velocity[name])
        return losses

    @pytest.mark.parametrize(
        "recipe",
        [
            SHORT,
            replace(SHORT, nesterov=True, decay_vectors=False, weight_decay=0.1, label_smoothing=0.1),
            replace(SHORT, schedule="one-cycle", lr=0.2),
            replace(SHORT, momentum=0.0, schedule="step", milestones=(1, 3)),
        ],
    )
    def test_equals_the_formula(self, recipe: Recipe) -> None:
        model, reference = network()[:8], network()[:8]
        model.append(nn.Linear(16, 4))
        reference.append(copy.deepcopy(model[8]))
        losses = self.by_hand(reference, recipe, task(flip=True), seed=3)
        result = train(model, task(flip=True), recipe, seed=3)
        for key, value in reference.state_dict().items():
            assert torch.allclose(model.state_dict()[key], value, atol=1e-4), key
        steps = len(losses) // recipe.epochs
        means = [sum(losses[first : first + steps]) / steps for first in range(0, len(losses), steps)]
        assert [log.loss for log in result.history] == pytest.approx(means, abs=1e-4)
        rates = [recipe.learning_rate(epoch + 1 - 1 / steps) for epoch in range(4)]
        assert [log.lr for log in result.history] == pytest.approx(rates)

    def test_accumulation_changes_the_memory_and_not_the_step(self) -> None:
        whole, pieces = linear(), linear()
        one = train(whole, task(), SHORT)
        many = train(pieces, task(), replace(SHORT, accumulate=7))  # pieces of 6 and one of 4
        assert many.history[0].pieces == 7
        assert torch.allclose(whole[1].weight, pieces[1].weight, atol=1e-5)
        assert [log.loss for log in many.history] == pytest.approx([log.loss for log in one.history], rel=1e-4)
        assert [log.train_accuracy for log in many.history] == pytest.approx(
            [log.train_accuracy for log in one.history], abs=0.01
        )

    def test_clipping_bounds_the_step(self) -> None:
        recipe = replace(SHORT, epochs=1, batch=280, momentum=0.0, weight_decay=0.0, lr=1.0)
        for clip_norm in (0.01, 1e9):
            model, before = linear(), linear()
            train(model, task(), replace(recipe, clip_norm=clip_norm))
            parts = [after - start for after, start in zip(model.parameters(), before.parameters(), strict=True)]
            moved = math.sqrt(sum(part.double().square().sum().item() for part in parts))
            if clip_norm == 0.01:
                assert moved == pytest.approx(0.01, rel=1e-3)
            else:
                assert moved > 0.1

    def test_the_average_of_the_weights_is_kept(self) -> None:
        recipe = replace(SHORT, epochs=1, batch=140, momentum=0.0, schedule="step")
        model, by_step = linear(), linear()
        train(model, task(), replace(recipe, ema_decay=0.75))
        path = []
        generator = torch.Generator().manual_seed(0)
        for images, targets in task().train_batches(140, generator):
            by_step.zero_grad()
            nn.functional.cross_entropy(by_step(images), targets).backward()
            with torch.no_grad():
                for parameter in by_step.parameters():
                    assert parameter.grad is not None
                    parameter -= recipe.lr * (parameter.grad + recipe.weight_decay * parameter)
            path.append(by_step[1].weight.detach().clone())
        expected = 0.75 * path[0] + 0.25 * path[1]  # the first step starts the average
        assert torch.allclose(model[1].weight, expected, atol=1e-6)

    @pytest.mark.parametrize("precision", ["bf16", "fp16"])
    def test_lower_precision_keeps_the_weights_in_fp32(self, precision: Any) -> None:
        seen = set()
        model = network()
        model[3].register_forward_hook(lambda module, inputs, output: seen.add((module.weight.dtype, output.dtype)))
        recipe = replace(SHORT, epochs=1)
        result = train(model, task(), replace(recipe, precision=precision))
        assert seen == {(torch.float32, torch.bfloat16 if precision == "bf16" else torch.float16)}
        full = train(network(), task(), recipe)
        assert result.history[-1].loss == pytest.approx(full.history[-1].loss, rel=0.05)

    @pytest.mark.parametrize(
        ("kernel", "groups", "in_fp32"), [(5, 4, True), (7, 4, True), (3, 4, False), (5, 1, False), (5, 2, False)]
    )
    def test_bf16_computes_wide_depthwise_convolutions_in_fp32(self, kernel: int, groups: int, in_fp32: bool) -> None:
        images = torch.randn(2, 4, 9, 9)
        conv = nn.Conv2d(4, 4, kernel, groups=groups, bias=False)
        with autocast(torch.device("cpu"), "bf16"):
            outputs = conv(images)
        with torch.autocast("cpu", torch.bfloat16, enabled=not in_fp32):
            expected = conv(images)
        assert outputs.dtype == torch.bfloat16
        assert torch.equal(outputs, expected.bfloat16())
        weight_gradient = torch.autograd.grad(outputs.float().sum(), conv.weight)[0]
        assert torch.allclose(weight_gradient, torch.autograd.grad(expected.float().sum(), conv.weight)[0], rtol=1e-2, atol=1e-1)

    def test_channels_last_reaches_the_convolutions(self) -> None:
        seen = []
        model = network()
        model[3].register_forward_pre_hook(
            lambda module, inputs: seen.append(
                inputs[0].is_contiguous(memory_format=torch.channels_last)
                and module.weight.is_contiguous(memory_format=torch.channels_last)
            )
        )
        result = train(model, task(), replace(SHORT, channels_last=True))
        assert all(seen)
        assert result.history[-1].loss == pytest.approx(train(network(), task(), SHORT).history[-1].loss, rel=0.01)

    def test_compile_trains_through_the_compiled_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []

        def compiled(model: nn.Module) -> Any:
            return lambda images: (calls.append(len(images)), model(images))[1]

        monkeypatch.setattr(torch, "compile", compiled)
        model, plain = network(), network()
        train(model, task(), replace(SHORT, compile=True))
        train(plain, task(), SHORT)
        assert calls == [40] * 28
        assert equal(weights(model), weights(plain))

    def test_a_network_learns(self) -> None:
        work = task()
        model = network()
        result = train(model, work, replace(SHORT, epochs=12, t_0=12, batch=20, lr=0.2))
        assert work.evaluate(model, "test") > 0.95
        assert result.valid_accuracy > 0.95
        assert result.valid_accuracy == work.evaluate(model, "valid")
        assert not model.training
        assert result.history[-1].images_per_s > 0


class TestSeeds:
    def test_the_seed_decides_every_bit(self) -> None:
        first, second, third = network(), network(), network()
        work = task(crop_padding=1, flip=True, cutout=2)
        results = [train(model, work, SHORT, seed=seed) for model, seed in ((first, 1), (second, 1), (third, 2))]
        assert equal(weights(first), weights(second))
        assert numbers(results[0]) == numbers(results[1])
        assert not equal(weights(first), weights(third))

    def test_the_global_generators_are_neither_read_nor_changed(self) -> None:
        first, second = network(), network()
        torch.manual_seed(1)
        before = torch.get_rng_state()
        train(first, task(), SHORT)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        train(second, task(), SHORT)
        assert equal(weights(first), weights(second))

    def test_set_seed(self) -> None:
        draws = []
        for _ in range(2):
            set_seed(5)
            draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        assert draws[0] == draws[1]
        with pytest.raises(TrainingError, match=r"0 <= seed < 2\*\*32 must hold, but got -1"):
            set_seed(-1)


class Interrupted(ClassificationTask):
    """Stops the training within an epoch, as Ctrl-C does."""

    def __init__(self, *, epoch: int, step: int, **augmentation: Any) -> None:
        super().__init__(DATA, augmentation=Augmentation(**augmentation))
        self.at, self.epochs = (epoch, step), 0

    def train_batches(self, *args: Any, **kwargs: Any) -> Iterator[Batch]:
        self.epochs += 1
        for step, batch in enumerate(super().train_batches(*args, **kwargs), 1):
            if (self.epochs, step) == self.at:
                raise KeyboardInterrupt
            yield batch


AUGMENTED = {"crop_padding": 1, "flip": True, "cutout": 2}


class TestResume:
    @pytest.mark.parametrize(
        ("build", "recipe"),
        [
            (network, SHORT),
            (network, replace(SHORT, ema_decay=0.9, schedule="one-cycle", nesterov=True, accumulate=2, clip_norm=1.0)),
            (linear, replace(SHORT, precision="fp16")),
        ],
    )
    @pytest.mark.parametrize("epoch", [1, 3])
    def test_an_interrupted_training_goes_on_to_the_same_bits(
        self, build: Callable[..., nn.Module], recipe: Recipe, epoch: int, tmp_path: Path
    ) -> None:
        straight, stopped = build(), build()
        expected = train(straight, task(**AUGMENTED), recipe, out=tmp_path / "straight", seed=1)
        with pytest.raises(KeyboardInterrupt):
            train(stopped, Interrupted(epoch=epoch, step=4, **AUGMENTED), recipe, out=tmp_path / "stopped", seed=1)
        fresh = build(seed=0 if epoch == 1 else 9)  # nothing was saved before the first epoch was whole
        result = train(fresh, task(**AUGMENTED), recipe, out=tmp_path / "stopped", seed=1, resume=True)
        assert equal(weights(fresh), weights(straight))
        assert numbers(result) == numbers(expected)
        for name in ("last.safetensors", "best.safetensors"):
            assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()

    def test_more_epochs_on_resume_equal_more_from_the_start(self, tmp_path: Path) -> None:
        straight, longer = network(), network()
        expected = train(straight, task(), replace(SHORT, epochs=6))
        train(longer, task(), SHORT, out=tmp_path)
        result = train(network(seed=9), task(), replace(SHORT, epochs=6), out=tmp_path, resume=True)
        assert numbers(result) == numbers(expected)

    def test_a_finished_training_is_not_repeated(self, tmp_path: Path) -> None:
        first, second = network(), network(seed=9)
        expected = train(first, task(), SHORT, out=tmp_path)
        (tmp_path / "last.safetensors").unlink()  # as if it had been stopped just before that was written
        result = train(second, Interrupted(epoch=1, step=1), SHORT, out=tmp_path, resume=True)
        assert result == expected
        assert equal(weights(first), weights(second))
        load_weights(third := network(seed=8), tmp_path / "last.safetensors")
        assert equal(weights(first), weights(third))

    def test_an_existing_training_is_not_overwritten(self, tmp_path: Path) -> None:
        train(network(), task(), SHORT, out=tmp_path)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(RunError, match="holds a training already: resume it, or choose another folder"):
            train(network(), task(), SHORT, out=tmp_path)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize(
        ("recipe", "seed", "augmentation", "message"),
        [
            (SHORT, 1, {}, "training seed is 0 there and 1 now"),
            (replace(SHORT, lr=0.06), 0, {}, r"lr is 0\.05 there and 0\.06 now"),
            (SHORT, 0, {"flip": True}, "data.augmentation.flip is False there and True now"),
            (replace(SHORT, epochs=3), 0, {}, "has trained for 4 epochs already, but 3 were asked for: ask for 4 or more"),
        ],
    )
    def test_another_training_cannot_be_resumed(
        self, recipe: Recipe, seed: int, augmentation: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        train(network(), task(), SHORT, out=tmp_path)
        with pytest.raises(RunError, match=message):
            train(network(), task(**augmentation), recipe, out=tmp_path, seed=seed, resume=True)

    def test_one_cycle_cannot_change_its_epochs(self, tmp_path: Path) -> None:
        recipe = replace(SHORT, schedule="one-cycle")
        train(network(), task(), recipe, out=tmp_path)
        with pytest.raises(RunError, match=r"cannot change its number of epochs, but .* was started for 4 and 5 were asked for"):
            train(network(), task(), replace(recipe, epochs=5), out=tmp_path, resume=True)

    def test_another_network_cannot_be_resumed(self, tmp_path: Path) -> None:
        train(network(), task(), SHORT, out=tmp_path)
        with pytest.raises(RunError, match="must hold a training of the same network, but it does not fit"):
            train(linear(), task(), SHORT, out=tmp_path, resume=True)
        similar = network()
        similar[5] = nn.Tanh()
        with pytest.raises(RunError, match=r"but it does not fit \(other layers with weights of the same shapes\)"):
            train(similar, task(), SHORT, out=tmp_path, resume=True)

    def test_a_damaged_state(self, tmp_path: Path) -> None:
        train(network(), task(), SHORT, out=tmp_path)
        path = tmp_path / "state.pt"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(RunError, match=r"state.pt cannot be read \(.*\): delete its folder and train again"):
            train(network(), task(), SHORT, out=tmp_path, resume=True)

    def test_a_state_of_another_version(self, tmp_path: Path) -> None:
        train(network(), task(), SHORT, out=tmp_path)
        torch.save({**load_state(tmp_path / "state.pt"), "schema": 99}, tmp_path / "state.pt")
        with pytest.raises(RunError, match="must have a training state of schema 1: it was written by another version"):
            train(network(), task(), SHORT, out=tmp_path, resume=True)

    def test_a_state_that_is_no_dict(self, tmp_path: Path) -> None:
        torch.save([1], tmp_path / "state.pt")
        with pytest.raises(RunError, match="must hold a dict, but holds a list"):
            train(network(), task(), SHORT, out=tmp_path, resume=True)


class TestFiles:
    def test_the_best_weights_are_those_of_the_best_epoch(self, tmp_path: Path) -> None:
        work = task()
        result = train(network(), work, replace(SHORT, epochs=8, t_0=2, lr=0.3), out=tmp_path)
        scores = [log.valid_accuracy for log in result.history]
        assert result.best_valid_accuracy == max(scores)
        assert result.best_epoch == 8 - scores[::-1].index(max(scores))
        load_weights(model := network(seed=9), tmp_path / "best.safetensors")
        assert work.evaluate(model, "valid") == max(scores)

    def test_the_history_file_has_every_epoch(self, tmp_path: Path) -> None:
        result = train(network(), task(), SHORT, out=tmp_path)
        value = json.loads((tmp_path / "history.json").read_text())
        assert [item["loss"] for item in value["epochs"]] == [log.loss for log in result.history]
        assert [item["epoch"] for item in value["epochs"]] == [1, 2, 3, 4]

    def test_weights_of_shared_modules_are_saved_and_loaded(self, tmp_path: Path) -> None:
        shared = nn.Linear(4, 4)
        save_weights(tmp_path / "w.safetensors", nn.Sequential(shared, shared))
        other = nn.Linear(4, 4)
        load_weights(nn.Sequential(other, other), tmp_path / "w.safetensors")
        assert torch.equal(other.weight, shared.weight)

    def test_weights_that_cannot_be_loaded(self, tmp_path: Path) -> None:
        path = tmp_path / "w.safetensors"
        with pytest.raises(ModelError, match="does not exist or is no file"):
            load_weights(linear(), path)
        save_weights(path, linear())
        with pytest.raises(
            ModelError, match=r"must fit the network: \d+ of \d+ do, but .*weight is .* in the file and .* in the network|missing"
        ):
            load_weights(network(), path)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(ModelError, match=r"is damaged or holds other objects"):
            load_weights(linear(), path)


class Poisoned(nn.Sequential):
    """Gives NaN from the ``at``-th training batch on."""

    def __init__(self, at: int) -> None:
        super().__init__(*linear())
        self.at, self.calls = at, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += self.training
        output: Tensor = super().forward(images)
        return output * (math.nan if self.calls > self.at else 1.0)


class Hungry(nn.Sequential):
    """Runs out of memory for more than ``most`` images."""

    def __init__(self, most: int) -> None:
        super().__init__(*linear())
        self.most = most

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        output: Tensor = super().forward(images)
        return output


class TestFailures:
    def test_nan_stops_with_step_and_rate_and_leaves_the_last_checkpoint(self, tmp_path: Path) -> None:
        rate = SHORT.learning_rate(1 + 3 / 7)
        message = rf"the loss is nan at step 10 \(epoch 2, learning rate {rate:.3g}\): try lr=0.005, clip_norm=1$"
        with pytest.raises(TrainingError, match=message):
            train(Poisoned(at=10), task(), SHORT, out=tmp_path)
        assert len(load_state(tmp_path / "state.pt")["history"]) == 1
        load_weights(model := linear(), tmp_path / "last.safetensors")
        assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())

    def test_the_first_bad_step_is_named_where_losses_are_looked_at_rarely(self, monkeypatch: pytest.MonkeyPatch) -> None:
        work = task()
        looks = []
        monkeypatch.setattr("nar_hw.training.loop._steps_between_checks", lambda device: 5)
        monkeypatch.setattr(Tensor, "tolist", lambda self, real=Tensor.tolist: looks.append(len(self)) or real(self))
        with pytest.raises(TrainingError, match="step 5 "):
            train(Poisoned(at=5), work, SHORT)
        assert looks == [5, 2]

    def test_weights_that_overflow_at_the_last_step_are_noticed(self, tmp_path: Path) -> None:
        class Steep(ClassificationTask):
            def loss(self, output: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
                return 1e36 * super().loss(output, target, label_smoothing=label_smoothing)

        recipe = Recipe(epochs=1, batch=280, lr=1e6)
        with pytest.raises(TrainingError, match=r"a weight is not finite at step 0 \(epoch 1, learning rate 1e\+06\)"):
            train(linear(), Steep(DATA), recipe, out=tmp_path)
        assert not (tmp_path / "state.pt").exists()

    def test_too_little_memory_halves_the_batch(self) -> None:
        with pytest.warns(UserWarning, match=r"out of memory: batches of 40 are now computed in (2|4) pieces") as warned:
            result = train(hungry := Hungry(most=10), task(), SHORT)
        assert len(warned) == 2
        assert [log.pieces for log in result.history] == [4] * 4
        train(plain := linear(), task(), SHORT)
        assert torch.allclose(hungry[1].weight, plain[1].weight, atol=1e-5)

    @pytest.mark.filterwarnings("ignore:out of memory")
    def test_pieces_shrink_to_single_images(self) -> None:
        result = train(Hungry(most=1), task(), replace(SHORT, epochs=1, batch=6))
        assert result.history[-1].pieces == 6

    @pytest.mark.filterwarnings("ignore:out of memory")
    def test_not_even_one_image_fits(self) -> None:
        with pytest.raises(TrainingError, match="a single image must fit in the device's memory"):
            train(Hungry(most=0), task(), SHORT)

    def test_a_batch_larger_than_the_training_set(self) -> None:
        with pytest.raises(TrainingError, match=r"batch <= training images must hold, but got \(batch=281, images=280\)"):
            train(network(), task(), replace(SHORT, batch=281))

    def test_nothing_to_train(self) -> None:
        with pytest.raises(TrainingError, match="must have parameters that require a gradient, but all are frozen"):
            train(network().requires_grad_(False), task(), SHORT)


class TestTwoPhases:
    def test_only_what_is_new_and_the_head_move_in_the_first_phase(self, tmp_path: Path) -> None:
        model = network()
        before = weights(model)
        result = two_phase(model, task(), replace(SHORT, epochs=5), new=["3.weight", "4"], out=tmp_path)
        load_weights(middle := network(), tmp_path / "first" / "last.safetensors")
        moved = {name for name, value in middle.named_parameters() if not torch.equal(value, before[name])}
        assert moved == {"3.weight", "4.weight", "4.bias", "9.weight", "9.bias"}
        assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert [(log.epoch, log.phase) for log in result.history] == [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]
        assert len(json.loads((tmp_path / "history.json").read_text())["epochs"]) == 5

    def test_the_head_can_be_named(self, tmp_path: Path) -> None:
        model = network()
        before = weights(model)
        two_phase(model, task(), SHORT, new=[], head="3", out=tmp_path)
        load_weights(middle := network(), tmp_path / "first" / "last.safetensors")
        moved = {name for name, value in middle.named_parameters() if not torch.equal(value, before[name])}
        assert moved == {"3.weight", "3.bias"}

    def test_a_network_without_linear_layer_has_a_convolution_as_head(self, tmp_path: Path) -> None:
        def convolutional() -> nn.Sequential:
            torch.manual_seed(0)
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        before = weights(model := convolutional())
        two_phase(model, task(), SHORT, new=[], out=tmp_path)
        load_weights(middle := convolutional(), tmp_path / "first" / "last.safetensors")
        assert torch.equal(middle[0].weight, before["0.weight"])
        assert not torch.equal(middle[1].weight, before["1.weight"])
        with pytest.raises(ModelError, match="has neither: name the head"):
            two_phase(nn.Sequential(nn.PReLU(), nn.Flatten()), task(), SHORT, new=[])

    @pytest.mark.parametrize("epoch", [1, 3])  # in the first phase, and in the second
    def test_an_interrupted_fine_tuning_goes_on_to_the_same_bits(self, epoch: int, tmp_path: Path) -> None:
        straight = network()
        recipe = replace(SHORT, epochs=5)
        expected = two_phase(straight, task(**AUGMENTED), recipe, new=["3"], seed=1)
        with pytest.raises(KeyboardInterrupt):
            two_phase(network(), Interrupted(epoch=epoch, step=2, **AUGMENTED), recipe, new=["3"], out=tmp_path, seed=1)
        result = two_phase(resumed := network(), task(**AUGMENTED), recipe, new=["3"], out=tmp_path, seed=1, resume=True)
        assert equal(weights(resumed), weights(straight))
        assert numbers(result) == numbers(expected)

    def test_its_epochs_cannot_be_changed(self, tmp_path: Path) -> None:
        two_phase(network(), task(), SHORT, new=[], out=tmp_path)
        with pytest.raises(RunError, match=r"\(one-cycle, two phases\) cannot change its number .* started for 3 and 4 were"):
            two_phase(network(), task(), replace(SHORT, epochs=5), new=[], out=tmp_path, resume=True)

    def test_frozen_parameters_are_released_when_the_training_fails(self) -> None:
        with pytest.raises(KeyboardInterrupt):
            two_phase(model := network(), Interrupted(epoch=1, step=1), SHORT, new=[])
        assert all(parameter.requires_grad for parameter in model.parameters())

    def test_unknown_parts(self) -> None:
        with pytest.raises(ModelError, match="must be in the network, but '77' is not"):
            two_phase(network(), task(), SHORT, new=["3", "77"])

    def test_an_existing_training_is_not_overwritten(self, tmp_path: Path) -> None:
        train(network(), task(), SHORT, out=tmp_path)
        with pytest.raises(RunError, match="holds a training already"):
            two_phase(network(), task(), SHORT, new=[], out=tmp_path)
        assert not (tmp_path / "first").exists()


class TestProgress:
    def test_the_bar_counts_steps_and_names_the_score(self, tmp_path: Path) -> None:
        with Progress(console=Console(file=io.StringIO())) as progress:
            result = train(network(), task(), SHORT, out=tmp_path, progress=progress)
            train(network(), task(), replace(SHORT, epochs=6), out=tmp_path, resume=True, progress=progress)
        first, second = progress.tasks
        assert (first.completed, first.total) == (28, 28)
        assert (second.completed, second.total) == (42, 42)
        assert f"valid {result.valid_accuracy:.2%}" in first.description
