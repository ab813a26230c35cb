"""What is done to images before a network sees them, and what its outputs stand for."""

from nar_hw.errors import DataError
from nar_hw.records import Record


class Preprocessing(Record, frozen=True, kw_only=True):
    """Normalisation for pixels in [0, 1], and the classes in the order of the outputs."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    """Names; none for a network that gives embeddings."""
    mean_image: tuple[float, ...] = ()
    """Of a normalisation per pixel, what is subtracted from each instead of ``mean``: C x H x W values; else none."""

    def __post_init__(self) -> None:
        """Raises DataError when mean and standard deviation do not go together."""
        if not len(self.mean) == len(self.std) >= 1 or not all(value > 0 for value in self.std):
            raise DataError(f"mean and std must have a value for each channel, std positive, but are {self.mean} and {self.std}")
