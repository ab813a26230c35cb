"""Damaged and hostile files: whatever is in them, loading gives what they say or one clear error, and touches nothing else.

Every file that nar_hw reads is truncated, bit-flipped and, where it is JSON, given values of other types, huge numbers, deep
nesting and paths that lead elsewhere.
"""

import argparse
import contextlib
import copy
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from nar_hw.bundles.manifest import load_bundle
from nar_hw.data.preprocessing import Preprocessing
from nar_hw.errors import ExportError, ModelError, UserError
from nar_hw.export.aoti import read_metadata
from nar_hw.export.engine import EngineInfo, info_file, read_engine
from nar_hw.export.onnx import open_session, run_session
from nar_hw.files import sha256
from nar_hw.latency.profiler import profile
from nar_hw.latency.table import LatencyTable
from nar_hw.models.info import ModelInfo
from nar_hw.models.weights import load_weights, save_weights
from nar_hw.records import plain
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.runtimes.onnx_graph import with_precision
from nar_hw.search.config import SearchConfig
from nar_hw.search.record import Identity, RunFile, ScoredNames, load_run
from nar_hw.space.space import SearchSpace
from nar_hw.training.checkpoints import check_resumable, load_state, save_state
from nar_hw.training.child import Child
from nar_hw.training.recipes import Recipe, recipe_named
from tests.bundles import exported
from tests.networks import TinyResNet

SHAPE = (3, 8, 8)
KIT = Path(__file__).parent.parent / "export" / "run.py"
EXAMPLES = int(os.environ.get("NAR_HW_FUZZ_EXAMPLES", "25"))


@dataclass(frozen=True)
class Loader:
    """A file as it should be, and what reads it. ``load`` is called with a damaged copy of ``file`` in a copy of its folder."""

    file: Path
    load: Callable[[Path], Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each file, small."""
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    network = TinyResNet(width=4).eval()
    exported(network, folder / "bundle")
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(folder / "image.png")
    save_weights(folder / "weights.safetensors", network)
    recipe = Recipe(epochs=2)
    state = {"schema": 1, "recipe": plain(recipe), "history": [{"loss": 1.0}], "seed": 0, "task": {"name": "x"}}
    save_state(folder / "state.pt", {**state, "model": network.state_dict()})
    (folder / "recipe.json").write_text(json.dumps(plain(recipe)))
    info = ModelInfo(name="resnet_digits", input_shape=(1, 8, 8), num_classes=10, manner="conv")
    child = Child(
        model=info,
        arch=("conv3x3",) * 8,
        data="digits",
        recipe=recipe,
        seed=0,
        init="scratch",
        accuracy={"valid": 0.5, "test": 0.5},
        **dict.fromkeys(("params", "flops", "pool_ops"), 1),
        **dict.fromkeys(("target_ms", "predicted_ms", "table_hash", "fingerprint")),
        preprocessing=Preprocessing(mean=(0.5,), std=(0.5,), classes=("a", "b")),
    )
    child.save(folder / "child", network)
    arch = ("conv3x3",) * 8
    scored = ScoredNames(arch=arch, accuracy=0.5, predicted_ms=1.0, load=1.0)
    identity = {"model": info, "manner": "conv", "target_ms": 1.0, "table_hash": "0"}
    RunFile(
        **identity,
        **dict.fromkeys(("finalists", "pareto", "scored"), (scored,)),
        **dict.fromkeys(("operators", "arch"), arch),
        **dict.fromkeys(("data", "reward", "strategy", "table", "note"), "x"),
        **dict.fromkeys(("predicted_ms", "accuracy", "load"), 1.0),
        seed=0,
        versions={},
        met=True,
        pick=scored,
        history=({"epoch": 1.0},),
        identity=Identity(**identity, slots=(), data={}, config=SearchConfig()),
    ).save(folder)
    with FakeRuntime.on(FakeDevice(noise=0.0)):
        space = SearchSpace.from_model(TinyResNet(width=32), SHAPE)
        config = RuntimeConfig(runtime="fake")
        profile(space, config=config, model_name="tiny", rounds=3, validate=4).save(folder / "table.json")
    (folder / "model.engine").write_bytes(b"plan")
    words = {"tensorrt": "10.16.1", "gpu": "GPU", "precision": "fp32"}
    engine = EngineInfo(
        library="tensorrt",
        compute_capabilities=("8.9",),
        datatypes={},
        engine_sha256=sha256(folder / "model.engine"),
        **dict.fromkeys(("onnx_sha256", "timing_cache_sha256"), "0" * 64),
        **words,
        batch=(1, 2, 4),
        workspace_mib=1,
        optimization_level=3,
        version_compatible=False,
        hardware_compatibility=None,
        refit=False,
        metadata={"classes": json.dumps(["a", "b"]), "normalisation": json.dumps({"mean": [0.5], "std": [0.5]})},
    )
    info_file(folder / "model.engine").write_text(json.dumps({"schema": 2, **plain(engine)}))
    import zipfile

    with zipfile.ZipFile(folder / "model.pt2", "w") as package:
        package.writestr("network/data/aotinductor/model/a.wrapper_metadata.json", json.dumps({"AOTI_MACHINE": "x86_64"}))
        package.writestr("network/data/aotinductor/model/a.wrapper.so", bytes(range(256)))
    return folder


def script() -> Any:
    spec = importlib.util.spec_from_file_location("run", KIT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = script()


def use_onnx(path: Path) -> None:
    """Load, convert and run."""
    session = open_session(path)
    with_precision(path, "fp32", path.parent)
    source = session.get_inputs()[0]
    if list(source.shape[1:]) == list(SHAPE):
        run_session(session, np.zeros((1, *SHAPE), np.float32))


def use_script(bundle: Path) -> None:
    options = {"batch": 1, "threads": 1, "gpu": None, "top": 1, "time": False, "runs": 1}
    RUN.report(RUN.run(argparse.Namespace(network=bundle, images=bundle.parent / "image.png", **options)), as_json=False)


def use_engine(path: Path) -> None:
    RUN.engine_misfit(RUN.TensorRT.describe(path.with_suffix("")).requires, "10.16.1", "GPU", "8.9")


def use_table(path: Path) -> None:
    table = LatencyTable.load(path)
    table.predict(table.parse(",".join(slot.incumbent for slot in table.slots)))
    table.ties()
    table.bounds()
    _ = table.hash


def use_child(path: Path) -> None:
    child = Child.load(path.parent)
    json.dumps(plain(child), allow_nan=False)
    [float(value) for value in (*child.preprocessing.mean, *child.preprocessing.std, *child.accuracy.values())]


def use_state(path: Path) -> None:
    state = load_state(path)
    check_resumable(state, path.parent, recipe=Recipe(epochs=3), seed=0, task={"name": "x"})


LOADERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "manifest": ("bundle/manifest.json", lambda path: load_bundle(path.parent)),
    "manifest, run.py": ("bundle/manifest.json", lambda path: use_script(path.parent)),
    "manifest of a package, run.py": ("bundle/manifest.json", lambda path: RUN.AotInductor.describe(path.parent / "model.pt2")),
    "onnx": ("bundle/model.onnx", use_onnx),
    "engine info": ("model.engine.json", lambda path: read_engine(path.with_suffix(""))),
    "engine info, run.py": ("model.engine.json", use_engine),
    "package": ("model.pt2", read_metadata),
    "table": ("table.json", use_table),
    "child": ("child/child.json", use_child),
    "search result": ("run.json", lambda path: load_run(path.parent)),
    "recipe": ("recipe.json", lambda path: recipe_named(str(path))),
    "weights": ("weights.safetensors", lambda path: load_weights(TinyResNet(width=4), path)),
    "training state": ("state.pt", use_state),
}
JSON_LOADERS = [name for name, (file, _) in LOADERS.items() if file.endswith(".json")]
ERRORS = (UserError, RUN.InputError)


def snapshot(folder: Path) -> set[tuple[str, int]]:
    return {(str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*")}


def check(place: Path, name: str, content: bytes) -> None:
    """Load ``content`` in the place of a file: fine, or one line; and nothing was written."""
    file, load = LOADERS[name]
    path = place / "in" / "deep" / file
    path.write_bytes(content)
    before = snapshot(place)
    try:
        load(path)
    except ERRORS as problem:
        text = str(problem)
        assert text
        assert "\n" not in text, text
        assert len(text) < 1000, text[:200]
    assert snapshot(place) == before


@pytest.fixture(scope="module")
def place(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of ``home``, with room above for what should not be written; the working directory and $HOME are in it too."""
    import shutil

    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(home, folder / "in" / "deep")
    before = Path.cwd()
    os.chdir(folder / "in")
    yield folder
    os.chdir(before)


@pytest.fixture
def restored(home: Path, place: Path) -> Iterator[Path]:
    yield place
    for file in {file for file, _ in LOADERS.values()}:
        (place / "in" / "deep" / file).write_bytes((home / file).read_bytes())


SETTINGS = settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES == 25)


@pytest.mark.parametrize("name", LOADERS)
def test_a_file_as_it_should_be_is_read(name: str, home: Path, restored: Path) -> None:
    file, load = LOADERS[name]
    if name == "manifest of a package, run.py":
        with pytest.raises(RUN.InputError, match="it has none of this kind"):
            load(home / file)
    else:
        load(home / file)


@pytest.mark.parametrize("name", LOADERS)
def test_truncated_and_flipped_bytes(name: str, home: Path, restored: Path) -> None:
    good = (home / LOADERS[name][0]).read_bytes()

    @SETTINGS
    @given(
        cut=st.one_of(st.none(), st.floats(0, 1)),
        flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=4),
        junk=st.binary(max_size=8),
    )
    def damaged(cut: float | None, flips: list[tuple[float, int]], junk: bytes) -> None:
        data = bytearray(good)
        for where, bits in flips:
            data[int(where * (len(data) - 1))] ^= bits
        if cut is not None:
            del data[int(cut * len(data)) :]
        check(restored, name, bytes(data) + junk)

    damaged()


SCALARS = [None, True, -1, 0, 0.5, 2**31, 10**400, 1e308, -0.0, "", "x", "9" * 5000]
TEXTS = ["../../up", "/etc/passwd", "a\nb\x1b[2J\x00", "\ud800"]
NESTED = [[], {}, [[]], [1] * 3, ["../up"], {"../up": "0"}, {"": {}}]
WEIRD = st.sampled_from([*SCALARS, *TEXTS, *NESTED])
JSON = st.recursive(
    WEIRD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "name", "../b", ""]), inner, max_size=3),
)


@pytest.mark.parametrize("name", JSON_LOADERS)
def test_values_of_other_kinds(name: str, home: Path, restored: Path) -> None:
    good = json.loads((home / LOADERS[name][0]).read_text())

    @SETTINGS
    @given(data=st.data(), changes=st.integers(1, 2))
    def damaged(data: st.DataObject, changes: int) -> None:
        value = copy.deepcopy(good)
        for _ in range(changes):
            inner = value
            while True:
                keys = sorted(inner) if isinstance(inner, dict) else list(range(len(inner)))
                key = data.draw(st.sampled_from(keys))
                deeper = isinstance(inner[key], dict | list) and inner[key]
                if not deeper or data.draw(st.integers(0, 2)) == 0:
                    break
                inner = inner[key]
            what = data.draw(st.integers(0, 3))
            if what == 0:
                del inner[key]
            elif what == 1 and isinstance(inner, dict):
                inner[data.draw(st.sampled_from(["extra", "../up", "\n"]))] = inner.pop(key)
            else:
                inner[key] = copy.deepcopy(data.draw(JSON))
            if not value:
                break
        check(restored, name, json.dumps(value).encode("utf-8", "surrogatepass"))

    damaged()


def test_a_training_state_of_other_values(home: Path) -> None:
    """What a damaged disk makes of tensors is told by torch; this is another program's file."""
    good = load_state(home / "state.pt")

    @SETTINGS
    @given(key=st.sampled_from(["schema", "recipe", "history", "seed", "task", "epochs"]), value=JSON, gone=st.booleans())
    def damaged(key: str, value: Any, gone: bool) -> None:
        state = {name: item for name, item in good.items() if name != key}
        if not gone:
            state[key] = copy.deepcopy(value)
        with contextlib.suppress(UserError):
            check_resumable(state, home, recipe=Recipe(epochs=3), seed=0, task={"name": "x"})

    damaged()


DEEP = 100_000


@pytest.mark.parametrize("name", JSON_LOADERS)
@pytest.mark.parametrize(
    "text", ["[" * DEEP, '{"a":' * DEEP, "NaN", '{"schema": 1e999}', '{"schema": NaN}', "9" * 5000, "\ufeff{}", "null"]
)
def test_json_that_is_none_or_too_much(name: str, text: str, restored: Path) -> None:
    check(restored, name, text.encode())


class Evil:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("name", ["training state", "weights"])
def test_a_pickle_is_not_run(name: str, restored: Path, tmp_path: Path) -> None:
    torch.save({"schema": Evil()}, tmp_path / "evil.pt")
    content = (tmp_path / "evil.pt").read_bytes()
    with pytest.raises(UserError):
        LOADERS[name][1](write(restored / "in" / "deep" / LOADERS[name][0], content))
    assert not list(restored.rglob("pwned"))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_weights_elsewhere_are_refused(home: Path, tmp_path: Path) -> None:
    """An ONNX file may name files that hold its weights: ours never do, and a foreign one could name any file."""
    model = onnx.load(home / "bundle" / "model.onnx")
    (tmp_path / "secret").write_bytes(bytes(10**5))
    (tmp_path / "in").mkdir()
    for location in ("../secret", str(tmp_path / "secret"), "beside"):
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=location)
        path = tmp_path / "in" / "model.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ExportError, match="ONNX Runtime must be able to load"):
            open_session(path)
        with pytest.raises(ModelError, match="must hold its weights itself"):
            with_precision(path, "fp16", tmp_path)


def test_a_manifest_cannot_name_files_elsewhere(home: Path, restored: Path) -> None:
    manifest = json.loads((home / "bundle" / "manifest.json").read_text())
    (restored / "in" / "up").write_text("x")
    for name in ("../up", "../../up", "/etc/hostname", "..", "", "a/../../up", "C:\\x", "con\x00"):
        changed = copy.deepcopy(manifest)
        changed["files"][name] = "0" * 64
        changed["variants"]["fp32"]["file"] = name
        check(restored, "manifest", json.dumps(changed).encode())
        with pytest.raises(UserError):
            load_bundle(restored / "in" / "deep" / "bundle")
        with pytest.raises(RUN.InputError, match="is not one of this bundle's"):
            RUN.OnnxRuntime.describe(restored / "in" / "deep" / "bundle" / "model.onnx")
