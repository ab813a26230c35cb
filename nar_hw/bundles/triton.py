"""A bundle as a model of a Triton Inference Server repository: <name>/config.pbtxt, labels.txt and 1/model.onnx or model.plan."""

import json
import re
import shutil
from pathlib import Path

from nar_hw.bundles.manifest import Bundle, Output, load_bundle
from nar_hw.bundles.targets import ONNX, targets
from nar_hw.errors import ExportError, unknown_name
from nar_hw.files import atomic_folder
from nar_hw.locks import writing
from nar_hw.runtimes import runtime_class
from nar_hw.runtimes.exporting import Triton


def backends() -> dict[str, Triton]:
    """Target -> Triton's backend and the file that it looks for."""
    runtimes = {ONNX: runtime_class("onnxruntime"), **targets()}
    return {target: runtime.triton for target, runtime in runtimes.items() if runtime.triton is not None}


def triton_model(
    bundle: Path | str, repository: Path | str, *, target: str = "onnx", precision: str = "fp32", name: str | None = None
) -> Path:
    """Add a bundle to a model repository, which is made where it does not exist; returns the model's folder.

    Args:
        bundle: the bundle.
        repository: the folder that is given to tritonserver with --model-repository.
        target: "onnx", or "tensorrt" for an engine of the bundle.
        precision: which of the bundle's.
        name: what clients call it; by default the name of the network.

    Raises:
        UnknownNameError: another target.
        RunError: the bundle is not whole or lacks the file.
        ExportError: the repository has a model of this name, or Triton could not serve it.
    """
    known = backends()
    if target not in known:
        raise unknown_name("Triton target", target, known)
    found = load_bundle(bundle)
    source, batch = _source(found, target, precision)
    called = re.sub(r"[^A-Za-z0-9_.-]+", "_", found.manifest.model.name) if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", called):
        raise ExportError(f"a Triton model's name may have letters, digits, '_', '.' and '-' only, but is {called!r}: use --name")
    out = Path(repository) / called
    if out.exists():
        raise ExportError(f"repository {repository} has a model {called} already: remove it or use another name")
    if batch[0] > 1 and batch[0] != batch[1]:
        raise ExportError(
            f"Triton sends single images too, but the bundle takes {batch[0]} at least: export it with --batch 1-..."
        )
    try:
        with writing(out, whole=True), atomic_folder(out) as new:
            (new / "1").mkdir()
            shutil.copyfile(source, new / "1" / known[target].file)
            if found.manifest.classes:
                labels = (" ".join(label.split()) for label in found.manifest.classes)
                (new / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
            (new / "config.pbtxt").write_text(_config(found, called, known[target].backend, batch), encoding="utf-8")
    except OSError as problem:
        raise ExportError(f"{out} cannot be written: {problem}") from problem
    return out


def _source(bundle: Bundle, target: str, precision: str) -> tuple[Path, tuple[int, int]]:
    if target == ONNX:
        return bundle.onnx(precision), bundle.manifest.input.batch
    files = bundle.manifest.compiled.get(target, {})
    if precision not in files:
        have = ", ".join(files) or "none"
        raise ExportError(f"bundle {bundle.path} must have {target} in {precision}, but has {have}: export it with --to {target}")
    return bundle.path / files[precision].file, files[precision].batch


def _output(output: Output, sizes: list[int], labels: list[str]) -> str:
    lines = [f'    name: "{output.name}"', "    data_type: TYPE_FP32", f"    dims: {[*sizes, *output.shape]}", *labels]
    return "\n".join(["  {", *lines, "  }"])


def _config(bundle: Bundle, name: str, backend: str, batch: tuple[int, int]) -> str:
    manifest, preparation = bundle.manifest, bundle.manifest.preprocessing
    fixed = batch[0] == batch[1] > 1  # a dimension like the others: Triton neither splits nor collects such requests
    sizes = [batch[0]] if fixed else []
    labels = ['    label_filename: "labels.txt"'] if manifest.classes else []
    normalisation = json.dumps({name: getattr(preparation, name) for name in ("divide_by", "mean", "std")})
    lines = [
        f'name: "{name}"',
        f'backend: "{backend}"',
        f"max_batch_size: {0 if fixed else batch[1]}",
        "input [",
        "  {",
        '    name: "input"',
        "    data_type: TYPE_FP32",
        f"    dims: {[*sizes, *manifest.input.shape]}",
        "  }",
        "]",
        "output [",
        *",\n".join(_output(output, sizes, labels) for output in manifest.outputs).split("\n"),
        "]",
        *([] if fixed or batch[1] == 1 else ["dynamic_batching { }"]),
        "parameters {",
        '  key: "preprocessing"',
        f"  value {{ string_value: {json.dumps(normalisation)} }}",
        "}",
    ]
    return "\n".join(lines) + "\n"
