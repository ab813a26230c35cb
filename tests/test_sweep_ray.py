"""Sweeps on Ray: here, in a cluster of which a node dies, and where there is none."""

import importlib.util
import json
import os
import random
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nar_hw.errors import UserError
from nar_hw.sweep.plan import Resources, read_plan
from nar_hw.sweep.workers import chosen
from tests.test_sweep import LARGE, SMALL, results, swept, tables, written

__all__ = ["tables"]  # a fixture

DRIVER = """
import sys
from pathlib import Path
from nar_hw.sweep.plan import Resources, read_plan
from nar_hw.sweep.run import run_sweep
from nar_hw.sweep.workers import chosen
with chosen(Resources(), None, sys.argv[1], print) as execute:
    run_sweep(read_plan(Path(sys.argv[2])), Path(sys.argv[3]), execute=execute)
"""
DEVICE = "nar_hw_device"
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
slow = pytest.mark.skipif("NAR_HW_SLOW_TESTS" not in os.environ, reason="starts Ray several times: set NAR_HW_SLOW_TESTS=1")
noisy = pytest.mark.filterwarnings("ignore")  # of Ray itself


def test_without_ray_runs_are_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    said: list[str] = []
    with chosen(Resources(cpus=2), None, None, said.append) as execute:
        assert isinstance(execute, partial)
        assert execute.func.__name__ == "in_processes"
    (text,) = said
    assert text.startswith("one run after another, each on 2 of 8 CPUs: for more at once pip install 'nar-hw[ray]', or raise")
    for workers, address in ((2, None), (None, "auto")):
        with (
            pytest.raises(UserError, match="need Ray, which is not installed: pip install"),
            chosen(Resources(), workers, address, print),
        ):
            pass


class Other(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(100)
        self.request.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")


@needs_ray
@noisy
def test_where_nothing_answers_is_one_line_within_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = time.monotonic()
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(UserError, match=r"a Ray cluster must run at .*, but nothing answers there") as caught:
            chosen(Resources(), None, address, print).__enter__()
        assert "\n" not in str(caught.value)
    with socketserver.TCPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=r"a Ray cluster must run at .*, but what answers there is not Ray: start one with"):
            chosen(Resources(), None, f"127.0.0.1:{other.server_address[1]}", print).__enter__()
        other.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("nar_hw.sweep.cluster.ANSWER_S", 0.1)
        with pytest.raises(UserError, match=r"but nothing answers there \(timed out\)"):
            chosen(Resources(), None, f"127.0.0.1:{silent.getsockname()[1]}", print).__enter__()
    for address in ("here", "host:", ":6379", "host:port", "host:70000", "h:²"):
        with pytest.raises(UserError, match="--address must be HOST:PORT of a Ray cluster, or auto"):
            chosen(Resources(), None, address, print).__enter__()
    assert time.monotonic() - start < 10


@needs_ray
@slow
@noisy
def test_the_same_results_on_ray_with_a_table_measured_here(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a cluster that nobody asked for
    plan = written(tmp_path, tables, more="seeds = [0, 1]\n")
    swept(plan, tmp_path / "x")
    with chosen(Resources(), 2, None, print) as execute:
        swept(plan, tmp_path / "y", execute=execute)
        assert results(tmp_path / "y") == results(tmp_path / "x")
        text = plan.read_text().replace(f"'{tables}/*.json'", "{runtime = 'fake'}").replace(f', "{LARGE}"', "")
        plan.write_text(text)
        outcome = swept(plan, tmp_path / "z", execute=execute)
        assert outcome.counts["failed"] == 0, outcome.cells
        assert len(list((tmp_path / "z/tables").glob("*.json"))) == 1
    with pytest.raises(UserError, match=r"but none has .* CPUs"), chosen(Resources(gpus=64), 2, None, print):
        pass


@needs_ray
@slow
@noisy
def test_runs_share_a_gpu_by_their_fractions(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that Ray only counts; what a job is given, it answers."""
    import ray

    from nar_hw.sweep import cluster as module

    begun = tmp_path / "begun"
    begun.mkdir()

    def perform(request: bytes) -> bytes:
        """Begins, waits for two to have begun, ends."""
        start = time.time()
        (begun / request.decode()).touch()
        while request != b"table" and len(list(begun.iterdir())) < 2 and time.time() < start + 60:
            time.sleep(0.01)
        time.sleep(0.3)
        given = ray.get_runtime_context().get_assigned_resources()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return json.dumps([given.get("CPU"), given.get("GPU"), visible, start, time.time()]).encode()

    monkeypatch.setattr(module, "perform", perform)
    plan = written(tmp_path, tables, networks=[SMALL], more="seeds = [0, 1, 2, 3]\n")
    runs = list(read_plan(plan).runs)
    ray.init(address="local", num_cpus=4, num_gpus=1, resources={DEVICE: 1}, include_dashboard=False, log_to_driver=False)
    try:
        found = list(module.on_ray(runs, lambda job: job.id.encode(), resources=Resources(gpus=0.5)))
        answers = [json.loads(answer) for _, answer in found]
        assert sorted(job.id for job, _ in found) == sorted(job.id for job in runs)
        assert [answer[:3] for answer in answers] == [[1.0, 0.5, "0"]] * 4
        at_once = [sum(start <= moment < end for *_, start, end in answers) for *_, moment, _ in answers]
        assert max(at_once) == 2, "two halves are one GPU, though there are four CPUs"
        plan.write_text(plan.read_text().replace(f"'{tables}/*.json'", "{runtime = 'torch_eager', device = 'cuda'}"))
        ((_, answer),) = module.on_ray(read_plan(plan).table_jobs, lambda job: b"table", resources=Resources())
        assert json.loads(answer)[:3] == [1.0, 1.0, "0"], "one that is measured, nobody else has"
        module._fits(None, Resources(gpus=1))
        with pytest.raises(UserError, match=r"\(1 CPUs, 1.5 GPUs\), but none has \(4 CPUs, 1 GPUs at most\)"):
            module._fits(None, Resources(gpus=1.5))
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4, DEVICE: 1}}])
        ((_, reason),) = module.on_ray(read_plan(plan).table_jobs, lambda job: b"table", resources=Resources())
        assert reason == f"a table of a GPU is measured on a node that offers {DEVICE} and has a GPU, but there is none"
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A node that may be measured and trains nothing, so that all runs are on others, which are added and killed."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "resources": {DEVICE: 1}, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@needs_ray
@slow
@noisy
@pytest.mark.parametrize("victim", ["worker", "node", "driver"])
def test_whatever_is_killed_the_results_are_the_same(cluster: Any, victim: str, tables: Path, tmp_path: Path) -> None:
    plan = written(tmp_path, tables, more="seeds = [0, 1, 2]\n")
    swept(plan, tmp_path / "x")
    out = tmp_path / "y"
    moment = random.Random(time.time_ns()).uniform(0, 1.5)

    def begun() -> None:
        while not list(out.glob("runs/*/table.json")) and not list(out.glob("runs/*/state.pt")):
            time.sleep(0.01)
        time.sleep(moment)

    if victim == "driver":
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, cluster.address, str(plan), str(out)])
        begun()
        driver.kill()
        driver.wait()
    else:
        killed: list[str] = []
        second = cluster.add_node(num_cpus=1)

        def kill() -> None:
            begun()
            if victim == "node":
                cluster.remove_node(second, allow_graceful=False)
            else:
                while not (pids := workers()):
                    time.sleep(0.01)
                os.kill(random.choice(pids), signal.SIGKILL)
            killed.append(victim)

        killer = threading.Thread(target=kill)
        killer.start()
    with chosen(Resources(), None, cluster.address, print) as execute:
        outcome = swept(plan, out, resume=True, execute=execute)
    if victim != "driver":
        killer.join()
        assert killed
    assert outcome.counts["failed"] == 0, outcome.cells
    assert results(out) == results(tmp_path / "x")


def workers() -> list[int]:
    """Processes that do a job of a sweep on Ray."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "cmdline").read_bytes().startswith(b"ray::perform"):
                    found.append(int(entry.name))
    return found
