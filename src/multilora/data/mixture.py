"""How much each task gives and in which order: pure functions of sizes and a seed.

Every task is an endless sequence of draws: its examples once through in a random order, then again in another, and so
on. A share says how fast one walks along a task's sequence compared with the others, measured in examples, tokens or
trained tokens. Draw k of a task lies somewhere within its own part of the way, at random; the draws of all tasks in the
order of these points are the *stream*. So every stretch of the stream holds about the asked shares, in random order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """A generator that depends on the seed and on what it is for, not on what else was drawn."""
    digest = hashlib.sha256("/".join(map(str, (seed, *path))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def apportion(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that add up to `total` in proportion to `shares`, each within one of its exact quota.

    Largest remainders; ties go to the earlier name.
    """
    weight = sum(shares.values())
    exact = {name: total * share / weight for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    missing = total - sum(counts.values())
    by_remainder = sorted(shares, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[:missing]:
        counts[name] += 1
    return counts


def shares_of(
    strategy: str, sizes: Mapping[str, float], *, temperature: float = 1.0, weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The share of every task, adding up to 1.

    Args:
        strategy: `proportional` (to size), `equal`, `temperature` (p_i ~ size_i^(1/T); T = 1 is proportional, a large
            T nearly equal), `weights`
        sizes: of each task, in the mixture's unit
        temperature: T
        weights: for `weights`
    """
    if strategy == "weights":
        raw = {name: float((weights or {})[name]) for name in sizes}
    elif strategy == "equal":
        raw = dict.fromkeys(sizes, 1.0)
    else:
        power = 1 / temperature if strategy == "temperature" else 1.0
        raw = {name: float(size) ** power for name, size in sizes.items()}
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()}


@dataclass
class Draws:
    """The endless sequence of one task, as far as it was looked at.

    cost: of each example in the mixture's unit, [size].
    """

    name: str
    cost: Int64
    seed: int

    def __post_init__(self) -> None:
        self._order: Int64 = np.empty(0, dtype=np.int64)  # doubled as it grows
        self._known = 0

    @property
    def size(self) -> int:
        """Examples of the task."""
        return len(self.cost)

    def first(self, count: int) -> Int64:
        """The examples of the first `count` draws; every example comes once before any comes twice."""
        if count > len(self._order):
            epochs = -(-max(count, 2 * len(self._order)) // self.size)
            larger = np.empty(epochs * self.size, dtype=np.int64)
            larger[: self._known] = self._order[: self._known]
            self._order = larger
        while self._known < count:
            epoch = self._known // self.size
            permutation = generator(self.seed, "epoch", self.name, epoch).permutation(self.size)
            self._order[self._known : self._known + self.size] = permutation
            self._known += self.size
        return self._order[:count]

    def jitter(self, count: int) -> Float64:
        """A number in [0, 1) for each of the first `count` draws: where within its part of the way it lies."""
        return generator(self.seed, "place", self.name).random(count)

    def until(self, amount: float) -> int:
        """How many draws come nearest to `amount` of the unit."""
        per_epoch = int(self.cost.sum())
        whole = int(amount // per_epoch)
        ends = np.cumsum(self.cost[self.first((whole + 2) * self.size)[whole * self.size :]])
        rest = amount - whole * per_epoch
        place = int(np.searchsorted(ends, rest))
        lower = int(ends[place - 1]) if place else 0
        return whole * self.size + place + (place < len(ends) and ends[place] - rest < rest - lower)


@dataclass(frozen=True)
class Stream:
    """Draws of all tasks in their order. task: place among the tasks; draw: number within the task's sequence; [n]."""

    task: Int64
    draw: Int64

    def __len__(self) -> int:
        return len(self.task)

    def first(self, count: int) -> Stream:
        """The first `count` draws."""
        return Stream(self.task[:count], self.draw[:count])


def stream(draws: Sequence[Draws], shares: Sequence[float], amount: float) -> Stream:
    """The stream until `amount` of the unit is drawn from all tasks together.

    Args:
        draws: one per task
        shares: one per task, adding up to 1
        amount: in the mixture's unit
    """
    counts = []
    for source, share in zip(draws, shares, strict=True):
        # As many as begin before the end of the way.
        whole = int(share * amount // int(source.cost.sum())) + 1
        ends = np.cumsum(source.cost[source.first(whole * source.size)])
        counts.append(int(np.searchsorted(ends, share * amount, side="left")) + 1)
    ordered, points = _ordered(draws, shares, counts)
    return ordered.first(int(np.searchsorted(points, amount)))


def in_order(draws: Sequence[Draws], counts: Sequence[int]) -> Stream:
    """Exactly the first `counts` draws of every task, each task spread evenly over the whole."""
    amounts = [float(source.cost[source.first(count)].sum()) for source, count in zip(draws, counts, strict=True)]
    total = sum(amounts)
    return _ordered(draws, [amount / total for amount in amounts], counts)[0]


def _ordered(draws: Sequence[Draws], shares: Sequence[float], counts: Sequence[int]) -> tuple[Stream, Float64]:
    points, tasks, numbers = [], [], []
    for place, (source, share, count) in enumerate(zip(draws, shares, counts, strict=True)):
        if not count:
            continue
        cost = source.cost[source.first(count)].astype(np.float64)
        starts = np.cumsum(cost) - cost
        points.append((starts + source.jitter(count) * cost) / share)
        tasks.append(np.full(count, place, dtype=np.int64))
        numbers.append(np.arange(count, dtype=np.int64))
    order = np.argsort(np.concatenate(points), kind="stable")
    return Stream(np.concatenate(tasks)[order], np.concatenate(numbers)[order]), np.concatenate(points)[order]


def exact_counts(draws: Sequence[Draws], shares: Sequence[float], total: int) -> list[int]:
    """How many draws of each task make `total` draws in the asked shares of the unit.

    With examples as the unit each count is within one of its quota; with tokens, the realised share of each task is as
    near to the asked one as whole examples allow.
    """
    names = [source.name for source in draws]
    if all((source.cost == 1).all() for source in draws):
        counts = apportion(total, dict(zip(names, shares, strict=True)))
        return [counts[name] for name in names]
    means = [float(source.cost.mean()) for source in draws]
    low, high = 0.0, 2.0 * total * max(means) + 1
    for _ in range(60):  # bisection on the amount of the unit
        middle = (low + high) / 2
        if sum(source.until(share * middle) for source, share in zip(draws, shares, strict=True)) < total:
            low = middle
        else:
            high = middle
    found = [source.until(share * high) for source, share in zip(draws, shares, strict=True)]
    while sum(found) != total:
        found = _one_more(draws, shares, found, +1 if sum(found) < total else -1)
    return found


def _one_more(draws: Sequence[Draws], shares: Sequence[float], counts: list[int], step: int) -> list[int]:
    """One draw more (or less) from the task whose amount is the farthest below (above) its share."""
    amounts = [float(source.cost[source.first(count)].sum()) for source, count in zip(draws, counts, strict=True)]
    total = sum(amounts)
    room = [
        step * (share * total - amount) if count + step >= 0 else -np.inf
        for share, amount, count in zip(shares, amounts, counts, strict=True)
    ]
    place = int(np.argmax(room))
    return [count + step * (number == place) for number, count in enumerate(counts)]
