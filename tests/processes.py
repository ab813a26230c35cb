"""Several processes that find what torchrun gives them."""

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nar_hw.distributed import launched, ranks


def command(*arguments: str) -> None:
    sys.argv = ["nar-hw", *arguments]
    folder = Path(arguments[arguments.index("--out") + 1]).parent
    with (folder / f"stdout.{os.environ['RANK']}").open("w") as file:
        sys.stdout = file
        runpy.run_module("nar_hw", run_name="__main__", alter_sys=True)


def process(environment: dict[str, str], target: Callable[..., None], *arguments: Any) -> None:
    os.environ.update(environment)
    if target is command:
        command(*arguments)
        return
    with launched("cpu") as device:
        assert (device, ranks()) == ("cpu", int(environment["WORLD_SIZE"]))
        target(*arguments)


def run(count: int, target: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Exit codes of ``count`` processes that are started as torchrun starts them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_search_ranks", "tests.test_training_ranks"])
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    common = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    started = []
    for number in range(count):
        environment = {**common, "RANK": str(number), "LOCAL_RANK": str(number)}
        started.append(context.Process(target=process, args=(environment, target, *arguments)))
        started[-1].start()
    for item in started:
        item.join()
    return [item.exitcode for item in started]
