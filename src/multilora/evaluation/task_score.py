"""The score of one model on one task."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TaskScore:
    """The score of one model on one task.

    metric: name of the task's main metric, or `none`
    value: the main metric, in [0, 1]; None if there is none
    stderr: standard error of the value; None if it cannot be known from one example or one cluster
    interval: 95 % confidence interval of the value
    clusters: number of clusters of dependent examples that the error counts, such as passages; None if there are none
    n: number of examples
    loss: mean nats per response token, including the end token, over the same examples
    truncated: number of prompts that were truncated on the left
    dropped: number of examples dropped because a response alone is too long, as in training
    near_ties: questions whose two most likely choices are closer than rounding
    end_scored: questions with a choice that begins another, whose end tokens are therefore scored too
    unfinished: generated responses that reached the maximum length
    metrics: name -> value of every metric of the task, the main one first
    higher_is_better: False if the main metric is an error rate
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
    near_ties: int = 0
    end_scored: int = 0
    unfinished: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    higher_is_better: bool = True

    @property
    def merit(self) -> float:
        """The main metric (negated if it is an error rate), or minus the loss; higher is better."""
        if self.value is None:
            return -self.loss
        return self.value if self.higher_is_better else -self.value
