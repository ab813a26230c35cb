"""A user's own code: functions by ``path/to/file.py:function`` or ``package.module:function``, and what running it may raise."""

import hashlib
import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from nar_hw.errors import ModelError, NarError, UserError

_LIBRARIES = (f"{Path(__file__).parent}{os.sep}", f"{sysconfig.get_path('stdlib')}{os.sep}")
"""Where code lies that is nobody's own, beside what is installed."""


def is_file_name(name: str) -> bool:
    """Whether ``name`` speaks of a function in a file or module of the user's."""
    return name.endswith(".py") or ".py:" in name or _is_dotted(name)


def _is_dotted(name: str) -> bool:
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+:[^\W\d]\w*", name) is not None


def load_function(name: str, *, what: str, error: type[UserError]) -> Callable[..., Any]:
    """What ``name`` stands for: ``path/to/file.py:function``, or ``package.module:function`` from the working folder.

    ``what`` is a word for messages. A file is imported as a part of its package, or of its folder where that is none, so that
    it can import its neighbours, relatively too. Raises ``error`` when file or function is missing or the import fails.
    """
    file, _, attribute = name.rpartition(":")
    if not (file.endswith(".py") or _is_dotted(name)) or not attribute:
        raise error(f"your own {what} is named path/to/file.py:function, but got {name!r}: add the function")
    if file.endswith(".py") and not Path(file).is_file():
        raise error(f"{what} {name!r} must name a Python file, but {file} does not exist: name the file where it lies now")
    with user_code(f"{what} {name!r} must import, but {file}", error), as_a_script(name):
        function = getattr(_imported(file), attribute, None)
    if function is None:
        raise error(f"{what} {name!r} must name a function, but its file has no {attribute!r}")
    if not callable(function):
        raise error(f"{what} {name!r} must name a function, but {attribute!r} is a {type(function).__name__}")
    loaded: Callable[..., Any] = function
    return loaded


def _imported(file: str) -> ModuleType:
    if not file.endswith(".py"):
        return importlib.import_module(file)
    path = Path(file).resolve()
    root = _root(path)
    # Under a name of their own: packages of two users may be called the same, and what was edited is read again.
    alias = f"nar_hw_user_{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"
    for known in [key for key in sys.modules if key == alias or key.startswith(f"{alias}.")]:
        del sys.modules[known]
    if (root / "__init__.py").is_file():
        package = _executed(alias, root / "__init__.py", [str(root)])
    else:
        package = sys.modules[alias] = ModuleType(alias)
        package.__path__ = [str(root)]
    parts = [alias, *path.relative_to(root).parent.parts]
    if path.name == "__init__.py":
        return importlib.import_module(".".join(parts))
    for depth in range(1, len(parts)):
        importlib.import_module(".".join(parts[: depth + 1]))
    return _executed(f"{'.'.join(parts)}.{path.stem.replace('.', '_')}", path)


def _executed(name: str, path: Path, folders: list[str] | None = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=folders)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for known in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[known]
        raise
    return module


def _root(path: Path) -> Path:
    """The folder of the outermost package around a file; its own folder where that is no package."""
    root = path.parent
    while (root / "__init__.py").is_file() and (root.parent / "__init__.py").is_file():
        root = root.parent
    return root


@contextmanager
def as_a_script(name: str) -> Iterator[None]:
    """Let what lies beside a function's file be imported, and hide nar_hw's own arguments, which are not for a user's parser."""
    file = name.rpartition(":")[0]
    folders = [Path.cwd()]
    if file.endswith(".py"):
        root = _root(Path(file).resolve())
        folders = [Path(file).resolve().parent, *([root.parent] if (root / "__init__.py").is_file() else [])]
    arguments, sys.argv = sys.argv, [file]
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        yield
    finally:
        sys.argv = arguments
        for folder in folders:
            if str(folder) in sys.path:
                sys.path.remove(str(folder))


@contextmanager
def user_code(told: str, error: type[UserError] = ModelError) -> Iterator[None]:
    """Within it a user's code runs: whatever that raises becomes an ``error``, "``told`` raised KeyError: 'x' (file, line)".

    Our own errors and Ctrl-C pass as they are; too little memory passes too, for some can answer it with smaller batches.
    """
    try:
        yield
    except (NarError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as problem:  # also SystemExit: sys.exit() of a file must not end this program
        if type(problem).__name__ == "OutOfMemoryError":
            raise
        fix = ": put what only a script does below `if __name__ == '__main__':`" if isinstance(problem, SystemExit) else ""
        raise error(f"{told} raised {described(problem)}{fix}") from problem


def described(problem: BaseException) -> str:
    """An exception's type and text in one line, and the innermost line of the user's own that raised it."""
    text = " ".join(str(problem).split())
    told = f"{type(problem).__name__}: {text if len(text) <= 300 else f'{text[:300]} ...'}" if text else type(problem).__name__
    if isinstance(problem, SyntaxError) and problem.filename:
        return f"{told} ({_shown(problem.filename)}, line {problem.lineno})"
    where = place(traceback.extract_tb(problem.__traceback__))
    return f"{told} ({where})" if where else told


def place(frames: traceback.StackSummary) -> str:
    """File and line of the innermost frame in code of the user's own; "" where there is none."""
    for frame in reversed(frames):
        if not frame.filename.startswith(("<", *_LIBRARIES)) and "-packages" not in frame.filename:
            return f"{_shown(frame.filename)}, line {frame.lineno}"
    return ""


def _shown(file: str) -> str:
    """A path as the user would type it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
