"""Paired differences between two methods over seeds and items, both of which are samples.

Every seed is scored on the same items, so seeds and items are crossed. With d the difference on seed s and item i,

    d_si = mean + seed_s + item_i + rest_si

the variance of the mean over S seeds and the items is that of the seeds' means, plus that of the items' means, less
their common part, which both contain:

    variance = V_seeds + max(V_items - V_rest, 0)

Each part has its own number of units, which are few for seeds, so the margin of the 95 % interval is

    margin^2 = t(S - 1)^2 V_seeds + t(G - 1)^2 max(V_items - V_rest, 0)

with G items or clusters. The means of a few seeds may be nearly equal by chance, so the margin is at least that of the
items alone, t(G - 1) sqrt(max(V_items, V_rest)). In the simulations of tests/study/test_crossed.py this covers 0.95 to
0.99 with 5 seeds, and more with fewer. The percentile bootstrap that resamples seeds and then items covers as little as
0.7, because a few seeds resampled vary less than new ones, and Satterthwaite's single number of degrees of freedom 0.88
with 2 seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from multilora.errors import InputError
from multilora.evaluation.statistics.intervals import LEVEL, Floats, Indices, t_probability

# From this number of degrees of freedom, Student's t is a normal distribution to within 1 % of its width.
MANY = 200


@dataclass(frozen=True)
class Difference:
    """The difference between two methods, second minus first.

    difference: mean over tasks of the mean over seeds and items
    low, high: bounds of the 95 % interval; infinite if it cannot be known
    stderr: standard error; None if it cannot be known
    seeds: number of seeds
    over: what the interval accounts for: `seeds and items`, `items` (a single seed) or `seeds`
    spread: the parts of the variance of the mean, each with its degrees of freedom
    least: those of a smaller variance, below which the margin does not fall
    """

    difference: float
    low: float
    high: float
    stderr: float | None
    seeds: int
    over: str
    spread: tuple[tuple[float, int], ...]
    least: tuple[tuple[float, int], ...] = ()

    @property
    def p_value(self) -> float:
        """Of the hypothesis that there is no difference: the p-value at which the interval just contains 0."""
        if self.difference == 0 or self.stderr is None:
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.margin(middle) > abs(self.difference) else (low, middle)
        return high

    def margin(self, p_value: float) -> float:
        """Half the width of the interval that leaves out `p_value`."""
        return max(_margin(self.spread, p_value), _margin(self.least, p_value))


@dataclass(frozen=True)
class TaskDifferences:
    """Differences on the items of one task.

    values: [seeds, items]
    clusters: index of each item's cluster, [items], from 0; items of one cluster are not independent
    """

    values: Floats
    clusters: Indices


def crossed_difference(tasks: Mapping[str, TaskDifferences]) -> Difference:
    """Compute the difference of the mean over tasks, with an interval over seeds and items.

    With one seed, the interval is over items only and says nothing about other seeds.

    Args:
        tasks: task -> differences; all with the same seeds, in the same order

    Raises:
        InputError: no task, no item, or numbers of seeds that differ.
    """
    counts = {len(task.values) for task in tasks.values()}
    if len(counts) != 1 or any(task.values.size == 0 for task in tasks.values()):
        raise InputError(f"{len(tasks)} tasks with {sorted(counts)} seeds; expected items of the same seeds")
    (seeds,) = counts
    by_seed = np.mean([task.values.mean(axis=1) for task in tasks.values()], axis=0)
    parts = [_item_variances(task) for task in tasks.values()]
    items, rest = (sum(part[index] for part in parts) / len(parts) ** 2 for index in (0, 1))
    smallest = min(clusters for _, _, clusters in parts)
    if seeds == 1:
        return _finish(float(by_seed[0]), ((items, smallest - 1),), seeds, "items")
    spread = ((float(by_seed.var(ddof=1)) / seeds, seeds - 1), (max(items - rest, 0.0), smallest - 1))
    least = ((max(items, rest), smallest - 1),)
    return _finish(float(by_seed.mean()), spread, seeds, "seeds and items", least)


def seed_difference(values: Sequence[float]) -> Difference:
    """Compute the mean difference over seeds, for what is not kept per item; its interval is over seeds only.

    Args:
        values: one difference per seed
    """
    seeds = len(values)
    variance = float(np.var(values, ddof=1)) / seeds if seeds > 1 else 0.0
    return _finish(float(np.mean(values)), ((variance, seeds - 1),), seeds, "seeds")


def _item_variances(task: TaskDifferences) -> tuple[float, float, int]:
    """Return the variance of the mean over items, its part that differs between seeds, and the number of clusters.

    Clusters count as units, with the usual factor G / (G - 1).
    """
    seeds, n = task.values.shape
    count = int(task.clusters.max()) + 1
    if count < 2:
        return 0.0, 0.0, count
    residuals = task.values - task.values.mean(axis=1, keepdims=True)
    sums = np.stack([np.bincount(task.clusters, row, count) for row in residuals]) / n  # [seeds, clusters]
    factor = count / (count - 1)
    variance = factor * float((sums.mean(axis=0) ** 2).sum())
    common = factor * float(sums.var(axis=0, ddof=1).sum()) / seeds if seeds > 1 else 0.0
    return variance, common, count


def _finish(
    difference: float,
    spread: tuple[tuple[float, int], ...],
    seeds: int,
    over: str,
    least: tuple[tuple[float, int], ...] = (),
) -> Difference:
    """Add the interval; see `Difference`."""
    if any(freedom < 1 for _, freedom in spread):  # a single seed, or a single cluster
        return Difference(difference, -math.inf, math.inf, None, seeds, over, spread)
    stderr = math.sqrt(max(sum(part for part, _ in parts) for parts in (spread, least)))
    point = Difference(difference, difference, difference, stderr, seeds, over, spread, least)
    margin = point.margin(1 - LEVEL)
    return replace(point, low=difference - margin, high=difference + margin)


def _margin(spread: tuple[tuple[float, int], ...], p_value: float) -> float:
    return math.sqrt(sum(_quantile(freedom, p_value) ** 2 * part for part, freedom in spread))


@lru_cache(maxsize=10_000)
def _quantile(freedom: int, p_value: float) -> float:
    """The t that Student's t with `freedom` degrees of freedom exceeds in absolute value with this probability."""
    if freedom > MANY:
        return NormalDist().inv_cdf(1 - p_value / 2)
    low, high = 0.0, math.pi / 2
    for _ in range(50):
        middle = (low + high) / 2
        outside = 1 - t_probability(math.sqrt(freedom) * math.tan(middle), freedom)
        low, high = (middle, high) if outside > p_value else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979): any of them below 0.05 is wrong with a probability below 5 %."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
