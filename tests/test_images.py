"""Image files as users have them: read as a viewer shows them, from photographs' formats only."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nar_hw.data import load_data
from nar_hw.data.images import FORMATS, MOST_PIXELS, images_in, read_image
from nar_hw.errors import DataError
from nar_hw.faces.images import FaceImages, Files, identity_folders
from nar_hw.faces.records import Records
from tests.faces import encoded

RED, WHITE = (255, 0, 0), (255, 255, 255)
SIDE = 8


def shaded() -> np.ndarray:
    """(8, 8) grey levels from 0 to 252."""
    return np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) * 4


def sixteen_bits(path: Path) -> None:
    Image.fromarray(shaded().astype(np.uint16) * 257).save(path)


def sixteen_bits_of_the_other_order(path: Path) -> None:
    Image.fromarray((shaded().astype(np.uint16) * 257).astype(">u2")).save(path)


def grey(path: Path) -> None:
    Image.fromarray(shaded()).save(path)


def palette(path: Path) -> None:
    Image.fromarray(shaded()).convert("RGB").quantize(256).save(path)


@pytest.mark.parametrize(
    ("save", "name"),
    [
        (grey, "a.png"),
        (grey, "a.PNG"),
        (grey, "a.bmp"),
        (grey, "a.gif"),
        (grey, "a.tiff"),
        (grey, "a.pgm"),
        (sixteen_bits, "a.png"),
        (sixteen_bits, "a.tif"),
        (sixteen_bits_of_the_other_order, "a.tif"),
        (palette, "a.png"),
    ],
)
def test_grey_levels_are_those_of_a_viewer(save: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    save(tmp_path / name)
    assert (np.asarray(read_image(tmp_path / name)) == shaded()[..., None]).all()


def test_less_than_sixteen_bits_in_sixteen_are_dark(tmp_path: Path) -> None:
    Image.fromarray(shaded().astype(np.uint16) * 16).save(tmp_path / "a.png")
    assert (
        np.asarray(read_image(tmp_path / "a.png")) == np.rint(shaded().astype(float) * 16 / 257).astype(np.uint8)[..., None]
    ).all()


def test_what_is_clear_is_white(tmp_path: Path) -> None:
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[:, :, 0] = 255
    pixels[:, :4, 3] = 255
    pixels[:, 4:, 1] = 77  # below a clear pixel, seen by nobody
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    Image.fromarray(pixels[..., 3]).convert("LA").save(tmp_path / "la.png")
    flat = Image.new("P", (SIDE, SIDE), 0)
    flat.putpalette([*RED, 9, 9, 9])
    flat.paste(1, (4, 0, SIDE, SIDE))
    flat.save(tmp_path / "p.png", transparency=1)
    Image.fromarray(pixels[..., :3]).save(tmp_path / "rgb.png", transparency=(255, 77, 0))
    for name in ("rgba", "p", "rgb"):
        shown = np.asarray(read_image(tmp_path / f"{name}.png"))
        assert (shown[:, :4] == RED).all(), name
        assert (shown[:, 4:] == WHITE).all(), name
    assert (np.asarray(read_image(tmp_path / "la.png"))[:, :4] == 255).all()


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (12, 8), "white")
    image.paste("red", (0, 0, 12, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    shown = read_image(tmp_path / "a.jpg")
    assert shown.size == (8, 12)
    red, green, blue = shown.getpixel((7, 6))
    assert red > 200
    assert green + blue < 100


def test_inks_become_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    for name in ("a.tif", "a.jpg"):
        assert np.abs(np.asarray(read_image(tmp_path / name)).astype(int) - RED).max() < 6


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    Image.new("RGB", (SIDE, SIDE), RED).save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))])
    assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: Image.fromarray(shaded().astype(np.float32)).save(path, "TIFF"), "has pixels of Pillow's mode 'F', not"),
        (lambda path: Image.fromarray(shaded().astype(np.int32)).save(path, "TIFF"), "has pixels of Pillow's mode 'I', not"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"), "is none of PNG, JPEG"),
        (lambda path: Image.new("RGB", (8, 8)).save(path, "PDF"), "is none of PNG, JPEG"),
        (lambda path: Image.new("RGB", (8, 8)).save(path, "ICO"), "is none of PNG, JPEG"),
        (lambda path: path.write_bytes(b""), "is none of PNG, JPEG"),
        (lambda path: path.write_bytes(encoded(1)[:-40]), "is damaged: OSError"),
        (lambda path: Image.new("1", (10_000, 10_000)).save(path, "PNG"), f"has (10000x10000|more than {MOST_PIXELS:,}) pixels"),
        (lambda path: Image.new("1", (20_000, 10_000)).save(path, "PNG"), f"has more than {MOST_PIXELS:,} pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_nobody_shows_is_refused(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    make(path)
    for source in (path, path.read_bytes()):
        with pytest.raises(DataError, match=message):
            read_image(source)
    assert "EPS" not in FORMATS


def folder(path: Path, classes: tuple[str, ...] = ("a", "b"), count: int = 10, name: str = "{}.png") -> Path:
    for label, kind in enumerate(classes):
        (path / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.fromarray(shaded() + np.uint8(label + index)).save(path / kind / name.format(index))
    return path


def test_no_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "images")
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "images/a/x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    with pytest.raises(DataError, match=r"1 of 21 are not \(first .*x\.png is none of PNG"):
        load_data(f"folder:{tmp_path / 'images'}")
    assert not (tmp_path / "started").exists()


def test_all_that_is_refused_is_listed(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for index in range(5):
        (path / f"a/bad{index}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"5 of 25 are not \(first (.*bad\d\.png is none of [^;]*; ){3}\.\.\.\)"):
        load_data(f"folder:{path}")


@pytest.mark.parametrize(
    "litter",
    ["a/.hidden.png", "a/._0.png", "a/.ipynb_checkpoints/0-checkpoint.png", "a/deep/.cache/0.png", ".git/0.png",
     "a/__MACOSX/0.png", "__MACOSX/a/0.png", "a/@eaDir/0.png", "a/Thumbs.db", "a/.DS_Store"],
)  # fmt: skip
def test_what_is_hidden_is_no_image(litter: str, tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / litter).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(shaded()).save(path / litter, "PNG")
    data = load_data(f"folder:{path}")
    assert data.classes == ("a", "b")
    assert len(data.train) + len(data.valid) + len(data.test) == 20
    assert sorted(identity_folders(path)) == ["a", "b"]
    assert len(identity_folders(path)["a"]) == 10


def test_folders_and_pipes_are_no_images(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "a/folder.png").mkdir()
    os.mkfifo(path / "a/pipe.png")
    (path / "a/round").symlink_to(path / "a")
    assert len(images_in(path / "a")) == 10


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [("train", "val", "test"), ("Train", "Valid", "TEST"), ("training", "validation", "testing"), ("TRAINING", None, "Testing")],
)
def test_parts_are_known_in_any_case(train: str, valid: str | None, test: str, tmp_path: Path) -> None:
    for part, count in ((train, 10), (valid, 3), (test, 4)):
        if part is not None:
            folder(tmp_path / part, count=count, name="{}.PNG")
    data = load_data(f"folder:{tmp_path}")
    assert data.classes == ("a", "b")
    assert [len(data.train), len(data.valid), len(data.test)] == ([20, 6, 8] if valid else [18, 2, 8])
    assert [data.train.source, data.test.source] == ["train", test]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (("train/a", "train/b", "Train/a", "test/a"), r"must have one part to train, but .* has Train/ and train/: rename one"),
        (("val/a", "validation/a", "train/a", "train/b"), r"must have one part to val, but .* has val/ and validation/"),
        (("training_set/a", "test_set/a"), r"must be called train, val and test, but .* has test_set and training_set"),
        (("train2017/a", "val2017/a"), r"must be called train, val and test, but .* has train2017 and val2017"),
        (("train/a", "train/b", "eval/a"), r"a folder with train/ must also have val/ or test/"),
        (("a/train", "a/test", "b/train", "b/test"), r"must lie in train/, val/ and test/, but .* has test and train in"),
        (("data/a", "data/b"), r"has 1: make one folder per class, or name .*data if it holds the classes"),
    ],
)  # fmt: skip
def test_other_layouts_are_refused(layout: tuple[str, ...], message: str, tmp_path: Path) -> None:
    for part in layout:
        folder(tmp_path / part, classes=("",), count=4)
    with pytest.raises(DataError, match=message):
        load_data(f"folder:{tmp_path}")


def test_classes_may_be_called_like_no_part(tmp_path: Path) -> None:
    assert load_data(f"folder:{folder(tmp_path, ('trains', 'testers', 'dev'))}").classes == ("dev", "testers", "trains")


def test_faces_are_read_in_the_same_way(tmp_path: Path) -> None:
    Image.fromarray(np.full((112, 112), 257 * 128, np.uint16)).save(tmp_path / "a.png")
    assert (FaceImages(Files([tmp_path / "a.png"]))[np.arange(1)] == 128).all()


@pytest.mark.parametrize(("first", "header"), [(0, False), (1, False), (0, True)])
def test_record_0_is_an_image_unless_it_says_otherwise(first: int, header: bool, tmp_path: Path) -> None:
    import struct

    def record(flag: int, label: float, content: bytes) -> bytes:
        data = struct.pack("<IfQQ", flag, label, 0, 0) + content
        return struct.pack("<II", 0xCED7230A, len(data)) + data + bytes(-len(data) % 4)

    records = [record(0, float(number // 3), encoded(number)) for number in range(6)]
    keys = list(range(first, first + 6))
    if header:
        records, keys = [record(2, 0.0, struct.pack("<2f", 7.0, 9.0)), *records], list(range(7))
    offsets = np.cumsum([0, *map(len, records)]).tolist()
    (tmp_path / "train.rec").write_bytes(b"".join(records))
    (tmp_path / "train.idx").write_text("".join(f"{key}\t{offset}\n" for key, offset in zip(keys, offsets, strict=False)))
    found = Records(tmp_path / "train.rec")
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found[0] == encoded(0)
