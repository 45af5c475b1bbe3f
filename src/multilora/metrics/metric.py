"""The `Metric` class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from multilora.errors import RunError
from multilora.example import Example, references_of


@dataclass(frozen=True)
class Metric:
    """A score in [0, 1] for a task's answers.

    Args:
        function: with `per="item"`, `function(references, prediction)` scores one answer against the list of its
            correct answers, and the metric is the mean over examples; with `per="set"`,
            `function(examples, predictions)` scores all answers of the task together
        answers: the kind of answer it scores: the text of the model's `choice`, or generated `text`
        per: `item` or `set`; the function of a set can be a `multilora.metrics.sums.SumMetric`, whose standard error is
            cheap
        higher_is_better: False for error rates
        whole_text: compare the whole generated text instead of its final answer, see `Task.final_answer`
        also: names of metrics in the table to report with this one
        requires: a package that `function` imports, if it is not a dependency of multilora
    """

    function: Callable[..., float]
    answers: Literal["choice", "text"] = "text"
    per: Literal["item", "set"] = "item"
    higher_is_better: bool = True
    whole_text: bool = False
    also: tuple[str, ...] = ()
    requires: str | None = None

    def values(self, examples: Sequence[Example], predictions: Sequence[str]) -> list[float]:
        """One value per example with `per="item"`, a single value for all of them with `per="set"`."""
        if self.per == "set":
            return [self._checked(self.function(examples, predictions), "the whole set")]
        return [
            self._checked(self.function(references_of(example), prediction), repr(prediction))
            for example, prediction in zip(examples, predictions, strict=True)
        ]

    def __call__(self, examples: Sequence[Example], predictions: Sequence[str]) -> float:
        """The value of the metric for a task.

        Args:
            examples: at least one
            predictions: the answers, one per example

        Raises:
            RunError: `function` returned something other than a number in [0, 1].
        """
        values = self.values(examples, predictions)
        return sum(values) / len(values)

    def _checked(self, value: Any, scored: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 1:
            name = getattr(self.function, "__qualname__", repr(self.function))
            raise RunError(f"metric {name}: returned {value!r} for {scored[:80]}, expected a number from 0 to 1")
        return number
