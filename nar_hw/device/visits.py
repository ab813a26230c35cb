"""Visits to loaded networks in turn, and what their times say: the one way to measure, here and on devices.

A network that runs in the calling thread alone is timed by that thread's own clock, which stands still while other programs
have the core: on an idle machine it agrees with the wall clock, on a busy one it is the time the network would have taken.

Shape legend: rounds = visits that are kept, items = networks, repeats = runs of one visit.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import math
import os
import random
import sys
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Round = tuple[list[list[float]], list[list[float]]]

FEWEST_ROUNDS = 4
FEW = {2: 1.196, 3: 1.495, 4: 1.363, 5: 1.206, 6: 1.2, 7: 1.14, 8: 1.129, 9: 1.107}
"""Rounds -> how much larger the spread is than the median deviation of so few says (Croux and Rousseeuw 1992)."""
MARK_EVERY = 4
"""Networks between two visits of the reference, or more where there are many: all times are divided by its own."""
MARKS = 8
"""Its visits in a round that are enough."""
AGAIN_S = 1.0
"""Seconds that loading a network may take where the reference is loaded again."""
LOADING_S = 60.0
"""Seconds of loading after which what is loaded is measured, if it is MARK_EVERY networks or more: what takes minutes to
compile is to be kept."""
MEMORY = 2**33
"""Bytes that loaded networks may take together; a loaded network takes one to two times its weights."""


class Timed(Protocol):
    """A loaded network."""

    def run(self) -> None:
        """One inference."""

    def synchronize(self) -> None:
        """Wait for the device."""

    def time_ms(self, repeats: int) -> list[float]:
        """The milliseconds of each of ``repeats`` inferences in a row."""


def time_runs(network: Timed, repeats: int, clock: Callable[[], float]) -> list[float]:
    """The milliseconds by ``clock``, in seconds, of each of ``repeats`` runs in a row."""
    times = []
    for _ in range(repeats):
        start = clock()
        network.run()
        network.synchronize()
        times.append((clock() - start) * 1e3)
    return times


class Clock:
    """Times runs by the clock that suits a network: see the top of this file."""

    def __init__(self, network: Timed, *, alone: bool) -> None:
        """``network``: any that is loaded like those to be timed; ``alone``: it is asked to use one CPU thread."""
        self.name = "thread" if fine_thread_clock() and alone and in_calling_thread(network) else "wall"

    def time_ms(self, network: Timed, repeats: int) -> list[float]:
        """Milliseconds of each of ``repeats`` runs."""
        return network.time_ms(repeats) if self.name == "wall" else time_runs(network, repeats, time.thread_time)

    def repeats(self, reference: Timed) -> int:
        """Runs of one visit: about 12 ms, at least 5; 3 of slow networks, whose first run alone fills the caches."""
        self.time_ms(reference, 3)
        ms = float(np.median(self.time_ms(reference, 3)))
        if ms > 15:
            return 3
        return max(5, min(20, math.ceil(12 / ms))) if ms > 0 else 5


def fine_thread_clock() -> bool:
    """Whether a thread's own clock counts microseconds here."""
    return time.get_clock_info("thread_time").resolution <= 1e-6


def in_calling_thread(network: Timed) -> bool:
    """Whether the calling thread does all the work; asked several times, since idle workers may spin for a while."""
    for _ in range(5):
        process, thread = time.process_time(), time.thread_time()
        for _ in range(10):
            network.run()
            network.synchronize()
        if time.thread_time() - thread > 0.9 * (time.process_time() - process):
            return True
    return False


def in_turn(
    networks: Sequence[Timed],
    references: Sequence[Timed],
    clock: Clock,
    *,
    second: Sequence[Timed] = (),
    repeats: int,
    rounds: int,
    tolerance: float = 0.0,
    deadline: float = math.inf,
    kept: Sequence[Round] = (),
    tick: Callable[[int], object] = lambda steps: None,
) -> Iterator[Round]:
    """Visit all networks ``rounds`` times, in another order each time; yields the times of each and of the references.

    Before them comes one run of each, which is dropped: the first may be 50 % off. The references are visited in between, never
    one twice in a row: that would find its weights in the caches.

    Args:
        networks: loaded together.
        references: the network itself, loaded once or more (see `again`); none for no marks.
        clock: reads the times.
        second: the networks loaded once more, visited in every second round; none where they are loaded once.
        repeats: runs of each visit.
        rounds: visits of each; fewer, but at least two, when the deadline comes first.
        tolerance: stop after FEWEST_ROUNDS or more when the times are known this well (see `settled`); 0 never.
        deadline: time.monotonic() at which to stop.
        kept: rounds that were made before and are not made again.
        tick: called with the number of visits made or no longer needed; there are rounds + 1 of each network.
    """
    visits = [visit for visit, _ in kept]
    tick(len(visits) * len(networks))
    for turn in (0, *range(len(visits) + 1, rounds + 1)):
        loaded = second if second and turn % 2 else networks
        visit: list[list[float]] = [[] for _ in networks]
        mark: list[list[float]] = []
        for number, item in enumerate(random.Random(turn).sample(range(len(networks)), len(networks))):
            if turn and references and marked(number, len(networks)):
                mark.append(clock.time_ms(references[(turn + len(mark)) % len(references)], repeats))
            visit[item] = clock.time_ms(loaded[item], repeats if turn else 1)
            tick(1)
        if turn:
            visits.append(visit)
            yield visit, mark
        enough = tolerance and len(visits) >= FEWEST_ROUNDS and settled(normalised(np.array(visits))[0], tolerance)
        if len(visits) >= 2 and (enough or time.monotonic() > deadline):
            tick((rounds - len(visits)) * len(networks))
            return


def marked(number: int, networks: int) -> bool:
    """Whether the reference is visited before the network of this ``number``."""
    return number % max(MARK_EVERY, networks // MARKS) == 0


def again(number: int, networks: int, seconds: float) -> bool:
    """Whether the reference is to be loaded once more before the network of this ``number``, after ``seconds`` of loading.

    The same network differs by 2 to 3 % from one place in memory to another, and what is loaded first is slower than what is
    loaded last (benchmarks/bench_copies.py). So the reference, which is loaded first, is loaded in the middle and near the end
    too, where there are many ``networks`` and loading takes no longer than AGAIN_S each.
    """
    return networks >= 2 * MARK_EVERY and number in (networks // 2, networks - 1) and seconds <= AGAIN_S * number


def twice(networks: int, seconds: float, weights: float) -> bool:
    """Whether so many networks, loaded in ``seconds`` with so many bytes together, are to be loaded once more.

    Where all are compared with each other there is no reference to be loaded again. The second time is in the opposite order:
    on the whole none then comes before another.
    """
    return networks > 1 and seconds <= AGAIN_S * networks and weights < math.inf and at_once(math.ceil(weights)) > 1


def normalised(runs: Floats) -> tuple[Floats, Floats]:
    """Runs (rounds, items, repeats) as (rounds, items) ms at the machine's usual speed, and the factors (rounds,) for that.

    A round is as slow as the median of its items is beside their own medians over all rounds.
    """
    times = typical(runs)  # (rounds, items)
    slowness = np.ones(len(times))
    for _ in range(5):  # median polish
        own = np.median(times / slowness[:, None], axis=0)
        slowness = np.median(times / own, axis=1)
    factors = np.median(slowness) / slowness
    return times * factors[:, None], factors


def settled(whole: Floats, tolerance: float) -> bool:
    """Whether more rounds are not worth it: half of the items' medians have a relative standard error up to ``tolerance``.

    whole (rounds, items); the standard error of a median is 1.25 sigma / sqrt(rounds), and sigma comes from the median
    deviation, which single disturbed visits do not move, but which is too small in few rounds.
    """
    rounds = len(whole)
    middle = np.median(whole, axis=0)  # (items,)
    sigma = 1.4826 * FEW.get(rounds, rounds / (rounds - 0.8)) * np.median(np.abs(whole - middle), axis=0) / middle
    return bool(1.2533 * np.median(sigma) / math.sqrt(rounds) <= tolerance)


def typical(runs: Floats) -> Floats:
    """(..., repeats) -> (...) ms: the median of the runs that took at most 1.3 x as long as the fastest of their visit.

    Where another program took the core, a run takes several times as long; how often that happens is not the network's.
    """
    kept = np.where(undisturbed(runs), runs, np.nan)
    return np.asarray(np.nanmedian(kept, axis=-1), dtype=np.float64)


def undisturbed(runs: Floats) -> npt.NDArray[np.bool_]:
    """Which runs took at most 1.3 x as long as the fastest of their visit."""
    return np.asarray(runs <= 1.3 * runs.min(axis=-1, keepdims=True))


def at_once(weights: int) -> int:
    """How many loaded networks of so many bytes of weights fit into MEMORY, and into a third of this machine's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else MEMORY
    return max(1, int(min(MEMORY, machine / 3) / (2 * weights + 1)))


def joined(outputs: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """(B, D) float32: all numbers of a network's outputs (B, ...) for each image."""
    return np.concatenate([np.asarray(item, np.float32).reshape(len(item), -1) for item in outputs], axis=1)


@contextlib.contextmanager
def unsaid() -> Iterator[None]:
    """Without what a runtime prints, for those whose exceptions hold what goes wrong too."""
    with contextlib.ExitStack() as after:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        flush = ctypes.CDLL(None).fflush if os.name == "posix" else lambda nothing: None
        flush(None)
        nothing = os.open(os.devnull, os.O_WRONLY)
        after.callback(os.close, nothing)
        for number in (1, 2):
            kept = os.dup(number)
            after.callback(os.close, kept)
            after.callback(os.dup2, kept, number)
            os.dup2(nothing, number)
        after.callback(flush, None)  # what C has printed to a pipe is still in memory
        with contextlib.redirect_stderr(io.StringIO()):  # some write there by Python
            yield


class Network(ABC):
    """A network loaded from a file on a device, ready to be timed. Each runtime has its own."""

    @abstractmethod
    def __init__(self, files: Sequence[str], images: npt.NDArray[np.float32], threads: int, *, profile: bool = False) -> None:
        """``images`` (B, C, H, W): what it is timed on. Where the runtime has per-layer times, ``profile`` keeps them."""

    @staticmethod
    @abstractmethod
    def version() -> str:
        """Of the runtime."""

    @abstractmethod
    def infer(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The outputs (B, D) for other images (B, C, H, W), as `joined`."""

    @abstractmethod
    def run(self) -> None:
        """One inference on the images that it was loaded with."""

    def synchronize(self) -> None:
        """`run` waits already."""
        return

    def time_ms(self, repeats: int) -> list[float]:
        """The milliseconds of each of ``repeats`` inferences in a row."""
        return time_runs(self, repeats, time.perf_counter)

    def layers(self) -> dict[str, Any]:
        """With ``profile``: names of the nodes, and ms (runs, nodes) of each inference so far. Ends the profile.

        Raises ValueError where the runtime has no per-layer times.
        """
        raise ValueError(f"{type(self).__name__} has no per-layer times")

    @abstractmethod
    def close(self) -> None:
        """Release everything."""
