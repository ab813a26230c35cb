"""Forms of networks for larger images; see `nar_hw.export.dense.convolutionize`."""

from typing import Literal

Form = Literal["strided", "overfeat"]
