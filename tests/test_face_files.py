"""Formats of the field: records, .bin files, lists of pairs, identity folders."""

import io
import os
import pickle
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from nar_hw.data import data_root
from nar_hw.errors import DataError
from nar_hw.faces.bin import read_bin
from nar_hw.faces.images import FaceImages, Files, identity_folders
from nar_hw.faces.pairs import Pairs, by_identity, drawn_pairs, in_folds, load_pairs
from nar_hw.faces.records import Records
from tests.faces import MAGIC, encoded, record, write_identities, write_records


class TestRecords:
    @pytest.mark.parametrize("listed_labels", [False, True])
    def test_images_and_labels(self, tmp_path: Path, listed_labels: bool) -> None:
        images = [(encoded(value), float(value // 2)) for value in range(6)]
        found = Records(write_records(tmp_path, images, listed_labels=listed_labels) / "train.rec")
        assert [found[index] for index in range(len(found))] == [image for image, _ in images]
        assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]

    @given(data=st.lists(st.sampled_from([b"abcd", MAGIC, b"x", b"\0\0"]), max_size=8).map(b"".join))
    def test_data_that_holds_the_magic_number_comes_back(self, data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = write_records(tmp_path_factory.mktemp("rec"), [(data, 1.0), (b"next", 2.0)])
        found = Records(folder / "train.rec")
        assert [found[0], found[1]] == [data, b"next"]

    def test_a_set_without_a_first_record_of_counts(self, tmp_path: Path) -> None:
        content = b""
        lines = []
        for key, label in ((5, 3.0), (9, 4.0)):
            lines.append(f"{key}\t{len(content)}\n")
            content += record(struct.pack("<IfQQ", 0, label, key, 0) + b"image")
        (tmp_path / "train.rec").write_bytes(content)
        (tmp_path / "train.idx").write_text("".join(lines))
        assert Records(tmp_path / "train.rec").labels.tolist() == [3, 4]

    def test_no_index(self, tmp_path: Path) -> None:
        write_records(tmp_path, [(b"image", 1.0)])
        (tmp_path / "train.idx").unlink()
        with pytest.raises(DataError, match=r"a record file needs its index beside it, but .*train\.idx does not exist"):
            Records(tmp_path / "train.rec")

    def test_a_damaged_index(self, tmp_path: Path) -> None:
        write_records(tmp_path, [(b"image", 1.0)])
        (tmp_path / "train.idx").write_text("0 zero\n")
        with pytest.raises(DataError, match=r"train\.idx must hold lines of a key and an offset"):
            Records(tmp_path / "train.rec")

    def test_an_index_of_nothing(self, tmp_path: Path) -> None:
        write_records(tmp_path, [(b"image", 1.0)])
        (tmp_path / "train.idx").write_text("")
        with pytest.raises(DataError, match="its index lists none"):
            Records(tmp_path / "train.rec")

    def test_a_truncated_file(self, tmp_path: Path) -> None:
        path = write_records(tmp_path, [(encoded(1), 1.0)]) / "train.rec"
        path.write_bytes(path.read_bytes()[:60])
        with pytest.raises(DataError, match=r"must hold a record at byte \d+, but does not: it is truncated or not of its index"):
            Records(path)

    def test_a_label_that_is_no_number(self, tmp_path: Path) -> None:
        write_records(tmp_path, [(encoded(1), float("nan"))])
        with pytest.raises(DataError, match=r"train\.rec must hold a record at byte 40, but does not"):
            Records(tmp_path / "train.rec")


def old_pickle(images: list[bytes], flags: list[bool]) -> bytes:
    """What Python 2 wrote with its highest protocol: byte strings as BINSTRING, every value noted."""
    texts = b"".join(b"T" + struct.pack("<i", len(image)) + image + b"q\x02" for image in images)
    return b"\x80\x02]q\x01(" + texts + b"e]q\x03(" + b"".join(b"\x88" if flag else b"\x89" for flag in flags) + b"e\x86q\x04."


class Attack:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class TestBin:
    images = (b"first", b"\x00\xff" * 300, b"third", b"fourth")

    @pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
    def test_what_python_3_wrote(self, tmp_path: Path, protocol: int) -> None:
        (tmp_path / "x.bin").write_bytes(pickle.dumps((list(self.images), [True, False]), protocol))
        assert read_bin(tmp_path / "x.bin") == (list(self.images), [True, False])

    def test_what_python_2_wrote(self, tmp_path: Path) -> None:
        content = old_pickle(list(self.images), [True, False])
        assert pickle.loads(content, encoding="bytes") == (list(self.images), [True, False])  # noqa: S301
        (tmp_path / "x.bin").write_bytes(content)
        assert read_bin(tmp_path / "x.bin") == (list(self.images), [True, False])

    @pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
    def test_images_as_arrays_of_bytes(self, tmp_path: Path, protocol: int) -> None:
        arrays = [np.frombuffer(image, np.uint8).copy() for image in self.images]
        (tmp_path / "x.bin").write_bytes(pickle.dumps((arrays, [True, False]), protocol))
        assert read_bin(tmp_path / "x.bin") == (list(self.images), [True, False])

    def test_arrays_as_python_2_wrote_them(self, tmp_path: Path) -> None:
        def array(image: bytes) -> bytes:
            dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            state = b"(K\x01\x8a\x01" + bytes([len(image)]) + b"K\x01\x86" + dtype + b"\x89U" + bytes([len(image)]) + image + b"t"
            return b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state + b"b"

        content = b"\x80\x02](" + array(b"one") + array(b"two") + b"e]\x88a\x86."
        (images, flags) = pickle.loads(content, encoding="bytes")  # noqa: S301
        assert [image.tobytes() for image in images] == [b"one", b"two"]
        (tmp_path / "x.bin").write_bytes(content)
        assert read_bin(tmp_path / "x.bin") == ([b"one", b"two"], flags)

    @given(images=st.lists(st.binary(max_size=300), max_size=6), same=st.booleans())
    def test_the_same_as_pickle(self, images: list[bytes], same: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = tmp_path_factory.mktemp("bin") / "x.bin"
        path.write_bytes(pickle.dumps(([*images, *images], [same] * len(images))))
        assert read_bin(path) == ([*images, *images], [same] * len(images))

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("place", ["whole", "image", "flag", "image list"])
    def test_an_attack_does_nothing(self, tmp_path: Path, protocol: int, place: str) -> None:
        attack: Any = Attack(tmp_path / "made")
        value = {
            "whole": attack,
            "image": ([attack, b""], [True]),
            "flag": ([b"", b""], [attack]),
            "image list": (attack, [True]),
        }[place]
        (tmp_path / "x.bin").write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(DataError, match="must hold nothing but lists, bytes and flags, but its instruction"):
            read_bin(tmp_path / "x.bin")
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize(
        "program",
        [
            b"cos\nmkdir\n(S'made'\ntR.",  # GLOBAL, REDUCE
            b"(S'made'\nios\nmkdir\n.",  # INST
            b"(cos\nmkdir\nS'made'\no.",  # OBJ
            b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x04made\x85R.",  # STACK_GLOBAL
            b"Pid\n.",  # PERSID
            b"\x82\x01.",  # EXT1
            b"]}(S'a'\nI1\nub.",  # BUILD
            b"]\x81.",  # NEWOBJ
        ],
    )
    def test_no_instruction_that_makes_more_than_data(self, tmp_path: Path, program: bytes) -> None:
        (tmp_path / "x.bin").write_bytes(program)
        with pytest.raises(DataError, match=r"would make something else: do not open it with pickle"):
            read_bin(tmp_path / "x.bin")

    @given(content=st.binary(max_size=200))
    def test_noise_is_refused_in_one_line(self, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = tmp_path_factory.mktemp("bin") / "x.bin"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"^verification set [^\n]*$"):
            read_bin(path)

    @settings(deadline=None, max_examples=50)
    @given(data=st.data(), arrays=st.booleans())
    def test_changed_bytes_make_nothing_else(self, data: st.DataObject, arrays: bool) -> None:
        images = [np.frombuffer(image, np.uint8) for image in self.images] if arrays else self.images
        content = bytearray(pickle.dumps((images, [True, False]), data.draw(st.integers(3, pickle.HIGHEST_PROTOCOL))))
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        with tempfile.NamedTemporaryFile(suffix=".bin") as file:
            Path(file.name).write_bytes(content)
            try:
                found, flags = read_bin(Path(file.name))
            except DataError:
                return
            assert {type(image) for image in found} <= {bytes}
            assert {type(flag) for flag in flags} <= {bool}
            assert len(found) == 2 * len(flags)

    def test_every_shortened_file_is_refused(self, tmp_path: Path) -> None:
        content = pickle.dumps((list(self.images), [True, False]))
        for length in range(len(content)):
            (tmp_path / "x.bin").write_bytes(content[:length])
            with pytest.raises(DataError):
                read_bin(tmp_path / "x.bin")

    @pytest.mark.parametrize(
        "value", [[1], ("ab", [True]), ([b"", b""], [2]), ([b"a"], [True]), ([b"a", b"b", b"c"], [True]), ([b"a", 3], [True])]
    )
    def test_other_data_is_refused(self, tmp_path: Path, value: object) -> None:
        (tmp_path / "x.bin").write_bytes(pickle.dumps(value))
        with pytest.raises(DataError, match=r"verification set .* must hold"):
            read_bin(tmp_path / "x.bin")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not exist"):
            read_bin(tmp_path / "x.bin")


def names(images: Any, positions: Any) -> list[str]:
    return [images[int(position)].name for position in positions]


class TestPairs:
    def test_lfw(self, tmp_path: Path) -> None:
        write_identities(tmp_path, [2, 2], suffix=".jpg")
        (tmp_path / "pairs.txt").write_text("2\t1\na\t1\t2\na\t1\tb\t2\nb\t1\t2\nb\t2\ta\t1\n")
        images, pairs = load_pairs(tmp_path / "pairs.txt")
        assert names(images, pairs.first) == ["a_0001.jpg", "a_0001.jpg", "b_0001.jpg", "b_0002.jpg"]
        assert names(images, pairs.second) == ["a_0002.jpg", "b_0002.jpg", "b_0002.jpg", "a_0001.jpg"]
        assert pairs.same.tolist() == [True, False, True, False]
        assert pairs.folds.tolist() == [0, 0, 1, 1]
        assert len(images) == 4

    def test_lfw_development_lists_have_one_fold_which_is_dealt_into_ten(self, tmp_path: Path) -> None:
        write_identities(tmp_path / "images", [2, 2])
        lines = ["20", *["a 1 2"] * 20, *["a 1 b 2"] * 20]
        (tmp_path / "dev.txt").write_text("\n".join(lines))
        _, pairs = load_pairs(tmp_path / "dev.txt", tmp_path / "images")
        assert sorted(set(pairs.folds.tolist())) == list(range(10))
        for fold in range(10):
            assert pairs.same[pairs.folds == fold].tolist() == [True, True, False, False]

    def test_lists_of_paths(self, tmp_path: Path) -> None:
        write_identities(tmp_path, [2, 2])
        lines = ["a/a_0001.png a/a_0002.png 1", "a/a_0001.png b/b_0001.png 0"] * 10
        (tmp_path / "agedb.txt").write_text("\n".join(lines))
        images, pairs = load_pairs(tmp_path / "agedb.txt")
        assert pairs.same.tolist() == [True, False] * 10
        assert pairs.folds.tolist() == [fold for fold in range(10) for _ in range(2)]
        assert names(images, pairs.second)[:2] == ["a_0002.png", "b_0001.png"]

    def cfp(self, folder: Path) -> Path:
        protocol = folder / "cfp" / "Protocol"
        protocol.mkdir(parents=True)
        for kind, name in (("F", "frontal"), ("P", "profile")):
            write_identities(folder / "cfp" / "Data" / name, [1] * 3)
            rows = [f"{index}\t../Data/{name}/{who}/{who}_0001.png" for index, who in enumerate("abc", 1)]
            (protocol / f"Pair_list_{kind}.txt").write_text("\n".join(rows))
        for fold in range(1, 11):
            (protocol / "Split" / "FP" / f"{fold:02d}").mkdir(parents=True)
            (protocol / "Split" / "FP" / f"{fold:02d}" / "same.txt").write_text("1,1\n2,2\n")
            (protocol / "Split" / "FP" / f"{fold:02d}" / "diff.txt").write_text("1,2\n3,1\n")
        return folder / "cfp"

    def test_cfp(self, tmp_path: Path) -> None:
        images, pairs = load_pairs(self.cfp(tmp_path))
        assert len(pairs) == 40
        assert len(images) == 5  # nobody is compared with the third profile
        first = [images[int(index)] for index in pairs.first[:4]]
        second = [images[int(index)] for index in pairs.second[:4]]
        assert [path.parts[-3:] for path in first] == [("frontal", who, f"{who}_0001.png") for who in "abac"]
        assert [path.parts[-3:] for path in second] == [("profile", who, f"{who}_0001.png") for who in "abba"]
        assert pairs.same[:4].tolist() == [True, True, False, False]
        assert pairs.folds.tolist() == [fold for fold in range(10) for _ in range(4)]

    def test_an_incomplete_cfp(self, tmp_path: Path) -> None:
        folder = self.cfp(tmp_path)
        (folder / "Protocol/Split/FP/07/diff.txt").write_text("1,9\n")
        with pytest.raises(DataError, match=r"07/diff\.txt must hold pairs of numbers from the lists beside it, but holds '1,9'"):
            load_pairs(folder)
        (folder / "Protocol/Pair_list_P.txt").unlink()
        with pytest.raises(DataError, match=r"CFP's protocol must have .*Pair_list_P\.txt, but it does not exist"):
            load_pairs(folder)

    def test_a_bin(self, tmp_path: Path) -> None:
        (tmp_path / "x.bin").write_bytes(pickle.dumps(([encoded(value) for value in range(40)], [True, False] * 10)))
        images, pairs = load_pairs(tmp_path / "x.bin")
        assert FaceImages(images)[pairs.first][:, 0, 0, 0].tolist() == list(range(0, 40, 2))
        assert FaceImages(images)[pairs.second][:, 0, 0, 0].tolist() == list(range(1, 40, 2))
        assert pairs.folds.tolist() == [fold for fold in range(10) for _ in range(2)]

    def test_missing_images_are_counted(self, tmp_path: Path) -> None:
        write_identities(tmp_path, [2, 1])
        (tmp_path / "pairs.txt").write_text("2 1\na 1 2\na 1 b 2\nb 1 3\nb 1 a 1\n")
        with pytest.raises(
            DataError,
            match=r"2 of 4 pairs of .*pairs\.txt do not, for want of 2 images \(first .*b_0002\.jpg\): name their folder",
        ):
            load_pairs(tmp_path / "pairs.txt")

    def test_unbalanced_folds_are_counted(self, tmp_path: Path) -> None:
        write_identities(tmp_path, [2, 2])
        lines = ["a/a_0001.png a/a_0002.png 1", "a/a_0001.png b/b_0001.png 0"] * 10
        lines[9] = lines[8]
        (tmp_path / "agedb.txt").write_text("\n".join(lines))
        with pytest.raises(
            DataError, match=r"fold 5 of .*agedb\.txt has 2 of one person and 0 of two, most 1 and 1: complete it"
        ):
            load_pairs(tmp_path / "agedb.txt")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "must begin with the number of folds"),
            ("name\na 1 2\n", "must begin with the number of folds"),
            (f"{'9' * 5000}\na 1 2\n", "must begin with the number of folds"),
            ("1 2\na 1 2\n", r"must list 1 x 2 x 2 = 4 pairs, as it says, but lists 1: complete it"),
            ("1\na 1 2\na 1 b\n", r"pair 2 of .* must be 'name i j' or 'name i other j', but is 'a 1 b'"),
            ("a b 1\n" * 7, r"must have 10 equal folds, but .* has 7 pairs"),
            ("a b 1\n" * 9 + "a b 5\n", r"pair 10 of .* must be 'path path flag', with flag 1 or 0, but is 'a b 5'"),
        ],
    )
    def test_damaged_lists(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "pairs.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            load_pairs(tmp_path / "pairs.txt")

    def test_no_list(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"do not exist: name a pairs\.txt, a \.bin file or CFP's folder"):
            load_pairs(tmp_path / "pairs.txt")

    @given(labels=st.lists(st.integers(0, 5), min_size=30, max_size=60), seed=st.integers(0, 99))
    def test_drawn_pairs(self, labels: list[int], seed: int) -> None:
        numbers = np.array(labels)
        possible = sum(n * (n - 1) // 2 for n in np.bincount(numbers))
        if possible < 10 or len(set(labels)) < 2:
            return
        pairs = drawn_pairs(numbers, seed, most=50)
        assert ((numbers[pairs.first] == numbers[pairs.second]) == pairs.same).all()
        assert (pairs.first != pairs.second).all()
        assert pairs.same.sum() * 2 == len(pairs)
        assert pairs.same.sum() <= 50
        pairs.check("drawn")
        assert len({(a, b) for a, b in zip(pairs.first[pairs.same], pairs.second[pairs.same], strict=True)}) == pairs.same.sum()

    def test_too_few_pairs(self) -> None:
        with pytest.raises(
            DataError, match="verification needs ten pairs of images of one person, and two persons, but 6 images"
        ):
            drawn_pairs(np.array([0, 0, 1, 1, 2, 2]), 0)

    @given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=20))
    def test_by_identity(self, labels: list[int]) -> None:
        expected = [[place for place, label in enumerate(labels) if label == who] for who in sorted(set(labels))]
        assert [group.tolist() for group in by_identity(np.array(labels))] == expected

    def test_folds_of_few_pairs(self) -> None:
        flags = np.array([True, True, True, False, False, False])
        pairs = in_folds(Pairs(first=np.arange(6), second=np.arange(6), same=flags, folds=np.zeros(6, np.int64)))
        assert pairs.folds.tolist() == [0, 1, 2, 0, 1, 2]

    @pytest.mark.parametrize(("name", "count"), [("pairs.txt", 6000), ("pairsDevTest.txt", 1000), ("pairsDevTrain.txt", 2200)])
    def test_the_lists_of_lfw(self, name: str, count: int) -> None:
        folder = data_root() / "lfw"
        if not (folder / name).exists():
            pytest.skip(f"{folder / name} is not there")
        _, pairs = load_pairs(folder / name, folder / "lfw_deepfunneled_128")
        assert len(pairs) == count
        assert len(np.unique(pairs.folds)) == 10


class TestImages:
    def test_aligned_images_are_as_they_are(self, tmp_path: Path) -> None:
        files = identity_folders(write_identities(tmp_path, [2, 1], pixels=112))
        images = FaceImages(Files([path for paths in files.values() for path in paths]))
        assert len(images) == 3
        for index, path in enumerate((*files["a"], *files["b"])):
            assert (images[np.array([index])][0] == np.asarray(Image.open(path)).transpose(2, 0, 1)).all()

    def test_images_of_other_sizes_are_counted(self, tmp_path: Path) -> None:
        write_identities(tmp_path, [1, 1], pixels=112)
        for number in (2, 3):
            Image.new("RGB", (128, 96)).save(tmp_path / "b" / f"b_{number:04d}.png")
        files = Files([path for paths in identity_folders(tmp_path).values() for path in paths])
        with pytest.raises(
            DataError,
            match=r"aligned faces must be 112x112, but 2 of 4 are not \(first .*b_0002\.png has 128x96; .*\): .*size=PIXELS",
        ):
            FaceImages(files)
        assert FaceImages(files, size=32)[np.arange(4)].shape == (4, 3, 32, 32)

    def test_unreadable_images_are_counted(self, tmp_path: Path) -> None:
        write_identities(tmp_path, [2, 2], pixels=112)
        (tmp_path / "a" / "a_0002.png").write_bytes(b"no image")
        (tmp_path / "b" / "b_0001.png").write_bytes((tmp_path / "b" / "b_0001.png").read_bytes()[:1000])
        files = Files([path for paths in identity_folders(tmp_path).values() for path in paths])
        with pytest.raises(
            DataError, match=r"every image must be readable, but 2 of 4 are not \(first .*a_0002\.png is none of PNG.*\)"
        ):
            FaceImages(files)

    def test_what_does_not_fit_in_memory_is_read_when_needed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = Files([path for paths in identity_folders(write_identities(tmp_path, [3, 2])).values() for path in paths])
        kept = FaceImages(files, size=16)[np.array([4, 0, 2])]
        monkeypatch.setattr("nar_hw.faces.images.MEMORY_LIMIT_GIB", 0)
        read = FaceImages(files, size=16)
        assert (read[np.array([4, 0, 2])] == kept).all()
        (tmp_path / "a" / "a_0001.png").write_bytes(b"")
        with pytest.raises(DataError, match=r"1 of 3 are not \(first .*a_0001\.png"):
            read[np.array([4, 0, 2])]

    def test_greyscale_and_palette_images_become_colour(self, tmp_path: Path) -> None:
        for number, (mode, black) in enumerate((("L", 0), ("P", 0), ("RGBA", (0, 0, 0, 255)), ("1", 0))):
            Image.new(mode, (112, 112), black).save(tmp_path / f"{number}.png")
        assert FaceImages(Files(sorted(tmp_path.iterdir())))[np.arange(4)].max() == 0

    def test_one_identity_is_none(self, tmp_path: Path) -> None:
        write_identities(tmp_path, [2])
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"must have 2 or more identities, one folder of images each, but .* has 1"):
            identity_folders(tmp_path)

    def test_damaged_bytes_are_named_by_their_place(self, tmp_path: Path) -> None:
        broken = io.BytesIO(encoded(1)).read()[:-50]
        write_records(tmp_path, [(encoded(1), 1.0), (broken, 2.0)])
        with pytest.raises(DataError, match=r"1 of 2 are not \(first .*train\.rec at byte \d+"):
            FaceImages(Records(tmp_path / "train.rec"))
