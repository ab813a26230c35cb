"""One thread per process: two test workers share two cores. The deployment kit's script, called as from a shell."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

Shell = Callable[..., tuple[int, str, str]]


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
