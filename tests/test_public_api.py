import os
import subprocess
import sys
from pathlib import Path

import pytest

import nar_hw


def test_the_public_names() -> None:
    assert nar_hw.__all__ == sorted(["LatencyTable", "SearchSpace", "export_bundle", "profile", "search"])


@pytest.mark.parametrize("name", nar_hw.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    item = getattr(nar_hw, name)
    assert callable(item)
    assert item.__doc__


def test_search_is_a_function_whatever_was_imported_before() -> None:
    code = "import nar_hw.search.pareto; from nar_hw import search; assert callable(search); import nar_hw.search.loop as loop"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_packages_are_reachable_as_attributes() -> None:
    subprocess.run([sys.executable, "-c", "import nar_hw; nar_hw.models.build_model"], check=True)


def test_importing_needs_neither_torch_nor_a_second() -> None:
    code = "import time, sys; start = time.perf_counter(); import nar_hw; took = time.perf_counter() - start; "
    code += "assert 'torch' not in sys.modules; assert took < 1, took"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nar_hw.nothing  # noqa: B018


def test_a_runtime_reports_nothing_to_its_maker(tmp_path: Path) -> None:
    """ONNX Runtime writes its queue into the home folder when it is imported, unless it is a continuous integration's."""
    keep = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    command = [sys.executable, "-B", "-c", "import nar_hw, onnxruntime"]
    subprocess.run(command, env={**keep, "HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.rglob("*")) == []
