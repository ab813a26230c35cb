"""Stage training: our loop against a minimal one, and a step of a supernet against one of a child."""

import random
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench_training import Unscored, minimal, timed
from benchmarks.gpu.plan import Session, SupernetCase, short
from benchmarks.gpu.runner import Piece
from nar_hw.data import Augmentation, Split, load_data
from nar_hw.faces.heads import FaceHead
from nar_hw.models import build_model
from nar_hw.records import replace
from nar_hw.search.config import SearchConfig
from nar_hw.search.run import optimizer_of
from nar_hw.search.supernet import FairPaths, Supernet
from nar_hw.training.loop import train
from nar_hw.training.precision import autocast
from nar_hw.training.recipes import Precision, Recipe

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
LOOP_ROUNDS, STEP_ROUNDS = 5, 10
FACES_EPOCHS, FACES_IMAGES, FACES_HOURS = 150, 144_000, 10
"""The paper's face search: epochs, training images (4,000 identities x 36) and what it says it took."""


def training(session: Session) -> list[Piece]:
    plan = session.plan
    return [
        *(Piece(f"loop {precision}", lambda precision=precision: loop(session, precision)) for precision in PRECISIONS),
        *(
            Piece(
                f"supernet {short(case.network)}{'' if case.identities is None else ' faces'} {precision}",
                lambda case=case, precision=precision: supernet_step(session, case, precision),
            )
            for case in plan.supernets
            for precision in PRECISIONS
        ),
    ]


class Cast(nn.Module):
    """A network in lower precision with the channels innermost, as our loop runs it."""

    def __init__(self, network: nn.Module, device: torch.device, precision: Precision) -> None:
        super().__init__()
        self.network, self.device, self.precision = network, device, precision

    def forward(self, images: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            output: Tensor = self.network(laid_out(images, self.precision))
        return output.float()


def laid_out(tensor: Any, precision: Precision) -> Any:
    """Images or a module as this precision likes them."""
    if precision == "fp32":
        return tensor
    layout = {"memory_format": torch.channels_last}
    return tensor.to(**layout) if isinstance(tensor, nn.Module) else tensor.contiguous(**layout)


def loop(session: Session, precision: Precision) -> dict[str, Any]:
    """Epochs of `train`, which augments and checks the loss, and of a minimal loop, which does not, in turn."""
    plan, info, device = session.plan, session.plan.network, torch.device(session.plan.device)
    rng, count = np.random.default_rng(0), session.plan.loop_images
    data = replace(
        load_data(f"fake:{'x'.join(map(str, info.input_shape))}x{info.num_classes}"),
        augmentation=Augmentation(crop_padding=4, flip=True),
        train=Split(
            images=rng.integers(0, 256, (count, *info.input_shape), dtype=np.uint8),
            labels=rng.integers(0, info.num_classes, count),
            indices=np.arange(count),
            source="noise",
        ),
    )
    task = Unscored(data, device)
    recipe = Recipe(epochs=1, batch=plan.loop_batch, lr=0.01, precision=precision, channels_last=precision != "fp32")
    images = torch.randn(count, *info.input_shape, device=device)
    labels = torch.from_numpy(data.train.labels).to(device)
    ours, theirs = (
        build_model(info.name, input_shape=info.input_shape, num_classes=info.num_classes).to(device) for _ in range(2)
    )
    plain = Cast(laid_out(theirs, precision), device, precision)
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: train(ours, task, recipe),
        "minimal": lambda: minimal(plain, images, labels, recipe.batch, recipe),
    }
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {who: [] for who in runs}
    for turn in range(LOOP_ROUNDS):
        for who in list(runs)[:: 1 if turn % 2 else -1]:
            seconds[who].append(timed(plan.device, runs[who]))
    done = count // recipe.batch * recipe.batch
    ratio = statistics.median(theirs / ours for ours, theirs in zip(seconds["ours"], seconds["minimal"], strict=True))
    return {
        "network": short(info),
        "batch": recipe.batch,
        "images": done,
        "images_per_s": {who: round(done / statistics.median(values), 1) for who, values in seconds.items()},
        "ratio": round(ratio, 4),
        "seconds of each round": {who: [round(value, 4) for value in values] for who, values in seconds.items()},
    }


def supernet_step(session: Session, case: SupernetCase, precision: Precision) -> dict[str, Any]:
    """Steps on one path after a step on another, against the same child's; then steps on fair paths, as a search takes them."""
    plan, device, rng = session.plan, torch.device(session.plan.device), random.Random(0)
    torch.manual_seed(0)
    info, batch = case.network, case.batch
    space = info.space()

    def new_head() -> FaceHead | None:
        return None if case.identities is None else FaceHead(case.identities, info.num_classes).to(device)

    supernet = laid_out(Supernet(space, new_head()).to(device).train(), precision)
    images = laid_out(torch.randn(batch, *info.input_shape, device=device), precision)
    labels = torch.randint(case.identities or info.num_classes, (batch,), device=device)
    step = _stepper(supernet, supernet.head, images, labels, precision)
    times: dict[str, list[float]] = {"supernet": [], "child": []}
    for turn in range(STEP_ROUNDS):
        arch = space.sample(rng)
        child_step = _stepper(laid_out(supernet.child(arch), precision), new_head(), images, labels, precision)

        def on_supernet(arch: tuple[int, ...] = arch) -> float:
            supernet.activate(space.sample(rng))
            step()
            supernet.activate(arch)
            step()
            return timed(plan.device, lambda: [step() for _ in range(plan.steps)])

        def on_child(child_step: Callable[[], None] = child_step) -> float:
            child_step()
            child_step()
            return timed(plan.device, lambda: [child_step() for _ in range(plan.steps)])

        for who, run in (("supernet", on_supernet), ("child", on_child))[:: 1 if turn % 2 else -1]:
            times[who].append(run() / plan.steps)
    paths = FairPaths(space)

    def searching() -> None:
        for _ in range(plan.steps):
            supernet.activate(paths.draw(rng))
            step()

    searching()
    rate = plan.steps * batch / statistics.median(timed(plan.device, searching) for _ in range(STEP_ROUNDS))
    found: dict[str, Any] = {
        "network": short(info),
        "manner": space.manner,
        "slots": len(space.slots),
        "batch": batch,
        "step_ms": {who: round(1e3 * statistics.median(values), 3) for who, values in times.items()},
        "ratio": round(statistics.median(a / b for a, b in zip(times["supernet"], times["child"], strict=True)), 4),
        "images_per_s": round(rate, 1),
    }
    if case.identities is not None:
        minutes = FACES_EPOCHS * FACES_IMAGES / rate / 60
        found["the paper's face search"] = {
            "what": f"{FACES_EPOCHS} epochs x {FACES_IMAGES:,} images at this rate: training of the shared weights, no scoring",
            "GPU minutes": round(minutes, 1),
            "paper's GPU hours": FACES_HOURS,
        }
    return found


def _stepper(
    network: nn.Module, head: nn.Module | None, images: Tensor, labels: Tensor, precision: Precision
) -> Callable[[], None]:
    """A training step of ``network``, and of ``head`` where it is not a part of it, as in the search."""
    optimizer = optimizer_of(nn.ModuleList([network] if head is None else [network, head]), SearchConfig(lr=1e-3))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(images.device, precision):
            output = network(images).float()
        logits, target = (output, labels) if head is None else head(output, labels)
        F.cross_entropy(logits, target).backward()
        optimizer.step()

    return step
