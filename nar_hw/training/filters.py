"""The filters of a network's first convolution, kept while it trains: what Zhai's figure 7 shows (Tiny ImageNet study)."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nar_hw.errors import RunError
from nar_hw.files import write_bytes
from nar_hw.records import is_whole


def filters_of(model: nn.Module) -> NDArray[np.float32] | None:
    """A copy of the weights (N, C, k, k) of the first 2-d convolution; None of a network without one."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return None if first is None else first.weight.detach().float().cpu().numpy().copy()


def keep_filters(out: Path, filters: NDArray[np.float32] | None, epoch: int) -> None:
    """Write filters to ``out``/filters; of None, nothing."""
    if filters is not None:
        content = io.BytesIO()
        np.save(content, filters, allow_pickle=False)
        write_bytes(out / "filters" / f"epoch{epoch}.npy", content.getvalue())


def kept_filters(out: Path) -> dict[int, NDArray[np.float32]]:
    """Epoch -> filters of a training in ``out``, of both its phases; 0: before it. Raises RunError for a damaged file."""
    found = {}
    for folder in (out / "first", out):
        for path in (folder / "filters").glob("epoch*.npy"):
            if is_whole(path.stem.removeprefix("epoch")):
                try:
                    found[int(path.stem.removeprefix("epoch"))] = np.load(path, allow_pickle=False)
                except (OSError, ValueError, EOFError) as problem:
                    raise RunError(f"{path} must hold filters, but cannot be read ({problem}): delete it") from problem
    return dict(sorted(found.items()))
