#!/usr/bin/env bash
# executorch 1.5.1 (XNNPACK, x86 Linux): bilinear upsampling by a factor that does not give a whole size differs from torch by 2.
#
# A good engineer would guess that nn.Upsample(scale_factor=1.5, mode="bilinear") is the same everywhere, or is left to the portable
# kernels where the delegate cannot have it. torch places its samples by the factor that was given, XNNPACK by the ratio of the sizes:
# 9 pixels become 13, which is 1.44. The partitioner takes the operation all the same and drops the factor, without a word.
# Seen, largest difference for random images of 9 x 9: factor 1.5 1.8, 1.3 2.3; right are factor 2, size=(13, 13), images of
# 10 x 10 by 1.5 (a whole size), align_corners=True, and everything without XNNPACK.
# nar_hw compares every .pte with torch and refuses this one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 executorch==1.5.1 numpy==2.4.6
"$work/env/bin/python" -W ignore - 2> "$work/said" <<'PYTHON' || { tail -3 "$work/said"; exit 1; }
import importlib.metadata

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import nn


def apart(side: int, *partitioners: XnnpackPartitioner, **options: object) -> float:
    network, images = nn.Upsample(mode="bilinear", **options).eval(), torch.randn(1, 8, side, side)
    program = torch.export.export(network, (images,))
    data = to_edge_transform_and_lower(program, partitioner=list(partitioners)).to_executorch().buffer
    loaded = Runtime.get().load_program(data)
    return (loaded.load_method("forward").execute((images,))[0] - network(images)).abs().max().item()


torch.manual_seed(0)
xnnpack = XnnpackPartitioner()
wrong = {factor: apart(9, xnnpack, scale_factor=factor) for factor in (1.5, 1.3)}
right = {
    "9 x 9, factor 2": apart(9, xnnpack, scale_factor=2.0),
    "9 x 9, size 13 x 13": apart(9, xnnpack, size=(13, 13)),
    "10 x 10, factor 1.5": apart(10, xnnpack, scale_factor=1.5),
    "9 x 9, factor 1.5, align_corners": apart(9, xnnpack, scale_factor=1.5, align_corners=True),
    "9 x 9, factor 1.5, no XNNPACK": apart(9, scale_factor=1.5),
}
version = importlib.metadata.version("executorch")
for name, value in {**{f"9 x 9, factor {factor}": value for factor, value in wrong.items()}, **right}.items():
    print(f"executorch {version}, {name}: {value:.2g} from torch")
assert max(right.values()) < 1e-4 and min(wrong.values()) > 0.1, "the behaviour has changed"
PYTHON
