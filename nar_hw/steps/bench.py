"""What `nar-hw bench` does, from Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.progress import Progress

from nar_hw.bench.benchmark import bench, unusable
from nar_hw.bench.rows import BenchFile, LeftOut, compare
from nar_hw.bundles.manifest import load_bundle
from nar_hw.errors import RunError, RuntimeUnavailableError
from nar_hw.records import plain
from nar_hw.runtimes import RuntimeConfig


def bench_bundles(
    bundles: Mapping[str, Path], configs: Sequence[RuntimeConfig], *, rounds: int = 30, progress: Progress | None = None
) -> BenchFile:
    """Every bundle under every config that all of them can run; two are compared, of more every one with the first.

    Raises RunError for a folder that is no bundle, RuntimeUnavailableError where no config is left, and MeasurementError as
    `nar_hw.bench.benchmark.bench`.
    """
    opened = {name: load_bundle(path) for name, path in bundles.items()}
    shapes = {name: bundle.manifest.input.shape for name, bundle in opened.items()}
    if len(set(shapes.values())) > 1:
        raise RunError(f"bundles must have the same input shape to be compared, but have {shapes}")
    reasons = {config: [unusable(bundle, config) for bundle in opened.values()] for config in configs}
    left_out = [LeftOut(**plain(config), reason=next(filter(None, why))) for config, why in reasons.items() if any(why)]
    possible = [config for config, why in reasons.items() if not any(why)]
    if left_out and not possible:
        raise RuntimeUnavailableError(left_out[0].reason)
    rows = bench(bundles, input_shape=next(iter(shapes.values())), configs=possible, rounds=rounds, progress=progress)
    subjects = [[row for row in rows if row.subject == name] for name in bundles]
    pairs = [subjects] if len(subjects) == 2 else [[subject, subjects[0]] for subject in subjects[1:]]
    comparisons = tuple(item for pair in pairs for item in compare(*pair))
    return BenchFile(rows=tuple(rows), comparisons=comparisons, left_out=tuple(left_out))
