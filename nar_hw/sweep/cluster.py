"""Jobs on Ray: here, without a server to start, or in a cluster that runs already."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray import exceptions

from nar_hw.errors import UserError
from nar_hw.sweep.job import perform
from nar_hw.sweep.plan import Job, Resources, TableJob

DEVICE = "nar_hw_device"
"""The resource of a node whose device may be measured, of which a measurement takes one: the device's lease."""
ANSWER_S = 5.0
"""Seconds in which a cluster has to answer."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of HTTP/2, which Ray speaks, begins (RFC 9113, section 3.4)."""
SETTINGS = b"\x04"
"""The type of the frame with which a server answers: the fourth byte."""
WINDOW = 64
"""Jobs that are handed to Ray at a time, beside those for which there are CPUs."""


@contextmanager
def connected(address: str | None, *, cpus: int, resources: Resources) -> Iterator[None]:
    """Ray while the block runs: with ``cpus`` on this machine, or the cluster at ``address``.

    Raises UserError in one line where nothing answers, or a job needs more than any node has.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # "local": else it would join a cluster that happens to run here, or that RAY_ADDRESS names
        ray.init(address="local", num_cpus=cpus, resources={DEVICE: 1}, include_dashboard=False, **quiet)
    else:
        _answers(address)
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, exceptions.RayError) as problem:
            raise UserError(f"a Ray cluster must run at {address}, but {' '.join(str(problem).split())[:200]}") from None
    try:
        _fits(address, resources)
        yield
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Whether Ray may answer at HOST:PORT: where it does not, Ray itself would try for minutes. Raises UserError."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"--address must be HOST:PORT of a Ray cluster, or auto, but got {address!r}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S) as there:
            if os.environ.get("RAY_USE_TLS") == "1":
                return
            there.sendall(PREFACE)
            if there.recv(9)[3:4] == SETTINGS:
                return
            reason = "what answers there is not Ray"
    except OSError as problem:
        reason = f"nothing answers there ({problem.strerror or problem})"
    raise UserError(f"a Ray cluster must run at {address}, but {reason}: start one with ray start --head, or leave --address out")


def _fits(address: str | None, resources: Resources) -> None:
    wanted = {"CPU": resources.cpus, "GPU": resources.gpus}
    if not _some_node_has(wanted):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in wanted}
        raise UserError(
            f"some machine must have what a run needs ({resources.cpus} CPUs, {resources.gpus:g} GPUs), but none has "
            f"({most['CPU']:g} CPUs, {most['GPU']:g} GPUs at most): lower resources in the plan"
        )


def _some_node_has(wanted: Mapping[str, float]) -> bool:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes)


def on_ray(jobs: Iterable[Job], request: Callable[[Job], bytes], *, resources: Resources) -> Iterator[tuple[Job, bytes | str]]:
    """Each job with its answer, or why its worker died the last of ``retries`` + 1 times, as they are finished.

    A measurement on a GPU takes a whole one, so that no run is on it meanwhile.
    """
    remote = ray.remote(perform)
    common = {"max_retries": resources.retries, "retry_exceptions": False}
    run = remote.options(num_cpus=resources.cpus, num_gpus=resources.gpus, **common)
    at_once = WINDOW + int(ray.cluster_resources().get("CPU", 1))
    waiting: dict[Any, Job] = {}
    left = iter(jobs)
    try:
        while True:
            while len(waiting) < at_once and (job := next(left, None)) is not None:
                if not isinstance(job, TableJob):
                    waiting[run.remote(request(job))] = job
                    continue
                if DEVICE not in ray.cluster_resources():
                    raise UserError(
                        f"tables are measured on nodes that offer {DEVICE}, but none of the cluster does: start one with "
                        f"ray start --resources '{{\"{DEVICE}\": 1}}', or give the plan files of tables"
                    )
                gpus = 1 if job.conditions.device_type == "cuda" else 0
                if not _some_node_has({"CPU": 1, "GPU": gpus, DEVICE: 1}):
                    yield job, f"a table of a GPU is measured on a node that offers {DEVICE} and has a GPU, but there is none"
                    continue
                measure = remote.options(num_cpus=1, num_gpus=gpus, resources={DEVICE: 1}, **common)
                waiting[measure.remote(request(job))] = job
            if not waiting:
                return
            (finished, *_), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(finished)
            try:
                yield job, ray.get(finished)
            except exceptions.RayError as problem:
                text = " ".join(str(problem).split())[:200]
                yield job, f"its worker died {resources.retries + 1} times ({type(problem).__name__}): {text}"
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
