"""Fingerprints: complete, honest about what is unknown, and comparable."""

import datetime
import json
import os
import platform
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nar_hw.device import machine
from nar_hw.device.machine import parse_cpuinfo
from nar_hw.errors import UnknownNameError
from nar_hw.latency import device
from nar_hw.latency.device import MATTERS, device_slug, differing, fingerprint
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig

INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
stepping\t: 8
flags\t\t: fpu sse4_1 avx avx2 fma avx512f avx512_vnni amx_tile avx512_bf16 amx_int8

processor\t: 1
model name\t: another
"""
ARM = """processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd aes asimdhp asimddp i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
"""


def test_cpuinfo_of_two_architectures() -> None:
    name, isa = parse_cpuinfo(INTEL)
    assert name == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz (model 6-143-8)"
    assert isa is not None
    assert set(isa) == {"sse4_1", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "amx_tile", "avx512_bf16", "amx_int8"}
    name, isa = parse_cpuinfo(ARM)
    assert name == "ARM 0x41-0xd40-0x1"
    assert isa is not None
    assert set(isa) == {"asimd", "asimdhp", "asimddp", "bf16", "i8mm"}
    name, isa = parse_cpuinfo("processor : 0\nhart : 0\n")
    assert isa is None


def test_fingerprint_says_what_there_is_and_null_for_the_rest() -> None:
    config = RuntimeConfig(runtime="torch_eager", batch=4, threads=2, precision="bf16", memory_format="channels_last")
    found = fingerprint(config)
    assert json.loads(json.dumps(found)) == found
    assert found["runtime_version"] == found["torch"] == torch.__version__
    assert {key: found[key] for key in ("runtime", "batch", "threads", "precision", "memory_format")} == {
        "runtime": "torch_eager",
        "batch": 4,
        "threads": 2,
        "precision": "bf16",
        "memory_format": "channels_last",
    }
    assert (found["kind"], found["python"]) == ("cpu", platform.python_version())
    assert found["device"] == found["cpu"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert [found[key] for key in ("compute_capability", "driver", "cuda", "cudnn")] == [None] * 4
    written = datetime.datetime.fromisoformat(found["date"])
    assert abs(datetime.datetime.now(datetime.UTC) - written) < datetime.timedelta(minutes=1)


def test_a_machine_without_cpuinfo_has_no_invented_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere:
        def __init__(self, path: str) -> None:
            assert path == "/proc/cpuinfo"

        def is_file(self) -> bool:
            return False

    monkeypatch.setattr(machine, "Path", Nowhere)
    monkeypatch.setattr(device.platform, "processor", lambda: "")
    found = fingerprint(RuntimeConfig(runtime="torch_eager"))
    assert (found["cpu"], found["isa"]) == (None, None)
    assert device_slug(found) == "unknown-device"


def test_a_gpu_is_named_with_its_capability_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(device, "_driver", lambda: "570.1")
    config = RuntimeConfig(runtime="torch_eager", device="cuda:1")
    found = fingerprint(config)
    assert found["device"] == "NVIDIA H100 80GB HBM3"
    assert (found["kind"], found["compute_capability"], found["driver"], found["cudnn"]) == ("cuda", "9.0", "570.1", "91900")
    assert device_slug(found) == "h100-80gb-hbm3"
    assert fingerprint(replace(config, device="cuda:2"))["device"] is None


def test_without_a_driver_there_is_no_version() -> None:
    if torch.cuda.is_available():
        version = device._driver()
        assert version is not None
        assert version[0].isdigit()
    else:
        assert device._driver() is None or not torch.version.cuda


def test_the_fake_device_is_never_taken_for_this_machine() -> None:
    found = fingerprint(RuntimeConfig(runtime="fake"))
    assert (found["device"], found["kind"]) == ("fake device", "fake")
    assert "device" in differing(found, fingerprint(RuntimeConfig(runtime="torch_eager")))


def test_unknown_runtime() -> None:
    with pytest.raises(UnknownNameError, match="unknown runtime 'tensorflow'"):
        fingerprint(RuntimeConfig(runtime="tensorflow"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "another"),
        ("isa", ["avx2"]),
        ("runtime", "openvino"),
        ("runtime_version", "99.1.0"),
        ("precision", "int8"),
        ("batch", 64),
        ("threads", 3),
        ("memory_format", "channels_last"),
    ],
)
def test_each_field_that_matters_is_reported(field: str, value: Any) -> None:
    first = fingerprint(RuntimeConfig(runtime="torch_eager"))
    assert field in MATTERS
    assert differing(first, {**first, field: value}) == [field]
    assert differing({**first, field: None}, first) == [field]


def test_fields_that_do_not_matter_are_not_reported() -> None:
    first = fingerprint(RuntimeConfig(runtime="torch_eager"))
    other = {**first, "date": "1999", "os": "Plan 9", "python": "3.99", "cores": 999}
    assert differing(first, other) == []
    version = {**first, "runtime_version": "2.15.1+cu130"}
    assert differing(version, {**version, "runtime_version": "2.15.0+cpu"}) == []
    assert differing(version, {**version, "runtime_version": "2.16.1+cu130"}) == ["runtime_version"]
    gpu = {**first, "kind": "cuda", "device": "NVIDIA L4"}
    assert differing(gpu, {**gpu, "isa": ["avx2"]}) == []


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz (model 6-158-10)", "intel-core-i7-9750h"),
        ("Intel(R) Xeon(R) Processor (model 6-143-8)", "intel-xeon-model-6-143-8"),
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763-64-core"),
        ("ARM 0x41-0xd40-0x1", "arm-0x41-0xd40-0x1"),
    ],
)
def test_slugs(name: str, slug: str) -> None:
    assert device_slug({"device": name}) == slug
