"""Children by name: the archs of the NAR paper, to be trained on any data of theirs (export/children/*.json)."""

import json
from dataclasses import dataclass
from importlib.resources import as_file, files

from nar_hw.errors import unknown_name
from nar_hw.models.info import ModelInfo


@dataclass(frozen=True, kw_only=True)
class NamedChild:
    """A network and the operators in its slots."""

    model: ModelInfo
    """With the paper's input and number of outputs; others may be asked for."""
    arch: tuple[str, ...]
    """Operator names, one per slot."""
    classes: tuple[str, ...]
    """Numbers from 0; none for embeddings."""
    mean: tuple[float, ...]
    """Normalisation per channel, for pixels in [0, 1]."""
    std: tuple[float, ...]
    about: str
    """Where it comes from."""


def child_names() -> list[str]:
    """The names of the children that ship with nar_hw, sorted."""
    names = [item.name for item in files("nar_hw.children_data").iterdir()]
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def named_child(name: str) -> NamedChild:
    """The child called ``name``. Raises UnknownNameError."""
    if name not in child_names():
        raise unknown_name("child", name, child_names())
    with as_file(files("nar_hw.children_data") / f"{name}.json") as path:
        value = json.loads(path.read_text(encoding="utf-8"))
        model = ModelInfo.from_json(value["model"], path=path)
    lists = {key: tuple(value[key]) for key in ("arch", "mean", "std")}
    return NamedChild(model=model, about=value["about"], classes=tuple(map(str, range(value["classes"]))), **lists)
