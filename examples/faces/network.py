"""A shallow, narrow LResNet-E-IR: the paper's family, small enough for a processor core."""

from torch import nn

from nar_hw.models.lresnet_ir import LResNetIR


def small(*, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Six blocks, a quarter of the widths."""
    return LResNetIR(input_shape=input_shape, num_classes=num_classes, blocks=(1, 2, 2, 1), widths=(16, 32, 64, 128))
