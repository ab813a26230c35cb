"""times.txt: what measure.sh of a kit wrote on a device without Python, read as times."""

import json
import re
from pathlib import Path
from typing import Any

from nar_hw.device.machine import parse_cpuinfo
from nar_hw.errors import RunError
from nar_hw.latency.kit import Plan, Times, Visits
from nar_hw.latency.programs import PROGRAMS, Program, schedule
from nar_hw.records import as_record

_AGAIN = "bring it from the device again, or measure again"
_STATE = {"scaling_governor": "governor", "scaling_cur_freq": "mhz", "cpuinfo_max_freq": "highest_mhz"}


def times_in(path: Path) -> Times:
    """The times in times.json of measure.py, or in times.txt of measure.sh. Raises RunError in one line."""
    return _read(path) if path.suffix == ".txt" else Times.load(path)


def _read(path: Path) -> Times:
    where = f"times of a kit {path}"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as problem:
        raise RunError(f"{where} cannot be read: {problem.strerror}") from None
    parts = re.match(r"@plan\n(.*?)\n@machine\n(.*?)\n@cpuinfo\n(.*?)\n@visits [^\n]*\n(.*)", text, re.DOTALL)
    if parts is None:
        raise RunError(f"{where} must be as measure.sh wrote it, but its beginning is not: {_AGAIN}")
    try:
        value: Any = json.loads(parts[1])
    except ValueError:
        raise RunError(f"{where} must begin with the kit's plan, but that is no JSON: {_AGAIN}") from None
    plan: Plan = as_record(value, Plan, where=where, fix=_AGAIN)
    if plan.config.runtime not in PROGRAMS or plan.reference is None:
        raise RunError(f"{where} must be of a kit with measure.sh, but its plan is for measure.py: bring times.json instead")
    program = PROGRAMS[plan.config.runtime]
    outputs, seconds = _visits(parts[4])
    visits = schedule(plan.stages, plan.reference)
    if missing := sum(number not in outputs for number in range(len(visits))):
        raise RunError(
            f"{where} must hold all {len(visits)} visits, but {missing} are missing: start measure.sh again on the device, it "
            "goes on from what it has"
        )
    ms = [_ms(program, outputs[number], where) for number in range(len(visits))]
    found = Times(
        plan=plan,
        fingerprint=_fingerprint(plan, program, parts[2], parts[3], outputs[0]),
        clock="program",
        repeats=1,
        batches=tuple(_batch(plan, number, visits, ms, seconds) for number in range(len(plan.stages))),
    )
    found.check(where)
    return found


def _visits(text: str) -> tuple[dict[int, str], dict[int, float]]:
    """Output and seconds of each visit that was ended; one that was begun twice counts as it was ended."""
    outputs, seconds = {}, {}
    for block in text.split("\n@visit ")[1:]:
        whole = re.match(r"(\d+) (\d+)\n(.*)\n@end (\d+) (\d+)\n", block, re.DOTALL)
        if whole is not None and whole[1] == whole[4]:
            outputs[int(whole[1])] = whole[3]
            seconds[int(whole[1])] = max(0.0, float(whole[5]) - float(whole[2]))
    return outputs, seconds


def _ms(program: Program, output: str, where: str) -> float:
    ms = program.ms(output)
    if ms is None or not 0 < ms < float("inf"):
        last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "nothing")
        raise RunError(f"{where} must hold what {program.name} measured, but in one visit it says {last[:100]!r}: measure again")
    return ms


def _batch(
    plan: Plan, stage: int, visits: list[tuple[int, int, int, bool]], ms: list[float], seconds: dict[int, float]
) -> Visits:
    about = plan.stages[stage]
    mine = [number for number, visit in enumerate(visits) if visit[0] == stage]
    runs, marks = [], []
    for turn in range(about.rounds):
        here = [number for number in mine if visits[number][1] == turn]
        own = {visits[number][2]: (ms[number],) for number in here if not visits[number][3]}
        runs.append(tuple(own[member] for member in about.members))
        marks.append(tuple((ms[number],) for number in here if visits[number][3]))
    return Visits(
        stage=about.name,
        members=about.members,
        runs=tuple(runs),
        marks=tuple(marks),
        layers=None,
        seconds=sum(seconds[number] for number in mine),
    )


def _fingerprint(plan: Plan, program: Program, machine: str, cpuinfo: str, output: str) -> dict[str, Any]:
    """As `nar_hw.latency.device.fingerprint` has it; what nobody said is None."""
    name, isa = parse_cpuinfo(cpuinfo)
    lines = machine.splitlines()
    said = dict(line.split(": ", 1) for line in lines[2:] if ": " in line)
    state: dict[str, Any] = dict.fromkeys((*_STATE.values(), "celsius"))
    warm = []
    for file, value in said.items():
        key = _STATE.get(file.rpartition("/")[2])
        if key is not None:
            state[key] = value if key == "governor" else _scaled(value)
        elif file.endswith("/temp"):
            warm.append(_scaled(value))
    state["celsius"] = max((value for value in warm if value is not None), default=None)
    cores = len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or None
    facts = program.facts(output)
    version = facts.get("runtime_version", plan.runtime_version)
    config = plan.config
    return {
        "device": name,
        "kind": config.device_type,
        "cpu": name,
        "isa": isa,
        "cores": cores,
        "runtime": config.runtime,
        "precision": config.precision,
        "batch": config.batch,
        "threads": config.threads,
        "memory_format": config.memory_format,
        "os": lines[0] if lines else None,
        "python": None,
        "product": said.get("product"),
        "program": program.name,
        **facts,
        "runtime_version": version,
        "runtime_version_from": "the program" if "runtime_version" in facts else "--runtime-version",
        "versions": {config.runtime: version},
        "date": lines[1] if len(lines) > 1 else None,
        "before": state,
    }


def _scaled(text: str) -> float | None:
    """Thousandths, as the kernel counts."""
    try:
        return float(text) / 1000
    except ValueError:
        return None
