"""`python -m nar_hw` is `nar-hw`; of several processes (torchrun), only the first prints what it finds."""

import os
from contextlib import redirect_stdout
from pathlib import Path

from nar_hw.cli import main

if __name__ == "__main__":
    if os.environ.get("RANK", "0") == "0":
        main()
    else:
        with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing):
            main()
