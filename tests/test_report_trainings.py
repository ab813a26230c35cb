"""The page about plain trainings: what it says against what the trainings were."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nar_hw.data import Augmentation, load_data
from nar_hw.errors import RunError, UserError
from nar_hw.models.info import ModelInfo
from nar_hw.report.trainings import filters_picture, shown_epochs
from nar_hw.steps.train import train_child
from nar_hw.steps.trainings import report_trainings
from nar_hw.tasks import ClassificationTask
from nar_hw.training.child import Child
from nar_hw.training.filters import kept_filters
from nar_hw.training.recipes import Recipe
from nar_hw.training.result import History

DATA = "fake:3x8x8x7"


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("trainings")
    (root / "net.py").write_text(
        "from torch import nn\n\n\ndef build(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, num_classes))\n"
    )
    info = ModelInfo(name=f"{root / 'net.py'}:build", input_shape=(3, 8, 8), num_classes=7, manner="conv")
    task = ClassificationTask(load_data(DATA), augmentation=Augmentation())
    for seed, epochs in ((0, 5), (1, 2)):
        train_child(info, None, task, out=root / str(seed), recipe=Recipe(epochs=epochs, batch=70, lr=0.02), seed=seed)
    return root / "0", root / "1"


def pictures(page: str, alt: str) -> list[np.ndarray]:
    found = re.findall(rf'alt="{alt}" src="data:image/png;base64,([^"]*)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_filters_are_kept_before_after_powers_of_two_and_at_the_end(trainings: tuple[Path, Path]) -> None:
    kept = kept_filters(trainings[0])
    assert list(kept) == [0, 1, 2, 4, 5]
    child = Child.load(trainings[0])
    assert np.array_equal(kept[5], child.network(trainings[0])[0].weight.detach().numpy())  # type: ignore[index]
    torch.manual_seed(0)
    assert np.abs(kept[1] - kept[0]).max() > 0
    assert [epoch for epoch, _ in shown_epochs(kept)] == [0, 1, 4, 5]
    (trainings[0] / "filters" / "epoch3.npy").write_bytes(b"cut")
    with pytest.raises(RunError, match=r"epoch3.npy must hold filters, but cannot be read"):
        kept_filters(trainings[0])
    (trainings[0] / "filters" / "epoch3.npy").unlink()


def test_a_filter_is_stretched_around_grey() -> None:
    weights = np.zeros((9, 3, 2, 2), np.float32)
    weights[0, 0, 0, 0], weights[0, 1, 0, 1], weights[8, 2, 1, 1] = -0.5, 0.25, 1e-3
    pixels = filters_picture(weights)
    assert pixels.shape == (2 * 3 - 1, 8 * 3 - 1, 3)
    assert pixels[0, 0].tolist() == [0, 128, 128]
    assert pixels[0, 1].tolist() == [128, 191, 128]
    assert pixels[4, 1].tolist() == [128, 128, 255]  # the ninth is in the second row
    assert pixels[2, 2].tolist() == [255, 255, 255]  # between filters


def test_the_page_says_what_the_trainings_were(trainings: tuple[Path, Path], tmp_path: Path) -> None:
    report_trainings(trainings, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="line run0"') == page.count('class="line run1"') == 6  # on three charts, and in their legends
    data = load_data(DATA)
    for folder in trainings:
        child, last = Child.load(folder), History.load(folder).epochs[-1]
        assert f"{100 * child.accuracy['test']:.2f}" in page
        assert f"{folder} ends at {last.loss:.4g}" in page
        with torch.no_grad():
            ((images, labels),) = ClassificationTask(data).eval_batches("test")
            chances, taken = child.network(folder)(images).softmax(1).max(1)
        wrong = [int(place) for place in (taken != labels).nonzero()]
        assert f"{folder}: {len(wrong)} test images wrong" in page
        surest = max(wrong, key=lambda place: float(chances[place]))
        section = page[page.index(f"{folder}: {len(wrong)} test images wrong") :]
        label, prediction, chance = re.search(r'muted">(.*?)<br><strong>(.*?)</strong> ([\d.]+)', section).groups()  # type: ignore[union-attr]
        assert (label, prediction) == (data.classes[labels[surest]], data.classes[taken[surest]])
        assert float(chance) == pytest.approx(100 * float(chances[surest]), abs=0.006)
        first = re.escape(label)
        assert np.array_equal(pictures(section, first)[0], data.test.images[surest].transpose(1, 2, 0))  # type: ignore[attr-defined]
        assert len(pictures(page, re.escape(f"filters of {folder}"))) == min(4, len(kept_filters(folder)))
    for label in (0, 6):
        shown = pictures(page[: page.index("Filters of the first")], re.escape(data.classes[label]))
        members = data.train.images[data.train.labels == label][:8]  # type: ignore[attr-defined]
        assert np.array_equal(np.stack(shown), members.transpose(0, 2, 3, 1))


def test_without_the_images_the_rest_is_shown(trainings: tuple[Path, Path], tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    for name in ("child.json", "history.json"):
        content = json.loads((trainings[0] / name).read_text())
        changed = {"data": f"folder:{tmp_path}/moved", "metric": "IoU"} if name == "child.json" else {}
        (gone / name).write_text(json.dumps({**content, **changed}))
    report_trainings([gone], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "must name an existing folder" in page
    assert "Left out: none were kept" in page
    assert 'class="line run0"' in page
    assert "Validation IoU" in page
    assert not re.search(r"(Validation|[Tt]raining) accuracy|accuracy \(%\)", page)
    report_trainings([gone, trainings[0]], tmp_path / "both.html")
    assert "Validation score" in (tmp_path / "both.html").read_text()


def test_what_cannot_be_compared(trainings: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a report compares 1 to 8 different trainings"):
        report_trainings([trainings[0]] * 2, tmp_path / "page.html")
    with pytest.raises(RunError, match=r"child.json does not exist"):
        report_trainings([trainings[0], tmp_path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
