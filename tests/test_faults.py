"""benchmarks/bench_faults.py in miniature: damaged files, absurd options, kill -9."""

import importlib
import importlib.util
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "bench_faults.py"


@pytest.fixture(scope="module")
def faults() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("bench_faults", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["bench_faults"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with warnings.catch_warnings(action="ignore"):
        for name in module.USED:  # which other tests use as well
            importlib.import_module(name)
    yield module
    del sys.modules["bench_faults"]


@pytest.fixture(scope="module")
def home(faults: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = faults.made(tmp_path_factory.mktemp("faults") / "home", [faults.MAKE["table"]])
    return made


def test_damaged_files(faults: ModuleType, home: Path, tmp_path: Path) -> None:
    tally = faults.files(home, tmp_path / "x", 120, random.Random(1))
    assert tally.faults == {}, tally.examples


def test_absurd_options(faults: ModuleType, home: Path, tmp_path: Path) -> None:
    tally = faults.options(home, tmp_path, 8, random.Random(1), only=("table predict", "table list"))
    assert tally.faults == {}, tally.examples


def test_kills(faults: ModuleType, home: Path, tmp_path: Path) -> None:
    tally, rows = faults.kills(home, tmp_path, 3, random.Random(1), ("validate",))
    assert tally.faults == {}, tally.examples
    assert rows["validate"]["killed"] >= 3


def test_faults_are_found(faults: ModuleType, tmp_path: Path) -> None:
    """Each kind of fault that there is, once: a count of zero says something."""

    def fault(kind: str) -> None:
        match kind:
            case "tracebacks":
                raise KeyError(kind)
            case "writes outside":
                (tmp_path / "outside").write_text("x")
            case "programs":
                import subprocess

                subprocess.run(["true"], check=True)
            case "hangs":
                import time

                time.sleep(60)

    (tmp_path / "in").mkdir()
    for kind in ("tracebacks", "writes outside", "programs", "hangs"):
        faults.HANG_S, tally = 0.5 if kind == "hangs" else 30.0, faults.Tally()
        tally.judge(kind, faults.forked(lambda: fault(kind), inside=tmp_path / "in"))  # noqa: B023  # runs at once
        assert tally.faults == {kind: 1}
    faults.HANG_S = 30.0
    for name in (".x.json.nar_hw-abc", ".nar_hw.lock", "t.json.part", "tmp/nar_hw-x"):
        (tmp_path / "left" / "tmp").mkdir(parents=True, exist_ok=True)
        (tmp_path / "left" / name).touch()
        assert faults.leftovers(tmp_path / "left") == [name]
        (tmp_path / "left" / name).unlink()
