"""What lies beside a TensorRT engine: an engine cannot say what it was made of, and a damaged or foreign one can crash."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from nar_hw.errors import RunError
from nar_hw.files import misfits, read_json

SCHEMA = 2


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What an engine was made of, how, and where it runs."""

    schema: int
    library: str
    """ "tensorrt" or "tensorrt-rtx"."""
    engine_sha256: str
    onnx_sha256: str
    timing_cache_sha256: str | None
    """Of the cache as this build left it; None where the library keeps none."""
    tensorrt: str
    """The version of the library that built it."""
    gpu: str | None
    """On which it was built; None where it was built for capabilities, without a GPU."""
    compute_capabilities: tuple[str, ...]
    """Where it runs: "8.9"."""
    precision: str
    datatypes: dict[str, int]
    """How many convolutions and matrix products compute in each type, as TensorRT tells ("Int8", "Float")."""
    batch: tuple[int, int, int]
    """(min, opt, max) images."""
    workspace_mib: int
    optimization_level: int | None
    version_compatible: bool
    hardware_compatibility: str | None
    refit: bool
    metadata: dict[str, str]
    """What the ONNX file says of itself: for files of a bundle the model, its classes and normalisation, as JSON texts."""


def info_file(engine: Path) -> Path:
    """Where the `EngineInfo` of an engine lies: model.engine.json for model.engine."""
    return engine.with_name(f"{engine.name}.json")


def read_engine(path: Path) -> tuple[bytes, EngineInfo]:
    """An engine whose hash is the noted one. Raises RunError when it or its info is missing or was changed."""
    info = _read_info(info_file(path))
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise RunError(f"engine {path} cannot be read: {problem}") from None
    if (actual := hashlib.sha256(data).hexdigest()) != info.engine_sha256:
        raise RunError(
            f"engine {path} must have the SHA-256 {info.engine_sha256[:12]!r}... that {info_file(path).name} notes, but has "
            f"{actual[:12]}...: build it again"
        )
    return data, info


def misfit(info: EngineInfo, version: str, gpu: str, capability: str) -> str | None:
    """Why an engine does not run in this version of TensorRT on this GPU; None when it does."""
    built, here = numbers(info.tensorrt), numbers(version)
    if not (built == here or (info.version_compatible and built[0] == here[0] and built <= here)):
        return f"was built by TensorRT {info.tensorrt}, but this is {version}"
    same = capability in info.compute_capabilities
    fits = {
        None: same and info.gpu in (gpu, None),
        "same_compute_capability": same,
        "ampere_plus": numbers(capability) >= (8, 0),
    }
    if not fits.get(info.hardware_compatibility, False):
        built_for = f"compute capability {', '.join(info.compute_capabilities)}"
        return f"was built for {f'{info.gpu} ({built_for})' if info.gpu else built_for}, but this is {gpu} ({capability})"
    return None


def numbers(version: str) -> tuple[int, ...]:
    """(10, 16, 1, 11) for "10.16.1.11"."""
    return tuple(map(int, re.findall(r"\d{1,9}", version)))


def _read_info(file: Path) -> EngineInfo:
    values = read_json(file, what="engine info")
    if values.get("schema") == 1:  # before TensorRT for RTX
        values |= {"schema": SCHEMA, "library": "tensorrt", "datatypes": {}}
        values["compute_capabilities"] = [values.pop("compute_capability", None)]
    if values.get("schema") != SCHEMA:
        raise RunError(f"{file} must have schema {SCHEMA}, but has {repr(values.get('schema'))[:60]}: build the engine again")
    wrong = misfits(EngineInfo, values)
    if "tensorrt" not in wrong and not numbers(values["tensorrt"]):
        wrong.append("tensorrt")
    if "compute_capabilities" not in wrong and not all(map(numbers, values["compute_capabilities"] or [""])):
        wrong.append("compute_capabilities")
    if "library" not in wrong and values["library"] not in ("tensorrt", "tensorrt-rtx"):
        wrong.append("library")
    if wrong:
        raise RunError(f"{file} is damaged ({', '.join(map(repr, wrong))[:200]}): build the engine again")
    tuples = {name: tuple(values[name]) for name in ("batch", "compute_capabilities")}
    return EngineInfo(**{**values, **tuples})
