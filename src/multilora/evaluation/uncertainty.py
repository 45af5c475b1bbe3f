"""Standard errors: in closed form for means over examples, by bootstrap for other metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from multilora.example import Example
from multilora.tasks.base import Task

# Enough for a standard error (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 6.4).
RESAMPLES = 200


def mean_stderr(values: Sequence[float]) -> float:
    """Compute the standard error of the mean of n values, s / sqrt(n); 0 for a single value.

    For values of 0 or 1 with mean p, this is sqrt(p (1 - p) / (n - 1)).
    """
    n = len(values)
    return float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0


def main_stderr(task: Task, examples: Sequence[Example], predictions: Sequence[str]) -> float:
    """Compute the standard error of a task's main metric.

    If the metric is not a mean over examples, this is its standard deviation over `RESAMPLES` bootstrap samples, with a
    fixed seed. Groups are resampled if the task is scored by groups, else examples.
    """
    name = next(iter(task.score(examples, predictions)))
    if task.main_metric is not None and task.main_metric[0] == name and task.main_metric[1].per == "item":
        return mean_stderr(task.main_metric[1].values(examples, task.answers(predictions)))
    units: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        units.setdefault(example["group"] if task.whole_groups else str(index), []).append(index)
    members = list(units.values())
    if len(members) < 2:
        return 0.0
    generator = np.random.default_rng(0)
    values = []
    for _ in range(RESAMPLES):
        drawn_examples: list[Example] = []
        drawn_predictions: list[str] = []
        for copy, unit in enumerate(generator.integers(len(members), size=len(members))):
            for index in members[unit]:
                # A group drawn twice counts as two groups.
                drawn = {**examples[index], "group": f"{copy}"} if task.whole_groups else examples[index]
                drawn_examples.append(drawn)
                drawn_predictions.append(predictions[index])
        values.append(task.score(drawn_examples, drawn_predictions)[name])
    return float(np.std(values, ddof=1))
