"""What lies beside an engine: read back, refused where it is damaged, and asked where the engine runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from nar_hw.errors import RunError, UserError
from nar_hw.export.engine import SCHEMA, EngineInfo, info_file, misfit, read_engine
from nar_hw.files import sha256, write_json
from nar_hw.records import plain, replace
from tests.faketensorrt import INFO


@pytest.fixture
def info(engine: Path) -> EngineInfo:
    return replace(INFO, engine_sha256=sha256(engine), metadata={"classes": "[]"})


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(bytes(range(256)))
    return path


@pytest.fixture(autouse=True)
def _beside(engine: Path, info: EngineInfo) -> None:
    write_json(info_file(engine), {"schema": SCHEMA, **plain(info)})


def refused(error: type[UserError], start: str, engine: Path) -> str:
    """What reading the engine says: one line that starts like this."""
    with pytest.raises(error) as caught:
        read_engine(engine)
    text = str(caught.value)
    assert text.startswith(start), text
    assert "\n" not in text
    return text


def test_an_engine_is_read_with_its_info(engine: Path, info: EngineInfo) -> None:
    assert read_engine(engine) == (engine.read_bytes(), info)


@pytest.mark.parametrize("place", [0, -1, 100])
def test_a_damaged_engine_is_refused(engine: Path, place: int) -> None:
    data = bytearray(engine.read_bytes())
    data[place] ^= 1
    engine.write_bytes(data)
    assert refused(RunError, f"engine {engine} must have the SHA-256", engine).endswith("build it again")
    engine.unlink()
    refused(RunError, f"engine {engine} cannot be read", engine)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("engine_sha256", "0" * 64, "must have the SHA-256 '000000000000'..."),
        ("engine_sha256", None, "engine_sha256 must be"),
        ("schema", 3, "must have schema 2 or less, but has 3"),
        ("compute_capabilities", [], "must be versions, but one is ''"),
        ("library", "tensorflow", "'tensorflow'"),
        ("batch", [1, 2], "batch"),
        ("batch", [1, 2, "4"], "batch"),
        ("version_compatible", 1, "version_compatible must be"),
        ("hardware_compatibility", 7, "hardware_compatibility must be"),
        ("metadata", {"classes": []}, "metadata"),
        ("tensorrt", "new", "must be versions, but one is 'new'"),
        ("surprise\n", 1, "surprise"),
    ],
)
def test_a_damaged_info_is_refused(engine: Path, field: str, value: Any, message: str) -> None:
    file = info_file(engine)
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    assert message in refused(UserError, "", engine)


def test_an_info_that_is_missing_or_cut_off_is_refused(engine: Path) -> None:
    info_file(engine).write_text('{"schema": 1')
    refused(RunError, f"engine info {info_file(engine)} is not valid JSON", engine)
    info_file(engine).write_text('{"schema": 2}')
    refused(RunError, f"engine info {info_file(engine)}: it must have 'library'", engine)
    info_file(engine).unlink()
    refused(RunError, f"engine info {info_file(engine)} does not exist", engine)


def test_infos_of_schema_1_still_load(engine: Path, info: EngineInfo) -> None:
    value = plain(info)
    del value["datatypes"], value["library"]
    (capability,) = value.pop("compute_capabilities")
    info_file(engine).write_text(json.dumps({**value, "schema": 1, "compute_capability": capability}))
    assert read_engine(engine)[1] == info


AHEAD = {"library": "tensorrt-rtx", "gpu": None, "compute_capabilities": ("8.6", "8.9")}


@pytest.mark.parametrize(
    ("changes", "version", "gpu", "reason"),
    [
        ({}, "10.9.0", ("A", "8.6"), None),
        ({}, "10.10.0", ("A", "8.6"), "was built by tensorrt 10.9.0, but this is 10.10.0"),
        ({}, "10.9.0", ("A", "8.9"), "was built for A (compute capability 8.6), but this is A (8.9)"),
        ({}, "10.9.0", ("B", "8.6"), "was built for A (compute capability 8.6), but this is B (8.6)"),
        ({"version_compatible": True}, "10.10.0", ("A", "8.6"), None),
        ({"version_compatible": True}, "10.8.0", ("A", "8.6"), "was built by tensorrt 10.9.0, but this is 10.8.0"),
        ({"version_compatible": True}, "11.0.0", ("A", "8.6"), "was built by tensorrt 10.9.0, but this is 11.0.0"),
        ({"hardware_compatibility": "same_compute_capability"}, "10.9.0", ("B", "8.6"), None),
        ({"hardware_compatibility": "same_compute_capability"}, "10.9.0", ("B", "8.9"), "was built for A"),
        ({"hardware_compatibility": "ampere_plus"}, "10.9.0", ("B", "12.0"), None),
        ({"hardware_compatibility": "ampere_plus"}, "10.9.0", ("B", "7.5"), "was built for A"),
        ({"hardware_compatibility": "unheard of"}, "10.9.0", ("A", "8.6"), "was built for A"),
        (AHEAD, "10.9.0", ("B", "8.9"), None),
        (AHEAD, "10.9.0", ("B", "9.0"), "was built for compute capability 8.6, 8.9, but this is B (9.0)"),
        (AHEAD, "10.10.0", ("B", "8.9"), "was built by tensorrt-rtx 10.9.0, but this is 10.10.0"),
    ],
)
def test_where_an_engine_runs(changes: dict[str, Any], version: str, gpu: tuple[str, str], reason: str | None) -> None:
    told = misfit(replace(INFO, **changes), version, *gpu)
    assert told == reason or (reason is not None and told is not None and told.startswith(reason))
