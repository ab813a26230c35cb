"""Images read from files while they are needed, and windows of images in memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nar_hw.data import SPLITS, Augmentation, Split, load_data
from nar_hw.data.base import channel_statistics
from nar_hw.data.loader import ColourShifts, DeviceImages
from nar_hw.data.stream import FileSplit, StreamedImages
from nar_hw.errors import DataError
from nar_hw.records import replace
from nar_hw.tasks import ClassificationTask, Task
from nar_hw.tasks.classification import mean_of_views
from nar_hw.testing.tasks import TaskConformance
from nar_hw.training.loop import train
from nar_hw.training.recipes import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colours, 12 images of each, of different sizes, with some noise; one is grey."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label, name in enumerate("abc"):
        (path / name).mkdir()
        for index in range(12):
            pixels = rng.integers(0, 80, (20 + index, 31 - index, 3), dtype=np.uint8)
            pixels[..., label] += 120
            mode = "L" if (label, index) == (1, 3) else "RGB"
            Image.fromarray(pixels).convert(mode).save(path / name / f"{index:02d}.png")
    return path


def stream(folder: Path, workers: int = 0) -> ClassificationTask:
    return ClassificationTask(load_data(f"stream:{folder}@12/16"), workers=workers)


class TestStreamedTask(TaskConformance):
    @pytest.fixture
    def task(self, folder: Path) -> Task:
        return stream(folder)

    @pytest.fixture
    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 3)
        )


class TestSplits:
    def test_they_are_those_of_the_images_in_memory(self, folder: Path) -> None:
        files, memory = load_data(f"stream:{folder}@12/16"), load_data(f"folder:{folder}@16")
        assert files.splits == memory.splits
        assert files.classes == memory.classes
        assert [len(files.split(name)) for name in SPLITS] == [27, 3, 6]
        for name in SPLITS:
            split = files.split(name)
            assert isinstance(split, FileSplit)
            assert [Path(file).parent.name for file in split.files] == [files.classes[label] for label in split.labels]

    @pytest.mark.parametrize(("detail", "crop", "size"), [("", 224, 256), ("@14", 14, 16), ("@14/20", 14, 20)])
    def test_sizes(self, folder: Path, detail: str, crop: int, size: int) -> None:
        data = load_data(f"stream:{folder}{detail}")
        assert data.input_shape == (3, crop, crop)
        assert isinstance(data.test, FileSplit)
        assert data.test.size == size

    def test_mean_and_deviation_are_of_the_training_images_as_they_are_evaluated(self, folder: Path) -> None:
        data = load_data(f"stream:{folder}@12/16")
        task = ClassificationTask(replace(data, mean=(0.0,) * 3, std=(1.0,) * 3), augmentation=Augmentation(), workers=0)
        ((images, _),) = task.eval_batches("train")
        pixels = (images * 255).round().to(torch.uint8).numpy()
        for found, expected in zip((data.mean, data.std), channel_statistics(pixels), strict=True):
            assert found == pytest.approx(expected)

    def test_a_larger_set_is_sampled(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = load_data(f"stream:{folder}@12/16").mean
        monkeypatch.setattr("nar_hw.data.stream.SAMPLE", 6)
        sampled = load_data(f"stream:{folder}@12/16").mean
        assert sampled != whole
        assert sampled == pytest.approx(whole, abs=0.1)


class TestTenViews:
    @pytest.mark.parametrize("kind", ["stream", "folder"])
    def test_the_score_is_of_the_mean_of_ten_passes(self, folder: Path, kind: str) -> None:
        data = load_data(f"{kind}:{folder}@12/16")
        task = ClassificationTask(data, workers=0, ten_views=True)
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 3)).eval()
        whole = replace(load_data(f"{kind}:{folder}@16/16"), mean=(0.0,) * 3, std=(1.0,) * 3)
        ((images, labels),) = ClassificationTask(whole, workers=0).eval_batches("test")  # (N, 3, 16, 16)
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (data.mean, data.std))
        passes = []
        for top, left in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
            window = ((images[:, :, top : top + 12, left : left + 12] - mean) / std).float()
            passes += [model(view).softmax(1) for view in (window, window.flip(-1))]
        expected = torch.stack(passes).mean(0)
        found = torch.cat([mean_of_views(model, views) for views, _ in task._images("test").ten_views(2)])
        assert (found - expected).abs().max() < 1e-6
        assert task.evaluate(model, "test") == pytest.approx(float((expected.argmax(1) == labels).float().mean()))
        assert task.record["ten_views"] is True
        assert "ten_views" not in ClassificationTask(data, workers=0).record

    def test_windows_as_large_as_the_images(self, folder: Path) -> None:
        task = ClassificationTask(load_data(f"stream:{folder}@16/16"), workers=0, ten_views=True)
        with pytest.raises(DataError, match="use stream:PATH@CROP/SIZE"):
            task.evaluate(nn.Flatten(), "test")


def test_colours_are_shifted_as_in_memory(folder: Path) -> None:
    """The whole images in their order of drawing; the shifts are of the same statistics and of one value an image."""
    data = load_data(f"stream:{folder}@12/16")
    batches = []
    for pca in (0.0, 0.5):
        task = ClassificationTask(data, workers=0, augmentation=Augmentation(pca_colour=pca))
        batches.append(next(task.train_batches(27, torch.Generator().manual_seed(3))))
    generator = torch.Generator().manual_seed(3)
    torch.randperm(27, generator=generator), torch.randint(2**62, (27,), generator=generator)
    expected = ColourShifts(data.train.covariance(), data.std, 0.5, torch.device("cpu")).drawn(27, generator)
    torch.testing.assert_close(batches[1][0] - batches[0][0], expected.expand(-1, -1, 12, 12), atol=1e-5, rtol=1e-4)
    assert expected.abs().min() > 0


class TestImages:
    def test_evaluation_scales_the_shorter_side_and_takes_the_centre(self, folder: Path) -> None:
        data = load_data(f"stream:{folder}@12/16")
        assert isinstance(data.test, FileSplit)
        task = ClassificationTask(replace(data, mean=(0.0,) * 3, std=(1.0,) * 3), workers=0)
        images = torch.cat([images for images, _ in task.eval_batches("test", 4)])
        for image, file in zip(images, data.test.files, strict=True):
            picture = Image.open(file).convert("RGB")
            scale = 16 / min(picture.size)
            scaled = picture.resize((int(picture.width * scale), int(picture.height * scale)), Image.Resampling.BILINEAR)
            left, top = round((scaled.width - 12) / 2), round((scaled.height - 12) / 2)
            expected = np.asarray(scaled.crop((left, top, left + 12, top + 12))).transpose(2, 0, 1) / 255
            assert np.abs(image.numpy() - expected).max() < 2.5 / 255  # two implementations of one filter

    def test_random_crops_hold_what_their_seed_says_and_half_are_mirrored(self, tmp_path: Path) -> None:
        ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (60, 1, 3))  # brighter to the right
        for name in "ab":
            (tmp_path / name).mkdir()
            for index in range(60):
                Image.fromarray(ramp + np.uint8(index % 2)).save(tmp_path / name / f"{index:02d}.png")
        data = load_data(f"stream:{tmp_path}@20")
        task = ClassificationTask(replace(data, mean=(0.0,) * 3, std=(1.0,) * 3), workers=0)
        ((images, _),) = task.train_batches(84, torch.Generator().manual_seed(0))
        rises = images[:, 0, 10, -1] - images[:, 0, 10, 0]
        assert 25 < int((rises < 0).sum()) < 59  # 84 fair coins: 42 +- 17 is almost four deviations
        share = rises.abs() * 255 / 236  # of the width
        assert float(share.min()) < 0.45
        assert float(share.max()) > 0.85
        untouched = next(task.train_batches(84, torch.Generator().manual_seed(0), augment=False))[0]
        assert (untouched[:, 0, 10, -1] - untouched[:, 0, 10, 0]).std() < 0.01

    def test_workers_change_nothing(self, folder: Path) -> None:
        for name in ("train", "test"):
            batches: list[list[torch.Tensor]] = []
            for workers in (0, 1):
                task = stream(folder, workers)
                epoch: Iterator[tuple[torch.Tensor, torch.Tensor]] = (
                    task.train_batches(5, torch.Generator().manual_seed(1)) if name == "train" else task.eval_batches("test", 4)
                )
                batches.append([item for batch in epoch for item in batch])
            assert len(batches[0]) == (10 if name == "train" else 4)
            assert all(torch.equal(one, two) for one, two in zip(*batches, strict=True))

    def test_an_image_that_cannot_be_read_is_named(self, folder: Path, tmp_path: Path) -> None:
        for name in "ab":
            (tmp_path / name).mkdir()
            for index in range(3):
                (tmp_path / name / f"{index}.png").write_bytes((folder / name / f"{index:02d}.png").read_bytes())
        data = load_data(f"stream:{tmp_path}@8")
        assert isinstance(data.valid, FileSplit)
        Path(data.valid.files[1]).write_bytes(b"no image")
        for workers in (0, 1):
            message = rf"every image must be readable, but {data.valid.files[1]} is none of PNG"
            with pytest.raises(DataError, match=message):
                list(ClassificationTask(data, workers=workers).eval_batches("valid"))

    def test_changes_that_the_other_kind_of_image_gets(self, folder: Path) -> None:
        with pytest.raises(DataError, match="but crop_padding or cutout is set: use folder:PATH"):
            next(ClassificationTask(stream(folder).data, augmentation=Augmentation(cutout=2)).train_batches(4, torch.Generator()))
        digits = ClassificationTask(load_data("digits"), augmentation=Augmentation(least_area=0.5))
        with pytest.raises(DataError, match="but least_area < 1: use stream:PATH"):
            next(digits.train_batches(4, torch.Generator()))
        with pytest.raises(DataError, match=r"0 < least_area <= 1 must hold, but got 0"):
            Augmentation(least_area=0)


class TestShares:
    @pytest.mark.parametrize("kind", ["memory", "files"])
    def test_processes_share_a_batch(self, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = load_data(f"stream:{folder}@12/16" if kind == "files" else f"folder:{folder}@12/16")
        task = ClassificationTask(data, workers=0)

        def epoch(shared: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
            return list(task.train_batches(6, torch.Generator().manual_seed(0), shared=shared))

        whole = epoch(False)
        monkeypatch.setattr("nar_hw.distributed.ranks", lambda: 2)
        shares = []
        for number in (0, 1):
            monkeypatch.setattr("nar_hw.distributed.rank", lambda number=number: number)
            shares.append(epoch(True))
        assert len(whole) == len(shares[0]) == 4
        for all_of_them, first, second in zip(whole, *shares, strict=True):
            for full, one, two in zip(all_of_them, first, second, strict=True):
                assert torch.equal(full[0::2], one)
                assert torch.equal(full[1::2], two)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(8, 3)
    )


def test_an_interrupted_training_from_files_goes_on_to_the_same_bits(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=3, batch=8, t_0=3)

    class Interrupted(ClassificationTask):
        epochs = 0

        def train_batches(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            self.epochs += 1
            for batch in super().train_batches(*args, **kwargs):
                if self.epochs == 2:
                    raise KeyboardInterrupt
                yield batch

    train(straight := small(), stream(folder), recipe, seed=1)
    with pytest.raises(KeyboardInterrupt):
        train(small(), Interrupted(stream(folder).data, workers=0), recipe, out=tmp_path, seed=1)
    train(resumed := small(), stream(folder, workers=1), recipe, out=tmp_path, seed=1, resume=True)
    for one, two in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two)


class TestWindows:
    """``folder:PATH@CROP/SIZE``: the images stay whole in memory."""

    data = Split(
        images=np.random.default_rng(0).integers(0, 256, (6, 3, 9, 9), dtype=np.uint8),
        labels=np.arange(6),
        indices=np.arange(6),
        source="all",
    )

    def loader(self) -> DeviceImages:
        return DeviceImages(self.data, torch.device("cpu"), mean=(0.0,) * 3, std=(1 / 255,) * 3, crop=6)

    def test_the_name_says_the_sizes(self, folder: Path) -> None:
        data = load_data(f"folder:{folder}@12/16")
        assert data.input_shape == (3, 12, 12)
        assert data.train.shape == (3, 16, 16)
        assert data.augmentation == Augmentation(flip=True)
        assert ClassificationTask(data).input_shape == next(iter(ClassificationTask(data).eval_batches("test")))[0].shape[1:]
        with pytest.raises(DataError, match=r"1 <= CROP <= SIZE <= 1024 must hold in folder:.*@17/16, but got 17/16"):
            load_data(f"folder:{folder}@17/16")

    def test_evaluation_sees_the_centre(self) -> None:
        ((images, _),) = self.loader().in_order(6)
        assert np.array_equal(images.round().numpy(), self.data.images[:, :, 1:7, 1:7])

    def test_training_sees_every_window(self) -> None:
        windows = {
            self.data.images[index, :, row : row + 6, column : column + 6].tobytes(): (row, column)
            for index in range(6)
            for row in range(4)
            for column in range(4)
        }
        places = set()
        for seed in range(40):
            ((images, _),) = self.loader().shuffled(6, torch.Generator().manual_seed(seed), augment=True, drop_last=True)
            places |= {windows[image.round().to(torch.uint8).numpy().tobytes()] for image in images}
        assert places == {(row, column) for row in range(4) for column in range(4)}

    def test_without_augmentation_the_centre_stays(self) -> None:
        ((images, labels),) = self.loader().shuffled(6, torch.Generator().manual_seed(0), augment=False, drop_last=True)
        assert np.array_equal(images.round().numpy(), self.data.images[labels][:, :, 1:7, 1:7])


def test_files_are_not_read_before_they_are_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = StreamedImages(
        stream(folder).data.test,
        torch.device("cpu"),
        mean=(0.5,) * 3,
        std=(1.0,) * 3,
        workers=0,  # type: ignore[arg-type]
    )
    opened: list[Path] = []
    monkeypatch.setattr("nar_hw.data.stream.colour", lambda path: opened.append(path) or Image.new("RGB", (20, 20)))
    next(loader.in_order(4))
    assert len(opened) == 4
