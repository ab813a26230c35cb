"""Measures what a kit asks for and writes times.json beside it: `python measure.py`. Stopped, it goes on when started again."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from nar_hw.device.hollow import filled
from nar_hw.device.machine import cores, cpu, state, system
from nar_hw.device.visits import LOADING_S, MARK_EVERY, Clock, Network, again, at_once, in_turn, twice

PLAN, PART, TIMES = "plan.json", "times.part", "times.json"


class KitError(Exception):
    """What keeps a kit from being measured, in one line."""


def main(network: type[Network], folder: Path) -> int:
    """Measure the kit in ``folder`` with the runtime of ``network``: the exit code."""
    try:
        path = measure(folder, network)
    except KitError as problem:
        sys.stderr.write(f"measure.py: {problem}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\nmeasure.py: stopped; what was measured is kept: start it again to go on\n")
        return 130
    sys.stdout.write(f"{path}: bring this file back and give it to nar-hw --from\n")
    return 0


def measure(folder: Path, network: type[Network]) -> Path:
    """times.json of the kit in ``folder``. Raises KitError."""
    try:
        text = (folder / PLAN).read_bytes()
        plan = json.loads(text)
    except (OSError, ValueError) as problem:
        raise KitError(f"{folder / PLAN} cannot be read ({problem}): copy the kit again") from None
    if (folder / TIMES).exists():
        raise KitError(f"{folder / TIMES} is complete already: delete it to measure again")
    start = time.monotonic()
    session = _Session(folder, plan, hashlib.sha256(text).hexdigest(), network)
    for stage in plan["stages"]:
        session.stage(stage, math.inf if plan["budget_s"] is None else start + plan["budget_s"] * stage["by"])
    return session.finish()


class _Session:
    """One start of the script."""

    def __init__(self, folder: Path, plan: dict[str, Any], mark: str, network: type[Network]) -> None:
        self.folder, self.plan, self.network = folder, plan, network
        config = plan["config"]
        version = _version(plan, network)
        shape = (config["batch"], *plan["input_shape"])
        self.images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        self.lines = _read_part(folder / PART, mark, version)
        total = sum((stage["rounds"] + 1) * len(stage["members"]) for stage in plan["stages"])
        self.progress = _Progress(total)
        self.reference: Network | None = None
        if plan["reference"] is not None:
            self.reference = self.loaded(plan["reference"])
        timed = self.reference or self.loaded(0)
        # Profiles ask what a network costs, benchmarks what its user waits for
        self.clock = Clock(timed, alone=config["threads"] == 1 and self.reference is not None)
        if not self.lines:
            begun = {"plan": mark, "fingerprint": _fingerprint(config, version), "clock": self.clock.name}
            self.add({**begun, "repeats": self.clock.repeats(timed)})
        # A measurement that goes on reads the clock that it was begun with
        self.clock.name = self.lines[0]["clock"]
        self.repeats = self.lines[0]["repeats"]
        if timed is not self.reference:
            timed.close()

    def add(self, line: dict[str, Any]) -> None:
        """Keep a line on disk."""
        self.lines.append(line)
        with (self.folder / PART).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def loaded(self, child: int, *, profile: bool = False) -> Network:
        """A child, ready to run. Raises KitError."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            files = [_placed(self.folder / name, Path(scratch)) for name in self.plan["children"][child]]
            try:
                network = self.network(files, self.images, self.plan["config"]["threads"], profile=profile)
                finite = np.isfinite(network.infer(self.images)).all()
            except Exception as problem:  # runtimes' errors have no common base
                cause = (str(problem).strip() or type(problem).__name__).splitlines()[0]
                raise KitError(f"{self.plan['config']['runtime']} cannot run child {child} here: {cause}") from problem
        if not finite:
            raise KitError(f"child {child} must give finite outputs, but does not: make the kit again")
        return network

    def stage(self, stage: dict[str, Any], deadline: float) -> None:
        """Measure what is missing of a stage."""
        begun = [line for line in self.lines[1:] if line["stage"] == stage["name"]]
        missing = [member for member in stage["members"] if not any(_ended(line) and member in line["members"] for line in begun)]
        self.progress.add((stage["rounds"] + 1) * (len(stage["members"]) - len(missing)))
        most = at_once(self.plan["weight_bytes"]) if stage["reference"] else len(stage["members"])
        while missing:
            now = time.monotonic()
            batches = math.ceil(len(missing) / most)
            until = now + (deadline - now) / batches
            # What was begun is ended first, as it was begun
            rounds = [line for line in begun if "visit" in line and line["members"][0] == missing[0]]
            group = rounds[-1]["members"] if rounds else missing[: math.ceil(len(missing) / batches)]
            kept = [(line["visit"], line["mark"]) for line in rounds if line["members"] == group]
            members = self.batch(stage, group, [] if stage["profile"] else kept, until)
            missing = [member for member in missing if member not in members]

    def batch(self, stage: dict[str, Any], group: list[int], kept: list[Any], until: float) -> list[int]:
        """Measure the first of ``group``, as many as are loaded in time; returns them."""
        start = time.monotonic()
        networks: list[Network] = []
        second: list[Network] = []
        references = [self.reference] if stage["reference"] and self.reference else []
        try:
            for number, child in enumerate(group):
                seconds = time.monotonic() - start
                if not kept and references and number >= MARK_EVERY and seconds > LOADING_S:
                    break
                if references and again(number, len(group), seconds):
                    references.append(self.loaded(self.plan["reference"]))
                networks.append(self.loaded(child, profile=stage["profile"]))
            weights = self.plan["weight_bytes"] * len(group)
            if not stage["reference"] and twice(len(group), time.monotonic() - start, weights):
                second = [self.loaded(child) for child in reversed(group)][::-1]
            where = {"stage": stage["name"], "members": group[: len(networks)]}
            rounds = in_turn(
                networks,
                references,
                self.clock,
                second=second,
                repeats=self.repeats,
                rounds=stage["rounds"],
                tolerance=stage["tolerance"],
                deadline=until,
                kept=kept,
                tick=self.progress.add,
            )
            profiled = []
            for visit, mark in rounds:
                line = {**where, "visit": _short(visit), "mark": _short(mark)}
                if stage["profile"]:  # a profile that is stopped is lost, and its rounds with it
                    profiled.append(line)
                else:
                    self.add(line)
            layers = [_short(network.layers()) for network in networks] if stage["profile"] else None
            ended = {**where, "layers": layers, "seconds": round(time.monotonic() - start, 3)}
            self.add({**ended, "rounds": [[line["visit"], line["mark"]] for line in profiled]} if profiled else ended)
        finally:
            for network in (*networks, *second, *references[1:]):
                network.close()
        return group[: len(networks)]

    def finish(self) -> Path:
        """Write times.json. What it is made of is deleted."""
        self.progress.end()
        if self.reference is not None:
            self.reference.close()
        head, *lines = self.lines
        batches = []
        for line in filter(_ended, lines):
            same = [[item["visit"], item["mark"]] for item in lines if "visit" in item and _where(item) == _where(line)]
            rounds = line.get("rounds") or same
            batches.append(
                {
                    "stage": line["stage"],
                    "members": line["members"],
                    "runs": [visit for visit, _ in rounds],
                    "marks": [mark for _, mark in rounds],
                    "layers": line["layers"],
                    "seconds": line["seconds"],
                }
            )
        content = {
            "schema": 1,
            "plan": self.plan,
            "fingerprint": {**head["fingerprint"], "after": state()},
            "clock": head["clock"],
            "repeats": head["repeats"],
            "batches": batches,
        }
        path = self.folder / TIMES
        temporary = self.folder / f".{TIMES}.new"
        temporary.write_text(json.dumps({**content, "sha256": checksum(content)}) + "\n", encoding="utf-8")
        temporary.replace(path)
        (self.folder / PART).unlink()
        return path


class _Progress:
    """How much is done, and about how long the rest takes, on stderr."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.before = total, 0, 0
        self.start = self.said = time.monotonic()

    def add(self, steps: int) -> None:
        """Visits that were made, or that are not needed."""
        self.done += steps
        now = time.monotonic()
        if steps != 1:  # kept from before, or spared
            self.before += steps
        made = self.done - self.before
        tty = sys.stderr.isatty()
        if now - self.said > (0.5 if tty else 10) and made > 0:
            self.said = now
            left = (self.total - self.done) * (now - self.start) / made
            rest = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
            begin, end = ("\r", "") if tty else ("", "\n")
            sys.stderr.write(f"{begin}measured {self.done / self.total:.0%}, about {rest} left    {end}")
            sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if sys.stderr.isatty():
            sys.stderr.write("\n")


def checksum(content: dict[str, Any]) -> str:
    """Of JSON values, however they are laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def same_version(first: str, second: str) -> bool:
    """Whether major and minor agree: then times may be compared."""
    return first.split("+")[0].split(".")[:2] == second.split("+")[0].split(".")[:2]


def _version(plan: dict[str, Any], network: type[Network]) -> str:
    name, wanted = plan["config"]["runtime"], plan["runtime_version"]
    try:
        version = network.version()
    except ImportError as problem:
        raise KitError(f"{name} cannot be imported here ({problem}): install version {wanted}") from None
    if not same_version(version, wanted):
        raise KitError(
            f"the kit is for {name} {wanted}, but {version} is installed here: install {wanted}, "
            f"or make the kit with --runtime-version {version}"
        )
    return version


def _read_part(path: Path, mark: str, version: str) -> list[dict[str, Any]]:
    """What a start before this one has kept. Raises KitError where it was begun otherwise."""
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            lines.append(json.loads(text))
        except ValueError:
            if text.endswith("\n"):
                raise KitError(f"{path} is damaged: delete it and start anew") from None
    if not lines:
        return []
    if lines[0]["plan"] != mark:
        raise KitError(f"{path} was begun with another {PLAN}: delete it, or take the kit that it belongs to")
    begun = lines[0]["fingerprint"]["runtime_version"]
    if begun != version:
        raise KitError(
            f"{path} was begun with version {begun} of the runtime, but {version} is installed: install {begun}, or delete it"
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return lines


def _placed(path: Path, folder: Path) -> str:
    """A file of the kit with weights, in ``folder``; files that have theirs are taken as they are. Raises KitError."""
    if path.suffix != ".z":
        return str(path)
    try:
        data = filled(path.read_bytes())
    except (OSError, ValueError) as problem:
        raise KitError(f"{path} cannot be read ({problem}): copy the kit again") from None
    whole = folder / path.stem
    whole.write_bytes(data)
    return str(whole)


def _fingerprint(config: dict[str, Any], version: str) -> dict[str, Any]:
    """As nar_hw's own, with the state of the machine."""
    name, isa = cpu()
    return {
        "device": name,
        "kind": "cpu",
        "cpu": name,
        "isa": isa,
        "cores": cores(),
        "runtime": config["runtime"],
        "runtime_version": version,
        **{key: config[key] for key in ("precision", "batch", "threads", "memory_format")},
        "os": system(),
        "python": platform.python_version(),
        "versions": {config["runtime"]: version, "numpy": np.__version__},
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "before": state(),
    }


def _ended(line: dict[str, Any]) -> bool:
    return "layers" in line


def _where(line: dict[str, Any]) -> tuple[str, list[int]]:
    return line["stage"], line["members"]


def _short(value: Any) -> Any:
    """Nanoseconds are enough."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value
