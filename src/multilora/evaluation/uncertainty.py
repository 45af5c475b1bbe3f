"""Standard errors: by the formula for right-or-wrong outcomes, by the bootstrap for everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from multilora.evaluation.metrics import OUTCOME_METRICS
from multilora.tasks.base import Example, Task

# Enough for a standard error (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 6.4).
RESAMPLES = 200


def outcome_stderr(mean: float, n: int) -> float:
    """Standard error of the mean of n outcomes of 0 or 1: sqrt(p (1 - p) / (n - 1)), 0 for a single one."""
    return math.sqrt(mean * (1 - mean) / (n - 1)) if n > 1 else 0.0


def main_stderr(task: Task, examples: Sequence[Example], predictions: Sequence[str]) -> float:
    """Standard error of a task's main metric.

    Where that is no mean over right-or-wrong examples: the standard deviation of the metric over `RESAMPLES`
    bootstrap samples, always the same ones, of whole groups if the task is scored by groups and else of examples.
    """
    name, value = next(iter(task.score(examples, predictions).items()))
    if name in OUTCOME_METRICS:
        return outcome_stderr(value, len(examples))
    units: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        units.setdefault(example["group"] if task.whole_groups else str(place), []).append(place)
    members = list(units.values())
    if len(members) < 2:
        return 0.0
    generator = np.random.default_rng(0)
    values = []
    for _ in range(RESAMPLES):
        drawn_examples: list[Example] = []
        drawn_predictions: list[str] = []
        for copy, unit in enumerate(generator.integers(len(members), size=len(members))):
            for place in members[unit]:
                # A group that is drawn twice counts as two groups.
                drawn_examples.append({**examples[place], "group": f"{copy}"} if task.whole_groups else examples[place])
                drawn_predictions.append(predictions[place])
        values.append(next(iter(task.score(drawn_examples, drawn_predictions).values())))
    return float(np.std(values, ddof=1))
