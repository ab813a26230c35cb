"""A classifier of 8x8 pictures finds digits in a larger picture: train it, export it with its dense form, draw the class map.

    python examples/dense/heat_map.py --out runs/dense [--epochs 60]

Takes half a minute on one core; the picture is OUT/heat_map.png.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from nar_hw.bundles.bundle import Arch, BundleImages, ExportConfig, Preprocessing, export_bundle
from nar_hw.data import load_data

CLASSES = (*map(str, range(10)), "nothing")
PLACES = {3: (2, 4), 7: (4, 41), 0: (15, 25), 5: (25, 6), 1: (20, 48)}
"""Digit -> where its upper left corner lies in the picture."""
SIZE = (36, 60)


def main() -> None:
    """Train, export, and draw what the dense file says of a picture of digits that the training has not seen."""
    parser = argparse.ArgumentParser(description="Find digits in a larger picture with a network for single digits.")
    parser.add_argument("--out", type=Path, default=Path("runs/dense"))
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = trained(arguments.epochs)
    images, labels = windows("valid", np.random.default_rng(1))
    bundle = export_bundle(
        network,
        arguments.out / "bundle",
        arch=Arch(name="digit_windows", input_shape=(1, 8, 8)),
        preprocessing=Preprocessing(mean=(0.0,), std=(1.0,), classes=CLASSES),
        config=ExportConfig(dense="strided"),
        images=BundleImages(images, labels),
    )
    picture = compose()
    scores = class_map(bundle, picture)
    draw(picture, scores, arguments.out / "heat_map.png")
    found = [CLASSES[scores[:, row, column].argmax()] for row, column in PLACES.values()]
    accuracy = json.loads((bundle / "manifest.json").read_text())["dense"]["accuracy"]
    print(f"{100 * accuracy:.1f} % right on single windows; at the places of {list(map(str, PLACES))} the map says {found}")


def trained(epochs: int) -> nn.Module:
    """AlexNet in small: convolutions, then linear layers on the flattened map. Without padding all windows are alike."""
    network = nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()),  # (B, 64, 4, 4)
        *(nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, len(CLASSES))),
    )
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        images, labels = (torch.from_numpy(array) for array in windows("train", rng))
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


def windows(split: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two windows of each digit: one that holds it, up to a pixel off, and one that cuts or misses it. (N, 1, 8, 8), (N,)."""
    part = load_data("digits").split(split)
    wide = np.pad(part.images[:, 0] / np.float32(255), ((0, 0), (8, 8), (8, 8)))
    images, labels = [], []
    for digit, label in zip(wide, part.labels, strict=True):
        for near in (True, False):
            row, column = rng.integers(-1, 2, 2) if near else rng.integers(-8, 9, 2)
            if not near and max(abs(row), abs(column)) < 3:
                row = 4
            images.append(digit[8 + row : 16 + row, 8 + column : 16 + column])
            labels.append(int(label) if near else 10)
    return np.stack(images)[:, None].astype(np.float32), np.array(labels)


def compose() -> np.ndarray:
    """Test digits on an empty picture: (H, W), values in [0, 1]."""
    test = load_data("digits").test
    picture = np.zeros(SIZE, np.float32)
    for digit, (row, column) in PLACES.items():
        picture[row : row + 8, column : column + 8] = test.images[np.flatnonzero(test.labels == digit)[0], 0] / 255
    return picture


def class_map(bundle: Path, picture: np.ndarray) -> np.ndarray:
    """The scores (classes, h, w) of every 8x8 window; needs nothing but ONNX Runtime."""
    session = onnxruntime.InferenceSession(bundle / "model.dense.onnx", providers=["CPUExecutionProvider"])
    scores: np.ndarray = session.run(["map"], {"input": picture[None, None]})[0][0]
    return scores


def draw(picture: np.ndarray, scores: np.ndarray, path: Path) -> None:
    """The picture, and the map of each digit in it: an answer stands at the centre of its window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=130, layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    panels[0].set_title("picture", fontsize=10)
    powers = np.exp(scores - scores.max(axis=0))
    probabilities = powers / powers.sum(axis=0)
    extent = (3, 3 + scores.shape[2], 3 + scores.shape[1], 3)
    for axes in panels:
        axes.imshow(picture, cmap="gray_r", vmax=1 if axes is panels[0] else 2.5)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes, digit in zip(panels[1:], PLACES, strict=True):
        shown = axes.imshow(probabilities[digit], extent=extent, cmap="Reds", alpha=np.sqrt(probabilities[digit]), vmin=0, vmax=1)
        axes.set(xlim=(-0.5, SIZE[1] - 0.5), ylim=(SIZE[0] - 0.5, -0.5))
        axes.set_title(f"probability of {digit}", fontsize=10)
    figure.colorbar(shown, ax=list(panels), shrink=0.7)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    main()
