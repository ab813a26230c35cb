"""Values that options take: one parser for each kind, with limits that are checked before anything else happens."""

import re
import shlex
import time

import pytest
import torch
from torch import nn

from nar_hw.cli.values import MOST_THREADS, OptionError
from nar_hw.data import load_data
from nar_hw.errors import DataError, ModelError, NarError, UserError
from nar_hw.latency.table import shipped_tables
from nar_hw.runtimes import RuntimeConfig
from nar_hw.runtimes.torch_eager import TorchEager
from nar_hw.space.flops import count_module
from nar_hw.space.network import free_memory, images_for, require_memory
from tests.test_cli import Run, refused, run

__all__ = ["run"]  # a fixture

TABLE = shlex.quote(str(shipped_tables()[0]))
SEED = "--seed must be a whole number from 0 to 4294967295, but got"
LONG = "9" * 5000
NET = "--model resnet_digits"
PROFILE = f"profile {NET} --input 1x8x8 -o t.json"
SEARCH = f"search {NET} --data digits --table t.json --out s --target-ms"
STUDY = f"proxy study {NET} --data digits --out s"
SELECT = f"proxy select {NET} --data digits --out s --size"

SHAPES = ("1x²x8", "1x8", "1x0x8", "1x-8x8", f"1x{LONG}x8", "\u0661x8x8", "''")
CASES = [
    *((f"space {NET} --input {shape}", "must be CxHxW, like 3x224x224, but got") for shape in SHAPES),
    ("export x --out y --batch ²", "--batch must be one number or a range like 1-64, from 1 to 1048576, but got '²'"),
    ("export x --out y --batch 8-4", "--batch must be one number or a range"),
    ("export x --out y --batch 1-", "--batch must be one number or a range"),
    ("bench x --batch 1,²", "--batch must be a whole number from 1 to 1048576, but got '²'"),
    ("bench x --batch 1,,2", "--batch must be a whole number from 1 to 1048576, but got ''"),
    ("bench x --rounds 1", "--rounds must be a whole number from 2 to 10000, but got '1'"),
    ("bench x --threads 999999", f"--threads must be a whole number from 1 to {MOST_THREADS}, but got '999999'"),
    (f"{PROFILE} --threads 1000000", f"--threads must be a whole number from 1 to {MOST_THREADS}"),
    (f"{PROFILE} --batch 1000000000", "--batch must be a whole number from 1 to 1048576"),
    (f"{PROFILE} --batch {LONG}", r"--batch must be .*, but got '9{40}'... \(5,000 characters\)"),
    (f"{PROFILE} --validate -1", "--validate must be a whole number from 0 to 10000, but got '-1'"),
    (f"{PROFILE} --budget nan", r"--budget must be a number above 0, at most 1e\+12, but got 'nan'"),
    (f"{PROFILE} --budget -1", "--budget must be a number above 0"),
    (f"{PROFILE} --budget 1e999", "--budget must be a number above 0"),
    (f"{PROFILE} --classes 0", "--classes must be a whole number from 1 to 10000000"),
    (f"{PROFILE} --seed 1.5", f"{SEED} '1.5'"),
    (f"{PROFILE} --seed \u0661", f"{SEED} '\u0661'"),
    (f"{PROFILE} --seed 1_0", f"{SEED} '1_0'"),
    (f"{STUDY} --seed -1", f"{SEED} '-1'"),
    (f"{STUDY} --epochs 0", "--epochs must be a whole number from 1"),
    (f"{STUDY} --lr 0", "--lr must be a number above 0"),
    (f"{SELECT} 5 --seed 4294967296", f"{SEED} '4294967296'"),
    (f"{SELECT} 0", "--size must be a whole number from 1"),
    ("table validate t.json --children -1", "--children must be a whole number from 3 to 10000, but got '-1'"),
    (f"{SEARCH} nan", "--target-ms must be a number above 0"),
    (f"{SEARCH} 1 --batch 1", "--batch must be a whole number from 2 to 1048576, but got '1'"),
    (f"{SEARCH} 1 --max-flops 0", "--max-flops must be a whole number from 1"),
    (f"{SEARCH} 1 --weight inf", "--weight must be a number above 0"),
    (f"train --arch incumbent {NET} --data digits --out s --workers 1000000", "--workers must be a whole number from 0"),
    (f"train --arch incumbent {NET} --data digits --out s --distill 1.5", "--distill must be a number from 0, at most 1"),
    (f"train --arch incumbent {NET} --data folder:~nosuchuser/x --out s", r"~ of a user who exists, but got '~nosuchuser/x'"),
    (f"count {NET} --input 1x8x8 --arch ²,0", "unknown operator '²'"),
    (f"count {NET} --input 1x8x8 --arch {LONG}", "unknown operator '9+'"),
    (f"table predict {TABLE} --arch {LONG}", "unknown operator '9+'"),
    (f"table predict {TABLE} --arch \u0661", "unknown operator '\u0661'"),
    (f"count {NET} --input 1x100000x100000", r"1 image of 1x100000x100000 take 37\.3 GiB or more and .* GiB are free"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), CASES, ids=lambda text: text[:60])
def test_a_value_outside_its_limits_is_one_line(run: Run, line: str, message: str) -> None:
    start = time.monotonic()
    assert re.search(message, refused(run(line)))
    assert time.monotonic() - start < 30


def test_limits_are_in_the_help(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run("profile --help")
    assert code == 0
    for text in ("0..4294967295", f"1..{MOST_THREADS}", "1..1048576", "2..10000", "ABOVE 0 TO 1e+12", "at most 4 a core"):
        assert text in " ".join(out.split())
    assert "1..1048576 or FEWEST-MOST" in run("export --help")[1]


def test_an_error_of_an_option_is_none_of_values() -> None:
    assert issubclass(OptionError, NarError)
    assert not issubclass(OptionError, ValueError)


@pytest.mark.parametrize(
    "size", ["1x8x8x100000", "3x5000x5000x10", "1x8x8x1", "1x²x8x2", f"1x8x8x{LONG}"], ids=lambda size: size[:20]
)
def test_made_data_has_limits(size: str) -> None:
    with pytest.raises(DataError, match="with 2 to 1000 classes of 100 images and at most 536,870,912 values in all of them"):
        load_data(f"fake:{size}")


@pytest.mark.parametrize("device", ["cuda:²", "cuda:", "cuda:99999999", "cpu:0", "gpu"])
def test_a_device_is_cpu_or_cuda(device: str) -> None:
    with pytest.raises(UserError, match="device must be cpu, cuda or cuda:<index>"):
        RuntimeConfig(device=device)


def test_more_threads_than_help_are_refused_where_they_would_run() -> None:
    config = RuntimeConfig(runtime="torch_eager", threads=100_000)  # as a table of another machine may say
    with pytest.raises(UserError, match=rf"threads must be at most {MOST_THREADS} here \(4 a core\), but got 100000"):
        TorchEager(nn.Conv2d(1, 1, 1), (1, 8, 8), config)


class Wide(nn.Module):
    """Little goes in, much comes between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 10_000, 1), nn.ReLU(), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def test_memory_is_estimated_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_memory()
    assert free is not None
    assert 2**20 < free < 2**45
    monkeypatch.setattr("nar_hw.space.network.free_memory", lambda: 64 * 2**30)
    # The output of the ReLU beside its input: 10,000 maps of 4096x4096 float32 each.
    needed = 2 * 4 * 4096**2 * 10_000 / 2**30
    with pytest.raises(ModelError, match=rf"1 image of 1x4096x4096 take {needed:,.1f} GiB or more and 64.0 GiB are free"):
        count_module(Wide(), (1, 4096, 4096))
    require_memory(nn.Conv2d(1, 1, 1), (1, 4096, 4096), 1)
    with pytest.raises(ModelError, match=r"6000000 images of 3x32x32 take 68.7 GiB or more and 64.0 GiB"):
        images_for(nn.Identity(), (3, 32, 32), 6_000_000)
