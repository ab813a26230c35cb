"""Each module imports only from its left."""

import ast
from pathlib import Path

import pytest

import nar_hw

ROOT = Path(nar_hw.__file__).parent
ORDER = [
    ["device"],
    ["_version", "errors", "files", "garbage", "locks", "records", "userfile"],
    ["space"],
    ["models"],
    ["distributed"],
    ["export"],
    ["runtimes"],
    ["latency"],
    ["data"],
    ["tasks"],
    ["training"],
    ["faces"],
    ["bundles"],
    ["search"],
    ["proxy"],
    ["bench"],
    ["report"],
    ["steps"],
    ["sweep"],
    ["cli"],
    ["testing"],
    ["__main__"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
MODULES = sorted(ROOT.rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """The rooms that a module imports from; "" for nar_hw itself, whose public names stand to the right of all."""
    names = set()
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        names |= {f"{module}.".split(".")[1] for module in modules if module.split(".")[0] == "nar_hw"}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path: Path) -> None:
    if path == ROOT / "__init__.py":
        return
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert here in RANK, f"{here} has no place in the order"
    for name in imported(ast.parse(path.read_text())):
        assert name, f"{path.name} imports from nar_hw itself: import from the module that defines it"
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
    assert uses("openvino") <= {"device/openvino.py", "export/openvino.py", "runtimes/openvino.py"}
    assert uses("ai_edge_litert") <= {"device/litert.py", "export/litert.py"}
    assert uses("flatbuffers") <= {"export/litert.py"}
    assert uses("ncnn") <= {"device/ncnn.py"}
    assert uses("MNN") <= {"device/mnn.py"}
    assert uses("executorch") <= {"export/executorch.py"}
    assert uses("ray") <= {"sweep/cluster.py"}
    assert uses("timm") <= {"models/by_name.py"}


def test_nothing_is_unpickled() -> None:
    for path in MODULES:
        assert "pickle" not in {
            alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import) for alias in node.names
        }
