#!/usr/bin/env bash
# executorch 1.5.1 (XNNPACK, x86 Linux): a softmax over the width, behind a convolution, is taken over the channels instead.
#
# A good engineer would guess that a delegate takes what it can compute and leaves the rest to the portable kernels, as it does for
# other axes. XNNPACK has softmax over the last dimension only; the partitioner takes softmax(dim=-1) of (B, C, H, W), but what a
# convolution gives lies there as (B, H, W, C), whose last dimension are the channels. Nothing is said: shapes and types are right.
# Seen: Conv2d + Softmax(-1) differs by 0.2 from torch, its rows do not sum to 1, and its channels do. Right are the softmax alone,
# the same network without XNNPACK, and a softmax behind flatten(2). Attention along rows, soft-argmax and the like are such networks.
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


def run(network: nn.Module, images: torch.Tensor, *partitioners: XnnpackPartitioner) -> torch.Tensor:
    program = torch.export.export(network.eval(), (images,))
    data = to_edge_transform_and_lower(program, partitioner=list(partitioners)).to_executorch().buffer
    loaded = Runtime.get().load_program(data)
    return loaded.load_method("forward").execute((images,))[0]


torch.manual_seed(0)
images = torch.randn(1, 8, 9, 7)
convolution, softmax = nn.Conv2d(8, 8, 3, padding=1), nn.Softmax(-1)
cases = {
    "softmax alone": nn.Sequential(softmax),
    "convolution, softmax": nn.Sequential(convolution, softmax),
    "convolution, flatten, softmax": nn.Sequential(convolution, nn.Flatten(2), softmax),
}
apart = {}
for name, network in cases.items():
    with torch.no_grad():
        expected = network(images)
    outputs = run(network, images, XnnpackPartitioner())
    apart[name] = (outputs - expected).abs().max().item()
    print(f"executorch {importlib.metadata.version('executorch')}, XNNPACK: {name}: {apart[name]:.2g} from torch")
    if name == "convolution, softmax":
        rows, channels = ((outputs.sum(axis) - 1).abs().max().item() for axis in (-1, 1))
        plain = (run(network, images) - expected).abs().max().item()
        print(f"  sums over the width are up to {rows:.2g} from 1, over the channels {channels:.2g}; without XNNPACK {plain:.2g} from torch")
assert apart["softmax alone"] < 1e-5 and apart["convolution, flatten, softmax"] < 1e-5 and plain < 1e-5
assert apart["convolution, softmax"] > 0.01 and rows > 0.01 and channels < 1e-5, "the behaviour has changed"
PYTHON
