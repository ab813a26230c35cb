"""A study's pictures: a heat map of each phase (PNG), and all of them with what they say in one HTML page."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nar_hw.files import write_bytes, write_text
from nar_hw.proxy.findings import Finding, Quarter

PAGE, TEMPLATE = "study.html", "study.html"


def write_pictures(
    out: Path,
    *,
    metric: str,
    title: str,
    distances: NDArray[np.float64],
    phases: Sequence[range],
    rates: Sequence[float],
    standard_error: float,
    quarters: Sequence[Quarter],
    findings: Sequence[Finding],
) -> None:
    """Write phase1.png and so on, and study.html, to ``out``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    maps = []
    for number, (phase, rate) in enumerate(zip(phases, rates, strict=True), 1):
        name = f"Phase {number}: epochs {phase.start + 1} to {phase.stop}, learning rate {rate:.3g}"
        picture = heat_map(distances[phase.start : phase.stop], metric=metric, first=phase.start + 1, title=name)
        write_bytes(out / f"phase{number}.png", picture)
        maps.append({"title": name, "data": base64.b64encode(picture).decode()})
    here = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = here.get_template(TEMPLATE).render(
        title=title,
        metric=metric,
        batches=distances.shape[1],
        maps=maps,
        standard_error=standard_error,
        phases=[[item for item in quarters if item.phase == number] for number in range(1, len(phases) + 1)],
        findings=findings,
    )
    write_text(out / PAGE, text)


def heat_map(distances: NDArray[np.float64], *, metric: str, first: int, title: str) -> bytes:
    """A PNG of distances (epochs, batches), the first of which is epoch ``first``: light is near, dark far, as in the paper."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs, batches = distances.shape
    low, high = np.quantile(distances, (0.02, 0.98))
    figure = Figure(figsize=(8, 3.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(
        distances,
        aspect="auto",
        cmap="Blues",
        vmin=low,
        vmax=high,
        interpolation="nearest",
        extent=(0.5, batches + 0.5, first + epochs - 0.5, first - 0.5),
    )
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=f"mini-batch, from low to high {metric}", ylabel="epoch")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, extend="both", label="distance to the full gradient")
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()
