"""What lies beside a TensorRT engine: an engine cannot say what it was made of, and a damaged or foreign one can crash."""

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

from nar_hw.errors import RunError
from nar_hw.records import Record, read_record

SCHEMA = 2
LibraryName = Literal["tensorrt", "tensorrt-rtx"]


class EngineInfo(Record, frozen=True, kw_only=True):
    """What an engine was made of, how, and where it runs."""

    library: LibraryName
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

    def __post_init__(self) -> None:
        """Raises RunError for versions without a number, and without a compute capability."""
        for version in (self.tensorrt, *(self.compute_capabilities or ("",))):
            if not numbers(version):
                raise RunError(f"tensorrt and compute_capabilities must be versions, but one is {version!r}")


def _upgraded(value: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 knew TensorRT 10 and 11 only, and one GPU."""
    if value.pop("schema") == 1:
        value |= {"library": "tensorrt", "compute_capabilities": [value.pop("compute_capability", None)], "datatypes": {}}
    return value


def info_file(engine: Path) -> Path:
    """Where the `EngineInfo` of an engine lies: model.engine.json for model.engine."""
    return engine.with_name(f"{engine.name}.json")


def read_engine(path: Path) -> tuple[bytes, EngineInfo]:
    """An engine whose hash is the noted one. Raises RunError when it or its info is missing or was changed."""
    info = read_record(
        info_file(path), EngineInfo, what="engine info", schema=SCHEMA, fix="build the engine again", upgrade=_upgraded
    )
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
        return f"was built by {info.library} {info.tensorrt}, but this is {version}"
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
