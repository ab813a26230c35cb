"""The faces task: its data, its conformance, and training with a head in checkpoints."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nar_hw.data import load_data
from nar_hw.errors import DataError, UnknownNameError, UserError
from nar_hw.faces.data import FaceConfig, load_faces
from nar_hw.faces.metrics import scores, verification
from nar_hw.faces.proxy import make_proxy
from nar_hw.faces.task import FacesTask
from nar_hw.models import build_model
from nar_hw.models.info import ModelInfo
from nar_hw.records import replace
from nar_hw.search.config import SearchConfig
from nar_hw.search.loop import search
from nar_hw.search.supernet import Supernet
from nar_hw.space.space import SearchSpace
from nar_hw.steps.task import load_task
from nar_hw.steps.train import train_child
from nar_hw.tasks import Task
from nar_hw.testing.tasks import TaskConformance
from nar_hw.training.checkpoints import load_state
from nar_hw.training.loop import train
from nar_hw.training.phases import two_phase
from nar_hw.training.recipes import Recipe
from tests.faces import encoded, write_identities, write_records
from tests.test_table import for_space

IDENTITIES = 12
RECIPE = Recipe(epochs=3, batch=8, lr=0.05, t_0=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_identities(tmp_path_factory.mktemp("faces") / "all", [6] * IDENTITIES)


def network(outputs: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(32, outputs),
    )


@pytest.mark.parametrize("score", ["identification", "verification"])
class TestFacesTask(TaskConformance):
    @pytest.fixture
    def task(self, folder: Path, score: str) -> Task:
        task = FacesTask(load_faces(f"faces:{folder},size=16,embedding=10,margin=0.2,valid=2,score={score}"))
        assert task.data.identities == 10
        head = task.new_head()
        with torch.no_grad():
            head.weight.copy_(torch.eye(10))
        return task

    @pytest.fixture
    def model(self) -> nn.Module:
        return network()


class TestData:
    def test_a_flat_folder_is_split(self, folder: Path) -> None:
        data = load_faces(f"faces:{folder},size=16,valid=2")
        assert (data.identities, data.input_shape) == (10, (3, 16, 16))
        assert np.bincount(data.train.labels).tolist() == [4] * 10
        assert np.bincount(data.valid.labels).tolist() == [2] * 10
        everything = np.concatenate([data.train.indices, data.valid.indices, data.test.indices])
        assert sorted(everything.tolist()) == list(range(6 * IDENTITIES))
        assert len(data.test) == 12  # two people who are not learned
        pairs = data.test.pairs
        assert pairs is not None
        assert pairs.same.tolist() == ((data.test.labels[pairs.first] == data.test.labels[pairs.second]).tolist())

    def test_nothing_is_held_out_where_that_is_asked(self, folder: Path) -> None:
        data = load_faces(f"faces:{folder},size=16,valid=0")
        assert np.bincount(data.train.labels).tolist() == [6] * 10
        assert np.bincount(data.valid.labels).tolist() == [1] * 10
        assert set(data.valid.indices.tolist()) < set(data.train.indices.tolist())
        assert not set(data.test.indices.tolist()) & set(data.train.indices.tolist())

    def test_pixels_are_normalised_as_the_field_does(self, folder: Path) -> None:
        task = FacesTask(load_faces(f"faces:{folder},size=16"))
        (images, labels), *_ = task.eval_batches("valid", 5)
        raw = task.data.valid[np.arange(5)]
        assert torch.allclose(images, torch.from_numpy((raw - 127.5) / 128).float(), atol=1e-6)
        assert labels.tolist() == task.data.valid.labels[:5].tolist()

    def test_half_of_the_training_images_are_mirrored(self, folder: Path) -> None:
        task = FacesTask(load_faces(f"faces:{folder},size=16"))
        plain = [images for images, _ in task.train_batches(10, torch.Generator().manual_seed(0), augment=False)]
        mixed = [images for images, _ in task.train_batches(10, torch.Generator().manual_seed(1))]
        generator = torch.Generator().manual_seed(1)
        order = torch.randperm(50, generator=generator)
        as_is, mirrored = 0, 0
        raw = torch.cat([images for images, _ in task.eval_batches("train")])[order]
        for one, seen in zip(raw, torch.cat(mixed), strict=True):
            as_is, mirrored = as_is + int(one.equal(seen)), mirrored + int(one.flip(-1).equal(seen))
        assert as_is + mirrored == 50
        assert 10 < mirrored < 40
        assert len(plain) == 5

    def test_processes_share_every_batch(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        task = FacesTask(load_faces(f"faces:{folder},size=16"))
        whole = list(task.train_batches(8, torch.Generator().manual_seed(0)))
        shares = []
        for rank in range(2):
            monkeypatch.setattr("nar_hw.faces.task.share", lambda items, rank=rank: items[rank::2])
            shares.append(list(task.train_batches(8, torch.Generator().manual_seed(0), shared=True)))
        for (images, labels), (first, ours), (second, theirs) in zip(whole, *shares, strict=True):
            assert images[0::2].equal(first)
            assert images[1::2].equal(second)
            assert labels[0::2].equal(ours)
            assert labels[1::2].equal(theirs)

    def test_the_seed_decides(self, folder: Path) -> None:
        records = [load_faces(f"faces:{folder},size=16", seed=seed).record for seed in (0, 0, 1)]
        assert records[0] == records[1]
        assert records[0]["splits"] != records[2]["splits"]
        assert json.loads(json.dumps(records[0])) == records[0]

    def test_records(self, tmp_path: Path) -> None:
        images = [(encoded(10 * label + place), float(100 + label)) for label in range(5) for place in range(4)]
        data = load_faces(f"faces:{write_records(tmp_path / 'rec', images)}")
        assert data.identities == 3
        assert data.input_shape == (3, 112, 112)
        whose = data.train[np.arange(len(data.train))][:, 0, 0, 0] // 10
        assert [len(set(whose[data.train.labels == label].tolist())) for label in range(3)] == [1, 1, 1]

    def test_pairs_are_tested_on_and_nobody_is_held_out(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "pairs.txt").write_text("2 1\na 1 2\na 1 b 2\nc 1 2\nc 2 d 1\n")
        data = load_faces(f"faces:{folder},size=16,pairs={tmp_path / 'pairs.txt'},images={folder}")
        assert data.identities == IDENTITIES
        assert data.test.pairs is not None
        assert len(data.test.pairs) == 4
        assert len(data.test) == 6

    def test_identities_can_be_left_out(self, tmp_path: Path) -> None:
        write_identities(tmp_path / "all", [5, 1, 5, 5, 2, 5])
        with pytest.raises(
            DataError,
            match=r"at least 2 images, 1 of them for validation, but 1 of 6 have fewer \(first b with 1\): .* with min=2",
        ):
            load_faces(f"faces:{tmp_path / 'all'},size=16")
        assert load_faces(f"faces:{tmp_path / 'all'},size=16,min=2").identities == 3
        assert load_faces(f"faces:{tmp_path / 'all'},size=16,min=3").identities == 2
        with pytest.raises(DataError, match="two or more identities to learn and two to test, but 0 of 6 have 6 images or more"):
            load_faces(f"faces:{tmp_path / 'all'},size=16,min=6")

    def test_one_image_per_identity(self, tmp_path: Path) -> None:
        write_identities(tmp_path / "all", [1] * 7)
        with pytest.raises(DataError, match=r"7 of 7 have fewer \(first a with 1\)"):
            load_faces(f"faces:{tmp_path / 'all'},size=16")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("margin=1.5", r"0 <= margin < 1 must hold for faces, but got margin=1\.5"),
            ("head=softmax,margin=0.1", "margin = 0 with softmax must hold"),
            ("head=softmax,sampled=0.1", "sampled = 1 with softmax must hold"),
            ("scale=0", "scale > 0 must hold"),
            ("margin_warmup=-1", "margin_warmup >= 0 must hold"),
            ("sampled=0", "0 < sampled <= 1 must hold"),
            ("embedding=1", "embedding >= 2 must hold"),
            ("size=4", "8 <= size <= 1024 must hold"),
            ("valid=-1", "valid >= 0 must hold"),
            ("valid=two", "faces option valid must be a whole number, but is 'two'"),
            ("scale=big", "faces option scale must be a number, but is 'big'"),
        ],
    )
    def test_options_out_of_range(self, folder: Path, options: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            load_faces(f"faces:{folder},{options}")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("head=arcfaces", "unknown faces head 'arcfaces': use one of arcface"),
            ("score=accuracy", "unknown faces score 'accuracy'"),
            ("distance=l1", "unknown faces distance 'l1'"),
            ("margins=1", "unknown faces option 'margins': use one of margin"),
        ],
    )
    def test_unknown_options(self, folder: Path, options: str, message: str) -> None:
        with pytest.raises(UnknownNameError, match=message):
            load_faces(f"faces:{folder},{options}")

    def test_no_folder(self) -> None:
        with pytest.raises(DataError, match="'faces:nowhere' must name an existing folder of faces"):
            load_faces("faces:nowhere")

    def test_faces_are_no_classes(self) -> None:
        with pytest.raises(DataError, match="'faces:x' holds identities, not classes: load it with"):
            load_data("faces:x")
        with pytest.raises(UnknownNameError, match="unknown data set 'face:x': use one of faces:, fake:"):
            load_data("face:x")

    def test_an_unknown_split(self, folder: Path) -> None:
        with pytest.raises(UnknownNameError, match="unknown split 'val'"):
            load_faces(f"faces:{folder},size=16").split("val")

    def test_defaults_are_those_of_the_papers(self) -> None:
        assert (FaceConfig().margin_used, FaceConfig().scale, FaceConfig().embedding) == (0.5, 64, 512)
        assert FaceConfig(head="cosface").margin_used == 0.35
        assert FaceConfig(head="softmax").margin_used == 0


class TestProxy:
    def test_it_has_what_was_asked_for(self, folder: Path, tmp_path: Path) -> None:
        made = make_proxy(folder, tmp_path / "proxy", identities=6, images=5, valid=2, test_identities=3, seed=1)
        for part, people, count in (("train", 6, 3), ("valid", 6, 2), ("test", 3, 5)):
            found = {item.name: sorted(file.name for file in item.iterdir()) for item in (tmp_path / "proxy" / part).iterdir()}
            assert found == made["taken"][part]
            assert [len(files) for files in found.values()] == [count] * people
        for name in made["taken"]["train"]:
            assert not set(made["taken"]["train"][name]) & set(made["taken"]["valid"][name])
            assert name not in made["taken"]["test"]
        assert json.loads((tmp_path / "proxy/proxy.json").read_text()) == made
        data = load_faces(f"faces:{tmp_path / 'proxy'},size=16")
        assert (data.identities, len(data.train), len(data.valid), len(data.test)) == (6, 18, 12, 15)

    def test_the_seed_decides(self, folder: Path, tmp_path: Path) -> None:
        sizes: dict[str, Any] = {"identities": 6, "images": 4, "valid": 1, "test_identities": 2}
        taken = [make_proxy(folder, tmp_path / str(turn), **sizes, seed=seed)["taken"] for turn, seed in enumerate((0, 0, 1))]
        assert taken[0] == taken[1] != taken[2]

    def test_small_identities_are_told(self, tmp_path: Path) -> None:
        write_identities(tmp_path / "all", [5, 1, 5, 5, 2, 5])
        made = make_proxy(tmp_path / "all", tmp_path / "proxy", identities=2, images=4, valid=1, test_identities=2)
        assert made["too_small"] == {"b": 1, "e": 2}
        assert made["found"] == 6
        with pytest.raises(DataError, match=r"needs 5 identities \(3 and 2 for testing\) of 4 images, but 4 of 6 have as many"):
            make_proxy(tmp_path / "all", tmp_path / "other", identities=3, images=4, valid=1, test_identities=2)
        assert not list(tmp_path.glob(".other*"))

    def test_from_records(self, tmp_path: Path) -> None:
        images = [(encoded(10 * label + place), float(100 + label)) for label in range(5) for place in range(4)]
        source = write_records(tmp_path / "rec", images)
        made = make_proxy(source, tmp_path / "proxy", identities=2, images=4, valid=1, test_identities=2)
        for name, files in made["taken"]["train"].items():
            for file in files:
                assert (tmp_path / "proxy/train" / name / file).read_bytes() in [
                    image for image, who in images if int(name) == who
                ]
        assert load_faces(f"faces:{tmp_path / 'proxy'}").identities == 2

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"images": 3, "valid": 3}, r"1 <= valid < images must hold for a proxy, but got \(valid=3, images=3\)"),
            ({"identities": 1}, "two or more identities to learn and to test, but got 1 and 2"),
        ],
    )
    def test_sizes_that_make_no_sense(self, folder: Path, tmp_path: Path, sizes: dict[str, int], message: str) -> None:
        asked = {"identities": 3, "images": 3, "valid": 1, "test_identities": 2, **sizes}
        with pytest.raises(DataError, match=message):
            make_proxy(folder, tmp_path / "proxy", **asked)

    def test_a_folder_is_not_overwritten(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a proxy is written to a new folder, but .* exists: choose another"):
            make_proxy(folder, tmp_path, identities=2, images=3, valid=1, test_identities=2)

    def test_a_proxy_without_its_test_part(self, folder: Path, tmp_path: Path) -> None:
        make_proxy(folder, tmp_path / "proxy", identities=6, images=5, valid=2, test_identities=3)
        shutil.rmtree(tmp_path / "proxy/test")
        with pytest.raises(DataError, match=r"has no test/ folder: name verification pairs with pairs=FILE"):
            load_faces(f"faces:{tmp_path / 'proxy'},size=16")
        shutil.rmtree(next(iter((tmp_path / "proxy/valid").iterdir())))
        with pytest.raises(DataError, match=r"must hold the same identities, but 1 of .* are in one only"):
            load_faces(f"faces:{tmp_path / 'proxy'},size=16")


class TestScores:
    def test_identification_needs_a_head(self, folder: Path) -> None:
        with pytest.raises(DataError, match="this task has no head: train a network first"):
            FacesTask(load_faces(f"faces:{folder},size=16,embedding=10")).evaluate(network(), "valid")

    def test_verification_is_that_of_mirror_averaged_embeddings(self, folder: Path) -> None:
        task, model = FacesTask(load_faces(f"faces:{folder},size=16,embedding=10")), network().eval()
        images = torch.cat([images for images, _ in task.eval_batches("test")])
        with torch.no_grad():
            embeddings = ((model(images) + model(images.flip(-1))) / 2).numpy()
        pairs = task.data.test.pairs
        assert pairs is not None
        expected = verification(scores(embeddings[pairs.first], embeddings[pairs.second]), pairs.same, pairs.folds).accuracy
        assert task.evaluate(model, "test", batch=5) == pytest.approx(expected)

    def test_minibatches_of_verification_hold_identities_together(self, folder: Path) -> None:
        task = FacesTask(load_faces(f"faces:{folder},size=16,embedding=10,valid=2,score=verification"))
        _, labels = next(task.eval_batches("valid", 8, generator=torch.Generator().manual_seed(0)))
        assert labels[::2].equal(labels[1::2])
        perfect = nn.functional.one_hot(labels, 10).float()
        assert float(task.accuracy(perfect, labels)) == 1
        assert float(task.accuracy(torch.ones(8, 10), labels)) == 0.5

    def test_accuracy_of_a_minibatch_is_the_share_identified(self, folder: Path) -> None:
        task = FacesTask(load_faces(f"faces:{folder},size=16,embedding=10"))
        with torch.no_grad():
            task.new_head().weight.copy_(torch.eye(10))
        labels = torch.tensor([0, 1, 2, 3])
        assert float(task.accuracy(torch.eye(10)[[0, 1, 2, 4]], labels)) == 0.75


class TestTraining:
    def task(self, folder: Path, **options: object) -> FacesTask:
        asked = ",".join(f"{key}={value}" for key, value in {"scale": 8, "margin": 0.2, "margin_warmup": 2, **options}.items())
        return FacesTask(load_faces(f"faces:{folder},size=16,embedding=10,valid=2,{asked}"))

    def test_the_head_learns_and_is_no_part_of_the_network(self, folder: Path, tmp_path: Path) -> None:
        task, model = self.task(folder), network()
        keys = set(model.state_dict())
        train(model, task, RECIPE, out=tmp_path)
        assert set(model.state_dict()) == keys
        state = load_state(tmp_path / "state.pt")
        assert task.head is not None
        torch.manual_seed(0)
        fresh = self.task(folder).new_head()
        assert not any(item.equal(fresh.weight.detach()) for item in state_tensors(state))
        assert any(item.equal(task.head.weight.detach()) for item in state_tensors(state))
        assert int(task.head.seen) == 3 * 5 * 8  # epochs x steps x batch

    @pytest.mark.parametrize("options", [{}, {"sampled": 0.5}, {"head": "softmax", "margin": 0.0}, {"head": "cosface"}])
    def test_a_resumed_training_ends_with_the_same_bits(self, folder: Path, tmp_path: Path, options: dict[str, object]) -> None:
        whole, parts = network(), network()
        tasks = [self.task(folder, **options) for _ in range(3)]
        train(whole, tasks[0], RECIPE, out=tmp_path / "whole")
        train(parts, tasks[1], replace(RECIPE, epochs=1), out=tmp_path / "parts")
        train(parts := network(), tasks[2], RECIPE, out=tmp_path / "parts", resume=True)
        assert all(value.equal(parts.state_dict()[key]) for key, value in whole.state_dict().items())
        assert tasks[0].head is not None
        assert tasks[2].head is not None
        assert all(value.equal(tasks[2].head.state_dict()[key]) for key, value in tasks[0].head.state_dict().items())

    def test_another_margin_is_another_training(self, folder: Path, tmp_path: Path) -> None:
        train(network(), self.task(folder), RECIPE, out=tmp_path)
        with pytest.raises(UserError, match=r"can be resumed with the same settings only, but data\.name is"):
            train(network(), self.task(folder, margin=0.3), RECIPE, out=tmp_path, resume=True)

    def test_mixed_precision_and_averages(self, folder: Path) -> None:
        task = self.task(folder)
        result = train(network(), task, replace(RECIPE, precision="bf16", ema_decay=0.9, accumulate=2, clip_norm=1.0))
        assert all(np.isfinite(log.loss) for log in result.history)

    def test_the_second_phase_goes_on_with_the_head_of_the_first(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        task = self.task(folder)
        made = []
        monkeypatch.setattr(task, "new_head", lambda: made.append(FacesTask.new_head(task)) or made[-1])
        two_phase(network(), task, replace(RECIPE, epochs=4), new=("0.weight",))
        assert len(made) == 1
        assert int(made[0].seen) == 4 * 5 * 8

    def test_every_training_begins_with_a_new_head(self, folder: Path) -> None:
        task = self.task(folder)
        first, second = network(), network()
        train(first, task, RECIPE)
        train(second, task, RECIPE)
        assert all(value.equal(second.state_dict()[key]) for key, value in first.state_dict().items())

    def test_ensembles_are_of_classifiers(self, folder: Path, tmp_path: Path) -> None:
        info = ModelInfo(name="resnet_digits", input_shape=(3, 16, 16), num_classes=10)
        with pytest.raises(UserError, match="an ensemble is of classifiers, but 'faces:"):
            train_child(info, None, self.task(folder), out=tmp_path, recipe=RECIPE, ensemble=2)


def state_tensors(state: object) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    items = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for item in items for tensor in state_tensors(item)]


class TestSearch:
    CONFIG = SearchConfig(
        epochs=2, warmup_epochs=1, batch=8, updates=1, samples=2, valid_batch=8, rescored=2, finalists=1, lr=0.05
    )

    def space(self) -> SearchSpace:
        torch.manual_seed(0)
        model = build_model("resnet20_cifar", input_shape=(3, 16, 16), num_classes=5)
        return SearchSpace.from_model(model, (3, 16, 16), slots="layer1.0.*", operators=["conv3x3", "max3x3"])

    @pytest.mark.parametrize("score", ["identification", "verification"])
    def test_an_interrupted_search_ends_as_if_it_had_not_been(self, folder: Path, tmp_path: Path, score: str) -> None:
        data = load_faces(f"faces:{folder},size=16,embedding=5,valid=2,score={score}")
        space = self.space()
        table = for_space(space, lambda spec: 1.0 if spec.operator == "conv3x3" else 0.5)
        target = sum(table.bounds()) / 2
        whole = search(space, FacesTask(data), table, target_ms=target, config=self.CONFIG, out=tmp_path / "whole")

        def stop(log: Any) -> None:
            if log["epoch"] == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            search(space, FacesTask(data), table, target_ms=target, config=self.CONFIG, out=tmp_path / "parts", on_epoch=stop)
        task = FacesTask(data)
        parts = search(space, task, table, target_ms=target, config=self.CONFIG, out=tmp_path / "parts", resume=True)
        assert parts.scored == whole.scored
        assert parts.arch == whole.arch
        files = [(tmp_path / name / "supernet.safetensors").read_bytes() for name in ("whole", "parts")]
        assert files[0] == files[1]
        assert b"head.weight" in files[0]
        assert task.head is not None

    def test_without_pretraining(self, folder: Path) -> None:
        space = self.space()
        table = for_space(space, lambda spec: 1.0 if spec.operator == "conv3x3" else 0.5)
        config = replace(self.CONFIG, warmup_epochs=0, strategy="random")
        task = FacesTask(load_faces(f"faces:{folder},size=16,embedding=5,valid=2"))
        result = search(space, task, table, target_ms=sum(table.bounds()) / 2, config=config)
        assert [log["warmup"] for log in result.history] == [0, 0]
        assert result.met

    def test_a_child_has_no_head(self, folder: Path) -> None:
        space, task = self.space(), load_task(f"faces:{folder},size=16,embedding=5")
        supernet = Supernet(space, task.new_head())
        assert any(key.startswith("head.") for key in supernet.state_dict())
        assert set(supernet.child(space.incumbent).state_dict()) == set(copy.deepcopy(space.model).state_dict())
