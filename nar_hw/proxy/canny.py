"""Canny's edge detector (1986) for whole batches, to the bit as OpenCV's: integers only, so on every device the same."""

import torch
import torch.nn.functional as F
from torch import Tensor

LOW, HIGH = 100, 200
"""Thresholds of the gradient's magnitude |dx| + |dy|, of 3x3 Sobel filters on 8-bit grey."""
TANGENT = 13573
"""tan(22.5 degrees) in fixed point with 15 bits."""


def canny(grey: Tensor) -> Tensor:
    """Edges of grey images (B, H, W), 8 bits in int32: bool (B, H, W)."""
    dx, dy = _sobel(grey)
    magnitude = dx.abs() + dy.abs()
    thin = (magnitude > LOW) & _ridge(magnitude, dx, dy)
    edges = thin & (magnitude > HIGH)
    while True:  # weak edges that touch an edge are edges
        grown = thin & (F.max_pool2d(edges[:, None].float(), 3, 1, 1)[:, 0] > 0)
        if torch.equal(grown, edges):
            return edges
        edges = grown


def _sobel(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical derivative, borders replicated."""
    _, height, width = grey.shape
    rows, columns = (torch.arange(-1, size + 1, device=grey.device).clamp(0, size - 1) for size in (height, width))
    padded = grey[:, rows][:, :, columns]  # (B, H + 2, W + 2)
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]  # smoothed over rows
    right = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]  # smoothed over columns
    return down[:, :, 2:] - down[:, :, :-2], right[:, 2:] - right[:, :-2]


def _ridge(magnitude: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Where the magnitude is greatest along the gradient, whose direction is rounded to one of four."""
    _, height, width = magnitude.shape
    padded = F.pad(magnitude, (1, 1, 1, 1))

    def beside(down: int, right: int) -> Tensor:
        return padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    x, y = dx.abs().long(), dy.abs().long() << 15
    level, steep = y < TANGENT * x, y > (TANGENT + (1 << 16)) * x
    horizontal = (magnitude > beside(0, -1)) & (magnitude >= beside(0, 1))
    vertical = (magnitude > beside(-1, 0)) & (magnitude >= beside(1, 0))
    falling = (magnitude > beside(-1, -1)) & (magnitude > beside(1, 1))
    rising = (magnitude > beside(-1, 1)) & (magnitude > beside(1, -1))
    diagonal = torch.where((dx ^ dy) < 0, rising, falling)
    return torch.where(level, horizontal, torch.where(steep, vertical, diagonal))
