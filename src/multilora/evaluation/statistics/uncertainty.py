"""Standard errors and 95 % intervals of a task's main metric.

- mean over examples: s / sqrt(n); Wilson's interval for values of 0 or 1
- mean over examples in clusters (questions about one passage): cluster-robust, t with G - 1 degrees of freedom
- metric of the whole set (F1, BLEU): jackknife over clusters or examples

The intervals are `score_interval`s. In simulations with 10 to 50 units, values from 0.05 to 0.95 and correlated
clusters they cover 0.90 to 0.99; value ± t standard errors 0.64 to 0.96, and the percentile bootstrap 0.70 to 0.97.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from multilora.errors import InputError
from multilora.evaluation.statistics.intervals import (
    Floats,
    Indices,
    clustered_stderr,
    indices_of,
    mean_stderr,
    normal_quantile,
    score_interval,
    t_quantile,
)
from multilora.example import Example
from multilora.metrics.sums import SumMetric
from multilora.tasks.base import Task

# The standard error of a metric that must be computed anew for every deleted unit is itself accurate to 10 %.
DELETED_GROUPS = 50
# Limits the memory of the sums: 160 MB.
MOST_SUMS = 20_000_000

Score = Callable[[Sequence[Example], Sequence[str]], float]


@dataclass(frozen=True)
class Uncertainty:
    """The standard error and the 95 % interval of a score.

    stderr: None if there is only one item or cluster; 0 if all items are equal (the interval is not empty then)
    low, high: bounds of the interval, in [0, 1]
    method: how they were computed
    clusters: number of clusters; None if the examples are independent
    """

    stderr: float | None
    low: float
    high: float
    method: str
    clusters: int | None


def main_uncertainty(task: Task, examples: Sequence[Example], predictions: Sequence[str]) -> Uncertainty:
    """Compute the uncertainty of a task's main metric.

    Args:
        task: a task with a metric
        examples: the examples that were answered, at least one
        predictions: as for `Task.score`

    Raises:
        InputError: the task has no metric.
    """
    units, clusters = _units(task, examples)
    main = task.main_metric if type(task).score is Task.score else None
    if main is None:
        name = next(iter(task.score(examples, predictions)), None)
        if name is None:
            raise InputError(f"task {task.name!r} has no metric, so it has no standard error; set its metric")
        return _jackknife(lambda e, p: task.score(e, p)[name], examples, predictions, units, clusters)
    metric = main[1]
    answers = list(predictions) if metric.whole_text else task.answers(predictions)
    if metric.per == "item":
        return mean_uncertainty(metric.values(examples, answers), units if clusters else None)
    if isinstance(metric.function, SumMetric):
        return _jackknife_of_sums(metric.function, examples, answers, units, clusters)
    return _jackknife(metric, examples, answers, units, clusters)


def mean_uncertainty(values: Sequence[float], clusters: Indices | None = None) -> Uncertainty:
    """Compute the uncertainty of a mean of values in [0, 1].

    Args:
        values: one per item
        clusters: index of each item's cluster, from 0; None if the items are independent
    """
    n, mean = len(values), float(np.mean(values))
    if clusters is not None:
        count = int(clusters.max()) + 1
        return _finish(mean, clustered_stderr(values, clusters), count, "clustered", count)
    stderr = mean_stderr(values)
    if set(values) <= {0.0, 1.0}:
        binomial = math.sqrt(mean * (1 - mean) / n)  # Wilson's interval has n in place of n - 1
        return Uncertainty(stderr, *score_interval(mean, binomial, n, normal_quantile()), "wilson", None)
    return _finish(mean, stderr, n, "mean", None)


def _units(task: Task, examples: Sequence[Example]) -> tuple[Indices, int | None]:
    """The index of each example's independent unit, and the number of clusters (None without clusters)."""
    names = [task.cluster_of(example) for example in examples]
    units = indices_of([name or index for index, name in enumerate(names)])
    count = int(units.max()) + 1
    return units, count if count < len(examples) else None


def _jackknife_of_sums(
    metric: SumMetric, examples: Sequence[Example], answers: Sequence[str], units: Indices, clusters: int | None
) -> Uncertainty:
    total = metric.sums(examples, answers, np.zeros_like(units), 1)
    count = int(units.max()) + 1
    if count * total.shape[1] > MOST_SUMS:
        units = _grouped(units)
        count = int(units.max()) + 1
    without = metric.combine(total - metric.sums(examples, answers, units, count))
    return _from_jackknife(float(metric.combine(total)[0]), without, clusters)


def _jackknife(
    score: Score, examples: Sequence[Example], predictions: Sequence[str], units: Indices, clusters: int | None
) -> Uncertainty:
    """Delete one of at most `DELETED_GROUPS` groups of units at a time (Kott 2001, "The delete-a-group jackknife")."""
    groups = _grouped(units)
    without = []
    for group in range(int(groups.max()) + 1):
        kept = np.flatnonzero(groups != group)
        if len(kept):
            without.append(score([examples[int(i)] for i in kept], [predictions[int(i)] for i in kept]))
    return _from_jackknife(score(examples, predictions), np.asarray(without), clusters)


def _grouped(units: Indices) -> Indices:
    """Put the units into at most `DELETED_GROUPS` groups at random, always the same."""
    count = int(units.max()) + 1
    group_of_unit: Indices = np.random.default_rng(0).permutation(count) % min(count, DELETED_GROUPS)
    return group_of_unit[units]


def _from_jackknife(value: float, without: Floats, clusters: int | None) -> Uncertainty:
    count = len(without)
    stderr = math.sqrt((count - 1) / count * float(((without - value) ** 2).sum())) if count > 1 else None
    return _finish(value, stderr, count, "jackknife", clusters)


def _finish(value: float, stderr: float | None, units: int, method: str, clusters: int | None) -> Uncertainty:
    """Add the interval, with as many degrees of freedom as there are units, less one."""
    if stderr is None:  # a single unit says nothing about the others
        return Uncertainty(None, 0.0, 1.0, method, clusters)
    quantile = t_quantile(units - 1)
    if 0 <= value <= 1:
        low, high = score_interval(value, stderr, units, quantile)
    else:  # a task's own `score` may have another scale
        low, high = value - quantile * stderr, value + quantile * stderr
    return Uncertainty(stderr, low, high, method, clusters)
