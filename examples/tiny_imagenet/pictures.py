"""Two pictures of a trained child: the filters of its first convolution, and validation images that it takes for something else.

    python examples/tiny_imagenet/pictures.py runs/tiny/resnet20

They are written into the child's folder: filters.png and wrong.png (surest mistakes first).
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from nar_hw.steps.task import load_task
from nar_hw.tasks import evaluating
from nar_hw.training.child import Child

COLUMNS = 8
WRONG = 24


def first_filters(network: nn.Module) -> Tensor:
    """The weights (N, 3, k, k) of the first convolution, each filter stretched to [0, 1] around grey."""
    conv = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    weights = conv.weight.detach().cpu()
    return 0.5 + 0.5 * weights / weights.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)


def mistakes(network: nn.Module, child: Child, data_root: Path | None) -> list[tuple[Tensor, int, int, float]]:
    """(image (3, H, W) in [0, 1], label, prediction, its probability) of all wrong test images, the surest first."""
    task = load_task(child.data, root=data_root)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (child.preprocessing.mean, child.preprocessing.std))
    found = []
    with evaluating(network):
        for images, labels in task.eval_batches("test", 200):
            chances, predictions = network(images).softmax(1).max(1)
            for index in (predictions != labels).nonzero().flatten().tolist():
                image = (images[index] * std + mean).clamp(0, 1)
                found.append((image, int(labels[index]), int(predictions[index]), float(chances[index])))
    return sorted(found, key=lambda item: -item[3])


def words(child: Child) -> list[str]:
    """Names of the classes: of words.txt beside train/, up to the first comma, where it is there."""
    path = Path(child.data.partition(":")[2].partition("@")[0]) / "words.txt"
    known = dict(line.split("\t", 1) for line in path.read_text().splitlines()) if path.is_file() else {}
    return [known.get(name, name).partition(",")[0] for name in child.preprocessing.classes]


def draw(images: list[Tensor], titles: list[str], path: Path, heading: str) -> None:
    """A grid of pictures (C, H, W)."""
    rows = -(-len(images) // COLUMNS)
    height = 0.5 + rows * (1.6 if any(titles) else 1.0)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(COLUMNS * 1.3, height), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(title, fontsize=7)
    figure.suptitle(heading, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("child", type=Path, help="folder made by nar-hw train")
    parser.add_argument("--data-root", type=Path)
    arguments = parser.parse_args()
    folder = arguments.child
    child = Child.load(folder)
    network = child.network(folder)
    filters = list(first_filters(network))
    draw(filters, [""] * len(filters), folder / "filters.png", f"{folder.name}: first convolution, {len(filters)} filters")
    names, wrong = words(child), mistakes(network, child, arguments.data_root)
    titles = [f"{names[label]}\n\N{RIGHTWARDS ARROW} {names[taken]} {100 * chance:.0f} %" for _, label, taken, chance in wrong]
    total = len(load_task(child.data, root=arguments.data_root).data.test)
    heading = (
        f"{folder.name}: {len(wrong)} of {total} test images wrong, the surest first (label \N{RIGHTWARDS ARROW} prediction)"
    )
    draw([image for image, *_ in wrong[:WRONG]], titles, folder / "wrong.png", heading)
    print(f"{folder}/filters.png, {folder}/wrong.png")


if __name__ == "__main__":
    main()
