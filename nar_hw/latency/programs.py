"""Benchmark programs of runtimes, for devices without Python: a shell script calls them, and their output says how long it took.

Adding one is one line in PROGRAMS.
"""

import random
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from nar_hw._version import __version__
from nar_hw.device.visits import marked

if TYPE_CHECKING:
    from nar_hw.latency.kit import Stage
    from nar_hw.runtimes import RuntimeConfig

RUNS = 20
"""Inferences of one visit at least."""


class Program(NamedTuple):
    """A benchmark program, in the words of a POSIX shell: $program is its path, $child the number of the child."""

    name: str
    ready: str
    """Makes of the child's file $packed what `run` loads, where that is not there already."""
    run: Callable[["RuntimeConfig"], str]
    """Runs the child once, with all of its inferences."""
    ms: Callable[[str], float | None]
    """Milliseconds of one inference, from what `run` prints; None where it does not say."""
    facts: Callable[[str], dict[str, str]]
    """What it says of the machine and of itself, as fields of a fingerprint."""


def _tflite_run(config: "RuntimeConfig") -> str:
    return (
        f'"$program" --graph=current.tflite --num_threads={config.threads} --use_xnnpack=true --num_runs={RUNS} --min_secs=0.1 '
        "--warmup_runs=3 --warmup_min_secs=0.05"
    )


def _tflite_ms(output: str) -> float | None:
    """The median of the runs, which newer versions print, or their mean; warming up has a line of its own before."""
    counts = re.findall(r"count=\d+ (.*)", output)
    median = re.search(r"\bmedian=(\S+)", counts[-1]) if counts else None
    mean = re.search(r"Inference \(avg\): (\S+)", output)
    found = median if median is not None and mean is not None else mean
    return None if found is None else _number(found[1], 1e-3)


def _trtexec_run(config: "RuntimeConfig") -> str:
    device = f" --device={config.device_index}" if config.device_index else ""
    return (
        f'"$program" --loadEngine="engines/$child.engine" --useCudaGraph --noDataTransfers --useSpinWait --warmUp=100 '
        f"--duration=0 --iterations={RUNS} --avgRuns={RUNS}{device}"
    )


def _trtexec_ms(output: str) -> float | None:
    found = re.search(r"GPU Compute Time: .*?\bmedian = (\S+) ms", output)
    return None if found is None else _number(found[1], 1.0)


def _trtexec_facts(output: str) -> dict[str, str]:
    names = {"device": "Selected Device", "compute_capability": "Compute Capability", "runtime_version": "TensorRT version"}
    found = {name: re.search(rf"\[I\] {said}: (\S.*)", output) for name, said in names.items()}
    return {name: match[1].strip() for name, match in found.items() if match is not None}


def _number(text: str, factor: float) -> float | None:
    try:
        return float(text.rstrip(",")) * factor
    except ValueError:
        return None


PROGRAMS: dict[str, Program] = {
    "litert": Program(
        name="benchmark_model",
        ready='gzip -dc "$packed" > current.tflite',
        run=_tflite_run,
        ms=_tflite_ms,
        facts=lambda output: {},
    ),
    "tensorrt": Program(
        name="trtexec",
        ready="""[ -s "engines/$child.engine" ] || {
    mkdir -p engines && gzip -dc "$packed" > current.onnx &&
    "$program" --onnx=current.onnx --saveEngine=engines/new --stronglyTyped --noTF32 --skipInference &&
    mv engines/new "engines/$child.engine"
  }""",
        run=_trtexec_run,
        ms=_trtexec_ms,
        facts=_trtexec_facts,
    ),
}
"""By runtime."""


def schedule(stages: "Sequence[Stage]", reference: int) -> list[tuple[int, int, int, bool]]:
    """All visits in their order: (stage, round, child, whether it is one of the network itself in between)."""
    visits = []
    for number, stage in enumerate(stages):
        for turn in range(stage.rounds):
            for position, item in enumerate(random.Random(turn).sample(range(len(stage.members)), len(stage.members))):
                if marked(position, len(stage.members)):
                    visits.append((number, turn, reference, True))
                visits.append((number, turn, stage.members[item], False))
    return visits


def shell_script(program: Program, config: "RuntimeConfig") -> str:
    """measure.sh: visits what visits.txt lists, a line each, and keeps what the program prints in times.txt."""
    return _SCRIPT.format(version=__version__, name=program.name, ready=program.ready, run=program.run(config))


_SCRIPT = """#!/bin/sh
# Measures this kit with {name}: sh measure.sh [its path]. Written by nar_hw {version}. Stopped, it goes on when started again.
cd "$(dirname "$0")" || exit 2
program=${{1:-{name}}}

stop() {{
  echo "measure.sh: $1" >&2
  exit 2
}}

ready() {{
  {ready}
}}

run() {{
  {run}
}}

show() {{
  for file in "$@"; do
    [ -r "$file" ] && echo "$file: $(cat "$file" 2>/dev/null)"
  done
}}

command -v "$program" >/dev/null 2>&1 || stop "there is no $program here: name it, like sh measure.sh ./{name}"
[ -s plan.json ] && [ -s visits.txt ] || stop "plan.json or visits.txt is missing: copy the kit again"
if [ ! -s times.txt ]; then
  {{
    echo "@plan"
    cat plan.json
    echo
    echo "@machine"
    uname -srm
    date -u +%Y-%m-%dT%H:%M:%S+00:00
    command -v getprop >/dev/null 2>&1 && echo "product: $(getprop ro.product.model)"
    show /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor /sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq
    show /sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq /sys/class/thermal/thermal_zone*/temp
    echo "@cpuinfo"
    cat /proc/cpuinfo 2>/dev/null
    echo "@visits $(cksum < plan.json)"
  }} > times.new
  mv times.new times.txt
fi
grep -q "^@visits $(cksum < plan.json)\\$" times.txt || stop "times.txt was begun with another plan.json: delete it"
total=$(wc -l < visits.txt)
start=$(date +%s)
before=$(grep -c "^@end " times.txt)
said=$start
while read -r visit child packed <&3; do
  grep -q "^@end $visit " times.txt && continue
  printf '\\n@visit %s %s\\n' "$visit" "$(date +%s)" >> times.txt
  if ready >> times.txt 2>&1 && run >> times.txt 2>&1; then
    printf '\\n@end %s %s\\n' "$visit" "$(date +%s)" >> times.txt
  else
    stop "$program cannot run child $child here: $(grep -v '^ *$' times.txt | tail -n 1)"
  fi
  now=$(date +%s)
  if [ $((now - said)) -ge 10 ]; then
    said=$now
    done=$(grep -c "^@end " times.txt)
    echo "measured $((100 * done / total)) %, about $(((total - done) * (now - start) / (done - before))) s left" >&2
  fi
done 3< visits.txt
echo "$PWD/times.txt: bring this file back and give it to nar-hw profile --from"
"""
