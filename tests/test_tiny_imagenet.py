"""examples/tiny_imagenet from end to end on a generated miniature of the published layout."""

import io
import json
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from nar_hw.cli import main
from nar_hw.data import load_data
from nar_hw.models import build_model
from nar_hw.training.filters import kept_filters
from nar_hw.training.recipes import fine_tuning, recipe_named

EXAMPLE = Path(__file__).parent.parent / "examples" / "tiny_imagenet"
CLASSES = ("n01443537", "n01698640", "n02094433")


def picture(rng: np.random.Generator, label: int, path: Path) -> None:
    pixels = rng.integers(0, 120, (64, 64, 3), dtype=np.uint8)
    pixels[..., label] += 130
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert("L" if path.stem.endswith("_3") else "RGB").save(path, "JPEG")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "tiny-imagenet-200"
    rng = np.random.default_rng(0)
    lines = []
    for label, name in enumerate(CLASSES):
        for index in range(10):
            picture(rng, label, folder / f"train/{name}/images/{name}_{index}.JPEG")
        (folder / f"train/{name}/{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t63\t63\n")
    for index in range(12):
        label = (5 * index) % 3
        picture(rng, label, folder / f"val/images/val_{index}.JPEG")
        lines.append(f"val_{index}.JPEG\t{CLASSES[label]}\t0\t32\t44\t62\n")
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    words = {"n01443537": "goldfish, Carassius auratus", "n01698640": "alligator", "n02094433": "terrier", "n0": "other"}
    (folder / "words.txt").write_text("".join(f"{name}\t{word}\n" for name, word in words.items()))
    (folder / "wnids.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return folder


def script(name: str, *arguments: Any) -> str:
    """What a script of the example prints."""
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(told):
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLE / name), run_name="__main__")
    return told.getvalue()


@pytest.fixture(scope="module")
def prepared(published: Path) -> Path:
    out = published.parent / "tiny"
    assert script("prepare.py", published, out) == f"{out}: 30 training and 12 validation images\n"
    return out


def train(line: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nar-hw", *shlex.split(line)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code


def small(name: str, tmp_path: Path) -> Path:
    """A recipe of the example for 27 training images."""
    path = tmp_path / name
    recipe, fewer = json.loads((EXAMPLE / name).read_text()), {"batch": 9, "accumulate": 2}
    if "first_phase" in recipe:
        recipe["first_phase"] |= fewer
    path.write_text(json.dumps(recipe | fewer))
    return path


@pytest.mark.parametrize(
    ("name", "images", "batch", "rate", "size", "iterations", "decay"),
    [
        ("finetune_vgg16.json/first", 256, 256, 0.1, 2000, 6000, 1e-4),  # section 3.1
        ("finetune_vgg16.json", 256, 256, 0.001, 4000, 12000, 1e-4),
        ("finetune_resnet50.json/first", 256, 128, 0.1, 100, 200, 1e-3),  # section 3.2
        ("finetune_resnet50.json", 256, 128, 0.01, 5000, 17500, 1e-3),
        ("finetune_resnet101_152.json/first", 256, 32, 0.1, 100, 200, 1e-3),
        ("finetune_resnet101_152.json", 256, 32, 0.01, 5000, 17500, 1e-3),
        ("scratch.json", 256, 256, 0.1, 5000, 22500, 1e-4),  # section 4.1
        ("scratch_resnet50.json", 128, 128, 0.1, 10000, 45000, 1e-3),
        ("scratch_less.json", 256, 256, 0.1, 5000, 17500, 1e-4),  # section 4.2
    ],
)
def test_recipes_are_the_studys_to_the_iteration(
    name: str, images: int, batch: int, rate: float, size: int, iterations: int, decay: float
) -> None:
    """Caffe's step policy, lr * 0.1 ** floor(iteration / size), on the 90,000 images that are trained on here."""
    file, _, first = name.partition("/")
    recipe = recipe_named(str(EXAMPLE / file))
    recipe = fine_tuning(recipe)[not first] if recipe.first_phase else recipe
    assert (recipe.batch, recipe.momentum, recipe.nesterov, recipe.weight_decay) == (images, 0.9, False, decay)
    assert images // recipe.accumulate <= batch  # in memory at once
    steps = 90_000 // images
    assert recipe.steps(steps) == iterations
    rates = [recipe.learning_rate(step // steps + step % steps / steps) for step in range(iterations)]
    assert rates == pytest.approx([rate * 0.1 ** (step // size) for step in range(iterations)], rel=1e-9)


def test_the_annotations_decide_the_classes(prepared: Path, published: Path) -> None:
    data = load_data(f"folder:{prepared}@57/64")
    assert data.classes == CLASSES
    assert data.input_shape == (3, 57, 57)
    assert [(data.split(name).source, len(data.split(name))) for name in ("train", "valid", "test")] == [
        ("train", 27),
        ("train", 3),
        ("val", 12),
    ]
    for index in range(12):
        assert (prepared / "val" / CLASSES[(5 * index) % 3] / f"val_{index}.JPEG").is_file()
    assert (prepared / "words.txt").read_text().splitlines()[0] == "n01443537\tgoldfish, Carassius auratus"
    assert script("prepare.py", published, prepared)  # a second time changes nothing


def test_folders_that_are_not_as_published(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"must hold train/ and val/val_annotations\.txt"):
        script("prepare.py", tmp_path, tmp_path / "out")


def test_from_scratch_with_pictures_and_an_ensemble(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "resnet20_less"
    train(
        f"train --arch incumbent --model resnet20_tiny_less --data folder:{prepared}@57/64 --epochs 2 --ensemble 2"
        f" --recipe {small('scratch.json', tmp_path)} --out {out}"
    )
    child = json.loads((out / "child.json").read_text())
    assert child["ensemble"]["epochs"] == [1, 2]
    train(f"report {out}")
    page = (out / "report.html").read_text()
    assert page.count("<h3>goldfish</h3>") == 1  # of words.txt
    assert list(kept_filters(out)) == [0, 1, 2]


def test_two_phases_from_a_file_of_weights(prepared: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = torchvision.models.resnet18(num_classes=1000)
    torch.save(trained.state_dict(), tmp_path / "resnet18.pth")
    out = tmp_path / "resnet18"
    train(
        f"train --arch incumbent --model {EXAMPLE}/networks.py:resnet18 --data folder:{prepared}@57/64 --init inherited"
        f" --baseline {tmp_path}/resnet18.pth --recipe {small('finetune_resnet50.json', tmp_path)} --epochs 2 --out {out}"
    )
    epochs = json.loads((out / "history.json").read_text())["epochs"]
    assert [(log["phase"], log["lr"]) for log in epochs] == [(1, pytest.approx(0.01)), (2, 0.01), (2, 0.01)]
    from safetensors.torch import load_file

    first = load_file(out / "first/last.safetensors")
    assert torch.equal(first["conv1.weight"], trained.conv1.weight)
    assert first["fc.weight"].shape == (3, 512)


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_published_weights_fit_all_but_the_head(name: str) -> None:
    with torch.device("meta"):
        network = build_model(f"{EXAMPLE}/networks.py:{name}", input_shape=(3, 57, 57), num_classes=200)
        theirs = torchvision.models.get_model(name).state_dict()
    misfits = {key for key, value in network.state_dict().items() if key not in theirs or theirs[key].shape != value.shape}
    assert misfits == (
        {"classifier.0.weight", "classifier.3.weight", "classifier.3.bias"} if name == "vgg16" else {"fc.weight", "fc.bias"}
    )


def test_vgg16_sees_57_pixels() -> None:
    network = build_model(f"{EXAMPLE}/networks.py:vgg16", input_shape=(3, 57, 57), num_classes=5).eval()
    with torch.no_grad():
        assert network.features(torch.zeros(1, 3, 57, 57)).shape == (1, 512, 1, 1)
        assert network(torch.zeros(1, 3, 57, 57)).shape == (1, 5)
