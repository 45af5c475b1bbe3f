"""Standard errors: by the formula for means over examples, by the bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from multilora.example import Example
from multilora.tasks.base import Task

# Enough for a standard error (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 6.4).
RESAMPLES = 200


def mean_stderr(values: Sequence[float]) -> float:
    """Standard error of the mean of n values, s / sqrt(n); sqrt(p (1 - p) / (n - 1)) for outcomes of 0 or 1.

    0 for a single value.
    """
    n = len(values)
    return float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0


def main_stderr(task: Task, examples: Sequence[Example], predictions: Sequence[str]) -> float:
    """Standard error of a task's main metric.

    If that is not a mean over examples: the standard deviation of the metric over `RESAMPLES` bootstrap samples,
    always the same ones, of whole groups if the task is scored by groups and of examples if not.
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
                # A group that is drawn twice counts as two groups.
                drawn = {**examples[index], "group": f"{copy}"} if task.whole_groups else examples[index]
                drawn_examples.append(drawn)
                drawn_predictions.append(predictions[index])
        values.append(task.score(drawn_examples, drawn_predictions)[name])
    return float(np.std(values, ddof=1))
