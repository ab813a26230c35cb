"""Children by name: the archs of the NAR paper, to be trained on any data of theirs (export/children/*.json)."""

from importlib.resources import as_file, files
from typing import Any

from nar_hw.data.preprocessing import Preprocessing
from nar_hw.errors import UserError, unknown_name
from nar_hw.models.info import ModelInfo
from nar_hw.records import Record, read_record


class NamedChild(Record, frozen=True, kw_only=True):
    """A network and the operators in its slots."""

    model: ModelInfo
    """With the paper's input and number of outputs; others may be asked for."""
    arch: tuple[str, ...]
    """Operator names, one per slot."""
    preprocessing: Preprocessing
    about: str
    """Where it comes from."""


def child_names() -> list[str]:
    """The names of the children that ship with nar_hw, sorted."""
    names = [item.name for item in files("nar_hw.children_data").iterdir()]
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def named_child(name: str, *, model: str | None = None) -> NamedChild:
    """The child called ``name``. Raises UnknownNameError, and UserError where it is not of the network ``model``."""
    if name not in child_names():
        raise unknown_name("child", name, child_names())
    with as_file(files("nar_hw.children_data") / f"{name}.json") as path:
        child = read_record(path, NamedChild, what="named child", schema=1, upgrade=_named)
    if model not in (None, child.model.name):
        raise UserError(f"--model must be {child.model.name}, of which {name} is a child, or left out, but got {model}")
    return child


def _named(content: dict[str, Any]) -> dict[str, Any]:
    """The files say how many classes there are; they are numbered."""
    classes = list(map(str, range(content.pop("classes"))))
    rest = {key: value for key, value in content.items() if key not in ("schema", "mean", "std")}
    return {**rest, "preprocessing": {"mean": content["mean"], "std": content["std"], "classes": classes}}
