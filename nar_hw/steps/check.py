"""What `nar-hw space --check` does, from Python."""

from pathlib import Path
from typing import Any

from nar_hw.errors import RuntimeUnavailableError, unknown_name
from nar_hw.export.splice import ChildExporter
from nar_hw.export.tensorrt import LIBRARIES, parser_verdicts
from nar_hw.files import Scratch
from nar_hw.latency.in_context import Join
from nar_hw.space.space import SearchSpace

CHECKS = ("tensorrt",)


def check_space(space: SearchSpace, name: str) -> dict[str, Any]:
    """Which operators of which slots TensorRT's parser refuses, before any search.

    As many children as there are candidates for a slot are exported, so that each candidate of each slot is in one of them.

    Returns:
        parser: its name and version; children: how many were read; refused: slot and operator (None for a node that no slot
        holds, which is in every child), node and reason.

    Raises:
        UnknownNameError: another check than "tensorrt".
        RuntimeUnavailableError: no TensorRT library is installed that starts here.
        ExportError: the network cannot be exported.
    """
    if name not in CHECKS:
        raise unknown_name("check", name, CHECKS)
    exporter, join = ChildExporter(space), Join(space, [])
    most = max(len(slot.candidates) for slot in space.slots)
    archs = [tuple(slot.candidates[turn % len(slot.candidates)] for slot in space.slots) for turn in range(most)]
    with Scratch() as folder:
        files = {str(turn): Path(folder) / f"{turn}.onnx" for turn in range(most)}
        for arch, path in zip(archs, files.values(), strict=True):
            exporter.export(arch, path)
        verdicts = parser_verdicts(files)
    if not verdicts:
        raise RuntimeUnavailableError(f"no TensorRT library is installed that starts here: {LIBRARIES['tensorrt-rtx'].install}")
    slots = {site.conv: position for position, slot in enumerate(space.slots) for site in slot.sites}
    found: dict[tuple[str | None, str | None, str], dict[str, Any]] = {}
    for arch, verdict in zip(archs, verdicts.values(), strict=True):
        for node in verdict.refused:
            position = slots.get(join.site(node["node"]) or "")
            slot = None if position is None else space.slots[position].name
            operator = None if position is None else space.operators[arch[position]]
            key = (slot, operator, node["node"])
            found.setdefault(key, {"slot": slot, "operator": operator, "node": node["node"], "reason": node["reason"]})
    return {"parser": next(iter(verdicts.values())).parser, "children": most, "refused": list(found.values())}
