"""The result of a search on disk: run.json."""

from pathlib import Path
from typing import Any

from nar_hw.errors import RunError
from nar_hw.files import read_json
from nar_hw.models.info import ModelInfo


def read_arch(folder: Path) -> tuple[ModelInfo, tuple[str, ...], dict[str, Any]]:
    """The model, the found arch (names) and all of run.json of a search. Raises RunError."""
    path = folder / "run.json"
    value = read_json(path, what="search result")
    arch = value.get("arch")
    if not isinstance(arch, list) or not all(isinstance(name, str) for name in arch):
        raise RunError(f"{path} must hold the found arch as a list of operator names: the search is not finished")
    return ModelInfo.from_json(value.get("model"), path=path), tuple(arch), value
