"""What is asked of an export."""

from collections.abc import Iterable
from typing import ClassVar

from nar_hw.errors import UserError
from nar_hw.export.calibration import Calibration
from nar_hw.export.forms import Form
from nar_hw.export.gpus import capabilities
from nar_hw.records import Record


class ExportConfig(Record, frozen=True, kw_only=True):
    """Which files a bundle shall hold."""

    OPTIONS: ClassVar[dict[str, str]] = {"targets": "to", "precisions": "precision", "max_accuracy_drop": ""}

    targets: tuple[str, ...] = ("onnx",)
    """"onnx", which is always there, and runtimes (`nar_hw.runtimes.Runtime.exports`); each in those of the precisions that it
    can have on this machine, and the manifest says which are left out and why."""
    precisions: tuple[str, ...] = ("fp32",)
    """"fp32" (always there in ONNX), "fp16", "bf16", "int8"; input and output are fp32 in all of them."""
    batch: tuple[int, int] = (1, 64)
    """(fewest, most) images at once; AOTInductor packages are for the fewest only."""
    device: str = "cpu"
    """Where files shall run that are made for one device: "cpu" or "cuda"."""
    gpus: tuple[str, ...] = ()
    """For which GPUs "tensorrt-rtx" builds: compute capabilities ("sm89"), cards ("RTX 4090") or "all"."""
    dense: Form | None = None
    """Write model.dense.onnx too, for images of any size from the training's on: the class map, and its mean. "strided", or
    "overfeat" with the last pool at every offset; see `nar_hw.export.dense.convolutionize`."""
    calibration: Calibration = "minmax"
    """How int8 finds its ranges."""
    max_accuracy_drop: float = 0.02
    """By how much a file may be less accurate than torch on the validation images."""

    def __post_init__(self) -> None:
        """Raises UserError where GPUs are named for no target, or none for one, and UnknownNameError for those that are none."""
        if bool(self.gpus) != ("tensorrt-rtx" in self.targets):
            raise UserError(
                f"target tensorrt-rtx goes with names of GPUs, but the targets are {', '.join(self.targets)} and the GPUs "
                f"{', '.join(self.gpus) or 'none'}: use --to tensorrt-rtx with --gpus sm89, or with --gpus all"
            )
        if self.gpus:
            capabilities(self.gpus, "fp32")

    def options(self, *, but: Iterable[str] = ()) -> list[str]:
        """As every record's; the batch sizes are a range."""
        fewest, most = self.batch
        words = super().options(but=("batch", *but))
        return words if "batch" in but or self.batch == ExportConfig().batch else [*words, "--batch", f"{fewest}-{most}"]
