"""`nar-hw classify` and its steps: an image's classes by weights, by a trained child and by a bundle."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import functional as transforms

from nar_hw.bundles.bundle import Arch, export_bundle
from nar_hw.data.preprocessing import Preprocessing
from nar_hw.errors import DataError, ModelError, RunError, UserError
from nar_hw.models.info import ModelInfo
from nar_hw.models.weights import save_weights
from nar_hw.steps.classify import Classifier, class_names, usual_normalisation
from tests.networks import TinyResNet
from tests.test_cli import Run, ok, refused, run

__all__ = ["run"]  # a fixture

NET = f"{__file__}:small"
ABOUT = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), classes=("ape", "bee", "cat", "dog"))
INFO = ModelInfo(name=NET, input_shape=(3, 8, 8), num_classes=4)


def small(num_classes: int) -> nn.Module:
    """For --model."""
    return TinyResNet(classes=num_classes)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return small(4).eval()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Wider than high: the sides are cut off."""
    pixels = np.random.RandomState(0).randint(0, 256, (8, 20, 3), np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def expected(network: nn.Module, photo: Path) -> list[tuple[str, float]]:
    """By torchvision's own transforms."""
    image = transforms.center_crop(transforms.to_tensor(Image.open(photo)), [8, 8])
    with torch.no_grad():
        scores = network(transforms.normalize(image, list(ABOUT.mean), list(ABOUT.std))[None]).softmax(1)[0].tolist()
    return sorted(zip(ABOUT.classes, scores, strict=True), key=lambda item: -item[1])


def test_by_weights_by_child_and_by_bundle_alike(network: nn.Module, photo: Path, tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", network)
    bundle = export_bundle(network, tmp_path / "bundle", arch=Arch(name=NET, input_shape=(3, 8, 8)), preprocessing=ABOUT)
    wanted = expected(network, photo)
    for made in (Classifier.of_weights(INFO, tmp_path / "w.safetensors", ABOUT), Classifier.of_folder(bundle)):
        found = made.classify(photo, 4)
        assert [guess.name for guess in found] == [name for name, _ in wanted]
        assert [guess.probability for guess in found] == pytest.approx([value for _, value in wanted], abs=1e-5)
        assert sum(guess.probability for guess in found) == pytest.approx(1)
        assert made.classify(photo, 2) == found[:2]
        with pytest.raises(DataError, match=r"1 <= top <= 4 \(classes\) must hold, but got top=5"):
            made.classify(photo, 5)


def test_by_command(run: Run, network: nn.Module, photo: Path, tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", network)
    (tmp_path / "names.txt").write_text("\n".join(ABOUT.classes) + "\n")
    line = f"classify {photo} {photo} --model {NET} --weights {tmp_path}/w.safetensors --input 3x8x8 --names {tmp_path}/names.txt"
    found = ok(run(f"{line} --mean 0.4,0.5,0.6 --std 0.2,0.25,0.3 --top 3 --json"))
    (image,) = found["images"]
    assert image["file"] == str(photo)
    assert [item["name"] for item in image["classes"]] == [name for name, _ in expected(network, photo)][:3]
    code, out, _ = run(f"{line} --mean 0.4,0.5,0.6 --std 0.2,0.25,0.3")
    assert code == 2  # 5 of 4 classes
    code, out, _ = run(f"{line} --mean 0.4,0.5,0.6 --std 0.2,0.25,0.3 --top 1")
    assert code == 0
    assert f"{100 * image['classes'][0]['probability']:.2f} %" in out
    assert "--mean and --std go together" in refused(run(f"{line} --mean 1"))
    assert "mean must be numbers" in refused(run(f"{line} --mean a --std b"))
    assert "--from with a bundle" in refused(run(f"classify {photo} --model {NET}"))
    assert "says what its images and classes are, but got --mean" in refused(run(f"classify {photo} --from {tmp_path} --mean 1"))


def pooled(num_classes: int) -> nn.Module:
    """For --model: its last steps are a pool's."""
    body = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.ReLU())
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(5 * 4 * 4, num_classes))


def test_six_sizes_are_the_mean_of_six_passes(run: Run, tmp_path: Path) -> None:
    """Each pass by torchvision's own resize, and by the network itself on the windows of every offset of its pool."""
    torch.manual_seed(0)
    network = pooled(4).eval()
    save_weights(tmp_path / "w.safetensors", network)
    photo, sides = tmp_path / "photo.png", (13, 15, 17, 21, 23, 25)  # 12 pixels * 245, 281, 317, 389, 425, 461 / 221
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (30, 42, 3), np.uint8)).save(photo)
    image = transforms.normalize(transforms.to_tensor(Image.open(photo)), list(ABOUT.mean), list(ABOUT.std))[None]
    mean = torch.zeros(4)
    for side in sides:
        scaled = transforms.resize(image, [side, round(side * 42 / 30)], antialias=True)
        windows = scaled.unfold(2, 12, 1).unfold(3, 12, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)  # one pixel on each
        with torch.no_grad():
            mean += network(windows).softmax(1).amax(0) / len(sides)
    info = ModelInfo(name=f"{__file__}:pooled", input_shape=(3, 12, 12), num_classes=4)
    found = Classifier.of_weights(info, tmp_path / "w.safetensors", ABOUT).at_six_sizes("overfeat").classify(photo, 4)
    assert {guess.name: guess.probability for guess in found} == pytest.approx(
        dict(zip(ABOUT.classes, mean.tolist(), strict=True)), abs=1e-5
    )
    line = f"classify {photo} --model {info.name} --weights {tmp_path}/w.safetensors --input 3x12x12 --classes 4 --top 4"
    told = ok(run(f"{line} --mean 0.4,0.5,0.6 --std 0.2,0.25,0.3 --dense overfeat --json"))["images"][0]["classes"]
    assert [item["probability"] for item in told] == [guess.probability for guess in found]


def test_six_sizes_that_cannot_be(network: nn.Module, tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", network)
    bundle = export_bundle(network, tmp_path / "bundle", arch=Arch(name=NET, input_shape=(3, 8, 8)), preprocessing=ABOUT)
    with pytest.raises(RunError, match="six sizes are asked of the network: name its trained folder"):
        Classifier.of_folder(bundle).at_six_sizes("strided")
    wide = ModelInfo(name=NET, input_shape=(3, 8, 12), num_classes=4)
    with pytest.raises(DataError, match="six sizes are of networks for square images, but this one takes 8x12"):
        Classifier.of_weights(wide, tmp_path / "w.safetensors", ABOUT).at_six_sizes("strided")
    with pytest.raises(ModelError, match="use the form strided"):
        Classifier.of_weights(INFO, tmp_path / "w.safetensors", ABOUT).at_six_sizes("overfeat")


def test_a_trained_child(network: nn.Module, photo: Path, tmp_path: Path) -> None:
    from nar_hw.data import load_data
    from nar_hw.steps.train import score_weights
    from nar_hw.tasks import ClassificationTask

    save_weights(tmp_path / "w.safetensors", network)
    score_weights(INFO, tmp_path / "w.safetensors", ClassificationTask(load_data("fake:3x8x8x4")), out=tmp_path / "child")
    made = Classifier.of_folder(tmp_path / "child")
    content = json.loads((tmp_path / "child" / "child.json").read_text())
    assert list(made.preprocessing.mean) == content["preprocessing"]["mean"]
    assert {guess.name for guess in made.classify(photo, 4)} == set(content["preprocessing"]["classes"])


def test_names_and_normalisation() -> None:
    names = class_names(None, 1000)
    assert (names[0], names[281], len(names)) == ("tench", "tabby", 1000)
    assert class_names(None, 3) == ("0", "1", "2")
    assert usual_normalisation("alexnet", 3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with pytest.raises(DataError, match="nothing says how images of 1 channels are normalised"):
        usual_normalisation("lenet5", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("a",)}, "there must be a name for each class, but .* has 4 and 1 are named"),
        ({"classes": ()}, "must have classes, but gives embeddings"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean and std must have 3 numbers"),
    ],
)
def test_what_does_not_fit(change: dict[str, tuple[str, ...]], message: str, network: nn.Module, tmp_path: Path) -> None:
    from nar_hw.records import replace

    save_weights(tmp_path / "w.safetensors", network)
    with pytest.raises(UserError, match=message):
        Classifier.of_weights(INFO, tmp_path / "w.safetensors", replace(ABOUT, **change))


def test_no_folder_of_ours_and_no_image(tmp_path: Path, network: nn.Module) -> None:
    with pytest.raises(RunError, match="must be a bundle or the folder of a trained network, but has neither"):
        Classifier.of_folder(tmp_path)
    save_weights(tmp_path / "w.safetensors", network)
    (tmp_path / "cat.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"cat\.jpg is none of PNG"):
        Classifier.of_weights(INFO, tmp_path / "w.safetensors", ABOUT).classify(tmp_path / "cat.jpg")
