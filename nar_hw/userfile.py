"""Functions in a user's own file, named ``path/to/file.py:function``."""

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from nar_hw.errors import UserError


def is_file_name(name: str) -> bool:
    """Whether ``name`` speaks of a function in a file."""
    return name.endswith(".py") or ".py:" in name


def load_function(name: str, *, what: str, error: type[UserError]) -> Callable[..., Any]:
    """What ``name`` = ``path/to/file.py:function`` stands for; ``what`` is a word for messages.

    The file's folder can be imported from while it loads. Raises ``error`` when the file or the function is missing or raises.
    """
    file, _, attribute = name.rpartition(":")
    path = Path(file)
    if not file.endswith(".py") or not attribute:
        raise error(f"your own {what} is named path/to/file.py:function, but got {name!r}: add the function")
    if not path.is_file():
        raise error(f"{what} {name!r} must name a Python file, but {path} does not exist")
    with importable(path.resolve().parent):
        function = getattr(_load(path, name, what, error), attribute, None)
    if function is None:
        raise error(f"{what} {name!r} must name a function, but its file has no {attribute!r}")
    if not callable(function):
        raise error(f"{what} {name!r} must name a function, but {attribute!r} is a {type(function).__name__}")
    loaded: Callable[..., Any] = function
    return loaded


def _load(path: Path, name: str, what: str, error: type[UserError]) -> ModuleType:
    key = f"nar_hw_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses and pickle look their classes' module up
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        del sys.modules[key]
        raise error(f"{what} {name!r} must import, but {path} raised {one_line(problem)}") from problem
    return module


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let ``folder`` be imported from."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def one_line(problem: Exception) -> str:
    """The exception's type and text."""
    return f"{type(problem).__name__}: {' '.join(str(problem).split())}"
