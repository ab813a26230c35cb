#!/usr/bin/env bash
# torch 2.14.1 on a CPU with bf16 instructions: training a 5x5 depthwise convolution in bf16 is many times slower than in fp32.
#
# A good engineer would guess that bf16 is as fast as fp32 or faster, and that a 5x5 depthwise layer costs 25/9 of a 3x3 one.
# oneDNN has a depthwise kernel for the gradient of the weights of 3x3 layers only; others take a kernel for dense convolutions,
# which in bf16 does the work of dense groups. Seen (16 channels, 32x32, batch 64, channels_last, one thread, milliseconds for the
# gradient of the weights): 3x3 fp32 0.5, bf16 0.5; 5x5 fp32 5.8, bf16 31. ONEDNN_VERBOSE=1 names the kernels: jit_dw against
# jit_bf16. EfficientNets and MobileNets have such layers; nar_hw's operator dwsep5x5 too, so that searches and trainings with
# --set precision=bf16 on a CPU may be slower than in fp32.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -r /proc/cpuinfo ] && ! grep -q avx512_bf16 /proc/cpuinfo; then
  echo "skipped: this CPU has no avx512_bf16"
  exit 0
fi
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.3.5
"$work/env/bin/python" - <<'PYTHON'
import statistics
import time

import torch

torch.set_num_threads(1)


def weight_gradient_ms(kernel: int, kind: torch.dtype) -> float:
    images = torch.randn(64, 16, 32, 32).to(kind).to(memory_format=torch.channels_last)
    weights = torch.randn(16, 1, kernel, kernel).to(kind).requires_grad_()
    outputs = torch.nn.functional.conv2d(images, weights, None, 1, kernel // 2, 1, 16)
    ones, took = torch.ones_like(outputs), []
    for _ in range(9):
        start = time.process_time()
        torch.autograd.grad(outputs, (weights,), ones, retain_graph=True)
        took.append(1e3 * (time.process_time() - start))
    return statistics.median(took)


ms = {(kernel, kind): weight_gradient_ms(kernel, kind) for kernel in (3, 5) for kind in (torch.float32, torch.bfloat16)}
for (kernel, kind), value in ms.items():
    print(f"torch {torch.__version__}, {kernel}x{kernel} depthwise, {kind}: {value:.2f} ms for the gradient of the weights")
small, large = (ms[kernel, torch.bfloat16] / ms[kernel, torch.float32] for kernel in (3, 5))
print(f"bf16 takes {small:.1f} times as long as fp32 for 3x3, {large:.1f} times for 5x5")
assert small < 2.5 and large > 3, "the behaviour has changed"
PYTHON
