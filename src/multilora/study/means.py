"""Means of scores over tasks."""

from __future__ import annotations

from collections.abc import Mapping

from multilora.evaluation.task_score import TaskScore


def mean_value(scores: Mapping[str, TaskScore]) -> float:
    """Return the mean of the main metrics, over the tasks that have one; NaN without any."""
    values = [score.value for score in scores.values() if score.value is not None]
    return sum(values) / len(values) if values else float("nan")


def mean_loss(scores: Mapping[str, TaskScore]) -> float:
    """Return the mean loss over tasks, in nats per response token."""
    return sum(score.loss for score in scores.values()) / len(scores)
