"""Which files a bundle gets: ONNX by the network's precisions, and those that runtimes make for themselves."""

from collections.abc import Sequence

import torch

from nar_hw.errors import ExportError, RuntimeUnavailableError, unknown_name
from nar_hw.runtimes import PRECISIONS, RUNTIMES, Runtime, RuntimeConfig, runtime_class

ONNX = "onnx"
"""The target that is always there."""
FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
"""Precision -> ONNX file."""


def targets() -> dict[str, type[Runtime]]:
    """The runtimes that make files for bundles, by name."""
    return {name: runtime for name in RUNTIMES if (runtime := runtime_class(name)).exports}


def plan(asked: Sequence[str], precisions: Sequence[str], device: str) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """The files to make beside ONNX, as (target, precision), and "target precision" -> why not, for those that cannot be.

    Raises:
        UnknownNameError: an unknown target or precision.
        RuntimeUnavailableError: a target that does not work here.
        ExportError: a precision that none of the targets can have here.
    """
    known = targets()
    for kind, items, names in (("export target", asked, (ONNX, *known)), ("precision", precisions, PRECISIONS)):
        for name in items:
            if name not in names:
                raise unknown_name(kind, name, names)
    made: list[tuple[str, str]] = []
    left_out: dict[str, str] = {}
    for target in dict.fromkeys(asked):
        if target == ONNX:
            continue
        runtime = known[target]
        if reason := runtime.unavailable(config_for(target, "fp32", device)):
            raise RuntimeUnavailableError(reason)
        for precision in dict.fromkeys(precisions):
            reason = f"{target} has {', '.join(runtime.exports)}"
            if precision in runtime.exports:
                reason = runtime.unavailable(config_for(target, precision, device)) or ""
            if reason:
                left_out[f"{target} {precision}"] = reason
            else:
                made.append((target, precision))
    possible = {*FILES, *(precision for _, precision in made)}
    for precision in precisions:
        if precision not in possible:
            reasons = "; ".join(reason for name, reason in left_out.items() if name.endswith(f" {precision}"))
            able = [name for name, runtime in known.items() if precision in runtime.exports]
            raise ExportError(
                f"{precision} needs a target that has it, but onnx has {', '.join(FILES)}"
                f"{f' and {reasons}' if reasons else ''}: use --to with one of {', '.join(able)}"
            )
    return made, left_out


def config_for(target: str, precision: str, device: str, batch: int = 1) -> RuntimeConfig:
    """How a target's file is run: on ``device``, or where the runtime does not know it, on the first that it knows."""
    devices = runtime_class(target).devices
    return RuntimeConfig(
        runtime=target,
        precision=precision,
        batch=batch,
        device=device if device.partition(":")[0] in devices else devices[0],
        threads=torch.get_num_threads(),
    )
