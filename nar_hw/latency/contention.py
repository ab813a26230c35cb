"""What else the machine does while something is measured, by its own counters: why times may be wrong.

Medians of times in turn stand a good deal, but not everything, and how much is not known: what was measured beside other
programs, on a core that the host took away or on a GPU that slowed itself down says so.
"""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple, Self

from nar_hw.latency.meters import Gpu
from nar_hw.locks import lease_lost
from nar_hw.records import Record, replace
from nar_hw.runtimes import RuntimeConfig, runtime_class

OTHERS = 0.1
"""Share of all cores that other programs may keep busy."""
WAITING = 0.02
"""Share of the time that the measuring thread may wait for a core."""
SWITCHES = 50.0
"""Involuntary context switches a second: an idle Linux makes 5 to 15, a program on the same core over 100."""
STEAL = 0.02
"""Share of the CPU time that the host may take."""
CLOCK = 0.85
"""The GPU's lowest clock beside its highest, while it is busy."""
SHORTEST_S = 0.5
"""What is shorter is not judged: the system counts in hundredths of a second."""
EVERY_S = 1.0


class Counters(NamedTuple):
    """What the system has counted since it started; None where it does not say."""

    at: float
    """time.monotonic()."""
    own: float
    """CPU seconds of this process and of those that it has ended."""
    busy: float | None = None
    """CPU seconds of all programs on all cores."""
    steal: float | None = None
    """Seconds in which a core had work and the host did not let it run."""
    waited: float | None = None
    """Seconds in which the calling thread was ready and had no core."""
    switches: int | None = None
    """How often the calling thread was put off its core."""
    throttled: int | None = None
    """How often the CPU slowed down because of heat."""


class Contention(Record, frozen=True, kw_only=True):
    """What else the machine did while something was measured; None where the system does not say."""

    seconds: float
    """How long that took."""
    cores: int
    """Of the whole machine."""
    load_average: float | None = None
    """Programs that ran or waited, by the mean of the minute before the end."""
    others: float | None = None
    """Cores that other programs kept busy, on average."""
    waiting: float | None = None
    """Share of the time in which the measuring thread waited for a core."""
    switches: float | None = None
    """Involuntary context switches of the measuring thread, a second."""
    steal: float | None = None
    """Share of the machine's CPU time that the host took."""
    slowed: tuple[str, ...] = ()
    """Why the processor that was measured ran slower than it can: heat, power."""
    sm_clock_mhz: tuple[float, float] | None = None
    """Lowest and highest clock of the GPU."""
    lease: str | None = None
    """How this process lost the machine's lease, so that another may have measured at the same time; None where it kept it."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the times are in doubt, in words; none on a quiet machine, and below SHORTEST_S only that the lease was lost."""
        found = [] if self.lease is None else [f"this machine's lease {self.lease}, so that others may have measured meanwhile"]
        if self.seconds < SHORTEST_S:
            return tuple(found)
        average = "" if self.load_average is None else f" (load average {self.load_average:.1f})"
        if self.others is not None and self.others > OTHERS * self.cores:
            found.append(f"other programs kept {self.others:.1f} of {self.cores} cores busy{average}")
        elif self.others is None and self.load_average is not None and self.load_average > 1 + OTHERS * self.cores:
            found.append(f"the load average was {self.load_average:.1f} on {self.cores} cores")
        if (self.waiting or 0) > WAITING or (self.switches or 0) > SWITCHES:
            share = "" if self.waiting is None else f"it waited {self.waiting:.0%} of the time for a core"
            often = "" if self.switches is None else f"{self.switches:.0f} involuntary context switches a second"
            found.append(" and had ".join(filter(None, (share, often))))
        if self.steal is not None and self.steal > STEAL:
            found.append(f"the host took {self.steal:.0%} of the CPU time (steal)")
        found += [f"the processor was slowed down by {reason}" for reason in self.slowed]
        if self.sm_clock_mhz is not None and self.sm_clock_mhz[0] < CLOCK * self.sm_clock_mhz[1]:
            found.append("the GPU's clock went from {:.0f} to {:.0f} MHz".format(*self.sm_clock_mhz))
        return tuple(found)

    @property
    def note(self) -> str | None:
        """The reasons in one line; None where there are none."""
        return f"{BUSY}: {'; '.join(self.reasons)}: measure again when it is quiet" if self.reasons else None


BUSY = "busy machine"
"""How notes of this kind begin."""


def together(several: Iterable[Contention | None]) -> Contention | None:
    """Measurements one after the other as one; None where nothing is known of any."""
    found = [item for item in several if item is not None]
    if not found:
        return None
    clocks = [clock for item in found for clock in item.sm_clock_mhz or ()]
    return Contention(
        seconds=sum(item.seconds for item in found),
        cores=max(item.cores for item in found),
        load_average=max((item.load_average for item in found if item.load_average is not None), default=None),
        **{name: _mean(found, name) for name in ("others", "waiting", "switches", "steal")},
        slowed=tuple(dict.fromkeys(reason for item in found for reason in item.slowed)),
        sm_clock_mhz=(min(clocks), max(clocks)) if clocks else None,
        lease=next((item.lease for item in found if item.lease is not None), None),
    )


def _mean(several: list[Contention], name: str) -> float | None:
    """Over the time of those that know it."""
    known = [(item.seconds, value) for item in several if (value := getattr(item, name)) is not None]
    seconds = sum(weight for weight, _ in known)
    return sum(weight * value for weight, value in known) / seconds if seconds > 0 else None


class Watch:
    """Reads the counters while something is measured under ``config``. Use it as a context, and call `look` now and then."""

    def __init__(
        self,
        config: RuntimeConfig,
        say: Callable[[str], object] = lambda text: None,
        *,
        read: Callable[[], Counters] | None = None,
    ) -> None:
        """``say`` is told once when the machine turns out to be busy; ``read`` gives the counters."""
        self._gpu = Gpu(config) if config.device_type == "cuda" else None
        self._simulated = runtime_class(config.runtime).simulated
        self._say, self._read, self._said = say, read or counters, False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self._gpu is not None:
            self._stack.enter_context(self._gpu)
        self.begin()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def begin(self) -> None:
        """What was before does not count."""
        self._first = self._last = self._read()
        self._slowed: dict[str, None] = {}
        self._clocks: list[float] = []

    def look(self) -> None:
        """Every EVERY_S seconds: see what the GPU does, and say it when the machine is busy."""
        if self._simulated or time.monotonic() - self._last.at < EVERY_S:
            return
        now = self._read()
        load = self._between(self._last, now)
        self._last = now
        if load.reasons and not self._said:
            self._said = True
            self._say(f"the machine is busy: {'; '.join(load.reasons)}")

    def found(self) -> Contention | None:
        """What the machine did since `begin`; None where times are made up."""
        return None if self._simulated else self._between(self._first, self._read())

    def _between(self, first: Counters, last: Counters) -> Contention:
        if self._gpu is not None:
            self._slowed.update(dict.fromkeys(self._gpu.slowed_by()))
            self._clocks += filter(None, [self._gpu.sm_clock_mhz()])
        found = difference(first, last)
        clocks = (min(self._clocks), max(self._clocks)) if self._clocks else None
        return replace(found, slowed=(*found.slowed, *self._slowed), sm_clock_mhz=clocks, lease=lease_lost())


def difference(first: Counters, last: Counters) -> Contention:
    """What happened between two readings."""
    seconds = max(last.at - first.at, 1e-9)

    def passed(name: str) -> float | None:
        before, after = getattr(first, name), getattr(last, name)
        return None if before is None or after is None else max(0.0, float(after - before))

    busy, steal, waited, switches = map(passed, ("busy", "steal", "waited", "switches"))
    own = last.own - first.own
    return Contention(
        seconds=seconds,
        cores=os.cpu_count() or 1,
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        others=None if busy is None else max(0.0, busy - own) / seconds,
        waiting=None if waited is None else min(1.0, waited / seconds),
        switches=None if switches is None else switches / seconds,
        steal=None if steal is None or busy is None else steal / max(busy + steal, 1e-9),
        slowed=("heat",) if passed("throttled") else (),
    )


def counters() -> Counters:
    """What this system counts, now."""
    busy, steal = _stat()
    return Counters(
        at=time.monotonic(),
        own=sum(os.times()[:4]),
        busy=busy,
        steal=steal,
        waited=_waited(),
        switches=_switches(),
        throttled=_throttled(),
    )


def _stat() -> tuple[float | None, float | None]:
    """(busy, steal) seconds of all cores, of Linux."""
    with suppress(OSError, ValueError, IndexError):
        line = Path("/proc/stat").read_text(encoding="ascii", errors="replace").partition("\n")[0]
        user, nice, system, _, _, irq, softirq, steal = map(int, line.split()[1:9])
        ticks = os.sysconf("SC_CLK_TCK")
        return (user + nice + system + irq + softirq) / ticks, steal / ticks
    return None, None


def _waited() -> float | None:
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    return None


def _switches() -> int | None:
    with suppress(ImportError, AttributeError):  # not on Windows; of threads on Linux only
        import resource

        return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    return None


def _throttled() -> int | None:
    files = list(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    with suppress(OSError, ValueError):
        return sum(int(file.read_text(encoding="ascii")) for file in files) if files else None
    return None
