"""How much each task contributes and in which order, as pure functions of sizes and a seed.

Every task is an endless sequence of draws: all its examples in random order, then all again in a new order, and so on.
All sequences are laid out on one axis, measured in the mixture's unit (examples, tokens or trained tokens): a draw
covers an interval of length cost / share, and its point is chosen at random within that interval. Sorting the draws of
all tasks by their points yields the *stream*. So every stretch of the stream is close to the requested shares, in
random order.
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
    """Return a generator that depends only on the seed and the path, not on earlier draws."""
    digest = hashlib.sha256("/".join(map(str, (seed, *path))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def apportion(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Split `total` into integers in proportion to `shares`, each within one of its exact quota.

    Uses the largest remainder method; ties go to the earlier name.
    """
    weight = sum(shares.values())
    quotas = {name: total * share / weight for name, share in shares.items()}
    counts = {name: int(quota) for name, quota in quotas.items()}
    missing = total - sum(counts.values())
    by_remainder = sorted(shares, key=lambda name: counts[name] - quotas[name])
    for name in by_remainder[:missing]:
        counts[name] += 1
    return counts


def shares_of(
    strategy: str, sizes: Mapping[str, float], *, temperature: float = 1.0, weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Return the share of every task; the shares sum to 1.

    Args:
        strategy: `proportional` (to size), `equal`, `temperature` (p_i ~ size_i^(1/T); T = 1 is proportional, a large
            T nearly equal) or `weights`
        sizes: size of each task, in the mixture's unit
        temperature: T of `temperature`
        weights: weight of each task for `weights`
    """
    if strategy == "weights":
        raw = {name: float((weights or {})[name]) for name in sizes}
    elif strategy == "equal":
        raw = dict.fromkeys(sizes, 1.0)
    else:
        exponent = 1 / temperature if strategy == "temperature" else 1.0
        raw = {name: float(size) ** exponent for name, size in sizes.items()}
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()}


@dataclass
class Draws:
    """The endless sequence of draws of one task from `start` on, computed as far as needed.

    cost: of each example, in the mixture's unit, [size]; start: number of draws that an earlier part of the plan used.
    """

    name: str
    cost: Int64
    seed: int
    start: int = 0

    def __post_init__(self) -> None:
        self._order: Int64 = np.empty(0, dtype=np.int64)  # from the first draw; at least doubles when it grows
        self._filled = 0

    @property
    def size(self) -> int:
        """Number of examples of the task."""
        return len(self.cost)

    def first(self, count: int) -> Int64:
        """Return the examples of the first `count` draws; each example comes once before any comes twice."""
        count += self.start
        if count > len(self._order):
            epochs = -(-max(count, 2 * len(self._order)) // self.size)
            larger = np.empty(epochs * self.size, dtype=np.int64)
            larger[: self._filled] = self._order[: self._filled]
            self._order = larger
        while self._filled < count:
            epoch = self._filled // self.size
            permutation = generator(self.seed, "epoch", self.name, epoch).permutation(self.size)
            self._order[self._filled : self._filled + self.size] = permutation
            self._filled += self.size
        return self._order[self.start : count]

    def jitter(self, count: int) -> Float64:
        """Return the relative point, in [0, 1), of each of the first `count` draws within its interval."""
        return generator(self.seed, "place", self.name, *([self.start] if self.start else [])).random(count)

    def until(self, amount: float) -> int:
        """Return the number of draws whose total cost is closest to `amount`."""
        # Any `size` consecutive draws that begin with an epoch cost the same; `rest` begins there.
        lead = -self.start % self.size
        lead_cost = int(self.cost[self.first(lead)].sum())
        per_epoch = int(self.cost.sum())
        epochs = max(0, int((amount - lead_cost) // per_epoch))
        skipped = lead + epochs * self.size if amount >= lead_cost else 0
        rest = amount - (lead_cost + epochs * per_epoch) if skipped else amount
        ends = np.cumsum(self.cost[self.first(skipped + 2 * self.size)[skipped:]])
        index = int(np.searchsorted(ends, rest))
        below = int(ends[index - 1]) if index else 0
        return skipped + index + (index < len(ends) and ends[index] - rest < rest - below)


@dataclass(frozen=True)
class Stream:
    """The ordered draws of all tasks. task: index of the task; draw: index in the task's sequence; both [n]."""

    task: Int64
    draw: Int64

    def __len__(self) -> int:
        return len(self.task)

    def first(self, count: int) -> Stream:
        """Return the first `count` draws."""
        return Stream(self.task[:count], self.draw[:count])


def stream(draws: Sequence[Draws], shares: Sequence[float], amount: float) -> Stream:
    """Return the stream up to a total cost of `amount` over all tasks.

    Args:
        draws: one per task
        shares: one per task, summing to 1
        amount: in the mixture's unit
    """
    counts = []
    for source, share in zip(draws, shares, strict=True):
        # All draws whose interval starts before `amount`.
        epochs = int(share * amount // int(source.cost.sum())) + 1 + (source.start > 0)
        ends = np.cumsum(source.cost[source.first(epochs * source.size)])
        counts.append(int(np.searchsorted(ends, share * amount, side="left")) + 1)
    ordered, points = _ordered(draws, shares, counts)
    return ordered.first(int(np.searchsorted(points, amount)))


def in_order(draws: Sequence[Draws], counts: Sequence[int]) -> Stream:
    """Return the stream of exactly the first `counts` draws of each task, with every task spread evenly."""
    amounts = [float(source.cost[source.first(count)].sum()) for source, count in zip(draws, counts, strict=True)]
    total = sum(amounts)
    return _ordered(draws, [amount / total for amount in amounts], counts)[0]


def _ordered(draws: Sequence[Draws], shares: Sequence[float], counts: Sequence[int]) -> tuple[Stream, Float64]:
    """Return the first `counts` draws of each task, sorted by their points, and the points."""
    points, tasks, indices = [], [], []
    for index, (source, share, count) in enumerate(zip(draws, shares, counts, strict=True)):
        if not count:
            continue
        cost = source.cost[source.first(count)].astype(np.float64)
        starts = np.cumsum(cost) - cost
        points.append((starts + source.jitter(count) * cost) / share)
        tasks.append(np.full(count, index, dtype=np.int64))
        indices.append(np.arange(count, dtype=np.int64))
    order = np.argsort(np.concatenate(points), kind="stable")
    return Stream(np.concatenate(tasks)[order], np.concatenate(indices)[order]), np.concatenate(points)[order]


def exact_counts(draws: Sequence[Draws], shares: Sequence[float], total: int) -> list[int]:
    """Split `total` draws among the tasks so that their costs match the requested shares.

    With examples as the unit, each count is within one of its exact quota. With tokens, the actual share of each task
    is as close to the requested share as whole examples allow.
    """
    names = [source.name for source in draws]
    if all((source.cost == 1).all() for source in draws):
        counts = apportion(total, dict(zip(names, shares, strict=True)))
        return [counts[name] for name in names]
    means = [float(source.cost.mean()) for source in draws]
    low, high = 0.0, 2.0 * total * max(means) + 1
    for _ in range(60):  # bisection on the total amount
        middle = (low + high) / 2
        if sum(source.until(share * middle) for source, share in zip(draws, shares, strict=True)) < total:
            low = middle
        else:
            high = middle
    rounded = [source.until(share * high) for source, share in zip(draws, shares, strict=True)]
    while sum(rounded) != total:
        rounded = _adjust_by_one(draws, shares, rounded, +1 if sum(rounded) < total else -1)
    return rounded


def _adjust_by_one(draws: Sequence[Draws], shares: Sequence[float], counts: list[int], step: int) -> list[int]:
    """Add (or remove) one draw of the task that is farthest below (above) its share."""
    amounts = [float(source.cost[source.first(count)].sum()) for source, count in zip(draws, counts, strict=True)]
    total = sum(amounts)
    deficits = [
        step * (share * total - amount) if count + step >= 0 else -np.inf
        for share, amount, count in zip(shares, amounts, counts, strict=True)
    ]
    farthest = int(np.argmax(deficits))
    return [count + step * (index == farthest) for index, count in enumerate(counts)]
