"""`python -m nar_hw` is `nar-hw`; in a group of processes started by torchrun, only the first prints its results."""

import os
from contextlib import redirect_stdout
from pathlib import Path

from nar_hw.cli import main

if __name__ == "__main__":
    # RANK alone may be left over from another program.
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0":
        with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing):
            main()
    else:
        main()
