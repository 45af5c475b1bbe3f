"""The score of one model on one task."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TaskScore:
    """One model on one task.

    metric: name of the task's main metric, or `none`
    value: the main metric, in [0, 1]; None if there is none
    stderr: standard error of the value
    n: examples
    loss: mean nats per response token, end token included, over the same examples
    truncated: prompts that lost their start
    dropped: examples left out because a response alone is too long, as in training
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
        """One number, larger is better: the main metric (negated if it is an error rate), or minus the loss."""
        if self.value is None:
            return -self.loss
        return self.value if self.higher_is_better else -self.value
