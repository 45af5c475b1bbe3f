"""Scores of one task and their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TaskScore:
    """One model on one task.

    metric: accuracy, exact_match or none; value: in [0, 1], None for `none`; n: examples; stderr: standard error of
    the value; loss: mean nats per response token (end token included), over the same examples; truncated: prompts that
    lost their start; dropped: examples left out because a response alone is too long, as in training.
    """

    metric: str
    value: float | None
    stderr: float | None
    n: int
    loss: float
    truncated: int
    dropped: int


def mean_and_stderr(right: list[bool]) -> tuple[float, float]:
    """The mean of 0/1 outcomes and its standard error, sqrt(p (1 - p) / (n - 1)), 0 for a single one."""
    n = len(right)
    p = sum(right) / n
    return p, math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else 0.0
