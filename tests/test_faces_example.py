"""examples/faces as its README tells it, and the paper's children by name."""

import json
import shlex
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from nar_hw.bundles.children import child_names, named_child
from nar_hw.cli import main
from nar_hw.errors import UnknownNameError
from nar_hw.records import replace
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.space.flops import SpaceCounts
from nar_hw.steps.task import load_task
from nar_hw.training.child import Child
from tests.faces import EXAMPLE, example, write_identities
from tests.test_cli import Run, ok, reachable, refused, run

__all__ = ["run"]


def commands() -> list[str]:
    """The lines of the README's first block."""
    block = (EXAMPLE / "README.md").read_text().split("```sh\n")[1].split("```")[0]
    return [line for line in block.splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's commands were run, on the runtime that needs no time."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("faces")
    (folder / "examples").symlink_to(EXAMPLE.parent)
    # A device of its own: the noise of the shared one depends on what other tests have loaded, and with it which child is found
    with FakeRuntime.on(FakeDevice()), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in commands():
            words = shlex.split(line.replace("--runtime onnxruntime", "--runtime fake --validate 4"))
            if words[-1].endswith("transferred"):
                words += ["--epochs", "1"]  # of what it learns nothing is asked
            if words[0] == "python":
                sizes = dict(zip(words[3::2], map(int, words[4::2]), strict=True))
                names = {"identities": 24, "images": 20, "pixels": 32, "seed": 0}
                sizes["--identities"] = min(sizes["--identities"], 36)
                example("make_identities").make(folder / words[2], **{key: sizes.get(f"--{key}", names[key]) for key in names})
                continue
            if "TARGET" in words:
                words[words.index("TARGET")] = str(reachable(folder / "table.json"))
            patch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as stop:
                main()
            assert not stop.value.code, line
    return folder


def test_people_who_were_never_learned_are_told_apart(home: Path) -> None:
    child = Child.load(home / "runs/faces/child")
    assert child.accuracy["test"] > 0.95
    assert child.accuracy["valid"] > 0.95
    assert child.init == "scratch"
    assert child.preprocessing.classes == ()
    torch.manual_seed(0)
    space = child.space()
    untrained = space.build(space.parse(child.arch))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert load_task(child.data).evaluate(untrained, "test") < 0.85


def test_the_bundle_gives_the_embedding(home: Path) -> None:
    child, folder = Child.load(home / "runs/faces/child"), home / "runs/faces/bundle"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["outputs"][0]["shape"] == [64]
    file = next((home / "faces").rglob("*.png"))
    pixels = ((np.asarray(Image.open(file), np.float32).transpose(2, 0, 1) - 127.5) / 128)[None]
    (embedding,) = onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"input": pixels})
    with torch.no_grad():
        expected = child.network(home / "runs/faces/child")(torch.from_numpy(pixels)).numpy()
    assert embedding == pytest.approx(expected, abs=1e-4)
    mean, std = (np.array(manifest["preprocessing"][key])[:, None, None] for key in ("mean", "std"))
    assert ((127.5 + 128 * pixels[0]) / 255 - mean) / std == pytest.approx(pixels[0], abs=1e-5)


def test_a_found_child_is_trained_on_other_people(home: Path) -> None:
    found, moved = (Child.load(home / "runs/faces" / name) for name in ("child", "transferred"))
    assert moved.arch == found.arch
    assert moved.data != found.data


def test_verification_and_identification_by_command(home: Path, run: Run) -> None:
    Path("examples").symlink_to(EXAMPLE.parent)  # child.json names the network by its file
    lines = []
    names = sorted(path.name for path in (home / "others").iterdir())
    for fold in range(10):
        one, two = names[fold], names[fold + 10]
        lines += [f"{one} {i} {i + 1}" for i in range(1, 7)] + [f"{one} {i} {two} {i}" for i in range(1, 7)]
    Path("pairs.txt").write_text("\n".join(["10 6", *lines]))
    child = home / "runs/faces/child"
    value = ok(run(f"data faces-verify {child} --pairs pairs.txt --images {home / 'others'} --plot roc.png --json"))
    assert value["pairs"] == 120
    assert value["accuracy"] > 0.9
    assert value["tar_at_far"]["0.1"] > 0.9
    assert value["tar_at_far"]["0.001"] is None
    assert Path("roc.png").exists()
    code, out, _ = run(f"data faces-verify {child} --pairs pairs.txt --images {home / 'others'}")
    assert code == 0
    assert "120 pairs: " in out
    assert "too few pairs" in out
    for part, places in (("known", range(1, 3)), ("seen", range(3, 9))):
        for name in names:
            Path(part, name).mkdir(parents=True)
            for place in places:
                file = f"{name}_{place:04d}.png"
                Path(part, name, file).write_bytes((home / "others" / name / file).read_bytes())
    value = ok(run(f"data faces-identify {child} --gallery known --probes seen --json"))
    assert (value["gallery"], value["probes"]) == (44, 132)
    assert value["rank_1"] > 0.6
    Path("known", names[0]).rename("elsewhere")
    assert "6 of 132 probes' are not" in refused(run(f"data faces-identify {child} --gallery known --probes seen"))


def test_a_proxy_tells_what_is_too_small(run: Run) -> None:
    write_identities(Path("all"), [5, 1, 5, 5, 2, 5])
    line = "data faces-proxy all --out {} --identities 2 --images 4 --valid 1 --test-identities 2"
    code, out, _ = run(line.format("one"))
    assert code == 0
    assert out.splitlines() == [
        "2 identities x 4 images (3 to learn, 1 to validate) and 2 identities to test, listed in one/proxy.json",
        "2 of 6 identities have fewer than 4 images: b (1), e (2)",
    ]
    assert ok(run(line.format("two") + " --json"))["too_small"] == {"b": 1, "e": 2}
    assert "needs 102 identities (2 and 100 for testing)" in refused(
        run("data faces-proxy all --out x --identities 2 --images 4 --valid 1")
    )


@pytest.mark.parametrize("command", ["faces-proxy", "faces-verify", "faces-identify"])
def test_every_command_has_an_example(run: Run, command: str) -> None:
    code, out, _ = run(f"data {command} --help")
    assert code == 0
    assert f"nar-hw data {command}" in " ".join(out.split())


class TestNamedChildren:
    def test_there_are_those_of_the_paper(self) -> None:
        assert child_names() == [
            "lresnet50e-ir",
            "lresnet50e-ir-based",
            "lresnet50e-ir-based-pretrain",
            "resnet18-16",
            "resnet18-8",
        ]

    def test_the_printed_vectors(self) -> None:
        codes = {"conv3x3": 0, "dwsep3x3": 1, "max3x3": 2, "avg3x3": 3}
        found = {name: [codes[operator] for operator in named_child(name).arch] for name in child_names()}
        assert found["lresnet50e-ir"] == [0] * 24
        assert found["lresnet50e-ir-based"][:20] == [0, 1, 2, 0, 0, 0, 0, 0, 1, *[0] * 11]
        assert found["lresnet50e-ir-based-pretrain"] == [0, 0, 2, 0, 0, 0, 1, *[0] * 8, 1, 1, 0, 2, 2, 1, 0, 1, 0]
        assert found["resnet18-8"] == [1, *[0] * 7]
        assert found["resnet18-16"] == [1, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2]

    def test_what_is_not_printed_costs_what_is(self) -> None:
        child = named_child("lresnet50e-ir-based")
        space = child.model.space()
        counts = SpaceCounts(space).count(space.parse(child.arch))
        assert counts.params == pytest.approx(3.40e7, rel=0.003)
        assert counts.flops == pytest.approx(5.31e9, rel=0.002)
        assert sum(name != "conv3x3" for name in child.arch) == 5

    def test_one_is_trained_by_name(self, run: Run, home: Path) -> None:
        Path("recipe.json").write_text('{"epochs": 1, "batch": 4}')
        made = example("make_identities")
        made.make(Path("few"), identities=4, images=6, pixels=16, seed=0)
        child = ok(run("train --arch resnet18-8 --data faces:few,size=16,embedding=8 --recipe recipe.json --out child --json"))
        assert child["arch"] == ["dwsep3x3", *["conv3x3"] * 7]
        assert child["model"]["num_classes"] == 8
        assert "--model must be resnet18, of which resnet18-8 is a child" in refused(
            run("train --arch resnet18-8 --model resnet34 --data digits --out x")
        )
        assert "none of the children lresnet50e-ir, " in refused(run("train --arch resnet18-9 --data digits --out x"))

    def test_an_unknown_one(self) -> None:
        with pytest.raises(UnknownNameError, match="unknown child 'lresnet50': use one of lresnet50e-ir"):
            named_child("lresnet50")

    def test_one_is_exported_by_name(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        child = named_child("resnet18-8")
        small = replace(
            child, model=replace(child.model, input_shape=(3, 16, 16)), preprocessing=replace(child.preprocessing, classes=())
        )  # the paper's own takes long
        monkeypatch.setattr("nar_hw.steps.export.named_child", lambda name: small)
        ok(run("export resnet18-8 --out bundle --batch 1 --json"))
        manifest = json.loads(Path("bundle/manifest.json").read_text())
        assert manifest["model"]["operators"] == list(child.arch)
        assert (manifest["input"]["shape"], manifest["outputs"][0]["shape"]) == ([3, 16, 16], [1000])
        assert manifest["preprocessing"]["mean"] == list(child.preprocessing.mean)
