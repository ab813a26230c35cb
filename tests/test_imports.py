"""Each module imports only from its left."""

import ast
from pathlib import Path

import pytest

import nar_hw

ROOT = Path(nar_hw.__file__).parent
ORDER = [
    ["errors", "files"],
    ["recipes", "tensorboard", "userfile"],
    ["checkpoints", "precision"],
    ["operators"],
    ["network"],
    ["trace"],
    ["fixed"],
    ["space"],
    ["ranks"],
    ["flops", "models"],
    ["runs"],
    ["children"],
    ["export"],
    ["runtimes"],
    ["bundle"],
    ["latency"],
    ["data", "tasks"],
    ["training"],
    ["search"],
    ["proxy"],
    ["meters"],
    ["benchmark"],
    ["report"],
    ["pipeline"],
    ["deployment"],
    ["demo"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
BUNDLES = {"export/bundle.py", "export/judge.py", "export/targets.py", "export/verify.py"}
"""Of export, but they run the files that they make."""
MODULES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    if path.relative_to(ROOT).as_posix() in BUNDLES:
        return "bundle"
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nar_hw."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("nar_hw.")}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path: Path) -> None:
    if path == ROOT / "__init__.py":
        return
    here = room(path)
    assert here in RANK, f"{here} has no place in the order"
    for name in imported(ast.parse(path.read_text())):
        assert RANK[name] <= RANK[here], f"{path.name} imports nar_hw.{name}, which stands to its right"


def uses(module: str) -> set[str]:
    found = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            if any(name == module or name.startswith(f"{module}.") for name in names):
                found.add(str(path.relative_to(ROOT)))
    return found


def test_optional_packages_are_imported_in_their_own_files_only() -> None:
    assert uses("tensorrt") <= {"export/tensorrt.py", "runtimes/tensorrt.py"}
    assert uses("openvino") <= {"export/openvino.py", "runtimes/openvino.py"}
    assert uses("timm") <= {"models/by_name.py"}


def test_nothing_is_unpickled() -> None:
    for path in MODULES:
        assert "pickle" not in {
            alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import) for alias in node.names
        }
