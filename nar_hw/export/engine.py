"""What lies beside a TensorRT engine: an engine cannot say what it was made of, and a damaged or foreign one can crash."""

import hashlib
import re
from pathlib import Path

from nar_hw.errors import RunError
from nar_hw.records import Record, read_record

SCHEMA = 1


class EngineInfo(Record, frozen=True, kw_only=True):
    """What an engine was made of, how, and where it runs."""

    engine_sha256: str
    onnx_sha256: str
    timing_cache_sha256: str
    """Of the cache as this build left it."""
    tensorrt: str
    """The version that built it."""
    gpu: str
    compute_capability: str
    """"8.9"."""
    precision: str
    batch: tuple[int, int, int]
    """(min, opt, max) images."""
    workspace_mib: int
    optimization_level: int
    version_compatible: bool
    hardware_compatibility: str | None
    refit: bool
    metadata: dict[str, str]
    """What the ONNX file says of itself: for files of a bundle the model, its classes and normalisation, as JSON texts."""

    def __post_init__(self) -> None:
        """Raises RunError for versions without a number."""
        for name in ("tensorrt", "compute_capability"):
            if not numbers(getattr(self, name)):
                raise RunError(f"{name} must be a version, but is {getattr(self, name)!r}")


def info_file(engine: Path) -> Path:
    """Where the `EngineInfo` of an engine lies: model.engine.json for model.engine."""
    return engine.with_name(f"{engine.name}.json")


def read_engine(path: Path) -> tuple[bytes, EngineInfo]:
    """An engine whose hash is the noted one. Raises RunError when it or its info is missing or was changed."""
    info = read_record(info_file(path), EngineInfo, what="engine info", schema=SCHEMA, fix="build the engine again")
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
    same = info.compute_capability == capability
    fits = {
        None: same and info.gpu == gpu,
        "same_compute_capability": same,
        "ampere_plus": numbers(capability) >= (8, 0),
    }
    if not fits.get(info.hardware_compatibility, False):
        return f"was built for {info.gpu} (compute capability {info.compute_capability}), but this is {gpu} ({capability})"
    return None


def numbers(version: str) -> tuple[int, ...]:
    """(10, 16, 1, 11) for "10.16.1.11"."""
    return tuple(map(int, re.findall(r"\d{1,9}", version)))
