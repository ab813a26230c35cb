"""A page about trainings: docs/pictures/trainings.html, by three trainings on the digits and `nar-hw report` of them.

    OMP_NUM_THREADS=1 python benchmarks/trainings.py

The same small network (small_cnn.py) by the recipe "demo", by it at a tenth of the rate, and with batches by intensity
(`--batches`), 28 epochs each: overlaid curves, first-layer filters at several epochs, an example grid, the surest mistakes. These
are the figures 1 and 5 to 8 of Zhai's study of Tiny ImageNet. Takes 15 s of CPU; the trainings themselves are left in runs/.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = "docs/pictures/trainings.html"
TRAININGS = {
    "runs/demo": [],
    "runs/slow": ["--set", "lr=0.01"],
    "runs/by-intensity": ["--batches", "keep-all:intensity"],
}


def main() -> None:
    """The command."""
    for out, words in TRAININGS.items():
        network = ["--arch", "incumbent", "--model", "benchmarks/small_cnn.py:build", "--data", "digits", "--recipe", "demo"]
        nar_hw("train", *network, *words, "--out", out)
    nar_hw("report", *TRAININGS, "-o", PAGE)


def nar_hw(*words: str) -> None:
    print("nar-hw", *words, flush=True)
    subprocess.run([sys.executable, "-m", "nar_hw", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
