"""Metrics against scikit-image, OpenCV and loops; distances against stored gradients; findings that were planted."""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from skimage.color import rgb2hsv
from torch import nn

from nar_hw.data import ImageData, load_data
from nar_hw.data.base import Augmentation, Split
from nar_hw.errors import DataError, ModelError, RunError, TrainingError, UnknownNameError
from nar_hw.models.weights import save_weights
from nar_hw.proxy import METRICS, ProxyIndex, Sample, measure, select, study, subset
from nar_hw.proxy.canny import canny
from nar_hw.proxy.findings import findings, quarters
from nar_hw.proxy.gradients import Gradients, herd
from nar_hw.proxy.perceptual import MEAN, STD, Lpips, distances, load_backbone
from nar_hw.proxy.ranking import Ranking
from nar_hw.proxy.sketch import Sketch
from nar_hw.proxy.study import paper_recipe
from nar_hw.proxy.subset import images_of, with_valid
from nar_hw.records import replace
from nar_hw.tasks import ClassificationTask
from nar_hw.training.checkpoints import save_state
from nar_hw.training.recipes import Recipe


def pictures(count: int = 40, channels: int = 3, side: int = 16) -> ImageData:
    """Smooth coloured images, so that Canny finds edges of all directions; the first are plain."""
    rng = np.random.default_rng(0)
    images = np.stack([cv2.GaussianBlur(rng.uniform(0, 255, (side, side, 3)), (0, 0), 1 + item % 3) for item in range(count)])
    images = 127 + (images - images.mean((1, 2), keepdims=True)) * np.linspace(1, 6, count)[:, None, None, None]
    images[:3] = [0, 255, 90]
    whole = images.clip(0, 255).astype(np.uint8).transpose(0, 3, 1, 2)[:, :channels]
    labels = np.arange(count) % 4
    split = Split(images=np.ascontiguousarray(whole), labels=labels, indices=np.arange(count), source="all")
    return ImageData(
        name="pictures",
        seed=0,
        classes=("a", "b", "c", "d"),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        augmentation=Augmentation(),
        train=split,
        valid=split,
        test=split,
    )


def network(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, 2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(32, 4),
    )


def absent() -> nn.Module:
    raise AssertionError("this metric needs no network")


def metric(
    name: str,
    data: ImageData,
    network: Callable[[], nn.Module] = absent,
    backbone: Callable[[], nn.Module] = absent,
    batch: int = 16,
) -> NDArray[np.float64]:
    return measure(name, data, network=network, backbone=backbone, batch=batch)


def images(data: ImageData) -> NDArray[np.uint8]:
    return images_of(data).images


def inputs(data: ImageData) -> torch.Tensor:
    return (torch.from_numpy(images(data)).double() / 255 - 0.5).float() / 0.25


def test_intensity_is_the_sum_of_pixels() -> None:
    data = pictures()
    assert metric("intensity", data).tolist() == images(data).astype(int).sum((1, 2, 3)).tolist()


def test_colour_is_the_mean_colour_in_hsv_as_of_scikit_image() -> None:
    data = pictures()
    hsv = np.round(rgb2hsv(images(data).mean((2, 3))) * [255, 255, 1])
    assert metric("colour", data).tolist() == (hsv @ [65536, 256, 1]).tolist()


def test_edges_are_those_of_opencv() -> None:
    data = pictures()
    greys = [cv2.cvtColor(image.transpose(1, 2, 0).copy(), cv2.COLOR_RGB2GRAY) for image in images(data)]
    wanted = [int(cv2.Canny(grey, 100, 200).astype(int).sum()) for grey in greys]
    assert len(set(wanted)) > 5
    assert metric("edges", data).tolist() == wanted


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 24), st.integers(3, 24), st.sampled_from([0, 0.7, 1.5]), st.integers(0, 2**32 - 1))
def test_canny_is_opencvs_to_the_pixel(height: int, width: int, blur: float, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    if blur:
        image = cv2.normalize(cv2.GaussianBlur(image, (0, 0), blur), np.empty(0), 0, 255, cv2.NORM_MINMAX)
    found = canny(torch.from_numpy(image).int()[None])[0].numpy()
    assert (255 * found == cv2.Canny(image, 100, 200)).all()


def test_grey_images_are_ordered_by_value_and_other_channels_refused() -> None:
    grey = pictures(channels=1)
    assert metric("colour", grey).tolist() == np.round(images(grey).mean((1, 2, 3))).tolist()
    assert metric("edges", grey).max() > 0
    with pytest.raises(DataError, match=r"1 or 3 channels, but these have 2"):
        metric("colour", pictures(channels=2))


def test_perceptual_is_the_distance_of_alexnets_five_activations() -> None:
    data = pictures(count=6)
    torch.manual_seed(0)
    alexnet = torchvision.models.alexnet().eval()
    mean_image = images(data).mean(0)
    both = torch.from_numpy(np.concatenate([mean_image[None], images(data)])).float() / 255
    both = F.interpolate(both, size=(64, 64), mode="bilinear", align_corners=False)
    both = (both - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    wanted = np.zeros(6)
    with torch.no_grad():
        for last in (1, 4, 7, 9, 11):
            features = alexnet.features[: last + 1](both).double().numpy()
            unit = features / np.sqrt((features**2).sum(1, keepdims=True) + 1e-20)
            wanted += ((unit[1:] - unit[:1]) ** 2).sum(1).mean((1, 2))
    assert metric("perceptual", data, backbone=lambda: alexnet, batch=4) == pytest.approx(wanted, rel=1e-4)
    assert wanted.std() > 0


def test_a_backbone_needs_activations_and_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must have activations as modules"):
        metric("perceptual", pictures(count=4), backbone=lambda: nn.Conv2d(3, 4, 3))
    with pytest.raises(ModelError, match=r"does not exist"):
        load_backbone("alexnet", tmp_path / "none.pth")
    with pytest.raises(ModelError, match=r"name a file of them \(--backbone-weights\)"):
        load_backbone("resnet_digits")


def test_loss_and_norms_are_those_of_single_images() -> None:
    data, net = pictures(), network()
    net.eval()
    wanted: dict[str, list[float]] = {"loss": [], "el2n": [], "grand": []}
    for image, label in zip(inputs(data), torch.from_numpy(images_of(data).labels), strict=True):
        logits = net(image[None])
        loss = F.cross_entropy(logits, label[None])
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        probabilities = logits.softmax(1)[0].detach().numpy()
        probabilities[int(label)] -= 1
        wanted["loss"].append(float(loss.detach()))
        wanted["el2n"].append(float(np.linalg.norm(probabilities)))
        wanted["grand"].append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
    net.train()
    for name, values in wanted.items():
        assert metric(name, data, network=lambda: net) == pytest.approx(values, rel=1e-4), name
    assert net.training


def test_a_new_metric_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def redness(sample: Sample) -> torch.Tensor:
        return sample.images[:, 0].flatten(1).float().mean(1)

    monkeypatch.setitem(METRICS, "redness", redness)
    data = pictures()
    assert metric("redness", data) == pytest.approx(images(data)[:, 0].mean((1, 2)))


def test_metrics_that_cannot_be() -> None:
    broken = network()
    nn.init.constant_(broken[0].weight, float("nan"))  # type: ignore[index]
    with pytest.raises(
        DataError, match=r"must be finite for every image, but loss is nan for image 0 \(40 of 40 are not finite\)"
    ):
        metric("loss", pictures(), network=lambda: broken)
    with pytest.raises(UnknownNameError, match=r"unknown metric 'brightness'"):
        metric("brightness", pictures())


def test_a_sketch_keeps_lengths_as_well_as_it_says() -> None:
    vector = torch.randn(300, generator=torch.Generator().manual_seed(0))
    width = 32
    squares = np.array(
        [float(Sketch([100, 200], width=width, seed=seed)(vector.split([100, 200])).square().sum()) for seed in range(800)]
    )
    ratio = squares / float(vector.square().sum())
    assert abs(ratio.mean() - 1) < 4 * (2 / width) ** 0.5 / 800**0.5
    limit = (2 / width * (1 - float((vector**4).sum() / vector.square().sum() ** 2))) ** 0.5  # exact for this map
    assert ratio.std() == pytest.approx(limit, rel=0.1)
    assert Sketch([300], width=width).standard_error == pytest.approx((2 * width) ** -0.5)


def test_a_sketch_is_linear_and_exact_where_it_can_be() -> None:
    a, b = torch.randn(2, 50, dtype=torch.float32)
    small = Sketch([30, 20], width=16)
    pair = small((a + b).split([30, 20])), small(a.split([30, 20])) + small(b.split([30, 20]))
    assert torch.allclose(*pair, atol=1e-5)
    whole = Sketch([30, 20], width=64)
    assert whole.standard_error == 0
    assert whole((a[:30], None))[:50].tolist() == [*a[:30].tolist(), *[0.0] * 20]


RECIPE = replace(paper_recipe(3, 5, 0.05), momentum=0.9)


def naive(net: nn.Module, data: ImageData, values: NDArray[np.float64], recipe: Recipe, seed: int = 0) -> NDArray[np.float64]:
    """The paper's algorithm with all gradients kept; dropout as the study documents: decided by seed, epoch and batch."""
    order = np.argsort(values, kind="stable")
    batches = order.reshape(-1, recipe.batch)
    x, y = inputs(data), torch.from_numpy(images_of(data).labels)
    velocity = [torch.zeros_like(parameter) for parameter in net.parameters()]
    rows = []
    for epoch in range(recipe.epochs):
        start = [parameter.detach().clone() for parameter in net.parameters()]
        gradients = []
        for number, batch in enumerate(batches):

            def gradient(batch: NDArray[np.int64] = batch, seed: int = (seed * 1_000_003 + epoch) * 1_000_003 + number):  # type: ignore[no-untyped-def]
                torch.manual_seed(seed)
                return torch.autograd.grad(F.cross_entropy(net(x[batch]), y[batch]), list(net.parameters()))

            here = [parameter.detach().clone() for parameter in net.parameters()]
            step = gradient()
            with torch.no_grad():
                for parameter, old in zip(net.parameters(), start, strict=True):
                    parameter.copy_(old)
            gradients.append(torch.cat([item.flatten() for item in gradient()]).double())
            with torch.no_grad():
                for parameter, now, speed, item in zip(net.parameters(), here, velocity, step, strict=True):
                    speed.mul_(recipe.momentum).add_(item + recipe.weight_decay * now)
                    parameter.copy_(now - recipe.learning_rate(epoch) * speed)
        kept = torch.stack(gradients)
        rows.append((kept - kept.mean(0)).norm(dim=1).numpy())
    return np.stack(rows)


@pytest.fixture(scope="module")
def setting() -> tuple[ImageData, NDArray[np.float64], NDArray[np.float64]]:
    """Images, their metric, and the naive distances."""
    data = pictures()
    values = metric("intensity", data)
    return data, values, naive(network().train(), data, values, RECIPE)


def test_exact_distances_are_the_naive_ones(setting: tuple[ImageData, NDArray[np.float64], NDArray[np.float64]]) -> None:
    data, values, wanted = setting
    found = study(network(), data, {"intensity": values}, recipe=RECIPE, exact=True)[0]
    assert found.standard_error == 0
    np.testing.assert_allclose(found.distances, wanted, rtol=1e-4)


def test_the_streamed_distances_are_the_naive_ones_within_their_error(
    setting: tuple[ImageData, NDArray[np.float64], NDArray[np.float64]],
) -> None:
    data, values, wanted = setting
    whole = study(network(), data, {"intensity": values}, recipe=RECIPE)[0]  # 738 numbers: the sketch is the gradient
    assert whole.standard_error == 0
    np.testing.assert_allclose(whole.distances, wanted, rtol=1e-4)
    small = study(network(), data, {"intensity": values}, recipe=RECIPE, width=512)[0]
    errors = small.distances / wanted - 1
    assert small.standard_error == pytest.approx(1 / 32)
    assert np.abs(errors).max() < 4 / 32
    assert 0.3 / 32 < errors.std() < 1.2 / 32


@pytest.mark.parametrize("exact", [False, True])
def test_a_stopped_study_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    data = pictures()
    values = metric("intensity", data)
    options = {"recipe": RECIPE, "exact": exact, "width": 64}
    (whole,) = study(network(), data, {"intensity": values}, out=tmp_path / "whole", **options)  # type: ignore[arg-type]
    calls = []

    def save(path: Path, state: dict[str, object]) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise KeyboardInterrupt
        save_state(path, state)

    monkeypatch.setattr(sys.modules[study.__module__], "save_state", save)
    with pytest.raises(KeyboardInterrupt):
        study(network(), data, {"intensity": values}, out=tmp_path / "part", **options)  # type: ignore[arg-type]
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"holds a study already \(state.pt\)"):
        study(network(), data, {"intensity": values}, out=tmp_path / "part", **options)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"seed is . there and . now"):
        study(network(), data, {"intensity": values}, out=tmp_path / "part", resume=True, seed=1, **options)  # type: ignore[arg-type]
    (again,) = study(network(), data, {"intensity": values}, out=tmp_path / "part", resume=True, **options)  # type: ignore[arg-type]
    assert (again.distances == whole.distances).all()
    assert (np.load(tmp_path / "part" / "distances.npy") == whole.distances).all()
    assert {path.name for path in (tmp_path / "part").iterdir()} == {
        "state.pt",
        "study.json",
        "study.html",
        "distances.npy",
        "phase1.png",
        "phase2.png",
        "phase3.png",
    }
    page = (tmp_path / "part" / "study.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "standard error of at most 8.84 %" in page if not exact else "Distances are exact." in page
    written = json.loads((tmp_path / "part" / "study.json").read_text())
    assert len(written["findings"]["intensity"]) == 5
    assert len(written["quarters"]["intensity"]) == 12


@pytest.mark.parametrize("exact", [False, True])
def test_metrics_share_one_training(tmp_path: Path, exact: bool) -> None:
    """Against single batches' gradients by autograd, at the weights that a plain training of random batches passes through."""
    data = pictures()
    values = {name: metric(name, data) for name in ("intensity", "edges")}
    options: dict[str, Any] = {"recipe": RECIPE, "exact": exact, "out": tmp_path / "all"}
    found = study(still(), data, values, **options)
    x, y = inputs(data), torch.from_numpy(images_of(data).labels)
    order = np.random.RandomState(0).permutation(len(y)).reshape(-1, RECIPE.batch)
    net = still()
    optimizer = torch.optim.SGD(net.parameters(), RECIPE.lr, RECIPE.momentum, weight_decay=RECIPE.weight_decay)
    for epoch in range(RECIPE.passes):
        optimizer.param_groups[0]["lr"] = RECIPE.learning_rate(epoch)
        for result in found:
            kept = []
            for batch in np.argsort(values[result.metric], kind="stable").reshape(-1, RECIPE.batch):
                gradient = torch.autograd.grad(F.cross_entropy(net(x[batch]), y[batch]), list(net.parameters()))
                kept.append(torch.cat([item.flatten() for item in gradient]).double())
            gradients = torch.stack(kept)
            wanted = (gradients - gradients.mean(0)).norm(dim=1).numpy()
            np.testing.assert_allclose(result.distances[epoch], wanted, rtol=1e-3)
        for batch in order:
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
    assert [result.metric for result in found] == ["intensity", "edges"]
    written = json.loads((tmp_path / "all" / "study.json").read_text())
    assert set(written["findings"]) == {"intensity", "edges"}
    assert (tmp_path / "all" / "edges" / "study.html").is_file()
    state = torch.load(tmp_path / "all" / "state.pt", weights_only=True)
    assert state["distances"].shape == (RECIPE.epochs, 2, 8)
    again = study(still(), data, values, resume=True, **options)
    assert all((one.distances == two.distances).all() for one, two in zip(found, again, strict=True))


def still() -> nn.Module:
    """Without dropout."""
    net = network().train()
    assert isinstance(net, nn.Sequential)
    net[7] = nn.Identity()
    return net


def test_validation_images_are_joined_in_the_order_of_their_collection() -> None:
    data = load_data("fake:3x8x8x4")
    joined = with_valid(data)
    expected = np.sort(np.concatenate([data.train.indices, data.valid.indices]))
    assert joined.train.indices.tolist() == expected.tolist()
    place = int(np.flatnonzero(expected == data.valid.indices[3])[0])
    assert (images_of(joined).images[place] == data.valid.images[3]).all()  # type: ignore[attr-defined]
    assert joined.train.labels[place] == data.valid.labels[3]
    assert joined.mean == joined.train.statistics()[0] != data.mean
    with pytest.raises(DataError, match="must be of one collection to be joined"):
        with_valid(replace(data, valid=replace(data.valid, source="val")))


def test_lpips_weighs_each_channel(tmp_path: Path) -> None:
    """Against the formula of Zhang et al. 2018 (their equation 1) in NumPy, and its equal weights against those of none."""
    torch.manual_seed(0)
    lpips = Lpips()
    for head in lpips.heads:
        head.data.uniform_(0, 1)
    save_weights(tmp_path / "x.safetensors", lpips)
    loaded = load_backbone("lpips", tmp_path / "x.safetensors")
    images, other = 255 * torch.rand(3, 3, 64, 64), 255 * torch.rand(3, 64, 64)
    found = distances(loaded, images, other)
    x = torch.cat([other[None], images]) / 255 * 2 - 1  # in [-1, 1], as the authors' code shifts and scales it
    x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    expected = np.zeros(3)
    with torch.no_grad():
        for place, layer in enumerate(lpips.features):
            x = layer(x)
            if place in (1, 4, 7, 9, 11):
                maps = x.double().numpy()
                unit = maps / (np.sqrt((maps**2).sum(1, keepdims=True)) + 1e-10)
                weights = lpips.heads[(1, 4, 7, 9, 11).index(place)].double().numpy()
                expected += np.einsum("bchw,c->b", (unit[1:] - unit[:1]) ** 2, weights) / (maps.shape[2] * maps.shape[3])
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    with pytest.raises(ModelError, match="lpips needs its learned weights: name a file of them"):
        load_backbone("lpips")


def test_studies_that_cannot_be(tmp_path: Path) -> None:
    data = pictures()
    values = metric("intensity", data)
    with pytest.raises(TrainingError, match=r"8 \* batch <= training images must hold, but got \(batch=64, images=40\): lower"):
        study(network(), data, {"intensity": values}, recipe=paper_recipe(3, 64))
    with pytest.raises(TrainingError, match=r"epochs >= 3 must hold, but got 2"):
        paper_recipe(2)
    with pytest.raises(TrainingError, match=r"diverged in epoch 1 .* try --lr 1e\+04"):
        study(network(), data, {"intensity": values}, recipe=replace(RECIPE, lr=1e5, momentum=0.99))


def planted(shape: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
    """(30, 40) distances: a shape over the batches in the first third, another in the rest, and noise."""
    noise = np.random.default_rng(0).normal(0, 0.01, (30, 40))
    places = np.linspace(0, 1, 40)
    first, later = shape(places), 1 + 0.5 * (np.abs(places - 0.5) > 0.4)
    return 3 * (np.concatenate([np.tile(first, (10, 1)), np.tile(later, (20, 1))]) + noise)


PHASES = (range(10), range(10, 20), range(20, 30))


@pytest.mark.parametrize(
    ("name", "number", "shape"),
    [
        ("intensity", 1, lambda places: 2 - places),
        ("perceptual", 2, lambda places: 2 - places),
        ("colour", 3, lambda places: 2 - np.abs(places - 0.5)),
        ("edges", 4, lambda places: 1 + np.abs(places - 0.5)),
    ],
)
def test_planted_findings_are_found(name: str, number: int, shape: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
    found = findings(name, planted(shape), PHASES)
    verdicts = {item.number: item.verdict for item in found}
    assert verdicts == {item: "confirmed" if item in (number, 5) else "not tested" for item in range(1, 6)}
    mirrored = findings(name, planted(lambda places: 3 - shape(places)), PHASES)
    assert mirrored[number - 1].verdict == "contradicted"
    assert found[number - 1].differences[0].mean < 0
    assert len(found[4].differences) == 2


def test_nothing_is_confirmed_in_noise() -> None:
    noise = np.random.default_rng(1).uniform(1, 2, (30, 40))
    assert findings("intensity", noise, PHASES)[0].verdict == "undecided"
    assert {item.verdict for item in findings("el2n", noise, PHASES)} == {"not tested"}
    assert findings("intensity", noise, PHASES[:1])[4].verdict == "not tested"


def test_quarters_are_means_with_students_interval() -> None:
    distances = planted(lambda places: 2 - places)
    found = quarters(distances, PHASES)
    assert [(item.phase, item.quarter) for item in found] == list(
        itertools.product((1, 2, 3), ("lowest", "second", "third", "highest"))
    )
    part = distances[:10, 30:]
    percent = 100 * (distances[:10] / distances[:10].mean(1, keepdims=True)).mean(0)[30:] - 100
    margin = 2.2621571628 * percent.std(ddof=1) / 10**0.5  # t of 9 degrees of freedom
    assert found[3].distance == pytest.approx(part.mean())
    assert (found[3].difference.mean, found[3].difference.high) == pytest.approx((percent.mean(), percent.mean() + margin))


def chosen(data: ImageData, size: int, by: str, seed: int = 0) -> ProxyIndex:
    return select(data, size, by, seed=seed, values=lambda: metric("intensity", data), gradients=lambda: gradients(data))


def gradients(data: ImageData) -> list[Gradients]:
    return [Gradients.of(network(), ClassificationTask(data))]


@pytest.mark.parametrize("by", ["random", "stratified", "metric", "gradient"])
def test_a_proxy_has_the_size_asked_for_and_no_image_twice(by: str) -> None:
    data = pictures(50)
    for size in (1, 13, 50):
        index = chosen(data, size, by)
        assert len(set(index.indices)) == size
        assert set(index.indices) <= set(range(50))
    assert chosen(data, 13, by) == chosen(data, 13, by)
    if by in ("stratified", "metric"):
        counts = np.bincount(data.train.labels[list(chosen(data, 25, by).indices)], minlength=4)
        assert sorted(counts) == [6, 6, 6, 7]
    if by in ("random", "gradient"):
        assert chosen(data, 25, by).indices[:13] == chosen(data, 13, by).indices


def test_a_proxy_by_metric_has_its_distribution() -> None:
    data = load_data("digits")
    values = metric("intensity", data)
    part = values[list(chosen(data, 200, "metric").indices)]
    levels = np.linspace(0.05, 0.95, 10)
    spread = values.std()
    assert np.abs(np.quantile(part, levels) - np.quantile(values, levels)).max() < 0.1 * spread


def test_proxies_that_cannot_be() -> None:
    data = pictures()
    with pytest.raises(DataError, match=r"1 <= size <= training images must hold, but got \(size=41, images=40\)"):
        chosen(data, 41, "random")
    with pytest.raises(UnknownNameError, match=r"unknown way to select 'luck'"):
        chosen(data, 4, "luck")
    with pytest.raises(ModelError, match=r"ends in a linear layer"):
        Gradients.of(nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten()), ClassificationTask(data))


def test_gradients_are_those_of_the_last_layer() -> None:
    data, net = pictures(), network().eval()
    found = Gradients.of(net, ClassificationTask(data))
    x, y = inputs(data), torch.from_numpy(images_of(data).labels)
    weight, bias = net[-1].weight, net[-1].bias  # type: ignore[index]
    wanted = torch.autograd.grad(F.cross_entropy(net(x), y), [weight, bias])
    assert torch.allclose(found.mean, torch.cat([wanted[0], wanted[1][:, None]], 1), atol=1e-6)
    single = torch.autograd.grad(F.cross_entropy(net(x[7:8]), y[7:8]), [weight])[0]
    assert torch.allclose(torch.outer(found.errors[7], found.inputs[7])[:, :-1], single, atol=1e-6)
    assert found.error(torch.arange(len(y))) == pytest.approx(0, abs=1e-5)


def test_herding_takes_the_image_that_brings_the_mean_nearest() -> None:
    data, other = pictures(), network()
    nn.init.normal_(other[-1].weight)  # type: ignore[index]
    found = [*gradients(data), Gradients.of(other.train(), ClassificationTask(data))]
    vectors = torch.cat([torch.einsum("nk,nf->nkf", item.errors, item.inputs).flatten(1) for item in found], 1).double()
    mean, total, taken = vectors.mean(0), torch.zeros(vectors.shape[1], dtype=torch.float64), []
    for count in range(1, 11):
        distances = ((count * mean - total) - vectors).norm(dim=1)
        distances[taken] = torch.inf
        taken.append(int(distances.argmin()))
        total += vectors[taken[-1]]
    assert list(herd(found, 10)) == taken
    others = [found[0].error(torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:10]) for seed in range(20)]
    assert found[0].error(torch.tensor(taken)) < min(others)


def test_an_index_file_is_of_its_data_set(tmp_path: Path) -> None:
    data, path = pictures(), tmp_path / "p.json"
    index = chosen(data, 10, "random")
    index.save(path)
    assert ProxyIndex.load(path) == index
    part = index.apply(data)
    assert part.train.indices.tolist() == sorted(index.indices)
    assert (images(part) == images(data)[sorted(index.indices)]).all()
    assert part.splits["valid"] == data.splits["valid"]
    with pytest.raises(DataError, match=r"this one is of 'pictures' and the images of 'digits' differ: run nar-hw proxy select"):
        index.apply(load_data("digits"))
    with pytest.raises(DataError, match=r"images of 'pictures' differ"):
        index.apply(subset(data, range(39)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 9}, r"must have schema 1 or less, but has 9"),
        ({"indices": [1, 1]}, r"one image or more, each once"),
        ({"indices": []}, r"one image or more, each once"),
        ({"indices": ["a"]}, r"must be int, but is 'a'"),
        ({"sha256": None}, r"sha256 must be str, but is None"),
    ],
)
def test_a_damaged_index_file_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "p.json"
    chosen(pictures(), 5, "random").save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        ProxyIndex.load(path)


def test_rankings_are_compared_by_kendall_and_regret() -> None:
    archs = ((0,), (1,), (2,), (3,))
    same = Ranking(archs=archs, full=(0.1, 0.2, 0.3, 0.4), proxy=(0.5, 0.6, 0.7, 0.8))
    assert (same.kendall, same.regret) == (1, 0)
    other = Ranking(archs=archs, full=(0.1, 0.2, 0.3, 0.4), proxy=(0.9, 0.6, 0.7, 0.9))
    assert other.regret == pytest.approx(0.4 - (0.1 + 0.4) / 2)
    assert Ranking(archs=archs, full=(0.1, 0.2, 0.3, 0.4), proxy=(0.5,) * 4).kendall is None
