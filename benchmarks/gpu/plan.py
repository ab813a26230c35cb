"""What a session measures, in full and in miniature."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.runner import NotReadyError
from nar_hw.bundles.children import named_child
from nar_hw.files import read_json
from nar_hw.models.info import ModelInfo
from nar_hw.records import replace
from nar_hw.runtimes import RuntimeConfig, runtime_class
from nar_hw.search.config import SearchConfig
from nar_hw.space.operators import PAPER_OPERATORS
from nar_hw.training.recipes import RECIPES, Recipe

ROOT = Path(__file__).parents[2]
FOUR = tuple(PAPER_OPERATORS[:4])
RESNET18 = ModelInfo(name="resnet18", input_shape=(3, 32, 32), num_classes=10, operators=FOUR)
NETWORKS = (
    RESNET18,
    replace(RESNET18, input_shape=(3, 224, 224), num_classes=1000),
    ModelInfo(name="resnet50", input_shape=(3, 224, 224), num_classes=1000, operators=FOUR),
    ModelInfo(name="lresnet50e_ir", input_shape=(3, 112, 112), num_classes=512, operators=FOUR, manner="block"),
)
SLOTS = 16
PAPER_CHILDREN = {
    # one choice per block stands for both convolutions of it
    name: tuple(FOUR.index(operator) for operator in child.arch for _ in range(SLOTS // len(child.arch)))
    for name in ("resnet18-8", "resnet18-16")
    for child in (named_child(name),)
}
COMPILED = ("torch_compile", "aoti")
"""Runtimes that take many seconds to load a network."""


@dataclass(frozen=True, kw_only=True)
class TableJob:
    """One latency table."""

    network: ModelInfo
    config: RuntimeConfig
    method: str

    @property
    def key(self) -> str:
        return f"{short(self.network)} {called(self.config)} {self.method}"

    @property
    def stem(self) -> str:
        """What follows the device in the name of its file; what goes without saying is left out."""
        config = self.config
        usual = "in-context" if runtime_class(config.runtime).layers_on(config) else "regression"
        more = ("" if config.batch == 1 else f"-batch{config.batch}") + ("" if self.method == usual else f"-{self.method}")
        return f"{config.runtime}__{config.precision}__{short(self.network)}{more}"


def short(network: ModelInfo) -> str:
    """Name and input; of a network in a file, the name of its function."""
    return f"{network.name.rpartition(':')[2]}-{'x'.join(map(str, network.input_shape))}"


def called(config: RuntimeConfig) -> str:
    place = "" if config.device_type == "cuda" else " on the CPU"
    return f"{config.runtime} {config.precision} batch {config.batch}{place}"


@dataclass(frozen=True, kw_only=True)
class SupernetCase:
    """A supernet to train."""

    network: ModelInfo
    batch: int
    identities: int | None = None
    """Faces to tell apart; None for a classifier."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of all stages."""

    device: str
    noise: tuple[RuntimeConfig, ...]
    """In which `network` is measured beside a copy of itself."""
    rounds: int
    """Of every comparison."""
    tables: tuple[TableJob, ...]
    held_out: int
    """Children that validate a table."""
    table_s: float
    """Seconds for a table in a runtime that loads fast."""
    loop_images: int
    loop_batch: int
    supernets: tuple[SupernetCase, ...]
    steps: int
    """Training steps that are timed together."""
    network: ModelInfo
    """Trained, searched and exported."""
    data: str
    recipe: Recipe
    fine_tuning: Recipe
    seeds: tuple[int, ...]
    search: SearchConfig
    search_tables: tuple[TableJob, ...]
    """A search takes the first whose range holds the target."""
    shares: tuple[float, ...]
    """Of the network's latency: the first that any of the tables reaches is the target."""
    paper_children: dict[str, tuple[int, ...]]
    bundles: tuple[tuple[str, tuple[str, ...], tuple[int, int]], ...]
    """(target, precisions, batch) of each bundle of a network."""
    benches: tuple[RuntimeConfig, ...]


@dataclass(frozen=True, kw_only=True)
class Session:
    """A plan, and where its results lie."""

    plan: Plan
    out: Path
    """Results to keep, all small."""
    work: Path
    """Checkpoints, weights, bundles, unfinished profiles."""
    data_root: Path | None

    def file(self, stage: str) -> Path:
        return self.out / f"{stage}.json"

    def found(self, stage: str, key: str) -> dict[str, Any]:
        """The result of a piece. Raises NotReadyError when it is not finished."""
        path = self.file(stage)
        pieces: dict[str, dict[str, Any]] = read_json(path)["pieces"] if path.exists() else {}
        if key not in pieces:
            raise NotReadyError(f"{key!r} of stage {stage}")
        return pieces[key]


def on_gpu(runtime: str, precision: str, batch: int) -> RuntimeConfig:
    """fp16 with the channels innermost, as tensor cores like them, where the runtime lets one choose."""
    inner = precision == "fp16" and "channels_last" in runtime_class(runtime).memory_formats
    return RuntimeConfig(
        runtime=runtime,
        precision=precision,
        batch=batch,
        device="cuda",
        memory_format="channels_last" if inner else "contiguous",
    )


def _table_jobs() -> tuple[TableJob, ...]:
    """What the other stages need and what loads fast first."""
    ways = [("cuda_graph", "regression"), ("torch_eager", "in-context"), ("torch_eager", "regression")]
    ways += [(runtime, "regression") for runtime in COMPILED]
    return tuple(
        TableJob(network=network, config=on_gpu(runtime, precision, batch), method=method)
        for runtime, method in ways
        for network in NETWORKS
        for precision in ("fp16", "fp32")
        for batch in (1, 64)
    )


def full() -> Plan:
    tables = _table_jobs()
    return Plan(
        device="cuda",
        noise=tuple(
            on_gpu(runtime, precision, batch)
            for runtime in ("cuda_graph", "torch_eager")
            for precision in ("fp16", "fp32")
            for batch in (1, 64)
        ),
        rounds=30,
        tables=tables,
        held_out=100,
        table_s=90.0,
        loop_images=20480,
        loop_batch=512,
        supernets=(SupernetCase(network=RESNET18, batch=256), SupernetCase(network=NETWORKS[-1], batch=128, identities=4000)),
        steps=20,
        network=RESNET18,
        data="cifar10",
        recipe=RECIPES["fast"],
        fine_tuning=replace(RECIPES["fast"], epochs=15),
        seeds=(0, 1, 2),
        search=SearchConfig(
            warmup_epochs=10, epochs=20, t_0=30, batch=256, valid_batch=512, precision="bf16", channels_last=True
        ),
        search_tables=tables[:2],
        shares=(0.6, 0.7, 0.8, 0.9),
        paper_children=PAPER_CHILDREN,
        bundles=(
            ("onnx", ("fp32", "fp16"), (1, 256)),
            ("aoti", ("fp32", "fp16"), (1, 1)),
            *(("aoti", ("fp16",), (batch, batch)) for batch in (8, 64, 256)),
        ),
        benches=(
            *(
                on_gpu(runtime, precision, batch)
                for runtime in ("cuda_graph", "aoti", "onnxruntime")
                for batch in (1, 8, 64, 256)
                for precision in ("fp16", "fp32")
                if runtime != "aoti" or precision == "fp16" or batch == 1
            ),
            RuntimeConfig(),
        ),
    )


def smoke() -> Plan:
    """Every stage on the CPU in seconds: its numbers mean nothing."""
    network = ModelInfo(name=f"{ROOT}/tests/networks.py:TinyResNet", input_shape=(3, 8, 8), num_classes=5, operators=FOUR)
    eager, fake = RuntimeConfig(runtime="torch_eager"), RuntimeConfig(runtime="fake")
    tables = (
        TableJob(network=network, config=fake, method="regression"),
        TableJob(network=network, config=eager, method="in-context"),
    )
    recipe = Recipe(epochs=2, batch=64, lr=0.05)
    return Plan(
        device="cpu",
        noise=(eager,),
        rounds=4,
        tables=tables,
        held_out=4,
        table_s=3.0,
        loop_images=128,
        loop_batch=64,
        supernets=(SupernetCase(network=network, batch=16), SupernetCase(network=network, batch=8, identities=20)),
        steps=1,
        network=network,
        data="fake:3x8x8x5",
        recipe=recipe,
        fine_tuning=recipe,
        seeds=(0,),
        search=SearchConfig(
            warmup_epochs=1, epochs=1, batch=64, updates=1, samples=4, valid_batch=16, rescored=2, finalists=1, t_0=2
        ),
        search_tables=tables[:1],
        shares=(0.01, 1.05),
        paper_children={"paper": (1, 0, 2, 0)},
        bundles=(("onnx", ("fp32",), (1, 8)),),
        benches=(fake, RuntimeConfig(batch=2), RuntimeConfig(device="cuda")),
    )
