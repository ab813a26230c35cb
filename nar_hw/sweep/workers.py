"""Where the jobs of a sweep run: in processes one after another, or on Ray, here or in a cluster."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from nar_hw.errors import UserError
from nar_hw.sweep.plan import Resources
from nar_hw.sweep.processes import in_processes
from nar_hw.sweep.run import Execute


@contextmanager
def chosen(resources: Resources, workers: int | None, address: str | None, say: Callable[[str], object]) -> Iterator[Execute]:
    """What does the jobs of a sweep on ``workers`` of this machine, or in the cluster at ``address``.

    By default as many at once as the machine's CPUs allow where Ray is installed, else one. Raises UserError where there is no
    Ray for what is asked, no cluster at ``address``, or a cluster in which no job fits.
    """
    ray = importlib.util.find_spec("ray") is not None
    cores = os.cpu_count() or 1
    if not ray and (address is not None or (workers or 1) > 1):
        raise UserError("several runs at once need Ray, which is not installed: pip install 'nar-hw[ray]'")
    count = workers or (max(1, cores // resources.cpus) if ray else 1)
    if address is None and count == 1:
        if cores > resources.cpus and workers is None:
            say(
                f"one run after another, each on {resources.cpus} of {cores} CPUs: for more at once pip install 'nar-hw[ray]', "
                "or raise resources.cpus in the plan"
            )
        yield partial(in_processes, retries=resources.retries)
        return
    from nar_hw.sweep.cluster import connected, on_ray

    with connected(address, cpus=count * resources.cpus, resources=resources):
        yield partial(on_ray, resources=resources)
