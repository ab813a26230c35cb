"""What users bring, through every command: network, command, expected result. The networks are in tests/cases.py."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nar_hw.errors import ModelError
from nar_hw.export.onnx import export_onnx, verify_onnx
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.torch_eager import TorchEager
from nar_hw.search.supernet import Supernet
from nar_hw.space.flops import count_module
from nar_hw.space.network import plain_copy
from nar_hw.space.outputs import check_outputs
from nar_hw.space.space import SearchSpace
from tests import cases
from tests.test_cli import Run, ok, refused, run
from tests.test_flops import fvcore_flops

__all__ = ["run"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
"""Of torch's own, about what the networks use."""

SHAPE = (3, 8, 8)
FILE = Path(cases.__file__)
NETWORK = "--input 3x8x8 --classes 4 --json"
DATA = "--data fake:3x8x8x4"
FORWARD = r"the model must accept one image of shape 3x8x8, but its forward pass raised"
TORN = r"is compiled by torch.jit, which cannot be taken apart"

# fmt: off
GOOD = [
    "plain", "one_dimension", "attention", "deformable", "reads_weight", "reads_dtype", "reads_stride", "asks_for_class",
    "reads_while_training", "reads_norm", "with_activation", "standardised", "hooked", "prepared", "tied", "lazy",
    "old_weight_norm", "weight_norm", "keeps_features", "frozen", "synchronised", "circular", "padded_before", "functional",
    "parallel", "parallel_inside", "averaged", "compiled", "passes_on", "impolite", "autocast_off", "autocast_on",
]
# fmt: on
"""Networks that all commands but export take."""

# network -> what `space` says of it; `count` says the same but for the last ones
REFUSED = {
    "locked": r"a network must be copied, but 3\.lock cannot be: TypeError: cannot pickle '_thread.lock' object",
    "scripted": rf"the whole network {TORN}",
    "scripted_inside": rf"^nar-hw: 3 {TORN}",
    "key_error": rf"{FORWARD} KeyError: 'scale' \(.*cases\.py, line \d+\)",
    "attribute_error": rf"{FORWARD} AttributeError: type object 'Fails' has no attribute 'scale' \(.*cases\.py, line \d+\)",
    "import_error": rf"{FORWARD} ModuleNotFoundError: No module named 'a_package_that_is_not_there' \(.*cases\.py, line \d+\)",
    "zero_division": rf"{FORWARD} ZeroDivisionError: .* \(.*cases\.py, line \d+\)",
    "file_error": rf"{FORWARD} FileNotFoundError: .*/nowhere/scales\.txt' \(.*cases\.py, line \d+\)",
    "quits": r"must build, but quits\(\) raised SystemExit: CUDA is needed \(.*cases\.py, line \d+\)",
    "unregistered": r"must know all parameters that it uses, but the model uses some that would be neither trained nor kept",
    "extra_state": r"a network's state must be tensors, to be kept in a file, but 8\._extra_state is a dict",
}

# network -> what `train` and `search` say before they begin
UNTRAINED = {
    "always_random": r"this one's is random \(bernoulli_ at .*cases\.py, line \d+\): let it draw numbers only while",
    "of_its_batch": r"whatever images are beside it, but this one's depends on its batch: compute nothing over the batch",
    "untracked": r"depends on its batch \(3 keeps no running statistics\)",
    "heads_in_training": r"must return one tensor of shape \(2, 4\) for 2 images in training mode, but returns a tuple of 2",
    "dict_of_heads": r"one tensor of shape \(2, 4\) for 2 images in evaluation mode, but returns a dict of 2: .* with --task",
    "list_of_heads": r"one tensor of shape \(2, 4\) for 2 images in evaluation mode, but returns a list of 2: .* with --task",
    "maps": r"shape \(2, 4\) for 2 images in evaluation mode, but returns a tensor of shape \(2, 4, 8, 8\)",
    "for_one_image": r"must accept 2 images of shape 3x8x8, but its forward pass raised RuntimeError: .*cases\.py, line \d+\)",
    "half": r"a network is trained in float32, but its parameter 0\.weight is bfloat16: build it without \.half\(\)",
}

# network -> why its first slot, or the part that is named, is fixed or not searched
REASONS = {
    "reads_weight": "the network reads its weight",
    "reads_dtype": "the network reads its weight",
    "reads_stride": "the network reads its stride",
    "asks_for_class": "the network asks whether it is an nn.Conv2d",
    "reads_while_training": "the network reads its weight",
    "with_activation": "ConvRelu does more than convolve",
    "hooked": "a forward hook of it would be lost",
    "padded_before": "the operators that suit it give another size than its convolution",
}


def net(name: str) -> str:
    return f"--model {FILE}:{name}"


@pytest.mark.parametrize("name", [*GOOD, *UNTRAINED])
def test_networks_are_taken_apart_and_counted(run: Run, name: str) -> None:
    space = ok(run(f"space {net(name)} {NETWORK}"))
    counts = ok(run(f"count {net(name)} {NETWORK}"))
    assert {key: space[key] for key in ("params", "flops", "pool_ops")} == {
        key: counts[key] for key in ("params", "flops", "pool_ops")
    }
    assert all(slot["fixed"] == (slot["reason"] is not None) for slot in space["slots"])
    assert space["slots"][0]["reason"] is None or name in REASONS or name == "prepared"
    if name in REASONS:
        assert space["slots"][0]["reason"].startswith(REASONS[name])


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_what_cannot_be_taken_apart_is_told_in_one_line(run: Run, name: str, message: str) -> None:
    assert re.search(message, refused(run(f"space {net(name)} {NETWORK}")))
    told = refused(run(f"train {net(name)} --arch incumbent {DATA} --recipe demo --epochs 1 --out child"))
    assert re.search(message, told)
    counted = run(f"count {net(name)} {NETWORK}")
    if name == "unregistered":
        assert "counting it raised RuntimeError: " in refused(counted)
    else:
        assert re.search(message.replace("its forward pass", "counting it"), refused(counted))


@pytest.mark.parametrize("name", GOOD)
def test_networks_are_trained(run: Run, name: str) -> None:
    child = ok(run(f"train {net(name)} --arch incumbent {DATA} --recipe demo --epochs 1 --out child --json"))
    assert child["params"] > 0
    assert child["flops"] > 0
    assert child["uncounted"] is None


@pytest.mark.parametrize(("name", "message"), UNTRAINED.items())
def test_what_cannot_be_trained_is_told_before(run: Run, tmp_path: Path, name: str, message: str) -> None:
    assert re.search(message, refused(run(f"train {net(name)} --arch incumbent {DATA} --recipe demo --epochs 1 --out child")))
    assert not (tmp_path / "child").exists()


# fmt: off
FOUND = [
    "one_dimension", "reads_weight", "reads_norm", "reads_while_training", "with_activation", "tied", "lazy",
    "old_weight_norm", "keeps_features", "frozen", "parallel_inside", "compiled",
]
# fmt: on


@pytest.mark.parametrize("name", FOUND)
def test_networks_are_profiled_and_searched(run: Run, name: str) -> None:
    table = ok(run(f"profile {net(name)} {NETWORK} --runtime fake --rounds 2 --validate 0 -o table.json"))
    result = run(
        f"search {net(name)} {DATA} --table table.json --target-ms {table['slowest_ms']} --epochs 1 "
        "--warmup-epochs 1 --set updates=1 --set samples=2 --set rescored=2 --set finalists=1 --out run --json"
    )
    assert len(ok(result)["arch"]) == table["slots"]
    assert ok(run(f"train --arch run {DATA} --recipe demo --epochs 1 --out child --json"))["params"] > 0


def test_a_search_of_nothing_is_refused(run: Run) -> None:
    table = ok(run(f"profile {net('padded_before')} {NETWORK} --runtime fake --rounds 2 --validate 0 -o table.json"))
    line = f"search {net('padded_before')} {DATA} --table table.json --target-ms {table['slowest_ms']} --out run"
    assert "all are fixed (3: the operators that suit it give another size" in refused(run(line))


# Counting


def test_attention_is_counted_as_fvcore_counts_it() -> None:
    network = cases.attention().eval()
    assert count_module(network, SHAPE).flops == fvcore_flops(network, SHAPE)
    tokens, width = 64, cases.WIDTH
    layers = 3 * 9 * width * tokens + (9 * width**2 + 2 * width) * tokens + width * tokens + 4 * width
    assert count_module(network, SHAPE).flops == layers + 4 * width**2 * tokens  # three projections in, one out


def test_a_convolution_of_one_dimension_is_counted() -> None:
    before = count_module(nn.Sequential(nn.Conv1d(4, 6, 5, padding=2), nn.Flatten()), (4, 9, 1)[:2])  # type: ignore[arg-type]
    named = count_module(nn.Sequential(nn.Conv1d(4, 6, 5, padding="same"), nn.Flatten()), (4, 9, 1)[:2])  # type: ignore[arg-type]
    assert before == named
    assert named.flops == 4 * 6 * 5 * 9


def test_what_is_not_counted_is_named(run: Run) -> None:
    assert ok(run(f"count {net('deformable')} {NETWORK}"))["not_counted"] == {"torchvision::deform_conv2d": 1}
    assert ok(run(f"count {net('attention')} {NETWORK}"))["not_counted"] == {"scaled_dot_product_attention": 1}
    assert "not counted: torchvision::deform_conv2d (1 times)" in run(f"count {net('deformable')} --input 3x8x8")[1]


def test_a_network_that_cannot_be_counted_is_trained_all_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ModelError("no handle for it")

    monkeypatch.setattr("nar_hw.steps.train.SpaceCounts", fail)
    child = ok(run(f"train {net('plain')} --arch incumbent {DATA} --recipe demo --epochs 1 --out child --json"))
    assert (child["flops"], child["pool_ops"], child["uncounted"]) == (None, None, "no handle for it")
    assert (
        "FLOPs could not be counted" in run(f"train {net('plain')} --arch incumbent {DATA} --recipe demo --epochs 1 --out b")[1]
    )


def test_slots_are_told_and_trained_without_counts(run: Run) -> None:
    space = ok(run(f"space {net('by_size')} {NETWORK}"))
    assert [len(slot["candidates"]) for slot in space["slots"]] == [5, 5]
    assert (space["flops"], space["slots"][0]["candidates"][0]["flops"]) == (None, None)
    assert "counting it raised KeyError: 'tensor(8)'" in space["uncounted"]
    text = run(f"space {net('by_size')} --input 3x8x8 --classes 4")[1]
    assert "not counted: the model must accept one image" in text
    child = ok(run(f"train {net('by_size')} --arch incumbent {DATA} --recipe demo --epochs 1 --out child --json"))
    assert child["uncounted"] == space["uncounted"]


# Weights


def test_what_is_tied_stays_tied() -> None:
    torch.manual_seed(0)
    space = SearchSpace.from_model(cases.tied(), SHAPE)
    network = Supernet(space)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.eval()
    images = torch.randn(4, *SHAPE)
    for arch in (space.incumbent, (space.incumbent[0], *(slot.candidates[-1] for slot in space.slots[1:]))):
        network.activate(arch)
        assert torch.allclose(network(images), network.child(arch).eval()(images), atol=1e-6)
    child = network.child(space.incumbent)
    first, second = (child.get_submodule(f"{place}.conv") for place in (2, 3))
    assert first.weight is second.weight


@pytest.mark.parametrize("name", ["prepared", "hooked", "with_activation"])
def test_what_does_more_than_convolve_is_never_replaced(name: str) -> None:
    space = SearchSpace.from_model(getattr(cases, name)(), SHAPE)
    assert space.slots[0].fixed
    archs = [tuple(slot.candidates[-1] for slot in space.slots), space.incumbent]
    for arch in archs:
        path = space.slots[0].sites[0].conv
        assert type(space.build(arch).get_submodule(path)) is type(space.model.get_submodule(path))


@pytest.mark.parametrize("name", [*GOOD, "half"])
def test_no_entry_point_changes_the_network(name: str, tmp_path: Path) -> None:
    network = getattr(cases, name)()
    network(torch.randn(2, *SHAPE).to(next(network.parameters()).dtype)) if name in ("lazy", "half") else None
    network.train()
    next(iter(network.modules())).note = "mine"
    network.get_submodule(list(dict(network.named_modules()))[-1]).eval()

    def state() -> object:
        return (
            [(path, type(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks), set(vars(module)))
             for path, module in network.named_modules()],
            [(key, value.clone()) for key, value in network.state_dict().items()],
        )  # fmt: skip

    modules, tensors = state()  # type: ignore[misc]
    generator = torch.get_rng_state()
    count_module(network, SHAPE)
    SearchSpace.from_model(network, SHAPE)
    plain_copy(network, SHAPE)
    if name == "plain":
        export_onnx(network, tmp_path / "a.onnx", input_shape=SHAPE)
        verify_onnx(tmp_path / "a.onnx", network, torch.randn(2, *SHAPE, generator=torch.Generator()).numpy())
    if name not in ("half", "prepared"):
        check_outputs(network, SHAPE, 4, trained=True)
    with TorchEager(network, SHAPE, RuntimeConfig(runtime="torch_eager")) as runtime:
        runtime.run()
    after, now = state()  # type: ignore[misc]
    assert after == modules
    assert all(key == other and torch.equal(value, same) for (key, value), (other, same) in zip(tensors, now, strict=True))
    assert torch.equal(torch.get_rng_state(), generator)


# Export


@pytest.mark.parametrize("name", ["passes_on", "deformable", "old_weight_norm"])
def test_networks_are_exported(run: Run, name: str) -> None:
    ok(run(f"train {net(name)} --arch incumbent {DATA} --recipe demo --epochs 1 --out child --json"))
    assert ok(run("export child --out bundle --json"))["validation"]["torch_accuracy"] is not None
    assert ok(run("bundle verify bundle --json"))


@pytest.mark.parametrize(
    ("name", "batch", "message"),
    [
        ("prepared", (1, 64), r"No ONNX function found for .*_fused_moving_avg_obs_fq_helper"),
        (
            "autocast_on",
            (1, 64),
            r"computes in float32, but the network computes in bfloat16 by itself \(torch.autocast",
        ),
        ("for_one_image", (1, 64), r"made for one batch size, which is then to be asked for alone \(--batch 1\)"),
        ("branches", (1, 64), r"cannot be exported to ONNX: GuardOnData.*: Could not guard .*cases\.py, line \d+\)"),
    ],
)
def test_why_an_export_fails(name: str, batch: tuple[int, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError.__base__, match=message) as caught:  # type: ignore[arg-type]
        export_onnx(getattr(cases, name)(), tmp_path / "x.onnx", input_shape=SHAPE, batch=batch)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.onnx").exists()


def test_a_profile_needs_the_batch_that_is_asked_for_only(run: Run) -> None:
    line = f"profile {net('for_one_image')} {NETWORK} --rounds 2 --validate 0 -o table.json"
    assert ok(run(f"{line} --batch 1"))["batch"] == 1


# Files


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


BODY = """import torch
from torch import nn
def net(num_classes=4):
    return nn.Sequential(nn.Conv2d(3, {}, 3), nn.Flatten(), nn.LazyLinear(4))
"""


def test_a_files_own_arguments_are_not_ours(run: Run, tmp_path: Path) -> None:
    text = "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--width', type=int, default=5)\n"
    write(tmp_path, {"mine.py": text + "width = parser.parse_args().width\n" + BODY.format("width")})
    before = list(sys.path)
    assert ok(run("count --model mine.py:net --input 3x8x8 --json"))["params"] == 5 * 28 + 4 * (5 * 36 + 1)
    assert sys.path == before
    write(tmp_path, {"strict.py": text.replace("default=5", "required=True") + "parser.parse_args()\n" + BODY.format(5)})
    told = refused(run("count --model strict.py:net --input 3x8x8 --json"))
    assert "strict.py raised SystemExit: 2 (strict.py, line 4): put what only a script does below" in told


def test_a_script_that_exits_is_named(run: Run, tmp_path: Path) -> None:
    write(tmp_path, {"script.py": BODY.format(5) + "import sys\nsys.exit(None)\n"})
    told = refused(run("count --model script.py:net --input 3x8x8 --json"))
    assert "script.py raised SystemExit (script.py, line 6)" in told


def test_a_package_imports_its_neighbours(run: Run, tmp_path: Path) -> None:
    inner = "from ..widths import WIDTH\nfrom . import heads\n" + BODY.format("WIDTH")
    packages = {"pack/__init__.py": "", "pack/widths.py": "WIDTH = 7\n", "pack/nets/__init__.py": "", "pack/nets/heads.py": ""}
    write(tmp_path, {**packages, "pack/nets/one.py": inner})
    expected = 7 * 28 + 4 * (7 * 36 + 1)
    for name in ("pack/nets/one.py:net", "pack.nets.one:net"):
        assert ok(run(f"count --model {name} --input 3x8x8 --json"))["params"] == expected
    write(tmp_path, {"loose/widths.py": "WIDTH = 6\n", "loose/one.py": "from .widths import WIDTH\n" + BODY.format("WIDTH")})
    assert ok(run("count --model loose/one.py:net --input 3x8x8 --json"))["params"] == 6 * 28 + 4 * (6 * 36 + 1)
    write(tmp_path, {"broken.py": "def net(:\n"})
    assert "broken.py raised SyntaxError: " in (told := refused(run("count --model broken.py:net --input 3x8x8")))
    assert "(broken.py, line 1)" in told


def test_only_results_are_on_stdout(run: Run, tmp_path: Path) -> None:
    text = """print('import')
class Loud(nn.Sequential):
    def forward(self, x):
        print('forward')
        return super().forward(x)
def loud(num_classes=4):
    print('build')
    return Loud(*net())
"""
    write(tmp_path, {"noise.py": BODY.format(5) + text})
    code, out, err = run("count --model noise.py:loud --input 3x8x8 --json")
    assert (code, json.loads(out)["params"]) == (0, 5 * 28 + 4 * (5 * 36 + 1))
    assert {"import", "build", "forward"} <= set(err.split())


def test_what_programs_of_a_network_print_is_not_on_stdout(tmp_path: Path) -> None:
    text = "import os, subprocess\nsubprocess.run(['echo', 'child'])\nos.write(1, b'raw')\n"
    write(tmp_path, {"noise.py": text + BODY.format(5)})
    command = [sys.executable, "-m", "nar_hw", "count", "--model", "noise.py:net", "--input", "3x8x8", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["params"] == 5 * 28 + 4 * (5 * 36 + 1)
    assert "child" in done.stderr
    assert "raw" in done.stderr
