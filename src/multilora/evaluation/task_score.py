"""The score of one model on one task."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TaskScore:
    """The score of one model on one task.

    metric: name of the task's main metric, or `none`
    value: the main metric, in [0, 1]; None if there is none
    stderr: standard error of the value
    n: number of examples
    loss: mean nats per response token, including the end token, over the same examples
    truncated: number of prompts that were truncated on the left
    dropped: number of examples dropped because a response alone is too long, as in training
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
    metrics: dict[str, float] = field(default_factory=dict)
    higher_is_better: bool = True

    @property
    def merit(self) -> float:
        """The main metric (negated if it is an error rate), or minus the loss; higher is better."""
        if self.value is None:
            return -self.loss
        return self.value if self.higher_is_better else -self.value
