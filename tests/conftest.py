"""One thread per process: two test workers share two cores. The deployment kit's script, called as from a shell."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session", autouse=True)
def lease(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of the test worker alone: tests do not wait for each other's measurements, whose times they ask little of."""
    path = tmp_path_factory.mktemp("lease") / "lock"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nar_hw.locks.lease", lambda: path)
        yield


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """export/run.py."""
    spec = importlib.util.spec_from_file_location("run", Path(__file__).parent.parent / "export" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_kit(kit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Runs the script in this process: (exit code, stdout, stderr). Where the code is 2, there is one line on stderr only."""

    def run_kit(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, arguments)])
        code = kit.main()
        out, err = capsys.readouterr()
        assert (code == 2) == (err != "")
        assert code != 2 or (out, err.count("\n")) == ("", 1)
        return code, out, err

    return run_kit
