"""What every task must do."""

import copy

import pytest
import torch
from torch import Tensor, nn

from nar_hw.data import SPLITS, SplitName
from nar_hw.tasks import Task


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    """Whether batches are equal to the bit."""
    return len(first) == len(second) and all(
        torch.equal(one, two) for pair in zip(first, second, strict=True) for one, two in zip(*pair, strict=True)
    )


class TaskConformance:
    """Subclass and provide the fixtures ``task`` (with augmentation) and ``model`` (with BatchNorm and Dropout, on the CPU)."""

    def test_training_batches_have_the_promised_shapes(self, task: Task) -> None:
        batches = list(task.train_batches(8, torch.Generator().manual_seed(0)))
        assert len(batches) == task.train_size // 8
        for images, targets in batches:
            assert images.dtype == torch.float32
            assert images.shape == (8, *task.input_shape)
            assert images.device.type == targets.device.type == task.device.type
            assert len(targets) == 8

    def test_an_epoch_can_keep_its_incomplete_batch(self, task: Task) -> None:
        sizes = [len(targets) for _, targets in task.train_batches(9, torch.Generator().manual_seed(0), drop_last=False)]
        assert sum(sizes) == task.train_size
        assert sizes[:-1] == [9] * (len(sizes) - 1)

    def test_the_generator_decides_the_batches(self, task: Task) -> None:
        first, second, third = (list(task.train_batches(8, torch.Generator().manual_seed(seed))) for seed in (1, 1, 2))
        assert same(first, second)
        assert not same(first, third)

    def test_the_global_generator_is_not_used(self, task: Task) -> None:
        before = torch.get_rng_state()
        list(task.train_batches(8, torch.Generator().manual_seed(0)))
        list(task.eval_batches("valid", 8))
        assert torch.equal(torch.get_rng_state(), before)

    def test_epochs_of_one_generator_differ(self, task: Task) -> None:
        generator = torch.Generator().manual_seed(0)
        assert not same(list(task.train_batches(8, generator)), list(task.train_batches(8, generator)))

    @pytest.mark.parametrize("split", SPLITS)
    def test_evaluation_batches_are_the_same_images_each_time(self, task: Task, split: SplitName) -> None:
        first, second = (list(task.eval_batches(split, 7)) for _ in range(2))
        assert same(first, second)
        assert all(images.shape[1:] == task.input_shape for images, _ in first)

    def test_evaluation_batches_can_be_shuffled(self, task: Task) -> None:
        ordered = torch.cat([images for images, _ in task.eval_batches("valid", 7)])
        shuffled = torch.cat([images for images, _ in task.eval_batches("valid", 7, generator=torch.Generator().manual_seed(0))])
        assert not torch.equal(ordered, shuffled)
        assert sorted(image.sum().item() for image in ordered) == sorted(image.sum().item() for image in shuffled)

    def test_loss_and_correct_are_scalars_and_the_loss_can_be_learned(self, task: Task, model: nn.Module) -> None:
        images, targets = next(task.train_batches(8, torch.Generator().manual_seed(0)))
        output = model(images)
        loss, correct = task.loss(output, targets), task.correct(output, targets)
        assert loss.shape == correct.shape == ()
        assert 0 <= int(correct) <= 8
        loss.backward()  # type: ignore[no-untyped-call]
        assert any(parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in model.parameters())

    def test_a_perfect_output_is_all_correct_and_has_less_loss(self, task: Task) -> None:
        _, targets = next(task.train_batches(8, torch.Generator().manual_seed(0)))
        right = 10 * nn.functional.one_hot(targets, task.num_classes).float()
        wrong = right.roll(1, dims=1)
        assert int(task.correct(right, targets)) == 8
        assert int(task.correct(wrong, targets)) == 0
        assert task.loss(right, targets).item() < task.loss(right, targets, label_smoothing=0.1).item()
        assert task.loss(right, targets).item() < task.loss(wrong, targets).item()

    def test_evaluate_changes_nothing_in_the_model(self, task: Task, model: nn.Module) -> None:
        model.train()
        frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        frozen.eval()
        before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
        score = task.evaluate(model, "valid", batch=7)
        assert 0 <= score <= 1
        assert [module.training for module in model.modules()] == modes
        assert not frozen.training
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        assert score == task.evaluate(model, "valid", batch=20)

    def test_modes_come_back_when_the_model_fails(self, task: Task, model: nn.Module) -> None:
        class Failing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model.eval()

            def forward(self, images: Tensor) -> Tensor:
                raise KeyboardInterrupt

        failing = Failing()
        failing.training = True
        with pytest.raises(KeyboardInterrupt):
            task.evaluate(failing, "valid")
        assert failing.training
        assert not model.training
