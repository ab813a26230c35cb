"""docs/tutorial.md as a newcomer follows it: each of its commands in a new folder, one after the other, with its time.

Fails with the first command that does. Result: results/tutorial.json; with --work the folder stays, for pictures of it.

    OMP_NUM_THREADS=1 python benchmarks/bench_tutorial.py [--work FOLDER] [--out benchmarks/results/tutorial.json]
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nar_hw._version import versions
from nar_hw.files import write_json
from nar_hw.latency.device import fingerprint
from nar_hw.runtimes import RuntimeConfig

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "tutorial.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="a new folder, which is kept")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tutorial.json")
    arguments = parser.parse_args()
    text = PAGE.read_text()
    (network,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for line in block.splitlines()]
    here = fingerprint(RuntimeConfig(runtime="torch_eager"))
    machine = {"device": here["device"], "cores": here["cores"], "versions": versions("torch")}
    steps = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        if arguments.work is not None:
            folder.mkdir(parents=True)
        (folder / "net.py").write_text(network)
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        for line in lines:
            start, load = time.monotonic(), os.getloadavg()[0]
            subprocess.run(line, shell=True, check=True, cwd=folder, env=environment)
            steps.append({"command": line, "seconds": round(time.monotonic() - start, 1), "load before": load})
            write_json(
                arguments.out, {"command": "OMP_NUM_THREADS=1 python benchmarks/bench_tutorial.py", **machine, "steps": steps}
            )


if __name__ == "__main__":
    main()
