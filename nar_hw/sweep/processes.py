"""Jobs one after another, each in a process of its own, so that one that dies takes nothing with it."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import parent_process
from typing import Any

from nar_hw.sweep.job import perform
from nar_hw.sweep.plan import Job

IMPORTS = ("nar_hw.sweep.job", "torchvision", "torch._dynamo", "nar_hw.cli")
"""What every job imports sooner or later, once for all of them; and what the script nar-hw does, which is run again in each."""


EXIT_S = 5.0
"""Seconds that a process has to end once its job is done."""


def in_processes(jobs: Iterable[Job], request: Callable[[Job], bytes], *, retries: int) -> Iterator[tuple[Job, bytes | str]]:
    """Each job with its answer, or why its process died, the last of ``retries`` + 1 times."""
    context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        context.set_forkserver_preload(list(IMPORTS))
    for job in jobs:
        answer: bytes | str = ""
        for _ in range(retries + 1):
            receive, send = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(send, request(job)))
            process.start()
            send.close()
            try:
                answer = receive.recv_bytes()
                process.join(EXIT_S)  # it gives back what it shares with others, which a killed one cannot
            except EOFError:
                process.join()
                answer = _death(process.exitcode or 0, retries + 1)
            finally:
                receive.close()
                process.kill()  # what it has begun that does not end, or of a driver that is stopped
                process.join()
            if isinstance(answer, bytes):
                break
        yield job, answer


def _death(code: int, times: int) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"its process {how}, {times} times in all: is there enough memory?"


def _child(send: Connection, request: bytes) -> None:
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver's to answer
    send.send_bytes(perform(request))
