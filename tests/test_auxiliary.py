"""Auxiliary classifiers: the published number of parameters, their loss, and that nothing of them is kept."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from nar_hw.data import load_data
from nar_hw.errors import TrainingError
from nar_hw.models import build_model
from nar_hw.records import replace
from nar_hw.tasks import ClassificationTask
from nar_hw.training.auxiliary import AuxiliaryClassifiers
from nar_hw.training.loop import train
from nar_hw.training.phases import two_phase
from nar_hw.training.recipes import Recipe
from tests.networks import TinyResNet

RECIPE = Recipe(epochs=1, batch=16, lr=0.01, auxiliary=0.3)


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "alone", "together"), [("googlenet", 6_624_904, 13_004_888), ("inception_v3", None, 27_161_264)]
)
def test_sizes_are_the_published_ones(name: str, alone: int | None, together: int) -> None:
    """torchvision's documentation gives those with auxiliary classifiers."""
    with torch.device("meta"):
        network = build_model(name, input_shape=(3, 299, 299), num_classes=1000)
        auxiliary = AuxiliaryClassifiers(network)
    assert size(network) + size(auxiliary) == together
    if alone is not None:
        assert size(network) == alone
    assert not any("aux" in key.lower() for key in network.state_dict())


def test_they_read_where_torchvisions_do() -> None:
    """The same weights give torchvision's three outputs."""
    torch.manual_seed(0)
    network = build_model("googlenet", input_shape=(3, 64, 64), num_classes=5)
    auxiliary = AuxiliaryClassifiers(network)
    whole = torchvision.models.googlenet(weights=None, num_classes=5, aux_logits=True, init_weights=False)
    whole.load_state_dict({**network.state_dict(), **auxiliary.heads.state_dict()})
    for module in (network, auxiliary, whole):
        module.eval()  # no dropout
    whole.training = True  # but its outputs
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        with auxiliary.watching(network):
            logits = network(images)
        first, second = auxiliary()
        outputs = whole(images)
    torch.testing.assert_close([logits, first, second], [outputs.logits, outputs.aux_logits1, outputs.aux_logits2])
    assert not network.inception4a._forward_hooks


class Half(torchvision.models.GoogLeNet):
    """A GoogLeNet on images of a few pixels, which the CPU trains in a second."""

    def __init__(self) -> None:
        super().__init__(num_classes=4, aux_logits=False, init_weights=False)


@pytest.fixture(scope="module")
def task() -> ClassificationTask:
    data = load_data("fake:3x16x16x4")
    return ClassificationTask(data)


def test_training_learns_them_and_keeps_nothing_of_them(task: ClassificationTask, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Half()
    keys = list(network.state_dict())
    first = network.inception4a.branch1.conv.weight.detach().clone()
    small = replace(RECIPE, batch=task.train_size)
    found = train(network, task, small, out=tmp_path)
    assert list(network.state_dict()) == keys
    assert not torch.equal(first, network.inception4a.branch1.conv.weight)
    state = torch.load(tmp_path / "state.pt", weights_only=False)
    assert {key.split(".")[0] for key in state["auxiliary"]} == {"heads"}
    # the loss of three classifiers that know nothing: (1 + 2 * 0.3) log 4
    assert found.history[0].loss == pytest.approx(1.6 * torch.tensor(4.0).log().item(), rel=0.2)
    again = train(Half(), task, replace(small, epochs=2), out=tmp_path, resume=True)
    assert again.history[0] == found.history[0]


def test_a_network_without_any_is_refused(task: ClassificationTask) -> None:
    with pytest.raises(TrainingError, match="without auxiliary classifiers, such as this TinyResNet: only googlenet and"):
        train(TinyResNet(classes=4), task, RECIPE)
    with pytest.raises(TrainingError, match="auxiliary = 0 must hold for training in two phases"):
        two_phase(TinyResNet(classes=4), task, replace(RECIPE, epochs=2), new=[])


@pytest.mark.parametrize("change", [{"auxiliary": -0.1}, {"compile": True}])
def test_rules(change: dict[str, object]) -> None:
    with pytest.raises(TrainingError, match="auxiliary"):
        replace(RECIPE, **change)
