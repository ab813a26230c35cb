"""Benchmarks of bundles on devices that have neither torch nor nar_hw: a kit goes there, its times come back as rows."""

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nar_hw.bench.benchmark import row_of, trust, unusable
from nar_hw.bench.rows import BenchFile, compare
from nar_hw.bundles.manifest import load_bundle
from nar_hw.device.measure import PLAN
from nar_hw.errors import RunError, RuntimeUnavailableError
from nar_hw.files import sha256, write_json
from nar_hw.latency.kit import Bench, Plan, Stage, Times, kit_runtime, new_kit
from nar_hw.records import plain
from nar_hw.runtimes import RuntimeConfig

STAGE = "bench"


def write_bench_kit(
    bundles: Mapping[str, Path],
    folder: Path,
    config: RuntimeConfig,
    *,
    rounds: int = 40,
    runtime_version: str | None = None,
) -> Plan:
    """Write what a device needs to time bundles side by side, with their own weights.

    Args:
        bundles: name -> folder of a bundle.
        folder: appears when it is complete; it must not exist, or be empty.
        config: runtime and conditions.
        rounds: visits of each.
        runtime_version: what the device has; by default what is installed here.

    Raises:
        RunError: a folder that is no bundle, or bundles of different input shapes.
        RuntimeUnavailableError: a runtime without kits, or a bundle without a file for it.
        UserError: a folder that is not empty.
    """
    runtime = kit_runtime(config)
    opened = {name: load_bundle(path) for name, path in bundles.items()}
    shapes = {bundle.manifest.input.shape for bundle in opened.values()}
    if len(shapes) > 1:
        raise RunError(f"bundles must have the same input shape to be compared, but have {sorted(shapes)}")
    if reason := next(filter(None, (unusable(bundle, config) for bundle in opened.values())), None):
        raise RuntimeUnavailableError(reason)
    children = []
    with new_kit(folder, runtime) as made:
        for number, bundle in enumerate(opened.values()):
            target = made / "children" / str(number)
            target.mkdir(parents=True)
            main = bundle.file(config.runtime, config.precision, config.batch)
            if main.suffix in runtime.files:
                own = bundle.manifest.compiled[config.runtime][config.precision].files
                files = [main, *(bundle.path / name for name in own if name != main.name)]
            else:
                files = [file for file, _ in runtime.device_files(main, config, target)]
            names = []
            for file in files:
                if file.parent != target:
                    shutil.copyfile(file, target / file.name)
                names.append(f"children/{number}/{file.name}")
            children.append(tuple(names))
        plan = Plan(
            config=config,
            runtime_version=runtime_version or next(iter(runtime.versions().values())),
            input_shape=shapes.pop(),
            weight_bytes=max(sum((made / name).stat().st_size for name in names) for names in children),
            budget_s=None,
            children=tuple(children),
            reference=None,
            stages=(
                Stage(
                    name=STAGE,
                    members=tuple(range(len(children))),
                    profile=False,
                    rounds=rounds,
                    tolerance=0.0,
                    by=1.0,
                    reference=False,
                ),
            ),
            bench=Bench(
                subjects=tuple(opened),
                predicted_ms=tuple(bundle.manifest.latency.predicted_ms for bundle in opened.values()),
                files=tuple(sha256(made / name) for names in children for name in names),
            ),
        )
        write_json(made / PLAN, plain(plan))
    return plan


def bench_from(times: Times) -> BenchFile:
    """What a device measured of bundles. Raises RunError for the times of a profile, MeasurementError for unusable ones."""
    asked, config = times.plan.bench, times.plan.config
    if asked is None:
        raise RunError("a benchmark is made of a benchmark's times, but these are of a profile: use nar-hw profile --from")
    runs = np.array(times.batches[0].runs)[:, :, 1:]  # (rounds, subjects, runs); the first finds the caches of another network
    order = times.batches[0].members
    timed = {(asked.subjects[number], config): np.median(runs[:, item], axis=1) for item, number in enumerate(order)}
    trust(timed)
    session = uuid.uuid4().hex
    rows = tuple(
        row_of(asked.subjects[number], config, runs[:, item].ravel(), values, session, times.fingerprint)
        for (item, number), values in zip(enumerate(order), timed.values(), strict=True)
    )
    pairs = [] if len(rows) < 2 else [compare(rows[:1], rows[1:2])]
    return BenchFile(rows=rows, comparisons=tuple(item for pair in pairs for item in pair))


def predictions(times: Times) -> dict[str, float]:
    """What tables said of the bundles, ms by name; without those of which none did."""
    asked = times.plan.bench
    found = {} if asked is None else dict(zip(asked.subjects, asked.predicted_ms, strict=True))
    return {name: ms for name, ms in found.items() if ms is not None}
