"""Which children to measure: each design is a list of archs.

latin        every operator of every slot inside a real network, K children for K operators
contexts     latin children among uniformly random neighbours and among the network's own (in-context profiles)
orthogonal   every pair of operators of every pair of slots, equally often where an array fits (least squares)
held_out     random children that no profile has seen (validation)
"""

import itertools
import math
import random
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from nar_hw.latency.record import Method
from nar_hw.space.space import SearchSpace
from nar_hw.space.spec import Arch

Ints = npt.NDArray[np.int64]


def latin(space: SearchSpace, *, replicates: int = 3, seed: int = 0) -> list[Arch]:
    """``replicates`` x K children, K being the largest number of candidates of a slot.

    In each replicate every slot takes each of its candidates at least once, in an order of its own; slots with fewer
    than K candidates repeat those that were used least so far.
    """
    rng = random.Random(seed)
    children = max(len(slot.candidates) for slot in space.slots)
    uses = [dict.fromkeys(slot.candidates, 0) for slot in space.slots]
    archs: list[Arch] = []
    for _ in range(replicates):
        columns = []
        for used in uses:
            times, extra = divmod(children, len(used))
            least = sorted(used, key=lambda code: (used[code], rng.random()))[:extra]
            column = [*(code for code in used for _ in range(times)), *least]
            rng.shuffle(column)
            for code in column:
                used[code] += 1
            columns.append(column)
        archs += zip(*columns, strict=True)
    return archs


def contexts(space: SearchSpace, *, replicates: int = 3, seed: int = 0) -> list[Arch]:
    """The network itself and ``replicates`` x K latin children, the last of several replicates half made of its operators.

    Small networks are not quite additive: what stays in the caches depends on how much of the network is kept. A search
    ends between a random child and the network itself, so a profile must see both neighbourhoods.
    """
    rng = random.Random(f"contexts {seed}")
    archs = latin(space, replicates=replicates, seed=seed)
    own = len(archs) // replicates if replicates > 1 else 0
    random_ones = len(archs) - own
    return [space.incumbent, *archs[:random_ones], *(_nearer(space, arch, rng) for arch in archs[random_ones:])]


def orthogonal(space: SearchSpace, *, seed: int = 0) -> list[Arch]:
    """Children from which least squares can estimate the operators of all slots.

    Where every slot has the same prime-power number of candidates and the array is not much larger than the number of
    unknowns: an orthogonal array of strength 2 (Rao-Hamming: every pair of slots shows each pair of operators equally
    often). Else a design of 1.5 x the unknowns in which each slot uses its candidates equally often (within one), made
    D-optimal by exchanges.
    """
    rng = random.Random(seed)
    counts = [len(slot.candidates) for slot in space.slots]
    unknowns = 1 + sum(count - 1 for count in counts)
    free = [count for count in counts if count > 1]
    rows: Ints | None = None
    if free and min(free) == max(free) and _is_prime_power(free[0]):
        exponent = _array_exponent(free[0], len(free))
        if free[0] ** exponent <= 3 * unknowns:
            rows = orthogonal_array(free[0], len(free))
            if (spare := len(counts) - len(free)) > 0:
                full: Ints = np.zeros((len(rows), len(free) + spare), dtype=np.int64)
                full[:, [position for position, count in enumerate(counts) if count > 1]] = rows
                rows = full
    if rows is None:
        rows = d_optimal(counts, math.ceil(1.5 * unknowns), seed=seed)
    # An array holds the all-zero child and knows no operators: which level is which operator is drawn per slot.
    orders = [rng.sample(slot.candidates, len(slot.candidates)) for slot in space.slots]
    return [tuple(order[level] for order, level in zip(orders, row, strict=True)) for row in rows]


def held_out(space: SearchSpace, children: int, *, exclude: Collection[Arch] = (), seed: int = 0) -> list[Arch]:
    """``children`` random archs, distinct from each other and from ``exclude``; fewer where the space has no more.

    Every second one keeps about half of the network's own operators: see `contexts`.
    """
    rng = random.Random(seed)
    excluded = set(exclude)
    if space.size <= 4 * (children + len(excluded)):
        everything = itertools.product(*(slot.candidates for slot in space.slots))
        rest = [arch for arch in everything if arch not in excluded]
        return rng.sample(rest, min(children, len(rest)))
    chosen: dict[Arch, None] = {}
    for turn in itertools.count():
        if len(chosen) == children:
            break
        arch = _nearer(space, space.sample(rng), rng) if turn % 2 else space.sample(rng)
        if arch not in excluded:
            chosen[arch] = None
    return list(chosen)


def _nearer(space: SearchSpace, arch: Arch, rng: random.Random) -> Arch:
    """``arch`` with the network's own operator in half of its slots."""
    return tuple(slot.incumbent if rng.random() < 0.5 else code for code, slot in zip(arch, space.slots, strict=True))


def profiled(space: SearchSpace, method: Method) -> list[Arch]:
    """The children on which a table stands."""
    if method.name == "regression":
        return [space.incumbent, *orthogonal(space, seed=method.seed)]
    return contexts(space, replicates=method.replicates or 1, seed=method.seed)


def orthogonal_array(levels: int, columns: int) -> Ints:
    """An orthogonal array of strength 2: (levels ** k, columns) with entries 0 .. levels - 1, k as small as possible.

    Rao-Hamming construction over the field of ``levels`` elements (a prime power): rows are the vectors of length k,
    columns the points of the projective space, entries their inner products; any two points are linearly independent,
    so that every pair of entries comes equally often.
    """
    assert _is_prime_power(levels)
    assert columns > 0
    add, multiply = _field(levels)
    exponent = _array_exponent(levels, columns)
    vectors = np.array(list(itertools.product(range(levels), repeat=exponent)), dtype=np.int64)
    # One representative per line through the origin: the first entry that is not zero is 1.
    points = [vector for vector in vectors if vector.any() and vector[np.flatnonzero(vector)[0]] == 1]
    array: Ints = np.zeros((len(vectors), columns), dtype=np.int64)
    for column, point in enumerate(points[:columns]):
        total = np.zeros(len(vectors), dtype=np.int64)
        for coordinate in range(exponent):
            total = add[total, multiply[vectors[:, coordinate], point[coordinate]]]
        array[:, column] = total
    return array


def d_optimal(counts: Sequence[int], rows: int, *, seed: int = 0, exchanges: int = 2000) -> Ints:
    """A (rows, len(counts)) design; column s holds 0 .. counts[s] - 1 equally often (within one).

    Starts at random and keeps each exchange of two entries of one column that enlarges the determinant of the
    information matrix of the main effects.
    """
    rng = np.random.default_rng(seed)
    design: Ints = np.stack([rng.permutation(np.arange(rows) % count) for count in counts], axis=1)
    best = _log_determinant(design, counts)
    for _ in range(exchanges):
        column = int(rng.integers(len(counts)))
        first, second = (int(row) for row in rng.choice(rows, 2, replace=False))
        if design[first, column] == design[second, column]:
            continue
        design[[first, second], column] = design[[second, first], column]
        if (score := _log_determinant(design, counts)) > best:
            best = score
        else:
            design[[first, second], column] = design[[second, first], column]
    return design


def _log_determinant(design: Ints, counts: Sequence[int]) -> float:
    effects = [design[:, column, None] == np.arange(1, count) for column, count in enumerate(counts)]
    matrix = np.concatenate([np.ones((len(design), 1)), *effects], axis=1).astype(np.float64)
    sign, value = np.linalg.slogdet(matrix.T @ matrix)
    return float(value) if sign > 0 else -math.inf


def _array_exponent(levels: int, columns: int) -> int:
    exponent = 2
    while (levels**exponent - 1) // (levels - 1) < columns:
        exponent += 1
    return exponent


def _factor(number: int) -> tuple[int, int]:
    """(p, m) with number = p ** m for a prime p, or (0, 0)."""
    prime = next(divisor for divisor in range(2, number + 1) if number % divisor == 0)
    exponent = 0
    while number % prime == 0:
        number //= prime
        exponent += 1
    return (prime, exponent) if number == 1 else (0, 0)


def _is_prime_power(number: int) -> bool:
    return number > 1 and _factor(number) != (0, 0)


def _field(order: int) -> tuple[Ints, Ints]:
    """Addition and multiplication tables (order, order) of the finite field; element = polynomial with base-p digits."""
    prime, degree = _factor(order)
    digits = [tuple(element // prime**place % prime for place in range(degree)) for element in range(order)]
    number = {digit: element for element, digit in enumerate(digits)}
    add = np.array([[number[tuple((x + y) % prime for x, y in zip(a, b, strict=True))] for b in digits] for a in digits])
    # x ** degree = -(low terms of a monic polynomial); the first one that leaves no zero divisors is irreducible.
    for low in digits:
        multiply = np.array([[number[_product(a, b, low, prime)] for b in digits] for a in digits])
        if (multiply[1:, 1:] != 0).all():
            return add, multiply
    raise AssertionError(f"no field of order {order}")


def _product(a: tuple[int, ...], b: tuple[int, ...], low: tuple[int, ...], prime: int) -> tuple[int, ...]:
    degree = len(a)
    total = [0] * (2 * degree - 1)
    for (i, x), (j, y) in itertools.product(enumerate(a), enumerate(b)):
        total[i + j] += x * y
    for place in range(2 * degree - 2, degree - 1, -1):
        for offset, coefficient in enumerate(low):
            total[place - degree + offset] -= total[place] * coefficient
        total[place] = 0
    return tuple(value % prime for value in total[:degree])
