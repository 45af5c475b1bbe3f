"""The score of one model on one task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TaskScore:
    """The score of one model on one task.

    metric: name of the task's main metric, or `none`
    value: the main metric, in [0, 1]; None if there is none
    stderr: standard error of the value; None if it cannot be known from one example or one cluster
    interval: 95 % confidence interval of the value
    clusters: number of clusters of dependent examples that the error counts, such as passages; None if there are none
    n: number of examples
    loss: mean nats per response token, including the end token, in this package's prompts
    loss_n: number of examples of the loss; None if they are those of the value
    truncated: number of prompts that were truncated on the left; this and the other counts are of the loss with lm-eval
    dropped: number of examples dropped because a response alone is too long, as in training
    near_ties: questions whose two most likely choices are closer than rounding
    end_scored: questions with a choice that begins another, whose end tokens are therefore scored too
    unfinished: generated responses that reached the maximum length
    fewer_shots: questions with fewer shots than `shots`, because all of them do not fit
    metrics: name -> value of every metric of the task, the main one first
    parts: kind of part -> name of the part -> value, stderr and n of the main metric, such as MMLU's subjects
    higher_is_better: False if the main metric is an error rate
    shots: solved examples before each question
    protocol: whose prompts and metrics, and the shots: `ours, 0-shot`, or `lm-eval 0.4.13: gsm8k v3.0, 5-shot`
    harness: for a score of lm-eval, its version, the task and its version, and metric -> value, stderr and filter
    """

    metric: str
    value: float | None
    stderr: float | None
    n: int
    loss: float
    truncated: int
    dropped: int
    interval: list[float] | None = None
    clusters: int | None = None
    loss_n: int | None = None
    near_ties: int = 0
    end_scored: int = 0
    unfinished: int = 0
    fewer_shots: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    parts: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    higher_is_better: bool = True
    shots: int = 0
    protocol: str = "ours, 0-shot"
    harness: dict[str, Any] | None = None

    @property
    def merit(self) -> float:
        """The main metric (negated if it is an error rate), or minus the loss; higher is better."""
        if self.value is None:
            return -self.loss
        return self.value if self.higher_is_better else -self.value
